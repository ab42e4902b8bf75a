//! What the cases of a run share: the driver, two connections to it, and the artifact.

use std::{
    collections::hash_map::RandomState,
    fs,
    hash::{BuildHasher as _, Hasher as _},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use hsup_driver_kit::client::{ConnectError, Connection};
use hsup_proto::driver::{
    BuildRequest, Capability, GetInfoRequest, GetInfoResponse, Release, build_response::Event,
};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use thiserror::Error;
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep},
};

use super::{
    calls::{Calls, Record},
    case::{Failure, check},
    config::{Config, Target},
    kernel::OpenFiles,
    process::{DriverProcess, SocketDir, kill_marked},
};

/// How long a driver may take until it answers (driver protocol §7.2).
const START: Duration = Duration::from_secs(10);

/// Every dyno of a run has this variable, with the run's token as its value.
pub(crate) const MARK: &str = "HSUP_CHECK_RUN";

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

/// One run of the suite.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) config: Config,
    pub(crate) record: Arc<Record>,
    pub(crate) token: String,
    pub(crate) limits: OpenFiles,
    serial: AtomicU32,
    slug: TempDir,
}

impl Session {
    pub(crate) fn new(config: Config, limits: OpenFiles) -> io::Result<Self> {
        let slug = tempfile::Builder::new().prefix("hsup-slug-").tempdir()?;
        // A root driver reads the slug as whoever asks, a container's user may be anybody.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(slug.path(), mode)?;
        hsup_procfile(slug.path())?;
        let random = RandomState::new().build_hasher().finish();
        Ok(Self {
            config,
            record: Arc::default(),
            token: format!("{random:016x}"),
            limits,
            serial: AtomicU32::new(1),
            slug,
        })
    }

    /// A dyno id that was never used before.
    pub(crate) fn fresh_id(&self) -> String {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        format!("c{}-{serial}", &self.token[..6])
    }

    /// The supervisor id of this run.
    pub(crate) fn supervisor_id(&self) -> String {
        format!("check-{}", self.token)
    }

    /// The Build of this run.
    pub(crate) fn build_request(&self) -> BuildRequest {
        let slug_url = match &self.config.slug_url {
            Some(url) => url.clone(),
            None => format!("file://{}/", self.slug.path().display()),
        };
        BuildRequest {
            release: Some(Release {
                app: "conformance".to_owned(),
                version: 1,
                stack: self.config.stack.clone(),
                slug_url,
                ..Release::default()
            }),
            options: self.config.build_options.clone(),
        }
    }

    /// Reaches the driver of the configuration.
    pub(crate) async fn connect(&self) -> Result<Driver, ConnectDriverError> {
        match &self.config.target {
            Target::Socket(socket) => {
                let control = self
                    .calls(socket)
                    .await
                    .map_err(ConnectDriverError::Connect)?;
                self.greet(socket.clone(), control, None, None).await
            }
            Target::Exec(command) => {
                let dir = SocketDir::make().map_err(ConnectDriverError::Spawn)?;
                self.spawn(command, dir).await
            }
        }
    }

    /// Starts `command` with its socket in `dir` and connects to it.
    pub(crate) async fn spawn(
        &self,
        command: &str,
        dir: SocketDir,
    ) -> Result<Driver, ConnectDriverError> {
        let socket = dir.socket();
        let process = DriverProcess::spawn(command, &socket, self.limits)
            .map_err(ConnectDriverError::Spawn)?;
        self.reach(process, dir).await
    }

    /// Polls the socket of a driver that was just started.
    pub(crate) async fn reach(
        &self,
        mut process: DriverProcess,
        dir: SocketDir,
    ) -> Result<Driver, ConnectDriverError> {
        let socket = dir.socket();
        let deadline = Instant::now() + START;
        let mut pause = Duration::from_millis(1);
        let control = loop {
            let error = match self.calls(&socket).await {
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
        self.greet(socket, control, Some(process), Some(dir)).await
    }

    async fn greet(
        &self,
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
        let waits = self
            .calls(&socket)
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
    pub(crate) async fn calls(&self, socket: &Path) -> Result<Calls, ConnectError> {
        let connection = Connection::open(socket).await?;
        Ok(Calls::new(connection, Arc::clone(&self.record)))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Whatever a driver under test forgot: nothing of a run may stay.
        kill_marked(MARK, &self.token);
    }
}

/// An app of its own: the least that a driver takes for one.
#[expect(
    clippy::disallowed_methods,
    reason = "nobody reads the file before it is whole: its directory is new"
)]
fn hsup_procfile(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("Procfile"), "web: /bin/sh\n")
}

impl Driver {
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

/// The artifact of the shared driver, built once.
pub(crate) type Artifact = OnceCell<String>;
