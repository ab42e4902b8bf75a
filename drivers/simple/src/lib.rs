//! The driver that runs dynos as plain processes of its own user.
//!
//! A library as well as a program: `hsup -d simple` executes itself again under the name
//! `hsup-driver-simple` and calls [`main`].

mod runtime;

use std::{ffi::OsString, process::ExitCode};

use hsup_driver_kit::{Program, processes::Cgroups};

use self::runtime::Simple;

const NO_CGROUPS: &str = "--no-cgroups";

/// Runs the driver until it is told to end. `args` are those after the program's name.
///
/// Ends with 0 after SIGTERM or when idle as a child, 1 when it cannot run, 2 for a bad
/// command line.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let about = "Runs the dynos of hsup as plain processes of its own user";
    Program::new("hsup-driver-simple", env!("CARGO_PKG_VERSION"), about)
        .flag(
            NO_CGROUPS,
            "Do not keep each dyno in a cgroup of its own where this user may make\n\
             one: a start takes a little less time, and a process that takes pains\n\
             to leave its dyno is not found when that is stopped",
        )
        .main(args, async |given| {
            let cgroups = if given.has(NO_CGROUPS) {
                Cgroups::Never
            } else {
                Cgroups::WherePossible
            };
            Simple::start(given.socket(), cgroups)
        })
}
