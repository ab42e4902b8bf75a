//! The driver under test: how it is reached, and how it ends.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use hsup_driver_kit::client::{ConnectError, Connection};
use hsup_proto::driver::{Capability, GetInfoRequest, GetInfoResponse, build_response::Event};
use nix::sys::signal::Signal;
use thiserror::Error;
use tokio::time::{Instant, sleep};

use super::{
    calls::Calls,
    case::{Failure, check},
    process::{DriverProcess, SocketDir},
    record::Record,
    session::Session,
};

/// How long a driver may take until it answers.
const START: Duration = Duration::from_secs(10);

/// The driver could not be reached, so nothing was tested.
#[derive(Debug, Error)]
pub enum ConnectDriverError {
    /// The command could not be started.
    #[error("failed to start the driver")]
    Spawn(#[source] io::Error),
    /// It ended before it could be connected to.
    #[error("the driver ended ({status}) before its socket could be connected to{output}")]
    Ended {
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it printed.
        output: Shown,
    },
    /// It lives, but its socket does not.
    #[error("the driver did not serve its socket within 10 s{output}")]
    Silent {
        /// What it printed.
        output: Shown,
        /// The last attempt.
        source: ConnectError,
    },
    /// Nothing serves the socket.
    #[error("no driver to test")]
    Connect(#[source] ConnectError),
    /// The first call failed.
    #[error("the driver's first answer was a failure: {0}")]
    FirstCall(Failure),
    /// It says that it is not ready, and stays so.
    #[error("the driver is not ready: {0}")]
    NotReady(String),
}

/// The output of a driver, for an error: shown on lines of its own, if there is any.
#[derive(Debug)]
pub struct Shown(String);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.trim().is_empty() {
            return f.write_str("; it printed nothing");
        }
        write!(f, "; its output:\n{}", self.0.trim_end())
    }
}

/// A driver, connected to as a supervisor does it: one connection for control, one for Waits.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) socket: PathBuf,
    pub(crate) control: Calls,
    pub(crate) waits: Calls,
    pub(crate) info: GetInfoResponse,
    /// Only with `--exec`. Dropped before the directory of its socket.
    pub(crate) process: Option<DriverProcess>,
    dir: Option<SocketDir>,
}

/// What a driver may leave in its session when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    /// It promises that its dynos outlive it.
    Dynos,
}

/// Polls the socket of a driver that was just started.
pub(crate) async fn reach(
    mut process: DriverProcess,
    dir: SocketDir,
    record: &Record,
) -> Result<Driver, ConnectDriverError> {
    let socket = dir.socket();
    let deadline = Instant::now() + START;
    let mut pause = Duration::from_millis(1);
    let control = loop {
        let error = match calls(&socket, record).await {
            Ok(calls) => break calls,
            Err(error) => error,
        };
        if let Some(status) = process.ended().map_err(ConnectDriverError::Spawn)? {
            let output = Shown(process.last_output().await);
            return Err(ConnectDriverError::Ended { status, output });
        }
        if Instant::now() >= deadline {
            return Err(ConnectDriverError::Silent {
                output: Shown(process.output()),
                source: error,
            });
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    };
    greet(socket, control, Some(process), Some(dir)).await
}

/// Waits until the driver is ready, and opens the connection for Waits.
pub(crate) async fn greet(
    socket: PathBuf,
    control: Calls,
    process: Option<DriverProcess>,
    dir: Option<SocketDir>,
) -> Result<Driver, ConnectDriverError> {
    let deadline = Instant::now() + START;
    let info = loop {
        let request = GetInfoRequest {
            supervisor_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let answer = control.get_info(request).await;
        let info = answer.ok().map_err(ConnectDriverError::FirstCall)?;
        if info.ready {
            break info;
        }
        if Instant::now() >= deadline {
            return Err(ConnectDriverError::NotReady(info.message));
        }
        sleep(Duration::from_millis(100)).await;
    };
    let waits = calls(&socket, control.record())
        .await
        .map_err(ConnectDriverError::Connect)?;
    Ok(Driver {
        socket,
        control,
        waits,
        info,
        process,
        dir,
    })
}

/// A connection of its own.
pub(crate) async fn calls(socket: &Path, record: &Record) -> Result<Calls, ConnectError> {
    let connection = Connection::open(socket).await?;
    Ok(Calls::new(connection, record.clone()))
}

impl Driver {
    /// The same driver for a case that is run beside the others: its process stays theirs.
    pub(crate) fn beside(&self, record: &Record) -> Self {
        Self {
            socket: self.socket.clone(),
            control: self.control.noted_in(record),
            waits: self.waits.noted_in(record),
            info: self.info.clone(),
            process: None,
            dir: None,
        }
    }

    /// Whether it has broken off a connection.
    pub(crate) fn is_gone(&self) -> bool {
        self.control.is_closed() || self.waits.is_closed()
    }

    /// Whether it declares `capability`.
    pub(crate) fn has(&self, capability: Capability) -> bool {
        self.info.capabilities.contains(&(capability as i32))
    }

    /// The artifact that the configuration's Build makes.
    pub(crate) async fn build(&self, session: &Session) -> Result<String, Failure> {
        let built = self.control.build(session.build_request()).await.ok()?;
        match built.events.last() {
            Some(Event::Artifact(artifact)) => Ok(artifact.clone()),
            other => Err(Failure {
                on: "Build".to_owned(),
                expected: "an artifact at its end".to_owned(),
                observed: format!("{other:?}"),
            }),
        }
    }

    /// SIGTERM, then its end with nothing left; gives the directory of its socket back.
    pub(crate) async fn terminate(self) -> Result<Option<SocketDir>, Failure> {
        self.end(Left::Nothing).await
    }

    /// SIGTERM, then its end; gives the directory of its socket back.
    pub(crate) async fn end(mut self, may_leave: Left) -> Result<Option<SocketDir>, Failure> {
        let Some(mut process) = self.process.take() else {
            return Ok(self.dir.take());
        };
        process.signal(Signal::SIGTERM);
        let failed = |error: io::Error| Failure {
            on: "the driver process".to_owned(),
            expected: "an end that can be waited for".to_owned(),
            observed: error.to_string(),
        };
        let ended = process.ends_within(START).await.map_err(failed)?;
        let on = "SIGTERM to the driver";
        check(ended, on, "its end within 10 s", "still running")?;
        let left = process.session();
        check(
            left.is_empty() || may_leave == Left::Dynos,
            on,
            "no process left in its session",
            format_args!("{left:?}"),
        )?;
        process.release();
        Ok(self.dir.take())
    }

    /// Ends both connections and keeps the process.
    pub(crate) fn disconnect(mut self) -> Option<(DriverProcess, SocketDir)> {
        self.process.take().zip(self.dir.take())
    }

    /// SIGKILL; gives the directory of its socket back.
    pub(crate) async fn kill(mut self) -> Option<SocketDir> {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::SIGKILL);
            // A killed process ends; were it not so, the next call would tell.
            drop(process.ends_within(START).await);
            // What it left is for the case to judge; it is cleared away with the run's mark.
            process.release();
        }
        self.dir.take()
    }
}
