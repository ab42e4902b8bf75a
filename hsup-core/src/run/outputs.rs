//! The copies of a dyno's two outputs, and what they mean for hsup's exit code.

use std::{
    io::{self, IsTerminal as _},
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::write,
};
use tokio::{sync::watch, time::sleep};

use super::{RunCommandError, code_of, company::Ended, output::OutputPump, signals::Signals};

/// What a shell answers for a command that its reader left (128 + SIGPIPE).
const BROKEN_PIPE: u8 = 141;
/// And for one whose terminal hung up (128 + SIGHUP).
const HANGUP: u8 = 129;
/// How long the last bytes of a command that was ended by a signal may take to be written.
/// Those of one that ended by itself have all the time of the world.
const LAST_BYTES_WITHIN: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(super) struct Outputs {
    stdout: OutputPump,
    stderr: OutputPump,
    /// Standard output is, or was, a terminal.
    at_terminal: bool,
    hung_up: watch::Sender<bool>,
}

/// Whoever reads the terminal learns first that it hung up.
#[derive(Clone, Debug)]
pub(super) struct HangUp(watch::Sender<bool>);

impl HangUp {
    /// Tells that there is no terminal any more.
    pub(super) fn tell(&self) {
        self.0.send_replace(true);
    }
}

impl Outputs {
    /// Copies what comes out of these two to hsup's own outputs.
    pub(super) fn copy(stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Self> {
        let (out, err) = (io::stdout(), io::stderr());
        Ok(Self {
            at_terminal: out.is_terminal(),
            stdout: OutputPump::start(stdout, out.as_fd().try_clone_to_owned()?)?,
            stderr: OutputPump::start(stderr, err.as_fd().try_clone_to_owned()?)?,
            hung_up: watch::Sender::new(false),
        })
    }

    /// What tells that the terminal hung up, should its output not be the first to know.
    pub(super) fn hang_up(&self) -> HangUp {
        HangUp(self.hung_up.clone())
    }

    /// Resolves when there is no use in the dyno's going on: nobody gets what it says.
    pub(super) async fn failed(&self) {
        let mut hung_up = self.hung_up.subscribe();
        tokio::select! {
            () = self.stdout.failed() => {}
            _ = hung_up.wait_for(|hung_up| *hung_up) => {}
        }
    }

    fn has_hung_up(&self) -> bool {
        let by_output = self.at_terminal && self.stdout.failure() == Some(Errno::EIO);
        by_output || *self.hung_up.borrow()
    }

    /// What a command would get whose own standard output this was.
    pub(super) fn signal(&self) -> &'static str {
        match self.stdout.failure() {
            _ if self.has_hung_up() => "SIGHUP",
            Some(Errno::EPIPE) => "SIGPIPE",
            _ => "SIGTERM",
        }
    }

    /// Waits until all of it is written, for as long as its readers take: first what is still
    /// `on_its_way` here. A signal cuts it off, and so does a moment without an end once there
    /// was one; answers hsup's exit code for the one that came now.
    pub(super) async fn finish(
        &self,
        on_its_way: impl Future<Output = ()>,
        signals: &mut Signals,
        is_wished: bool,
    ) -> Option<u8> {
        let written = async {
            on_its_way.await;
            self.stdout.finish();
            self.stderr.finish();
            tokio::join!(self.stdout.ended(), self.stderr.ended());
        };
        let patience = async {
            if is_wished || self.has_hung_up() {
                sleep(LAST_BYTES_WITHIN).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        let code = tokio::select! {
            biased;
            () = written => return None,
            wish = signals.next_for_hsup() => Some(wish.code()),
            () = patience => None,
        };
        say("hsup: the output was cut off: its reader took nothing\n");
        code
    }

    /// hsup's exit code: that of the signal which ended the command, or the command's own,
    /// unless its output did not get out.
    pub(super) fn code(&self, ended: &Ended, cut_off: Option<u8>) -> Result<u8, RunCommandError> {
        if let Some(code) = cut_off.or(ended.signalled) {
            return Ok(code);
        }
        match self.stdout.failure() {
            _ if self.has_hung_up() => Ok(HANGUP),
            None => code_of(&ended.status),
            Some(Errno::EPIPE) => Ok(BROKEN_PIPE),
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
