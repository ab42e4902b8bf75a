//! From arguments to hsup-core, and from its answers to exit codes.

use std::{
    collections::BTreeMap,
    env, error,
    ffi::OsString,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;
use hsup_core::{
    diagnostics::Diagnostics,
    driver::DriverSpec,
    dyno::DynoPolicy,
    errors::chain,
    logs::{DrainTarget, Format, TerminalSettings},
    name::ProcessType,
    ports::DEFAULT_BASE,
    rollout,
    run::{self, Built, RunOptions},
    secrecy,
    source::{ChooseSourceError, SourceSpec, control_file},
    start::{self, StartOptions},
};
use thiserror::Error;
use tokio::runtime::Runtime;

use super::{
    args::{Cli, Command, ConfigCommand, Export, Options, Output, Schema, SystemdArgs, TypeArg},
    check,
    drains::{DrainsError, Said, drains},
    export::{self, ExportError},
    meant::{Meant, TwoDrivers, named_driver},
};
use crate::{
    config::{Places, ResolveError, Resolved, Setting, resolve, show::Shown},
    doctor::{Question, examine},
    look::{Look, Report as _, colour_wanted, json},
    schema,
};

/// How long dynos outlive an hsup that was killed: at somebody's terminal, and as a service.
const LINGER_AT_A_TERMINAL: Duration = Duration::from_secs(10);
const LINGER_AS_A_SERVICE: Duration = Duration::from_mins(5);
/// How long a process without a port must run before a rollout trusts it.
const SETTLE: Duration = Duration::from_secs(1);
/// How often Heroku replaces dynos.
const A_DAY: Duration = Duration::from_hours(24);
/// Of what is printed for programs.
const NOT_JSON: &str = "failed to write JSON";

/// Errors of hsup itself, and wrong usage.
const FAILED: u8 = 1;
const USAGE: u8 = 2;

/// Runs `hsup` with the process's arguments.
pub fn main() -> ExitCode {
    secrecy::keep();
    let places = Places::from_env();
    let arguments: Vec<_> = env::args_os().collect();
    let resolved = match resolve(&arguments, |name| env::var_os(name), &places) {
        Ok(resolved) => resolved,
        Err(ResolveError::Usage(error)) => {
            let code = if error.use_stderr() { USAGE } else { 0 };
            // Help that nobody reads any more.
            drop(error.print());
            return ExitCode::from(code);
        }
        Err(ResolveError::Config(error)) => {
            tell(&chain(&error));
            return ExitCode::from(FAILED);
        }
    };
    match execute(resolved, places.current_dir) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tell(&chain(error.as_ref()));
            ExitCode::from(code_of(&error))
        }
    }
}

/// Says something of hsup's own, where nobody else does.
fn tell(text: &str) {
    // Whether anybody can hear it must not matter.
    drop(writeln!(io::stderr(), "hsup: {text}"));
}

/// The command line gives one process type two quantities, and neither is the one that is meant.
#[derive(Debug, Error)]
#[error("`{0}` is named twice: name each process type once, with its quantity")]
struct NamedTwice(ProcessType);

/// Flags that contradict each other are wrong usage, wherever they stand. clap looks for
/// that on each side of the command word only.
fn code_of(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<ChooseSourceError>() {
        Some(error) if error.is_usage() => USAGE,
        _ if error.is::<TwoDrivers>() || error.is::<NamedTwice>() => USAGE,
        _ if error.is::<DrainsError>() || error.is::<ExportError>() => USAGE,
        _ => FAILED,
    }
}

fn execute(resolved: Resolved, current_dir: Option<PathBuf>) -> anyhow::Result<u8> {
    let said = Said::of(&resolved);
    let meant = Meant::by(&resolved, current_dir, tell);
    let Cli { command, options } = resolved.cli;
    meant.refuse_abspath(&options)?;
    match command {
        Command::Config(ConfigCommand::Show { output }) => {
            let shown = Shown::of(&resolved.settings, &resolved.files);
            show_config(&meant, &options, &shown, output)
        }
        Command::Schema { what } => show_schema(what),
        Command::Doctor { output } => doctor(&meant, &options, output),
        Command::Completions { shell } => show_completions(shell),
        Command::Export(Export::Systemd(args)) => {
            let (settings, config) = (&resolved.settings, resolved.config.as_deref());
            export_units(&meant, &options, &args, settings, config)
        }
        Command::Check => check_app(&meant, options),
        Command::Start { types } => start_app(&meant, options, types, &said),
        Command::Run { words } => run_one_off(&meant, options, words, &said),
        Command::Build => build(&meant, options),
    }
}

