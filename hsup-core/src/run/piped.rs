//! `run` without a terminal: the dyno's output, error and input are copied as they are.

use std::{fs::File, os::fd::OwnedFd, path::Path, time::Duration};

use super::{RunCommandError, Signals, code_of, forget, stop, system, wait};
use crate::{
    driver::{DriverLink, Up},
    dyno::IoDir,
    logs::{Format, LogSettings, Logs, StdinPump, TerminalSettings},
    name::{DynoId, DynoName},
};

/// What a shell answers for a command that its reader left (128 + SIGPIPE).
const BROKEN_PIPE: u8 = 141;
/// How long the last bytes may take to be written once the command has ended and the
/// reader still reads.
const LAST_BYTES_WITHIN: Duration = Duration::from_mins(1);

/// The FIFOs of the dyno, read already.
#[derive(Debug)]
pub(super) struct Pipes {
    dyno_id: DynoId,
    io: IoDir,
    /// Our hold on its input, until the driver has opened its end.
    stdin: File,
    logs: Logs,
}

impl Pipes {
    /// Makes the FIFOs in `run_dir` and begins to copy what comes out of them.
    pub(super) fn lay(
        run_dir: &Path,
        name: &DynoName,
        dyno_id: &DynoId,
    ) -> Result<Self, RunCommandError> {
        let io = IoDir::at(run_dir.join("io"));
        io.make(true)?;
        let output = io.open_output()?;
        let stdin = io.hold_stdin()?;
        let logs = TerminalSettings::standard(Format::Raw)
            .and_then(|terminal| {
                Logs::start(LogSettings {
                    terminal: Some(terminal),
                    // Nobody asks for the last lines of a one-off.
                    ring_bytes: 0,
                    ..LogSettings::default()
                })
            })
            .map_err(system("start the log router"))?;
        logs.add(dyno_id, name, output.stdout, output.stderr);
        Ok(Self {
            dyno_id: dyno_id.clone(),
            io,
            stdin,
            logs,
        })
    }

    /// Where the FIFOs are.
    pub(super) const fn io(&self) -> &IoDir {
        &self.io
    }

    /// Copies until the dyno has ended; answers its exit code.
    pub(super) async fn run(
        self,
        link: &DriverLink,
        up: &Up,
        signals: &mut Signals,
        grace: Duration,
    ) -> Result<u8, RunCommandError> {
        let Self {
            dyno_id,
            io,
            stdin,
            logs,
        } = self;
        // The driver has opened its end, so ours opens at once; with none it has ended.
        let pump = match io.write_stdin() {
            Ok(sink) => StdinPump::start_standard(OwnedFd::from(sink)).ok(),
            Err(_) => None,
        };
        drop(stdin);

        let wait = wait(up, &dyno_id);
        tokio::pin!(wait);
        let mut forced: Option<u8> = None;
        let status = loop {
            tokio::select! {
                status = &mut wait => break status?,
                error = logs.terminal_gone(), if forced.is_none() => {
                    tracing::debug!(%error, "standard output gone");
                    forced = Some(BROKEN_PIPE);
                    stop(up, &dyno_id, "SIGPIPE", grace);
                }
                (number, name) = signals.next() => {
                    let again = forced.replace(128 + number).is_some();
                    stop(up, &dyno_id, name, if again { Duration::ZERO } else { grace });
                }
            }
        };
        // A driver of our own has nothing left to do.
        link.begin_to_end();
        if let Some(pump) = &pump {
            pump.stop();
        }
        let terminal = logs.clone();
        tokio::join!(logs.shutdown(LAST_BYTES_WITHIN), forget(up, &dyno_id));
        match forced {
            Some(code) => Ok(code),
            None if terminal.is_terminal_gone() => Ok(BROKEN_PIPE),
            None => code_of(&status),
        }
    }
}
