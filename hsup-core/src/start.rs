//! `hsup start`: a supervisor with everything it needs, from its options to its exit code.
//!
//! What is this hsup's alone is claimed first and let go last (`claim`), the supervisor is put
//! together (`assemble`), attended to while it works (`attend`), and what is around it ends after
//! it (`wind_up`).

mod assemble;
mod attend;
mod claim;
mod signals;
mod wind_up;

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc, time::Duration};

use hsup_driver_kit::{open_files, orphans};
use hsup_proto::driver::Bind;
use thiserror::Error;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::{
    assemble::{Assembled, assemble},
    attend::attend,
    claim::claim,
    signals::Signals,
    wind_up::wind_up,
};
use crate::{
    control::{self, BindError, ServeError},
    diagnostics::Diagnostics,
    driver::{DriverOptions, DriverSpec},
    dyno::{DynoPolicy, Shared},
    files,
    logs::{DrainTarget, SYSTEM, TerminalSettings},
    name::ProcessType,
    notify::{self, News},
    paths::PathsError,
    rollout, run,
    source::{SourceSpec, control_dir, directory, heroku},
    state::{JournalError, LoadError, OpenStateError},
    supervisor::{Outcome, RunError, SupervisorHandle},
};

/// What to start, and how.
#[derive(Debug)]
pub struct StartOptions {
    /// Where releases come from.
    pub source: SourceSpec,
    /// What runs dynos.
    pub driver: DriverSpec,
    /// What it is told with each Build and Start.
    pub driver_options: DriverOptions,
    /// hsup's own program, which acts as the simple driver.
    pub own_program: PathBuf,
    /// Only these process types, each with its quantity.
    pub explicit: Option<BTreeMap<ProcessType, u32>>,
    /// `--oneshot`: nothing is started again.
    pub one_shot: bool,
    /// The number of the first dyno of each type, from 1.
    pub start_number: u32,
    /// Where to listen; `None` for the socket that was handed down, or the default place.
    pub control_socket: Option<PathBuf>,
    /// Where to remember; `None` for the default place.
    pub state_dir: Option<PathBuf>,
    /// Paths bound into dynos.
    pub binds: Vec<Bind>,
    /// Waits, graces, timeouts.
    pub policy: DynoPolicy,
    /// How dynos are replaced.
    pub rollouts: rollout::Policy,
    /// How long a release command may take; `None`: none is run.
    pub release_timeout: Option<Duration>,
    /// How long dynos run before each is replaced by a fresh one; `None`: for ever.
    pub cycle_every: Option<Duration>,
    /// How dynos' output is shown.
    pub terminal: TerminalSettings,
    /// Where it is sent to, beside the log target of the release.
    pub drains: Vec<DrainTarget>,
    /// `--log-runtime-metrics`: what dynos use is written into their logs.
    pub log_runtime_metrics: bool,
    /// Says something of hsup's own, where the logs are over.
    pub tell: fn(&str),
    /// hsup's own diagnostics, shown on SIGUSR1.
    pub diagnostics: Diagnostics,
}

/// hsup could not be started, or could not go on.
#[derive(Debug, Error)]
pub enum StartError {
    /// The app's directory.
    #[error(transparent)]
    Directory(#[from] directory::LoadDirectoryError),
    /// The app on Heroku.
    #[error(transparent)]
    Heroku(#[from] heroku::NewClientError),
    /// The control directory.
    #[error(transparent)]
    ControlDir(#[from] control_dir::OpenControlDirError),
    /// No place for files.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// Another hsup has the app.
    #[error(
        "hsup already runs this app{}: `hsupctl ps` shows its dynos, `hsupctl shutdown` ends it",
        .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    AlreadyRuns {
        /// Its process, if that is known.
        pid: Option<u32>,
    },
    /// The state directory.
    #[error(transparent)]
    OpenState(#[from] OpenStateError),
    /// What it remembers.
    #[error(transparent)]
    LoadState(#[from] LoadError),
    /// The journal of dynos.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The control socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The control server.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Something that every process has.
    #[error("failed to {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it did not work.
        source: io::Error,
    },
    /// The supervisor could not begin.
    #[error(transparent)]
    Run(#[from] RunError),
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> StartError {
    move |error| StartError::System {
        what,
        source: error.into(),
    }
}

/// Runs an app until it is told to stop; answers the exit code.
///
/// # Errors
/// When it cannot be started.
pub async fn start(options: StartOptions) -> Result<u8, StartError> {
    run::sweep().await;
    let mut signals = Signals::new().map_err(system("receive signals"))?;
    orphans::become_subreaper().map_err(system("become a subreaper"))?;
    open_files::raise().map_err(system("raise the open-file limit"))?;
    files::survive_size_limit().map_err(system("ignore SIGXFSZ"))?;

    let (tell, diagnostics) = (options.tell, options.diagnostics.clone());
    let log_runtime_metrics = options.log_runtime_metrics;
    // Its lock is what is let go last of all.
    let (claim, found) = claim(&options)?;
    let Assembled {
        supervisor,
        handle,
        shared,
    } = assemble(options, found, &claim)?;

    let ending = CancellationToken::new();
    let socket_stays = claim.listener.outlives_hsup();
    let logs = shared.logs.clone();
    let server = tokio::spawn(control::serve_on(
        claim.listener,
        handle.clone(),
        ending.clone(),
        claim.again,
        move |text| logs.note(SYSTEM, text),
    ));
    notify::tell(News::Ready);
    if notify::is_wanted() {
        let watched = notify::watched(|name| std::env::var_os(name), std::process::id());
        tokio::spawn(notify::keep_telling(handle.clone(), watched, notify::tell));
    }
    if log_runtime_metrics {
        tokio::spawn(handle.clone().log_runtime_metrics());
    }
    let mut running = Running {
        supervision: tokio::spawn(supervisor.run()),
        handle,
        shared,
        server,
        ending,
        socket_stays,
        diagnostics,
        tell,
    };
    let attended = attend(&mut running, &mut signals).await;
    wind_up(running, claim.folders, &mut signals, attended).await
}

/// The supervisor at work, and what ends after it.
struct Running {
    supervision: JoinHandle<Result<Outcome, RunError>>,
    handle: SupervisorHandle,
    /// What the dynos share: the logs, the ports, the link to the driver.
    shared: Arc<Shared>,
    /// What serves the control socket.
    server: JoinHandle<Result<(), ServeError>>,
    /// Has the server end.
    ending: CancellationToken,
    /// Whether the control socket is there for the next hsup, too.
    socket_stays: bool,
    diagnostics: Diagnostics,
    tell: fn(&str),
}
