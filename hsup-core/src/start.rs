//! `hsup start`: a supervisor with everything it needs, from its options to its exit code.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt as _;
use hsup_driver_kit::{listen::handed::Handed, open_files, orphans};
use hsup_proto::driver::Bind;
use nix::errno::Errno;
use thiserror::Error;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    control::{self, BindError, Control as _, ControlListener, ServeError},
    diagnostics::Diagnostics,
    driver::{
        self, DriverLink, DriverNote, DriverOptions, DriverSpec, FindDriverError, Link,
        LinkSettings, Lives,
    },
    dyno::{Built, DynoPolicy, FdBudget, Ledger, Shared, Tasks, clear_io},
    environment::Base,
    exit::ExitStatus,
    files,
    lifecycle::Kind,
    logs::{DrainTarget, LogSettings, Logs, ShutdownOutcome, TerminalSettings},
    name::ProcessType,
    notify::{self, News},
    paths::{AppKey, Paths, PathsError},
    ports::HostPorts,
    rollout,
    source::{ControlDir, Directory, Heroku, Source, SourceSpec, control_dir, directory, heroku},
    state::{
        Damage, Journal, JournalError, LoadError, OpenStateError, Record, StateDir, SupervisorId,
    },
    supervisor::{self, Outcome, RunError, Settings, Supervisor, SupervisorHandle},
    time::now_unix_ms,
};

/// How long the last lines may take to be written when somebody wants hsup to end.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(2);
/// How long the driver may take to forget the last dynos that have ended.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(2);
/// How long after the word to leave a stop still counts.
const SECOND_THOUGHTS: Duration = Duration::from_millis(20);
/// How long the supervisor may take to write down what is not written yet before hsup leaves.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// What is said to whoever wants everything stopped when hsup has left the dynos already.
const TOO_LATE: &str = "told to stop the dynos after they were left: they run on; \
    start hsup again and stop that to stop them";

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
    /// There is no such driver.
    #[error(transparent)]
    FindDriver(#[from] FindDriverError),
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
        source: std::io::Error,
    },
    /// The supervisor could not begin.
    #[error(transparent)]
    Run(#[from] RunError),
}

fn system(what: &'static str) -> impl Fn(Errno) -> StartError {
    move |errno| StartError::System {
        what,
        source: errno.into(),
    }
}

