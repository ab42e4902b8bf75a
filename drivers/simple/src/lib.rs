//! The driver that runs dynos as plain processes of its own user.
//!
//! A library as well as a program: `hsup -d simple` executes itself again under the name
//! `hsup-driver-simple` and calls [`main`].

mod args;
mod runtime;

use std::{ffi::OsString, io, process::ExitCode, time::Duration};

use hsup_driver_kit::{
    errors::chain,
    listen::{ListenError, Listener, Place},
    log, open_files, orphans,
    processes::Cgroups,
    serve::{self, Options},
};
use thiserror::Error;

use self::{
    args::{Action, Args},
    runtime::Simple,
};

/// The program's name.
const NAME: &str = "hsup-driver-simple";
/// How long a driver that is somebody's child goes on with nobody to serve and nothing to run.
const IDLE: Duration = Duration::from_secs(5);

/// The driver could not run.
#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("failed to raise the open-file limit")]
    OpenFiles(#[source] io::Error),
    #[error("failed to set up the runtime")]
    Runtime(#[source] io::Error),
    #[error("failed to become the parent of what dynos leave behind")]
    Processes(#[source] io::Error),
    #[error("failed to serve")]
    Serve(#[source] io::Error),
}

/// Runs the driver until it is told to end. `args` are those after the program's name.
///
/// Ends with 0 after SIGTERM or when idle as a child, 1 when it cannot run, 2 for a bad
/// command line.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match args::parse(args) {
        Ok(Action::Help) => say(io::stdout(), args::HELP, 0),
        Ok(Action::Version) => {
            let version = concat!("hsup-driver-simple ", env!("CARGO_PKG_VERSION"), "\n");
            say(io::stdout(), version, 0)
        }
        Ok(Action::Serve(args)) => match run(args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => say(io::stderr(), &format!("{NAME}: {}\n", chain(&failure)), 1),
        },
        Err(error) => {
            let text = format!("{NAME}: {error}\nTry `{NAME} --help`.\n");
            say(io::stderr(), &text, 2)
        }
    }
}

fn run(args: Args) -> Result<(), Failure> {
    log::begin(NAME);
    open_files::raise().map_err(|errno| Failure::OpenFiles(errno.into()))?;
    let place = Place::choose(
        args.socket,
        |name| std::env::var_os(name),
        std::process::id(),
    )?;
    // A listening descriptor comes from a parent, and a parent can be killed.
    let child = args.child || place == Place::Descriptor;
    let options = Options {
        allow: args.allow,
        end_when_idle: child.then_some(IDLE),
        ..Options::default()
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::Runtime)?
        .block_on(async {
            let listener = Listener::open(&place)?;
            let cgroups = if args.no_cgroups {
                Cgroups::Never
            } else {
                Cgroups::WherePossible
            };
            if let Place::Path(path) = &place {
                // Who hands a descriptor down looks after what its earlier children left.
                orphans::kill_left_by(path).await;
            }
            let runtime = Simple::start(listener.path(), cgroups).map_err(Failure::Processes)?;
            serve::serve(listener, runtime, options)
                .await
                .map_err(Failure::Serve)
        })
}

/// Says something; whether anybody can hear it must not matter.
fn say(mut to: impl io::Write, text: &str, code: u8) -> ExitCode {
    drop(to.write_all(text.as_bytes()));
    drop(to.flush());
    ExitCode::from(code)
}