fn show_config(
    meant: &Meant,
    options: &Options,
    shown: &Shown,
    output: Output,
) -> anyhow::Result<u8> {
    named_driver(options)?;
    meant.source_if_any(options)?;
    let text = match output {
        Output::Text => shown.show(&Look::for_stdout()).to_string(),
        Output::Json => json(shown).context(NOT_JSON)?,
    };
    show(text.as_bytes())
}

fn show_schema(what: Schema) -> anyhow::Result<u8> {
    let schema = match what {
        Schema::Config => schema::config(),
        Schema::Control => control_file::schema(),
    };
    show(json(&schema).context(NOT_JSON)?.as_bytes())
}

fn show_completions(shell: Shell) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hsup", &mut script);
    show(&script)
}

fn export_units(
    meant: &Meant,
    options: &Options,
    args: &SystemdArgs,
    settings: &[Setting],
    config: Option<&Path>,
) -> anyhow::Result<u8> {
    let app = meant.app_of_a_unit(options)?;
    meant.driver_to_start(options)?;
    let found = export::Found {
        app: &app,
        settings,
        config,
    };
    let units = export::systemd(args, options, &found, env::args_os())?;
    show(units.as_bytes())
}

fn check_app(meant: &Meant, options: Options) -> anyhow::Result<u8> {
    let source = meant.source(&options)?;
    named_driver(&options)?;
    check::check(&source, &rollout::Policy::new(options.strategies, None))
}

fn start_app(
    meant: &Meant,
    options: Options,
    types: Vec<TypeArg>,
    said: &Said,
) -> anyhow::Result<u8> {
    let source = meant.source(&options)?;
    let driver = meant.driver_to_start(&options)?;
    let session = Session::begin()?;
    let drains = drains(&options, said, tell)?;
    let options = start_options(options, types, source, driver, drains, &session)?;
    session.run_to_end(start::start(options))
}

fn run_one_off(
    meant: &Meant,
    options: Options,
    words: Vec<OsString>,
    said: &Said,
) -> anyhow::Result<u8> {
    let source = meant.source(&options)?;
    let driver = meant.driver_to_start(&options)?;
    if said.is_drain_typed() {
        tell("--logplex-url and --log-to have no effect: the output of `run` comes here");
    }
    let session = Session::begin()?;
    session.print_diagnostics()?;
    let options = run_options(options, words, source, driver, &session);
    session.run_to_end(run::run(options))
}

fn build(meant: &Meant, options: Options) -> anyhow::Result<u8> {
    let source = meant.source(&options)?;
    let driver = meant.driver_to_start(&options)?;
    let session = Session::begin()?;
    session.print_diagnostics()?;
    let state_dir = options.state_dir.as_deref();
    let own_program = session.own_program.clone();
    let driver_options = options.driver_options.into_iter().collect();
    let work = run::build_only(
        &source,
        state_dir,
        driver,
        &driver_options,
        own_program,
        tell,
    );
    match session.run_to_end(work)? {
        Built::Artifact(artifact) => show(format!("{artifact}\n").as_bytes()),
        Built::Ended(code) => Ok(code),
    }
}

/// Writes what was asked for.
fn show(text: &[u8]) -> anyhow::Result<u8> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text).and_then(|()| out.flush());
    written.context("failed to write to standard output")?;
    Ok(0)
}

/// What the commands that need a driver have for as long as they take.
struct Session {
    diagnostics: Diagnostics,
    own_program: PathBuf,
    runtime: Runtime,
}

impl Session {
    fn begin() -> anyhow::Result<Self> {
        let diagnostics = Diagnostics::new();
        diagnostics
            .install()
            .context("failed to set up diagnostics")?;
        Ok(Self {
            diagnostics,
            own_program: env::current_exe().context("failed to find hsup's own program")?,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("failed to start the runtime")?,
        })
    }

    /// Prints them on SIGUSR1; `start` has its own way to print.
    fn print_diagnostics(&self) -> anyhow::Result<()> {
        let _in_runtime = self.runtime.enter();
        self.diagnostics
            .print_on_signal()
            .context("failed to receive signals")
    }

