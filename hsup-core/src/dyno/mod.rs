//! One dyno: a task that carries out what its [`crate::lifecycle`] decides.
//!
//! ```text
//!  supervisor ──Command──▶ task ──Event──▶ lifecycle (pure)
//!      ▲                    │ ▲               │
//!      └──────Report────────┘ └────Action─────┘
//!                           │
//!                 attempt: FIFOs, journal, Start, Wait, Remove
//! ```
//!
//! The task ends when the dyno is retired. Until then it survives the driver: calls that
//! fail because the connection ended are made again on the next one.

mod attempt;
mod built;
mod check;
mod connect;
mod inbox;
mod io;
mod ledger;
mod node;
mod ready;
mod request;
mod starting;
mod task;
mod tasks;
mod waiting;

use std::{
    ffi::OsString,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hsup_proto::{control, driver};
use tokio::sync::{Semaphore, watch};

pub use built::Built;
pub use check::{HttpCheck, ParseHttpCheckError};
pub use io::{FdBudget, IoDir, IoDirError, clear as clear_io};
pub use ledger::Ledger;
pub(crate) use node::node;
pub(crate) use request::{Request, base_on};
pub(crate) use starting::Starting;
pub use task::spawn;
pub use tasks::Tasks;
pub(crate) use waiting::Waiting;

use crate::{
    backoff::Policy,
    driver::{DriverOptions, Link},
    environment::Base,
    exit::ExitStatus,
    lifecycle::{Kind, Stop},
    locate::SlugLocator,
    logs::Logs,
    name::{DynoId, DynoName},
    paths::Paths,
    ports::HostPorts,
    release::Release,
    releases::Id,
    state::SupervisorId,
    time::now_unix_ms,
};

/// How many Starts are asked of the driver at once.
pub const STARTS_IN_FLIGHT: usize = 64;

/// Tells the dynos of one supervisor apart, even two of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u64);

/// What one dyno is to run.
#[derive(Clone, Debug)]
pub struct DynoSpec {
    /// `web.1`.
    pub name: DynoName,
    /// hsup's number of the release, for the journal.
    pub release_id: Id,
    /// The release itself: config vars, limits.
    pub release: Arc<Release>,
    /// The version of the release that it repeats, if it is a rollback.
    pub repeats: Option<u64>,
    /// What the driver's Build answered.
    pub artifact: Arc<str>,
    /// The shell line.
    pub command: Arc<str>,
    /// Whether it is started again.
    pub kind: Kind,
    /// Its release has yet to prove itself: a dyno that ends before it was ready for the
    /// first time stays down, for whoever tries the release to decide.
    pub on_trial: bool,
    /// What comes of its release depends on it, and there is a better one to go back to: a web
    /// that accepts connections has to go on for a moment before it counts as ready for that.
    pub proves: bool,
}

/// What all dynos of a supervisor share.
#[derive(Debug)]
pub struct Shared {
    /// Under which the driver knows our dynos.
    pub supervisor_id: SupervisorId,
    /// The driver.
    pub link: watch::Receiver<Link>,
    /// Where output goes.
    pub logs: Logs,
    /// Which dyno ids are ours, over a crash of hsup, too.
    pub ledger: Ledger,
    /// What acts for the dynos.
    pub tasks: Tasks,
    /// The ports that dynos have.
    pub ports: Mutex<HostPorts>,
    /// Where files go.
    pub paths: Paths,
    /// The folder of FIFO folders, from there.
    pub io_root: PathBuf,
    /// How many descriptors are left for FIFOs.
    pub fds: FdBudget,
    /// How many more Starts may be in flight: none before the driver's first sweep is through,
    /// for what that stops may hold a port.
    pub starts: Semaphore,
    /// What dynos that share this host start with, below their config vars.
    pub host_base: Base,
    /// hsup's own environment.
    pub host_vars: Vec<(OsString, OsString)>,
    /// Paths bound into dynos.
    pub binds: Vec<driver::Bind>,
    /// What the driver is told with each Build and Start.
    pub driver_options: DriverOptions,
    /// What the driver has made of releases in this life.
    pub built: Built,
    /// Who knows where slugs are that the source names and does not say.
    pub locator: Option<Arc<dyn SlugLocator>>,
    /// The operator's choices.
    pub policy: DynoPolicy,
}

impl Shared {
    /// The ports, for a moment.
    pub(crate) fn ports(&self) -> MutexGuard<'_, HostPorts> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The operator's choices that concern every dyno.
#[derive(Clone, Debug)]
pub struct DynoPolicy {
    /// Waits after crashes.
    pub backoff: Policy,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// For `web` to accept connections (R10).
    pub boot_timeout: Duration,
    /// What a `web` must answer besides.
    pub http_check: Option<HttpCheck>,
    /// How long a dyno outlives hsup; zero means for ever.
    pub linger: Duration,
    /// How long a process that has no port must run before a rollout trusts it.
    pub settle: Duration,
}

/// What the supervisor tells a dyno.
#[derive(Debug)]
pub enum Command {
    /// Start again, whatever the backoff.
    Restart(Stop),
    /// End for good.
    Retire(Stop),
}

/// What a dyno tells the supervisor.
#[derive(Debug)]
pub struct Report {
    /// Who.
    pub key: Key,
    /// What.
    pub what: What,
}

/// See [`Report`].
#[derive(Debug)]
pub enum What {
    /// Its status changed.
    Status(Box<DynoStatus>),
    /// It is ready for work: a `web` accepts connections, another has run for a moment.
    Ready,
    /// This attempt could not be started, ended, or was not ready in time. One on trial stays
    /// down.
    Failed(String),
    /// It ended by itself after it had been ready, and is started again. Neither a loss is that,
    /// nor a process that has done its work and left with 0.
    Crashed(String),
    /// The driver lost this attempt before it was ready, which says nothing of its release. It
    /// is started again by itself, on trial, too; one that is lost every time has `Failed` in
    /// the end.
    Lost(String),
    /// It is retired, and nothing of it runs. The last report.
    Complete(Option<ExitStatus>),
}

/// What there is to know of a dyno.
#[derive(Clone, Debug, PartialEq)]
pub struct DynoStatus {
    /// Heroku's word for it.
    pub state: control::DynoState,
    /// When it got into that state.
    pub since_unix_ms: i64,
    /// A `web` accepts connections, another is up.
    pub ready: bool,
    /// How often hsup started it again because it had ended by itself.
    pub restarts: u32,
    /// How it ended last.
    pub last_exit: Option<ExitStatus>,
    /// How it ended last of itself, and the last lines it wrote then.
    pub crash: Option<Crash>,
    /// When the next start is due.
    pub retry_at_unix_ms: Option<i64>,
    /// Without a healthy run in between.
    pub crashes_in_a_row: u32,
    /// The present attempt's.
    pub dyno_id: Option<DynoId>,
    /// Where it can be reached, if known.
    pub ip: String,
    /// Its PORT; 0 when it has none now.
    pub port: u16,
    /// Which machine it is on; empty: the driver's own, or not known.
    pub node: String,
}

impl DynoStatus {
    /// Of a dyno that has not been started yet, after what its name went through.
    pub(crate) fn down(before: Inherited) -> Self {
        Self {
            state: control::DynoState::Down,
            since_unix_ms: now_unix_ms(),
            ready: false,
            restarts: 0,
            last_exit: before.last_exit,
            crash: before.crash,
            retry_at_unix_ms: None,
            crashes_in_a_row: 0,
            dyno_id: None,
            ip: String::new(),
            port: 0,
            node: String::new(),
        }
    }
}

/// See [`DynoStatus::crash`].
#[derive(Clone, Debug, PartialEq)]
pub struct Crash {
    /// How it ended.
    pub status: ExitStatus,
    /// Which attempt it was.
    pub dyno_id: DynoId,
    /// What it wrote last.
    pub last_lines: Arc<[String]>,
}

/// The front of a dyno's task.
#[derive(Debug)]
pub struct DynoHandle {
    /// What it runs.
    pub spec: DynoSpec,
    commands: inbox::Outside,
}

impl DynoHandle {
    /// Starts it again. A dyno that has ended in the meantime ignores it.
    pub fn restart(&self, how: Stop) {
        self.commands.put(Command::Restart(how));
    }

    /// Ends it for good; [`What::Complete`] follows.
    pub fn retire(&self, how: Stop) {
        self.commands.put(Command::Retire(how));
    }
}

/// How a dyno's life begins.
#[derive(Clone, Debug)]
pub enum Birth {
    /// It is started.
    Start,
    /// It ran when hsup was started; hsup takes it over.
    Adopt(Adopted),
}

/// A dyno of an earlier life of hsup.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// Its id, from the journal.
    pub dyno_id: DynoId,
    /// Its PORT then; 0 when it had none.
    pub port: u16,
    /// When it was started.
    pub started_at_unix_ms: i64,
    /// It is a web that has accepted connections.
    pub was_ready: bool,
}

impl Adopted {
    /// Whether it serves, as far as anybody knows before it is looked at.
    pub fn serves(&self, name: &DynoName) -> bool {
        self.was_ready || !name.process_type.is_web()
    }
}

/// What a dyno's name went through before its task was born.
#[derive(Clone, Debug, Default)]
pub struct Inherited {
    /// How the one before ended.
    pub last_exit: Option<ExitStatus>,
    /// And how it last ended by itself.
    pub crash: Option<Crash>,
}
