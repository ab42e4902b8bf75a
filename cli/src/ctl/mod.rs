//! `hsupctl`: commands that ask a running hsup, and how their answers look.
//!
//! A command finds out and returns a report; a report is shown by its [`Report`](crate::look::Report),
//! a pure function; only [`main`] and the commands that stream write to standard output.

pub mod args;
pub mod connect;
pub mod driver;
pub mod dyno;
pub mod error;
pub mod events;
#[cfg(test)]
mod fake;
pub mod formation;
pub mod logs;
pub mod ps;
mod reader;
pub mod releases;
pub mod status;
mod top;
pub mod version;

use std::{
    env,
    io::{self, Write as _},
    os::fd::AsFd as _,
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory as _, Parser as _};
use clap_complete::Shell;
use hsup_core::{errors, paths::Paths, secrecy};
use serde::Serialize;
use tokio::time::timeout;
use tonic::{Response, Status};

use self::{
    args::{Cli, Command, DriverCommand, TargetArgs},
    connect::{ConnectError, Supervisor},
    error::CtlError,
};
use crate::look::{Look, json};

/// How long hsup may take to answer what needs no waiting for a dyno.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a command has to say, and its exit status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub text: String,
    /// For standard error, beside a text that programs read.
    pub complaint: String,
    pub code: u8,
}

impl Outcome {
    fn new(text: String, code: u8) -> Self {
        Self {
            text,
            complaint: String::new(),
            code,
        }
    }

    fn done(text: String) -> Self {
        Self::new(text, 0)
    }
}

/// Runs `hsupctl` with the process's arguments.
pub fn main() -> ExitCode {
    secrecy::keep();
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when standard error is closed.
            drop(writeln!(io::stderr(), "hsupctl: {}", errors::chain(&error)));
            if let Some(hint) = error.hint() {
                drop(writeln!(io::stderr(), "hint: {hint}"));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<u8, CtlError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CtlError::Runtime)?;
    let outcome = runtime.block_on(dispatch(cli, &Look::for_stdout()))?;
    write_out(outcome.text.as_bytes())?;
    // Nobody is left to tell when standard error is closed.
    drop(io::stderr().write_all(outcome.complaint.as_bytes()));
    Ok(outcome.code)
}

async fn dispatch(cli: Cli, look: &Look) -> Result<Outcome, CtlError> {
    let to = cli.target;
    let out = &mut io::stdout().lock();
    match cli.command {
        Command::Ps(args) => ps::run(find(&to).await?, args, look).await,
        Command::Status { names } => status::run(find(&to).await?, names, look).await,
        Command::Top => top::run(find(&to).await?, to.app, look.clone()).await,
        Command::Logs(args) => {
            while_read(async { logs::run(find(&to).await?, args, look, out).await }).await
        }
        Command::Scale { changes } => formation::scale(find(&to).await?, &changes).await,
        Command::Start { names, no_wait } => {
            formation::start(find(&to).await?, names, no_wait).await
        }
        Command::Stop(args) => formation::stop(find(&to).await?, args).await,
        Command::Restart { names, no_wait } => {
            formation::restart(find(&to).await?, names, no_wait).await
        }
        Command::Events { output } => {
            while_read(async { events::run(find(&to).await?, output, look, out).await }).await
        }
        Command::Releases { version, output } => {
            let supervisor = find(&to).await?;
            match version {
                Some(version) => releases::show(supervisor, version, output, look).await,
                None => releases::list(supervisor, output, look).await,
            }
        }
        Command::Apply { file, no_wait } => {
            let json = releases::read(&file)?;
            let applied = releases::apply(find(&to).await?, json, no_wait, look).await;
            applied.map_err(|error| error.about_release(&file))
        }
        Command::Rollback { version, no_wait } => {
            releases::rollback(find(&to).await?, version, no_wait, look).await
        }
        Command::Plan { file } => {
            let json = releases::read(&file)?;
            let planned = releases::plan(find(&to).await?, json, look).await;
            planned.map_err(|error| error.about_release(&file))
        }
        Command::Driver(DriverCommand::Info) => driver::info(find(&to).await?, look).await,
        Command::Driver(DriverCommand::Check {
            socket: Some(socket),
        }) => driver::check(&socket),
        Command::Driver(DriverCommand::Check { socket: None }) => {
            driver::check(&driver::socket_of(find(&to).await?).await?)
        }
        Command::Shutdown { grace } => formation::shutdown(find(&to).await?, grace).await,
        Command::Version => version::run(find(&to).await).await,
        Command::Completions { shell } => Ok(completions(shell)),
    }
}

fn completions(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hsupctl", &mut script);
    Outcome::done(String::from_utf8_lossy(&script).into_owned())
}

/// Follows what happens for as long as somebody reads it.
async fn while_read(
    following: impl Future<Output = Result<Outcome, CtlError>>,
) -> Result<Outcome, CtlError> {
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let stdout = stdout.map_err(CtlError::Write)?;
    tokio::select! {
        biased;
        outcome = following => outcome,
        () = reader::gone(stdout) => Ok(Outcome::done(String::new())),
    }
}

async fn find(target: &TargetArgs) -> Result<Supervisor, ConnectError> {
    let socket = target.socket(env::var_os("HSUP_CONTROL_SOCKET"));
    let app = target.app.as_deref();
    connect::connect(socket.as_deref(), app, &Paths::from_env()).await
}

/// The answer to a call that waits for no dyno.
async fn promptly<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CtlError> {
    match timeout(PATIENCE, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(CtlError::Silent(PATIENCE)),
    }
}

fn write_out(bytes: &[u8]) -> Result<(), CtlError> {
    let mut out = io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(CtlError::Write)
}

fn to_json<T: Serialize>(value: &T) -> Result<String, CtlError> {
    json(value).map_err(CtlError::Json)
}

fn to_json_lines<T: Serialize>(values: &[T]) -> Result<String, CtlError> {
    let mut text = String::new();
    for value in values {
        text.push_str(&serde_json::to_string(value).map_err(CtlError::Json)?);
        text.push('\n');
    }
    Ok(text)
}
