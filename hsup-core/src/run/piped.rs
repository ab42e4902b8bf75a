//! `run` without a terminal: the dyno's output, error and input are copied as they are.

use std::{
    fs::File,
    future::{pending, ready},
    os::fd::OwnedFd,
    path::Path,
};

use super::{RunCommandError, company::Company, outputs::Outputs, stdin::StdinPump, system};
use crate::{driver::DriverLink, dyno::IoDir};

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
        company: &mut Company<'_>,
    ) -> Result<u8, RunCommandError> {
        let Self { io, stdin, output } = self;
        // The driver has opened its end, so ours opens at once; with none it has ended.
        let pump = match io.write_stdin() {
            Ok(sink) => StdinPump::start_standard(OwnedFd::from(sink)).ok(),
            Err(_) => None,
        };
        drop(stdin);
        let ended = company.until_end(&output, pending()).await?;
        // A driver of our own has nothing left to do, unless it would remember the dyno.
        if !company.driver.get().dynos_outlive_it() {
            link.begin_to_end();
        }
        if let Some(pump) = &pump {
            pump.stop();
        }
        let cut_off = company.finish(&output, ready(()), &ended).await;
        output.code(&ended, cut_off)
    }
}
