//! `hsupctl`: asks a running hsup, and tells it what to do.

pub mod args;
pub mod change;
pub mod connect;
pub mod error;
pub mod logs;
pub mod ps;
pub mod view;

use std::{
    ffi::OsString,
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
};

use hsup_core::errors::chain;

use self::{
    args::{Command, Invocation},
    error::{CtlError, OK},
};
use crate::{
    moment::Moment,
    style::{Colour, Style},
};

/// Runs hsupctl with these arguments, the program's name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let invocation = match args::parse(args) {
        Ok(invocation) => invocation,
        Err(error) => {
            // Help goes to stdout and ends with 0, a usage error to stderr and ends with 2.
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            // Nothing is left to be told when even this cannot be written.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CtlError::Runtime)
        .and_then(|runtime| runtime.block_on(run(invocation)));
    ExitCode::from(result.unwrap_or_else(|error| {
        report(&error);
        error.code()
    }))
}

/// Says on stderr what went wrong, and what could help.
fn report(error: &CtlError) {
    if error.is_broken_pipe() {
        return;
    }
    let mut stderr = io::stderr().lock();
    let word = Style::of(&stderr).paint(Colour::Red, "error:");
    let mut text = match error {
        // The Heroku CLI's own words.
        CtlError::NoDynos { .. } => format!("{error}\n"),
        _ => format!("{word} {}\n", chain(error)),
    };
    if let Some(hint) = error.hint() {
        text.push_str("hint: ");
        text.push_str(hint);
        text.push('\n');
    }
    // Nothing is left to be told when even this cannot be written.
    drop(stderr.write_all(text.as_bytes()));
}

async fn run(invocation: Invocation) -> Result<u8, CtlError> {
    let mut output = io::BufWriter::new(io::stdout());
    let style = Style::of(&io::stdout());
    let code = carry_out(invocation, &mut output, style).await?;
    output.flush().map_err(CtlError::Output)?;
    Ok(code)
}

async fn carry_out(
    invocation: Invocation,
    output: &mut (impl Write + Send),
    style: Style,
) -> Result<u8, CtlError> {
    let Invocation { target, command } = invocation;
    if let Command::Completions(completions) = command {
        completions.run(output).map_err(CtlError::Output)?;
        return Ok(OK);
    }
    let client = &mut connect::connect(&target).await?;
    match command {
        Command::Ps(ps) => {
            let report = ps.run(client, Moment::now(), style).await?;
            print(output, &report)?;
            return Ok(report.code());
        }
        Command::Logs(logs) => logs.run(client, output, style).await?,
        Command::Scale(scale) => scale.run(client, output).await?,
        Command::Start(start) => start.run(client, output).await?,
        Command::Stop(stop) => stop.run(client, output).await?,
        Command::Restart(restart) => restart.run(client, output).await?,
        Command::Shutdown(shutdown) => shutdown.run(client, output).await?,
        Command::Completions(_) => {}
    }
    Ok(OK)
}

fn print(output: &mut impl Write, report: &impl Display) -> Result<(), CtlError> {
    write!(output, "{report}").map_err(CtlError::Output)
}