/// Runs an app until it is told to stop; answers the exit code.
///
/// # Errors
/// When it cannot be started.
pub async fn start(options: StartOptions) -> Result<u8, StartError> {
    let StartOptions {
        source,
        driver,
        driver_options,
        own_program,
        explicit,
        one_shot,
        start_number,
        control_socket,
        state_dir,
        binds,
        policy,
        rollouts,
        release_timeout,
        cycle_every,
        terminal,
        drains,
        log_runtime_metrics,
        tell,
        diagnostics,
    } = options;
    let mut signals = Signals::new().map_err(|source| StartError::System {
        what: "receive signals",
        source,
    })?;
    orphans::become_subreaper().map_err(system("become a subreaper"))?;
    open_files::raise().map_err(system("raise the open-file limit"))?;
    files::survive_size_limit().map_err(system("ignore SIGXFSZ"))?;

    let (mut source, key, app, base) = open_source(&source)?;
    check_command_line(&driver, &own_program, explicit.as_ref(), &source)?;
    let paths = Paths::from_env();
    let state = match state_dir {
        Some(path) => StateDir::open(&path)?,
        // This place is the app's, so whoever has it runs the app.
        None => StateDir::open(&paths.state_dir(&key)?).map_err(|error| match error {
            OpenStateError::InUse { owner: pid, .. } => StartError::AlreadyRuns { pid },
            other => other.into(),
        })?,
    };
    if let Source::ControlDir(control) = &mut source {
        control.claim()?;
    }
    let (mut journal, torn) = state.journal()?;
    let (history, torn_history) = state.history()?;
    let (memory, torn_memory) = state.memory()?;
    let handed = Handed::find(|name| std::env::var_os(name), std::process::id());
    let (listener, is_elsewhere) = match (control_socket, handed) {
        (Some(path), _) => (ControlListener::bind(&path)?, true),
        (None, Some(handed)) => (ControlListener::inherit(&handed)?, true),
        (None, None) => (ControlListener::bind(&paths.control_socket(&key)?)?, false),
    };
    let mut folders = Folders::make(&paths, state.supervisor_id())?;
    control::lead_to(&folders.run, listener.path().filter(|_| is_elsewhere));
    let note = DriverNote::in_dir(&folders.run);
    let previous = note.read();

    let logs = Logs::start(LogSettings {
        terminal: Some(terminal),
        drains,
        ..LogSettings::default()
    })
    .map_err(|source| StartError::System {
        what: "start the log router",
        source,
    })?;
    for damage in torn.iter().chain(&torn_history).chain(&torn_memory) {
        say_damage(&logs, damage);
    }
    if previous
        .as_ref()
        .is_some_and(|previous| !previous.may_be(&driver))
    {
        let text = "Another driver is used than before: the dynos of that one are stopped first";
        logs.note(crate::logs::SYSTEM, text);
        give_up(&mut journal);
    }
    let survivors: Vec<_> = journal.live().cloned().collect();
    // Those of dynos that ended between two lives, and of such as nobody remembers.
    clear_io(&folders.io, |id| {
        survivors.iter().any(|dyno| dyno.dyno_id.as_str() == id)
    });
    let grace = policy.grace;
    let link = DriverLink::start(LinkSettings {
        spec: driver,
        own_program,
        socket: Paths::driver_socket(&folders.run),
        lives: Some(Lives {
            previous,
            note,
            supervisor_id: state.supervisor_id().as_str().to_owned(),
            grace,
        }),
    })
    .map_err(|source| StartError::System {
        what: "receive signals",
        source,
    })?;
    let link_state = link.watch();
    let mut ports = HostPorts::new();
    ports.learn(&memory.get().types_seen);
    let shared = Arc::new(Shared {
        supervisor_id: state.supervisor_id().clone(),
        link: link.watch(),
        logs: logs.clone(),
        ledger: Ledger::new(journal),
        tasks: Tasks::default(),
        ports: Mutex::new(ports),
        paths,
        io_root: folders.io.clone(),
        fds: FdBudget::of_this_process().map_err(system("read the open-file limit"))?,
        starts: Semaphore::new(0),
        host_base: base,
        host_vars: std::env::vars_os().collect(),
        binds,
        driver_options,
        built: Built::default(),
        locator: match &source {
            Source::Heroku(heroku) => Some(heroku.locator()),
            Source::Directory(_) | Source::ControlDir(_) => None,
        },
        policy,
    });
    let linger = shared.policy.linger;
    let (supervisor, handle) = Supervisor::new(Settings {
        app,
        source,
        explicit,
        start_number,
        kind: if one_shot { Kind::OneShot } else { Kind::Kept },
        rollouts,
        release_timeout,
        cycle_every,
        base: std::env::current_dir().unwrap_or_default(),
        shared: Arc::clone(&shared),
        link,
        history,
        memory,
        survivors,
    });

    let ending = CancellationToken::new();
    let socket_stays = listener.outlives_hsup();
    let server: JoinHandle<Result<(), ServeError>> =
        tokio::spawn(control::serve(listener, handle.clone(), ending.clone()));
    notify::tell(News::Ready);
    if notify::is_wanted() {
        let watched = notify::watched(|name| std::env::var_os(name), std::process::id());
        tokio::spawn(notify::keep_telling(handle.clone(), watched, notify::tell));
    }
    if log_runtime_metrics {
        tokio::spawn(handle.clone().log_runtime_metrics());
    }
    let mut supervision = tokio::spawn(supervisor.run());
    let mut received: Option<u8> = None;
    // None: hsup ends, and nothing else does.
    let outcome = loop {
        tokio::select! {
            outcome = &mut supervision => break Some(outcome),
            signal = signals.next() => match signal {
                Received::Stop(number) => {
                    let again = received.replace(number).is_some();
                    notify::tell(News::Stopping { grace });
                    shut_down(&handle, again);
                }
                // What is being stopped is not left, also before the supervisor has heard of it.
                Received::Leave if received.is_some() => {}
                Received::Leave => {
                    let may = timeout(LEAVE_WITHIN, handle.leave()).await;
                    if matches!(may, Ok(Err(_))) {
                        continue;
                    }
                    notify::tell(News::Stopping { grace: Duration::ZERO });
                    // Whoever has changed their mind, or has sent both at once, is still heard.
                    if let Ok(number) = timeout(SECOND_THOUGHTS, signals.stop()).await {
                        received = Some(number);
                        notify::tell(News::Stopping { grace });
                        shut_down(&handle, false);
                        continue;
                    }
                    logs.note(crate::logs::SYSTEM, leaving(linger));
                    break None;
                }
                Received::Diagnostics => logs.print(diagnostics.dump()),
            },
        }
    };
    ending.cancel();
    // Whatever it says now, hsup ends.
    drop(server.await);
    if outcome.is_none() {
        // All that the next hsup needs is written down already.
        supervision.abort();
        drop(supervision.await);
    }
    // Dynos that go on without hsup go on without their tasks.
    let is_over = matches!(outcome, Some(Ok(Ok(_))));
    let within = if is_over {
        FORGOTTEN_WITHIN
    } else {
        Duration::ZERO
    };
    shared.tasks.end(within).await;
    if outcome.is_none() {
        logs.let_go();
        folders.keeps_link = socket_stays;
    }
    let is_through = received.is_none() && matches!(outcome, Some(Ok(Ok(Outcome::AllComplete(_)))));
    let patience = async {
        if !is_through {
            return sleep(LAST_LINES_WITHIN).await;
        }
        // Nobody wants hsup to end: its reader has all the time in the world.
        loop {
            match signals.next().await {
                Received::Stop(number) => {
                    received = Some(number);
                    return;
                }
                Received::Leave => return,
                Received::Diagnostics => logs.print(diagnostics.dump()),
            }
        }
    };
    if logs.clone().shutdown(patience).await == ShutdownOutcome::CutOff {
        tracing::warn!("output was cut off");
    }
    let stopped = finish_drains(&logs, &mut signals, tell).await;
    let stopped = stopped.or_else(|| signals.stop().now_or_never());
    // What they wrote last is the next hsup's to read.
    if outcome.is_some() && dynos_ended(&link_state) {
        clear_io(&folders.io, |_| false);
    }
    drop(folders);
    // Before the state directory's lock: who waits for that starts dynos anew where they were.
    *shared.ports() = HostPorts::new();
    let Some(outcome) = outcome else {
        return Ok(stopped.map_or(0, |number| {
            tell(TOO_LATE);
            128 + number
        }));
    };
    let outcome = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    Ok(match (outcome, received) {
        (_, Some(number)) => 128 + number,
        (Outcome::AllComplete(code), None) => code,
        (Outcome::ShutDown, None) => 0,
    })
}