    fn run_to_end<T, E: error::Error + Send + Sync + 'static>(
        self,
        work: impl Future<Output = Result<T, E>>,
    ) -> anyhow::Result<T> {
        let result = self.runtime.block_on(work);
        // What is still running in it is nobody's any more: a read of standard input, say.
        self.runtime.shutdown_background();
        Ok(result?)
    }
}

fn doctor(meant: &Meant, options: &Options, output: Output) -> anyhow::Result<u8> {
    let driver = named_driver(options)?;
    // A machine can be looked at before there is an app.
    let source = meant.source_if_any(options)?;
    let first_port = source.as_ref().and_then(check::first_port);
    let session = Session::begin()?;
    let question = Question {
        driver,
        first_port: first_port.unwrap_or(DEFAULT_BASE),
        json: output == Output::Json,
    };
    let own_program = session.own_program.clone();
    let (text, code) =
        session
            .runtime
            .block_on(examine(question, &own_program, &Look::for_stdout()))?;
    show(text.as_bytes())?;
    Ok(code)
}

fn linger(options: &Options, source: &SourceSpec) -> Duration {
    options.linger.unwrap_or(match source {
        SourceSpec::Directory(_) => LINGER_AT_A_TERMINAL,
        SourceSpec::ControlDir(_) | SourceSpec::Heroku(_) => LINGER_AS_A_SERVICE,
    })
}

fn start_options(
    options: Options,
    types: Vec<TypeArg>,
    source: SourceSpec,
    driver: DriverSpec,
    drains: Vec<DrainTarget>,
    session: &Session,
) -> anyhow::Result<StartOptions> {
    let format = if options.json {
        Format::Json
    } else if options.no_prefix {
        Format::Bare
    } else {
        Format::Prefixed
    };
    let mut terminal =
        TerminalSettings::standard(format).context("failed to use standard output and error")?;
    let linger = linger(&options, &source);
    terminal.timestamps = !options.no_timestamp;
    terminal.colour = colour_wanted();
    Ok(StartOptions {
        driver,
        driver_options: options.driver_options.into_iter().collect(),
        own_program: session.own_program.clone(),
        explicit: explicit(types)?,
        one_shot: options.oneshot,
        start_number: options.start_number,
        release_timeout: (!options.no_release_phase).then_some(options.release_timeout),
        cycle_every: options
            .cycle_every
            .or_else(|| options.cycle.then_some(A_DAY)),
        rollouts: rollout::Policy::new(options.strategies, options.max_surge),
        policy: DynoPolicy {
            backoff: options.restart_backoff,
            grace: options.grace,
            boot_timeout: options.boot_timeout,
            http_check: options.http_check,
            linger,
            settle: SETTLE,
        },
        control_socket: options.control_socket,
        state_dir: options.state_dir,
        binds: options.binds,
        source,
        terminal,
        drains,
        log_runtime_metrics: options.log_runtime_metrics,
        tell,
        diagnostics: session.diagnostics.clone(),
    })
}

fn run_options(
    options: Options,
    words: Vec<OsString>,
    source: SourceSpec,
    driver: DriverSpec,
    session: &Session,
) -> RunOptions {
    RunOptions {
        driver,
        driver_options: options.driver_options.into_iter().collect(),
        own_program: session.own_program.clone(),
        words,
        number: options.start_number,
        grace: options.grace,
        // Whoever waits for a one-off has gone when hsup has.
        linger: options.linger.unwrap_or(LINGER_AT_A_TERMINAL),
        control_socket: options.control_socket,
        state_dir: options.state_dir,
        binds: options.binds,
        source,
        tell,
    }
}

/// The process types of `hsup start`; without any, the formation as it is.
///
/// The original's README says `hsup start -d docker start -a APP`: a second `start` first of
/// all means nothing.
fn explicit(mut types: Vec<TypeArg>) -> Result<Option<BTreeMap<ProcessType, u32>>, NamedTwice> {
    let first_is_the_word = types
        .first()
        .is_some_and(|first| first.process_type == "start" && first.quantity.is_none());
    if first_is_the_word {
        types.remove(0);
    }
    let mut explicit = BTreeMap::new();
    for TypeArg {
        process_type,
        quantity,
    } in types
    {
        if explicit.contains_key(&process_type) {
            return Err(NamedTwice(process_type));
        }
        explicit.insert(process_type, quantity.unwrap_or(1));
    }
    Ok((!explicit.is_empty()).then_some(explicit))
}
