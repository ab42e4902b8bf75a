//! The driver that runs dynos in the containers of a Docker engine, or of Podman's.
//!
//! ```text
//!   calls ──▶ Runtime (runtime.rs): images/, start.rs ── config.rs, undo.rs
//!                 │
//!                 ▼
//!             dyno.rs ── life.rs   waits for the container's end
//!                 │  ├── logs.rs   the engine's log ──▶ the dyno's FIFOs (frames.rs, cursor.rs)
//!                 │  └── attach.rs stdin, and a terminal (terminal.rs)
//!                 ▼
//!             engine.rs: where it is (context.rs), how it is reached (connect.rs), what the
//!             client library is not asked for (api.rs), and whether it answers
//! ```
//!
//! The engine holds all that must outlive this process: containers with labels that say whose
//! they are, what they wrote, how they ended. Only how far that was passed on is kept in files.

mod api;
mod artifact;
mod attach;
mod config;
mod connect;
mod context;
mod cursor;
mod docker_files;
mod download;
mod dyno;
mod engine;
mod frames;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod images;
mod life;
mod logs;
mod recover;
mod runtime;
mod start;
mod terminal;
mod undo;

use std::{ffi::OsString, process::ExitCode};

use hsup_driver_kit::Program;

use self::runtime::DockerDriver;

/// Where the engine is, whatever the environment and the Docker context say.
const HOST: &str = "--host";

/// Runs the driver until it is told to end. `args` begin with the program's name.
///
/// Ends with 0 after SIGTERM or when idle as a child, 1 when it cannot run, 2 for a bad
/// command line.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    if let Some(code) = hsup_slug::role(args.iter().cloned()) {
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    let about = "Runs the dynos of hsup in the containers of a Docker engine";
    Program::new("hsup-driver-docker", env!("CARGO_PKG_VERSION"), about)
        .value(
            HOST,
            "URL",
            "Where the engine is: unix://PATH, tcp://HOST:PORT or\n\
             ssh://[USER@]HOST[:PORT]\n\
             [DOCKER_HOST, or the current Docker context;\n\
             default: unix:///var/run/docker.sock]",
        )
        .main(args.into_iter().skip(1), async |given| {
            DockerDriver::open(given.value(HOST), given.socket()).await
        })
}
