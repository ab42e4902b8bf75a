//! `lasting-driver`: a driver of durability EXACT, written with the kit, for the tests of both the
//! kit and the conformance suite.
//!
//! ```text
//!  lasting-driver ──▶ lasting-driver shim DIR ──▶ the command
//!        │                     │ holds the writing end of DIR/life until DIR/exit is there
//!        │                     │ reads signals to send from DIR/control, until it is removed
//!        └── waits for the end of DIR/life, and reads DIR/exit
//! ```
//!
//! A shim and its dyno outlive the driver. What is kept is beside the driver's socket, in a folder
//! of its name: the options of each Build in `builds`, of each Start and what it
//! is of in the dyno's `order`.
//! `--fault` breaks one rule, for a case of the suite to find.

mod runtime;
mod shim;

use std::{env, ffi::OsStr, process::ExitCode};

use hsup_driver_kit::Program;

use self::runtime::{Lasting, Ways};

/// What the driver does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Remove forgets a dyno for as long as the driver lives.
    ComesBack,
    /// A dyno that ended while the driver was down is not found again.
    ForgetsEnded,
    /// The dynos are not found again, and go on.
    ForgetsRunning,
    /// Exits are told once.
    TellsOnce,
    /// Whatever is to be bound is not looked at.
    BindsAnything,
    /// A dyno's output has no reader but its supervisor.
    WriteOnly,
}

impl Fault {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "binds-anything" => Self::BindsAnything,
            "comes-back" => Self::ComesBack,
            "forgets-ended" => Self::ForgetsEnded,
            "forgets-running" => Self::ForgetsRunning,
            "tells-once" => Self::TellsOnce,
            "write-only" => Self::WriteOnly,
            _ => return None,
        })
    }
}

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1).peekable();
    if args.next_if(|first| first == "shim").is_some() {
        let (dir, fault) = (args.next().unwrap_or_default(), args.next());
        let fault = fault.and_then(|fault| Fault::parse(fault.to_str()?));
        return shim::run(dir.as_ref(), fault);
    }
    let about = "Runs dynos that outlive it, for the tests of hsup";
    Program::new("lasting-driver", env!("CARGO_PKG_VERSION"), about)
        .value("--fault", "NAME", "Break this rule")
        .flag("--binds", "Declare BINDS, and bind nothing")
        .value(
            "--option",
            "KEY",
            "Know this option, and write down what it is given",
        )
        .value(
            "--node",
            "NAME",
            "Be on this machine, where web dynos alone have a port",
        )
        .main(args, async |given| {
            let name = given.value("--fault").map(|name| name.to_string_lossy());
            let fault = match &name {
                None => None,
                Some(name) => Some(Fault::parse(name).ok_or(format!("no fault `{name}`"))?),
            };
            let socket = given.socket().ok_or("the socket has no name")?;
            let state = socket.with_extension("state");
            let text = |value: &OsStr| value.to_string_lossy().into_owned();
            let ways = Ways {
                binds: given.has("--binds"),
                options: given.values("--option").map(text).collect(),
                node: given.value("--node").map(text).unwrap_or_default(),
            };
            Lasting::new(state, fault.zip(name), ways).map_err(|error| error.to_string())
        })
}
