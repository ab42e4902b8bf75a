//! The driver that runs dynos as plain processes of its own user.
//!
//! A library as well as a program: `hsup -d simple` executes itself again under the name
//! `hsup-driver-simple` and calls [`main`].

mod durable;
mod runtime;

use std::{ffi::OsString, process::ExitCode};

use hsup_driver_kit::{Program, processes::Cgroups};

use self::{durable::Durable, runtime::Simple};

const NO_CGROUPS: &str = "--no-cgroups";
const DURABLE: &str = "--durable";

/// Runs the driver until it is told to end. `args` are those after the program's name.
///
/// Ends with 0 after SIGTERM or when idle as a child, 1 when it cannot run, 2 for a bad
/// command line.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let about = "Runs the dynos of hsup as plain processes of its own user";
    let program = Program::new("hsup-driver-simple", env!("CARGO_PKG_VERSION"), about)
        .flag(
            NO_CGROUPS,
            "Do not keep each dyno in a cgroup of its own where this user may make\n\
             one: a start takes a little less time, and a process that takes pains\n\
             to leave its dyno is not found when that is stopped",
        )
        .flag(
            DURABLE,
            "Have dynos outlive this program, and know how they ended meanwhile:\n\
             each has a hsup-shim for a parent. There are no terminals and no\n\
             figures of what a dyno uses, then",
        );
    let args: Vec<OsString> = args.into_iter().collect();
    if args.iter().any(|arg| arg == DURABLE) {
        return program.main(args, async |given| {
            let socket = given
                .socket()
                .ok_or("--durable needs a socket with a path")?;
            Durable::start(socket).map_err(|error| error.to_string())
        });
    }
    program.main(args, async |given| {
        let cgroups = if given.has(NO_CGROUPS) {
            Cgroups::Never
        } else {
            Cgroups::WherePossible
        };
        Simple::start(given.socket(), cgroups)
    })
}