/// Has the log drains send what waits for them, for some seconds or until another signal to stop;
/// answers that.
async fn finish_drains(logs: &Logs, signals: &mut Signals, tell: fn(&str)) -> Option<u8> {
    let mut stopped = None;
    let again = async { stopped = Some(signals.stop().await) };
    for undelivered in logs.finish_drains(again).await {
        tell(&undelivered.to_string());
    }
    stopped
}

/// Opens the source; answers it, the app's key and name, and what its dynos' environment is
/// built on.
fn open_source(spec: &SourceSpec) -> Result<(Source, AppKey, String, Base), StartError> {
    Ok(match spec {
        SourceSpec::Directory(path) => {
            let directory = Directory::open(path)?;
            let key = AppKey::directory(directory.path());
            let app = directory::app_name(directory.path());
            (Source::Directory(directory), key, app, Base::Inherited)
        }
        SourceSpec::ControlDir(path) => {
            let control = ControlDir::open(path)?;
            let key = AppKey::directory(control.path());
            let app = directory::app_name(control.path());
            (Source::ControlDir(Box::new(control)), key, app, Base::Login)
        }
        SourceSpec::Heroku(app) => {
            let key = AppKey::app(&app.name);
            let source = Source::Heroku(Heroku::open(app)?);
            (source, key, app.name.clone(), Base::Login)
        }
    })
}

