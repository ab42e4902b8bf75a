//! What one case works with: the driver, and dynos that are removed when it is over.

use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hsup_proto::driver::{
    self, Capability, ExitStatus, ListRequest, RemoveRequest, StartRequest, StopRequest,
    WaitRequest, exit_status::How, remove_request,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::{
    calls::Calls,
    case::{Failure, NotPassed, check},
    config::{Config, Target},
    fifo::{Output, Stdin},
    session::{Artifact, Driver, MARK, Session},
};

/// How long a case waits for an exit that must come.
const PATIENCE_MS: u32 = 20_000;

/// A dyno of a case: what it is started with, and the suite's ends of its FIFOs.
#[derive(Debug)]
pub struct Dyno {
    /// What Start is sent.
    pub request: StartRequest,
    /// Its stdout.
    pub stdout: Output,
    /// Its stderr.
    pub stderr: Output,
    /// Its stdin.
    pub stdin: Stdin,
}

impl Dyno {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.request.dyno_id
    }
}

/// What one case works with.
#[derive(Debug)]
pub struct Context {
    pub(crate) session: std::sync::Arc<Session>,
    pub(crate) driver: Driver,
    artifact: Artifact,
    used: Mutex<Used>,
}

/// What a case leaves to be cleared away.
#[derive(Debug, Default)]
struct Used {
    dynos: Vec<String>,
    dirs: Vec<TempDir>,
}

impl Context {
    pub(crate) fn new(session: std::sync::Arc<Session>, driver: Driver) -> Self {
        Self {
            session,
            driver,
            artifact: Artifact::default(),
            used: Mutex::default(),
        }
    }

    /// The connection for control calls.
    pub const fn control(&self) -> &Calls {
        &self.driver.control
    }

    /// The connection for Waits.
    pub const fn waits(&self) -> &Calls {
        &self.driver.waits
    }

    /// The settings of the run.
    pub(crate) fn config(&self) -> &Config {
        &self.session.config
    }

    /// The command of a driver that the suite starts itself.
    pub(crate) fn command(&self) -> Result<&str, NotPassed> {
        match &self.config().target {
            Target::Exec(command) => Ok(command),
            Target::Socket(_) => Err(NotPassed::Skipped("needs --exec".to_owned())),
        }
    }

    /// Whether the driver declares `capability`.
    pub(crate) fn has(&self, capability: Capability) -> bool {
        self.driver.has(capability)
    }

    /// A connection of its own, which a case may drop.
    pub(crate) async fn another_connection(&self) -> Result<Calls, Failure> {
        let connected = self.session.calls(&self.driver.socket).await;
        connected.map_err(|error| Failure {
            on: "another connection".to_owned(),
            expected: "one more connection to the driver".to_owned(),
            observed: error.to_string(),
        })
    }

    /// An artifact to start dynos from.
    pub(crate) async fn artifact(&self) -> Result<String, Failure> {
        if let Some(artifact) = &self.config().artifact {
            return Ok(artifact.clone());
        }
        let built = self
            .artifact
            .get_or_try_init(|| self.driver.build(&self.session));
        built.await.cloned()
    }

    /// A dyno id that was never used; the dyno is stopped and removed after the case.
    pub(crate) fn fresh_id(&self) -> String {
        let id = self.session.fresh_id();
        self.clear_away(&id);
        id
    }

    /// Has the dyno called `id` stopped and removed after the case.
    pub(crate) fn clear_away(&self, id: &str) {
        self.used().dynos.push(id.to_owned());
    }

    /// The argv that has `/bin/sh` run `script`, whose `$1` and on are `args`.
    pub(crate) fn argv(&self, script: &str, args: &[&str]) -> Vec<String> {
        let mut argv = self.config().argv_prefix.clone();
        argv.extend(["/bin/sh", "-c", script, "sh"].map(str::to_owned));
        argv.extend(args.iter().map(|&arg| arg.to_owned()));
        argv
    }

    /// What Start is sent for a dyno that runs `script`, without FIFOs.
    pub(crate) async fn request(&self, script: &str) -> Result<StartRequest, Failure> {
        let env = [
            (MARK, self.session.token.as_str()),
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("PORT", "5000"),
        ];
        let dyno_id = self.fresh_id();
        Ok(StartRequest {
            supervisor_id: self.session.supervisor_id(),
            artifact: self.artifact().await?,
            app: "conformance".to_owned(),
            release: 7,
            process_type: "web".to_owned(),
            process_number: 3,
            argv: self.argv(script, &[]),
            env: env.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            dyno_id,
            ..StartRequest::default()
        })
    }

    /// A dyno that runs `script`, not started yet.
    pub(crate) async fn dyno(&self, script: &str) -> Result<Dyno, Failure> {
        let request = self.request(script).await?;
        self.with_fifos(request, true)
    }

    /// Gives `request` FIFOs, where the driver takes them.
    pub(crate) fn with_fifos(
        &self,
        mut request: StartRequest,
        stdin: bool,
    ) -> Result<Dyno, Failure> {
        let failed = |error: io::Error| Failure {
            on: "the suite itself".to_owned(),
            expected: "FIFOs for a dyno".to_owned(),
            observed: error.to_string(),
        };
        let dir = tempfile::Builder::new().prefix("hsup-io-").tempdir();
        let dir = dir.map_err(failed)?;
        let id = &request.dyno_id;
        let stdout = Output::make(dir.path(), "stdout", id).map_err(failed)?;
        let stderr = Output::make(dir.path(), "stderr", id).map_err(failed)?;
        let stdin = if stdin {
            Stdin::make(dir.path()).map_err(failed)?
        } else {
            Stdin::none()
        };
        if self.has(Capability::StdioFifo) {
            request.io_dir = dir.path().to_string_lossy().into_owned();
        }
        self.used().dirs.push(dir);
        Ok(Dyno {
            request,
            stdout,
            stderr,
            stdin,
        })
    }

