//! `run` without a terminal: the dyno's output, error and input are copied as they are.

use std::{
    fs::File,
    io::{self, IsTerminal as _},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::write,
};
use tokio::time::sleep;

use super::{
    RunCommandError, Signals, code_of, forget, output::OutputPump, stdin::StdinPump, stop, system,
    wait,
};
use crate::{
    driver::{DriverLink, Up},
    dyno::IoDir,
    exit::ExitStatus,
    name::DynoId,
};

/// What a shell answers for a command that its reader left (128 + SIGPIPE).
const BROKEN_PIPE: u8 = 141;
/// And for one whose terminal hung up (128 + SIGHUP).
const HANGUP: u8 = 129;
/// How long the last bytes of a command that was ended by a signal may take to be written.
/// Those of one that ended by itself have all the time of the world.
const LAST_BYTES_WITHIN: Duration = Duration::from_secs(2);

/// The FIFOs of the dyno, read already.
#[derive(Debug)]
pub(super) struct Pipes {
    io: IoDir,
    /// Our hold on its input, until the driver has opened its end.
    stdin: File,
    output: Outputs,
}

impl Pipes {
    /// Makes the FIFOs in `run_dir` and begins to copy what comes out of them.
    pub(super) fn lay(run_dir: &Path) -> Result<Self, RunCommandError> {
        let io = IoDir::at(run_dir.join("io"));
        io.make(true)?;
        let ends = io.open_output()?;
        let stdin = io.hold_stdin()?;
        let output = Outputs::copy(ends.stdout, ends.stderr).map_err(system("copy the output"))?;
        Ok(Self { io, stdin, output })
    }

    /// Where the FIFOs are.
    pub(super) const fn io(&self) -> &IoDir {
        &self.io
    }

    /// Copies until the dyno has ended and everything is written; answers hsup's exit code.
    pub(super) async fn run(
        self,
        link: &DriverLink,
        up: &Up,
        dyno_id: &DynoId,
        signals: &mut Signals,
        grace: Duration,
    ) -> Result<u8, RunCommandError> {
        let Self { io, stdin, output } = self;
        // The driver has opened its end, so ours opens at once; with none it has ended.
        let pump = match io.write_stdin() {
            Ok(sink) => StdinPump::start_standard(OwnedFd::from(sink)).ok(),
            Err(_) => None,
        };
        drop(stdin);

        let wait = wait(up, dyno_id);
        tokio::pin!(wait);
        let mut signalled: Option<u8> = None;
        let mut is_told = false;
        let status = loop {
            tokio::select! {
                status = &mut wait => break status?,
                () = output.stdout.failed(), if !is_told => {
                    is_told = true;
                    stop(up, dyno_id, output.signal(), grace);
                }
                wish = signals.next() => {
                    let again = signalled.replace(wish.code()).is_some();
                    stop(up, dyno_id, wish.signal, if again { Duration::ZERO } else { grace });
                }
            }
        };
        // A driver of our own has nothing left to do.
        link.begin_to_end();
        if let Some(pump) = &pump {
            pump.stop();
        }
        let (cut_off, ()) = tokio::join!(
            output.finish(signals, signalled.is_some()),
            forget(up, dyno_id)
        );
        match cut_off.or(signalled) {
            Some(code) => Ok(code),
            None => output.code(&status),
        }
    }
}

/// The copies of a dyno's two outputs.
#[derive(Debug)]
struct Outputs {
    stdout: OutputPump,
    stderr: OutputPump,
    /// Standard output is, or was, a terminal.
    at_terminal: bool,
}

impl Outputs {
    fn copy(stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Self> {
        let (out, err) = (io::stdout(), io::stderr());
        Ok(Self {
            at_terminal: out.is_terminal(),
            stdout: OutputPump::start(stdout, out.as_fd().try_clone_to_owned()?)?,
            stderr: OutputPump::start(stderr, err.as_fd().try_clone_to_owned()?)?,
        })
    }

    /// What a command would get whose own standard output this was.
    fn signal(&self) -> &'static str {
        match self.stdout.failure() {
            Some(Errno::EPIPE) => "SIGPIPE",
            Some(Errno::EIO) if self.at_terminal => "SIGHUP",
            _ => "SIGTERM",
        }
    }

    /// Waits until all of it is written, for as long as its readers take. A signal cuts it off,
    /// and so does a moment without an end once there was one; answers hsup's exit code for the one
    /// that came now.
    async fn finish(&self, signals: &mut Signals, is_signalled: bool) -> Option<u8> {
        self.stdout.finish();
        self.stderr.finish();
        let patience = async {
            if is_signalled {
                sleep(LAST_BYTES_WITHIN).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        let code = tokio::select! {
            biased;
            _ = async { tokio::join!(self.stdout.ended(), self.stderr.ended()) } => return None,
            wish = signals.next() => Some(wish.code()),
            () = patience => None,
        };
        say("hsup: the output was cut off: its reader took nothing\n");
        code
    }

    /// The command's own code, unless its output did not get out.
    fn code(&self, status: &ExitStatus) -> Result<u8, RunCommandError> {
        match self.stdout.failure() {
            None => code_of(status),
            Some(Errno::EPIPE) => Ok(BROKEN_PIPE),
            Some(Errno::EIO) if self.at_terminal => Ok(HANGUP),
            Some(errno) => Err(RunCommandError::Write(errno.into())),
        }
    }
}

/// Says something on standard error, unless that takes nothing: hsup is about to end, and must.
fn say(text: &str) {
    let stderr = io::stderr();
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
        // Past the standard library's lock and into a pipe that has room. What fails has
        // nowhere to be told.
        let _: nix::Result<usize> = write(stderr.as_fd(), text.as_bytes());
    }
}