/// Refuses what can be seen to be wrong before anything is held or touched: it is wrong
/// whether or not another hsup has the app.
fn check_command_line(
    driver: &DriverSpec,
    own_program: &Path,
    explicit: Option<&BTreeMap<ProcessType, u32>>,
    source: &Source,
) -> Result<(), StartError> {
    if let DriverSpec::Child(name) = driver {
        driver::find(name, own_program)?;
    }
    // Which types a control directory has, its history may say.
    if let (Some(explicit), Source::Directory(directory)) = (explicit, source)
        && let Some(release) = directory.release()
    {
        supervisor::check_types(explicit, release)?;
    }
    Ok(())
}

/// What this run has in the runtime directory. Dropped, it goes, but for what is left in it
/// and belongs to somebody.
#[derive(Debug)]
struct Folders {
    run: PathBuf,
    io: PathBuf,
    /// Who follows the link is to wait for the next hsup.
    keeps_link: bool,
}

impl Folders {
    fn make(paths: &Paths, id: &SupervisorId) -> Result<Self, PathsError> {
        let run = paths.run_dir(id)?;
        // Nobody else has this id: whoever had it before has gone.
        files::clear_temporaries(&run);
        Ok(Self {
            run,
            io: paths.io_dir(id)?,
            keeps_link: false,
        })
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        if !self.keeps_link {
            control::lead_to(&self.run, None);
        }
        remove_if_empty(&self.io);
        remove_if_empty(&self.run);
    }
}

/// Whether there was a driver that took all dynos with it.
fn dynos_ended(link: &watch::Receiver<Link>) -> bool {
    let ended = |link: &Link| {
        matches!(
            link,
            Link::Down {
                dynos_ended: true,
                ..
            }
        )
    };
    ended(&link.borrow())
}

/// What is left in it belongs to somebody: then it stays.
fn remove_if_empty(path: &Path) {
    if let Err(error) = fs::remove_dir(path) {
        tracing::debug!(%error, path = %path.display(), "folder not removed");
    }
}

/// Strikes out the dynos of an earlier life: their driver is not used any more.
fn give_up(journal: &mut Journal) {
    let ends: Vec<_> = journal
        .live()
        .map(|dyno| Record::End {
            dyno_id: dyno.dyno_id.clone(),
            status: ExitStatus::lost("it ran on another driver", now_unix_ms()),
        })
        .collect();
    if let Err(error) = journal.append(&ends) {
        // They are looked for, and not found.
        tracing::warn!(error = crate::errors::chain(&error), "ends not journalled");
    }
}

fn say_damage(logs: &Logs, damage: &Damage) {
    logs.note(crate::logs::SYSTEM, damage.to_string());
}

/// What becomes of the dynos that hsup leaves.
fn leaving(linger: Duration) -> String {
    let until = if linger.is_zero() {
        "for the next hsup".to_owned()
    } else {
        let time = jiff::SignedDuration::try_from(linger).unwrap_or(jiff::SignedDuration::MAX);
        format!("for an hsup that is started within {time:#}")
    };
    format!("Leaving the dynos as they are, {until}")
}

/// Asks the supervisor to stop everything; the second time at once.
fn shut_down(handle: &SupervisorHandle, again: bool) {
    let handle = handle.clone();
    tokio::spawn(async move {
        let request = hsup_proto::control::ShutdownRequest {
            grace_ms: again.then_some(0),
        };
        // It may have ended already.
        drop(handle.shutdown(request).await);
    });
}

/// The signals that `start` answers to.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    leave: Signal,
    diagnostics: Signal,
}

enum Received {
    /// Stop everything; the signal's number.
    Stop(u8),
    /// End, and leave the dynos as they are.
    Leave,
    Diagnostics,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            leave: signal(SignalKind::user_defined2())?,
            diagnostics: signal(SignalKind::user_defined1())?,
        })
    }

    /// The next one. Of several that wait a stop is the first: it is the stronger word.
    async fn next(&mut self) -> Received {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Received::Stop(2),
            _ = self.terminate.recv() => Received::Stop(15),
            _ = self.hangup.recv() => Received::Stop(1),
            _ = self.quit.recv() => Received::Stop(3),
            _ = self.leave.recv() => Received::Leave,
            _ = self.diagnostics.recv() => Received::Diagnostics,
        }
    }

    /// The next one that stops everything; others mean nothing any more.
    async fn stop(&mut self) -> u8 {
        loop {
            if let Received::Stop(number) = self.next().await {
                return number;
            }
        }
    }
}