    /// Starts `dyno` and lets go of the reading end of its stdin.
    pub(crate) async fn launch(&self, dyno: &mut Dyno) -> Result<(), Failure> {
        self.control().start(dyno.request.clone()).await.ok()?;
        dyno.stdin.started().map_err(|error| Failure {
            on: format!("stdin of {}", dyno.id()),
            expected: "a FIFO that can be opened for writing".to_owned(),
            observed: error.to_string(),
        })
    }

    /// Starts a dyno that runs `script`.
    pub(crate) async fn start(&self, script: &str) -> Result<Dyno, Failure> {
        let mut dyno = self.dyno(script).await?;
        self.launch(&mut dyno).await?;
        Ok(dyno)
    }

    /// Starts a dyno that runs `script`, and waits until it has printed `ready`.
    pub(crate) async fn ready(&self, script: &str) -> Result<Dyno, Failure> {
        let mut dyno = self.start(script).await?;
        dyno.stdout.expect("ready").await?;
        Ok(dyno)
    }

    /// Waits for the exit of the dyno called `id`.
    pub(crate) async fn exit(&self, id: &str) -> Result<ExitStatus, Failure> {
        self.exit_within(id, PATIENCE_MS).await
    }

    /// Waits for the exit of the dyno called `id`, no longer than `timeout_ms`.
    pub(crate) async fn exit_within(
        &self,
        id: &str,
        timeout_ms: u32,
    ) -> Result<ExitStatus, Failure> {
        let reply = self.waits().wait(wait_for(id, timeout_ms)).await.ok()?;
        reply.status.ok_or_else(|| Failure {
            on: format!("Wait of {id}"),
            expected: format!("its exit within {timeout_ms} ms"),
            observed: "a dyno that still runs".to_owned(),
        })
    }

    /// Waits for the exit of the dyno called `id`, which must be `how`.
    pub(crate) async fn exits(&self, id: &str, how: How) -> Result<(), Failure> {
        let status = self.exit(id).await?;
        check_exit(id, &status, &how)
    }

    /// The dyno called `id` as List has it.
    pub(crate) async fn listed(&self, id: &str) -> Result<Option<driver::Dyno>, Failure> {
        let reply = self.control().list(self.own()).await.ok()?;
        Ok(reply.dynos.into_iter().find(|dyno| dyno.dyno_id == id))
    }

    /// The List of this run's dynos.
    pub(crate) fn own(&self) -> ListRequest {
        ListRequest {
            supervisor_id: self.session.supervisor_id(),
        }
    }

    /// Fails unless the dyno called `id` runs.
    pub(crate) async fn check_runs(&self, id: &str) -> Result<(), Failure> {
        let reply = self.waits().wait(wait_for(id, 1)).await.ok()?;
        check(
            reply.status.is_none(),
            format_args!("Wait of {id}"),
            "a dyno that still runs",
            format_args!("{:?}", reply.status),
        )
    }

    /// Stops and removes every dyno of the case, and forgets its FIFOs.
    pub(crate) async fn clear(&self) -> Result<(), Failure> {
        let used = std::mem::take(&mut *self.used());
        let mut removals = JoinSet::new();
        for id in used.dynos {
            let control = self.control().clone();
            removals.spawn(async move {
                let stop = StopRequest {
                    force: true,
                    ..stop(&id)
                };
                control.stop(stop).await.ok()?;
                control.remove(remove(&id)).await.ok().map(drop)
            });
        }
        let mut first = Ok(());
        while let Some(done) = removals.join_next().await {
            // A removal never panics; were it so, the case has failed as well.
            first = first.and(done.unwrap_or(Ok(())));
        }
        first
    }

    fn used(&self) -> std::sync::MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fails unless `status` says `how`.
pub(crate) fn check_exit(id: &str, status: &ExitStatus, how: &How) -> Result<(), Failure> {
    super::case::check_eq(
        format_args!("Wait of {id}"),
        &status.how.as_ref(),
        &Some(how),
    )
}

/// A graceful Stop with the default grace.
pub(crate) fn stop(id: &str) -> StopRequest {
    StopRequest {
        dyno_id: id.to_owned(),
        ..StopRequest::default()
    }
}

/// A graceful Stop with `grace_ms`.
pub(crate) fn stop_in(id: &str, grace_ms: u32) -> StopRequest {
    StopRequest {
        grace_ms,
        ..stop(id)
    }
}

/// A Wait of at most `timeout_ms`.
pub(crate) fn wait_for(id: &str, timeout_ms: u32) -> WaitRequest {
    WaitRequest {
        dyno_id: id.to_owned(),
        timeout_ms,
    }
}

/// A Remove of a dyno.
pub(crate) fn remove(id: &str) -> RemoveRequest {
    RemoveRequest {
        what: Some(remove_request::What::DynoId(id.to_owned())),
    }
}

/// A Remove of an artifact.
pub(crate) fn remove_artifact(artifact: &str) -> RemoveRequest {
    RemoveRequest {
        what: Some(remove_request::What::Artifact(artifact.to_owned())),
    }
}

/// An exit with `code`.
pub(crate) const fn code(code: i32) -> How {
    How::Code(code)
}

/// An end by `signal`.
pub(crate) fn signal(signal: &str) -> How {
    How::Signal(signal.to_owned())
}

/// An environment of these variables alone.
pub(crate) fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
    pairs.iter().map(owned).collect()
}

/// One second, in which the pure calls must answer whatever else is in flight.
pub(crate) const ONE_SECOND: Duration = Duration::from_secs(1);
