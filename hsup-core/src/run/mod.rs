//! `hsup run`: one command with an app's environment, as if the shell had started it.
//!
//! Bytes pass through unchanged, the command's exit code is hsup's, and nothing is left
//! behind. It is a supervisor's work for one dyno that is never started twice; it has a
//! supervisor id of its own, so that it never takes another hsup's dynos for orphans.

mod attached;
mod begin;
mod company;
mod control;
mod current;
mod folder;
mod introduce;
mod keyboard;
mod output;
mod outputs;
mod piped;
mod progress;
mod release;
mod signals;
mod stdin;
mod terminal;

use std::{
    ffi::OsString,
    io,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hsup_driver_kit::orphans;
use hsup_proto::driver::{Bind, Capability, StartRequest};
use nix::errno::Errno;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use begin::{Begun, prepare, start};
use company::Company;
use control::OneOff;
use current::Current;
pub use folder::MakeFolderError;
use folder::RunFolder;
pub use introduce::{Introduced, Introduction, introduce};
use piped::Pipes;
use progress::Progress;
pub use release::LoadReleaseError;
use signals::Signals;
use terminal::Window;

use crate::{
    build::BuildError,
    command::{self, ShellLineError},
    control::{BindError, ControlListener, lead_to, serve},
    driver::{
        DriverLink, DriverOptions, DriverSpec, LinkSettings, Up,
        demands::{self, NoBindsError},
    },
    dyno::{IoDirError, Request, base_on},
    environment,
    exit::{Ending, ExitStatus},
    files,
    name::{DynoId, DynoName, ProcessType},
    paths::Paths,
    ports, random,
    source::{Origin, SourceSpec},
    state::SupervisorId,
};

/// What to run, and how.
#[derive(Debug)]
pub struct RunOptions {
    /// The app.
    pub source: SourceSpec,
    /// What runs the dyno.
    pub driver: DriverSpec,
    /// What it is told with each Build and Start.
    pub driver_options: DriverOptions,
    /// hsup's own program, which acts as the simple driver.
    pub own_program: PathBuf,
    /// The command: one word is a shell line, several are words.
    pub words: Vec<OsString>,
    /// The number in `run.1`.
    pub number: u32,
    /// Where to listen; `None`: nowhere.
    pub control_socket: Option<PathBuf>,
    /// Where a `start` of the same app remembers; `None` for the default place.
    pub state_dir: Option<PathBuf>,
    /// Paths bound into the dyno.
    pub binds: Vec<Bind>,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// How long the dyno outlives hsup.
    pub linger: Duration,
    /// Tells whoever waits for the command why it takes so long.
    pub tell: fn(&str),
}

/// The command could not be run.
#[derive(Debug, Error)]
pub enum RunCommandError {
    /// The command's words.
    #[error(transparent)]
    Words(#[from] ShellLineError),
    /// The app's release.
    #[error(transparent)]
    Release(#[from] LoadReleaseError),
    /// The driver.
    #[error("{0}")]
    Driver(String),
    /// The driver cannot do what was asked for.
    #[error(transparent)]
    Binds(#[from] NoBindsError),
    /// The release could not be built.
    #[error("failed to build the release")]
    Build(#[from] BuildError),
    /// The folder for its files.
    #[error(transparent)]
    Folder(#[from] MakeFolderError),
    /// The FIFOs.
    #[error(transparent)]
    Io(#[from] IoDirError),
    /// The base port.
    #[error(transparent)]
    Port(#[from] ports::BasePortError),
    /// The control socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The driver refused to start it.
    #[error("the command could not be started: {0}")]
    Start(String),
    /// Its status is not known.
    #[error("it is not known how the command ended: {0}")]
    Lost(String),
    /// Its output has no place any more.
    #[error("failed to write standard output")]
    Write(#[source] io::Error),
    /// Something that every process has.
    #[error("failed to {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it did not work.
        source: io::Error,
    },
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> RunCommandError {
    move |error| RunCommandError::System {
        what,
        source: error.into(),
    }
}

/// Runs a command; answers its exit code.
///
/// # Errors
/// When it cannot be started, or nobody knows how it ended.
pub async fn run(options: RunOptions) -> Result<u8, RunCommandError> {
    let mut signals = Signals::new().map_err(system("receive signals"))?;
    orphans::become_subreaper().map_err(system("become a subreaper"))?;
    files::survive_size_limit().map_err(system("ignore SIGXFSZ"))?;
    let line = command::shell_line(&options.words)?;
    // First of all: whoever looks for the command finds it from now on.
    let listener = options.control_socket.as_deref();
    let listener = listener.map(ControlListener::bind).transpose()?;
    let load = release::load(&options.source, options.state_dir.as_deref());
    let loaded = match signals.unless(load).await {
        Ok(loaded) => loaded?,
        Err(code) => return Ok(code),
    };
    let begin = OneOffSession::begin(options.driver.clone(), options.own_program.clone());
    let session = match signals.unless(begin).await {
        Ok(session) => session?,
        Err(code) => return Ok(code),
    };
    lead_to(session.folder.path(), options.control_socket.as_deref());
    let command = Command {
        options,
        line,
        loaded,
        id: session.id.clone(),
        run_dir: session.folder.path().to_owned(),
        signals,
        progress: Progress::new(),
    };
    let result = command.run(&session.link, listener).await;
    session.end().await;
    result
}

/// What `hsup build` came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Built {
    /// The driver's key of what it built.
    Artifact(String),
    /// A signal came first; hsup's exit code.
    Ended(u8),
}

/// `hsup build`: makes the app's release startable and starts nothing.
///
/// # Errors
/// As [`run`], of which it is the first half.
pub async fn build_only(
    source: &SourceSpec,
    state_dir: Option<&Path>,
    driver: DriverSpec,
    driver_options: &DriverOptions,
    own_program: PathBuf,
    tell: fn(&str),
) -> Result<Built, RunCommandError> {
    let mut signals = Signals::new().map_err(system("receive signals"))?;
    orphans::become_subreaper().map_err(system("become a subreaper"))?;
    let loaded = match signals.unless(release::load(source, state_dir)).await {
        Ok(loaded) => loaded?,
        Err(code) => return Ok(Built::Ended(code)),
    };
    let begin = OneOffSession::begin(driver, own_program);
    let session = match signals.unless(begin).await {
        Ok(session) => session?,
        Err(code) => return Ok(Built::Ended(code)),
    };
    let work = prepare(&session.link, &loaded, driver_options, &[], tell);
    let result = signals.unless(work).await;
    session.end().await;
    match result {
        Ok(prepared) => Ok(Built::Artifact(prepared?.1)),
        Err(code) => Ok(Built::Ended(code)),
    }
}

/// Removes what `run`s and `build`s have left that were killed: their folders, and processes
/// of drivers that are no more.
pub(crate) async fn sweep() {
    // All of their ids are as long as this one.
    let runs = SupervisorId::random().map(|id| Paths::from_env().runs_dir(&id));
    // Whoever needs a folder there says what is wrong.
    if let Ok(Ok(runs)) = runs {
        folder::sweep(&runs).await;
    }
}

/// What both commands have while they last: a folder and a driver, of which nothing is to be left.
#[derive(Debug)]
struct OneOffSession {
    id: SupervisorId,
    folder: RunFolder,
    link: DriverLink,
}

impl OneOffSession {
    /// Makes the folder, clears away what others have left, and begins to start the driver.
    async fn begin(spec: DriverSpec, own_program: PathBuf) -> Result<Self, RunCommandError> {
        let id = SupervisorId::random().map_err(system("get random bits"))?;
        sweep().await;
        let folder = RunFolder::make(&Paths::from_env(), &id)?;
        let link = DriverLink::start(LinkSettings {
            spec,
            own_program,
            socket: Paths::driver_socket(folder.path()),
            lives: None,
        })
        .map_err(system("receive signals"))?;
        Ok(Self { id, folder, link })
    }

    /// Ends the driver, if it is ours, and removes the folder.
    async fn end(mut self) {
        self.link.end().await;
    }
}

/// Where the command reads and writes.
enum Streams {
    /// A terminal of its own, behind hsup's.
    Terminal(Window),
    /// FIFOs.
    Pipes(Pipes),
}

struct Command {
    options: RunOptions,
    line: String,
    loaded: release::Loaded,
    id: SupervisorId,
    run_dir: PathBuf,
    signals: Signals,
    progress: Progress,
}

impl Command {
    /// Runs it to its end, seen and stopped through the control socket, if there is one.
    async fn run(
        mut self,
        link: &DriverLink,
        listener: Option<ControlListener>,
    ) -> Result<u8, RunCommandError> {
        let number = NonZeroU32::new(self.options.number).unwrap_or(NonZeroU32::MIN);
        let name = DynoName::new(ProcessType::run(), number);
        let dyno_id = DynoId::mint(&name, random::u64());
        let ending = CancellationToken::new();
        let server = listener.map(|listener| {
            let shown = self.shown(link, &name, &dyno_id);
            tokio::spawn(serve(listener, shown, ending.clone()))
        });
        let result = self.carry_through(link, &name, &dyno_id).await;
        // Whatever became of it.
        self.progress.complete(None);
        ending.cancel();
        if let Some(server) = server {
            // Whatever it says now, hsup ends.
            drop(server.await);
        }
        result
    }

    fn shown(&self, link: &DriverLink, name: &DynoName, dyno_id: &DynoId) -> OneOff {
        OneOff::new(control::Shown {
            app: self.loaded.release.app.clone(),
            release: self.loaded.release.clone(),
            origin: match self.options.source {
                SourceSpec::Directory(_) => Origin::Procfile,
                SourceSpec::ControlDir(_) => Origin::ControlDirectory,
                SourceSpec::Heroku(_) => Origin::Heroku,
            },
            port: ports::base(&self.loaded.release.config).unwrap_or_default(),
            name: name.clone(),
            line: self.line.clone(),
            dyno_id: dyno_id.clone(),
            grace: self.options.grace,
            standing: self.progress.watch(),
            link: link.watch(),
            wisher: self.signals.wisher(),
        })
    }

    async fn carry_through(
        &mut self,
        link: &DriverLink,
        name: &DynoName,
        dyno_id: &DynoId,
    ) -> Result<u8, RunCommandError> {
        // What needs no driver is done while that comes up.
        let mut streams = if terminal::is_terminal() {
            Streams::Terminal(Window::watch().map_err(system("watch the terminal's window"))?)
        } else {
            Streams::Pipes(Pipes::lay(&self.run_dir)?)
        };
        let (loaded, tell) = (&self.loaded, self.options.tell);
        let options = &self.options.driver_options;
        let work = prepare(link, loaded, options, &self.options.binds, tell);
        let (up, artifact) = match self.signals.unless(work).await {
            Ok(prepared) => prepared?,
            Err(code) => return Ok(code),
        };
        let base = base_on(&up, loaded.base);
        let left_out = environment::left_out(base, std::env::vars_os());
        let unmet = demands::unmet(&up.info, &loaded.release);
        for warning in unmet.into_iter().chain(left_out) {
            tell(&format!("Warning: {warning}"));
        }
        // It may be behind another job by now: what was to be built took its time.
        let has_terminal = up.capabilities.has(Capability::Attach) && terminal::is_terminal();
        if matches!(streams, Streams::Terminal(_)) && !has_terminal {
            streams = Streams::Pipes(Pipes::lay(&self.run_dir)?);
        }
        let request = self.start_request(name, dyno_id, &artifact, &up, &streams)?;
        let (signals, progress) = (&mut self.signals, &self.progress);
        match start(link, request, loaded, options, signals, progress, tell).await? {
            Begun::Signalled(code) => Ok(code),
            Begun::Running(up) => {
                self.progress.up(&up);
                let is_shown = self.options.control_socket.is_some();
                let locating = self.progress.clone().locate(link.watch(), dyno_id);
                tokio::select! {
                    code = self.accompany(link, up, dyno_id, streams) => code,
                    never = locating, if is_shown => match never {},
                }
            }
        }
    }

    /// Stays with the dyno until it has ended; answers hsup's exit code.
    async fn accompany(
        &mut self,
        link: &DriverLink,
        up: Arc<Up>,
        dyno_id: &DynoId,
        streams: Streams,
    ) -> Result<u8, RunCommandError> {
        let mut company = Company {
            driver: Current::new(up, link.watch(), self.options.tell),
            survives: matches!(streams, Streams::Pipes(_)),
            dyno_id,
            supervisor_id: &self.id,
            doubt: Arc::default(),
            signals: &mut self.signals,
            grace: self.options.grace,
            progress: &self.progress,
        };
        let result = match streams {
            Streams::Terminal(window) => attached::run(&mut company, window).await,
            Streams::Pipes(pipes) => pipes.run(link, &mut company).await,
        };
        if !self.progress.watch().borrow().phase.is_complete() {
            company.abandon().await;
        }
        result
    }

    fn start_request(
        &self,
        name: &DynoName,
        dyno_id: &DynoId,
        artifact: &str,
        up: &Up,
        streams: &Streams,
    ) -> Result<StartRequest, RunCommandError> {
        let release = &self.loaded.release;
        let dyno = environment::Dyno {
            name,
            id: dyno_id,
            port: ports::base(&release.config)?,
        };
        let request = Request {
            supervisor_id: &self.id,
            dyno,
            release,
            line: &self.line,
            host_base: self.loaded.base,
            binds: &self.options.binds,
            options: &self.options.driver_options,
            linger: self.options.linger,
        };
        let mut request = request.to(up, artifact, std::env::vars_os());
        match streams {
            Streams::Pipes(pipes) => {
                request.io_dir = pipes.io().path().to_string_lossy().into_owned();
            }
            Streams::Terminal(window) => {
                request.tty = true;
                (request.tty_rows, request.tty_columns) = window.size().unwrap_or_default();
                // What the terminal is, its user knows.
                if !request.env.contains_key("TERM")
                    && let Ok(term) = std::env::var("TERM")
                {
                    request.env.insert("TERM".to_owned(), term);
                }
            }
        }
        Ok(request)
    }
}

/// The command's own code, or 128 + n.
fn code_of(status: &ExitStatus) -> Result<u8, RunCommandError> {
    match &status.how {
        Ending::Lost(why) => Err(RunCommandError::Lost(why.clone())),
        _ => Ok(status.exit_code()),
    }
}

impl From<Errno> for RunCommandError {
    fn from(errno: Errno) -> Self {
        Self::System {
            what: "prepare the terminal",
            source: errno.into(),
        }
    }
}
