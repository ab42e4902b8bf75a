//! What one case works with: the driver, and dynos that are removed when it is over.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use hsup_proto::driver::{self, Capability, ExitStatus, ListRequest, exit_status::How};
use tempfile::TempDir;
use tokio::{sync::OnceCell, task::JoinSet};

use super::{
    calls::Calls,
    case::{Failure, NotPassed, check},
    config::{Config, Target},
    driver::{Driver, calls},
    record::Record,
    requests::{check_exit, force, remove, wait_for},
    session::Session,
};

/// How long a case waits for an exit that must come.
const PATIENCE_MS: u32 = 20_000;

/// The artifact of a driver, or why it could not be built: nobody builds it twice.
#[derive(Debug, Default)]
struct Artifact {
    built: OnceCell<Result<String, Failure>>,
    asked: AtomicBool,
}

/// What one case works with.
#[derive(Debug)]
pub struct Context {
    pub(crate) session: Arc<Session>,
    pub(crate) driver: Driver,
    /// Whose dynos these are: each that runs beside the others lists its own only.
    pub(crate) supervisor_id: String,
    artifact: Arc<Artifact>,
    used: Mutex<Used>,
}

/// What a case leaves to be cleared away.
#[derive(Debug, Default)]
struct Used {
    dynos: Vec<String>,
    dirs: Vec<TempDir>,
}

impl Context {
    pub(crate) fn new(session: Arc<Session>, driver: Driver) -> Self {
        Self {
            supervisor_id: session.supervisor_id(),
            session,
            driver,
            artifact: Arc::default(),
            used: Mutex::default(),
        }
    }

    /// The same driver for the case called `title`, which is run as the one with this number
    /// beside the others.
    pub(crate) fn beside(&self, title: String, number: usize) -> Self {
        Self {
            session: Arc::clone(&self.session),
            supervisor_id: format!("{}-{number}", self.supervisor_id),
            driver: self.driver.beside(&self.record().beside(title)),
            artifact: Arc::clone(&self.artifact),
            used: Mutex::default(),
        }
    }

    /// Where it is noted what the calls come to.
    pub(crate) const fn record(&self) -> &Record {
        self.driver.control.record()
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

    /// Whether a dyno's output can be read.
    pub(crate) fn has_output(&self) -> bool {
        self.has(Capability::StdioFifo) || self.has(Capability::Logs)
    }

    /// A connection of its own, which a case may drop.
    pub(crate) async fn another_connection(&self) -> Result<Calls, NotPassed> {
        let connected = calls(&self.driver.socket, self.record()).await;
        let (on, expected) = ("another connection", "one more connection to the driver");
        connected.map_err(|error| NotPassed::unreached(on, expected, &error))
    }

    /// An artifact to start dynos from. The case that finds that there is none has failed;
    /// those after it are not run.
    pub(crate) async fn artifact(&self) -> Result<String, NotPassed> {
        if let Some(artifact) = &self.config().artifact {
            return Ok(artifact.clone());
        }
        if let Some(Err(failure)) = self.artifact.built.get() {
            return Err(NotPassed::Skipped(format!("no artifact: {failure}")));
        }
        self.artifact.asked.store(true, Ordering::Relaxed);
        let build = || self.driver.build(&self.session);
        let built = self.artifact.built.get_or_init(build);
        Ok(built.await.clone()?)
    }

    /// A case had no end: was it the Build that it waited for, then nobody waits for it again.
    pub(crate) fn give_up(&self, failure: &Failure) {
        if self.artifact.asked.load(Ordering::Relaxed) {
            // It may be there, or another case may wait for it still.
            drop(self.artifact.built.set(Err(failure.clone())));
        }
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

    /// Has a folder removed after the case.
    pub(crate) fn keep(&self, dir: TempDir) {
        self.used().dirs.push(dir);
    }

    /// Has what `other` would have cleared away cleared away with the next case.
    pub(crate) fn take_over(&self, other: &Self) {
        let theirs = std::mem::take(&mut *other.used());
        let mut ours = self.used();
        ours.dynos.extend(theirs.dynos);
        ours.dirs.extend(theirs.dirs);
    }

    /// The argv that has `/bin/sh` run `script`, whose `$1` and on are `args`.
    pub(crate) fn argv(&self, script: &str, args: &[&str]) -> Vec<String> {
        let mut argv = self.config().argv_prefix.clone();
        argv.extend(["/bin/sh", "-c", script, "sh"].map(str::to_owned));
        argv.extend(args.iter().map(|&arg| arg.to_owned()));
        argv
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
            supervisor_id: self.supervisor_id.clone(),
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
                control.stop(force(&id)).await.ok()?;
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

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
