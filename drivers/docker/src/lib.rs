//! The driver that runs dynos in the containers of a Docker engine, or of Podman's.
//!
//! ```text
//!   calls ──▶ Runtime (runtime.rs): images/, start.rs ── config.rs, undo.rs
//!                 │
//!                 ▼
//!             dyno.rs ── life.rs   waits for the container's end
//!                 │  ├── logs.rs   the engine's log ──▶ the dyno's FIFOs (frames.rs, cursor.rs)
//!                 │  └── attach.rs stdin, a terminal (terminal.rs), and what `hsup run` writes
//!                 ▼
//!             engine.rs: where it is (context.rs), how it is reached (connect.rs), what the
//!             client library is not asked for (api.rs), and whether it answers
//! ```
//!
//! With `--swarm`, or for requests that ask for it, a dyno is a service of a Docker Swarm instead
//! (swarm/), and any.rs is either.
//!
//! The engine holds all that must outlive this process: containers with labels that say whose
//! they are, what they wrote, how they ended. Only how far that was passed on is kept in files.

mod any;
mod api;
mod artifact;
mod attach;
mod claim;
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
mod place;
mod recover;
mod remembered;
mod remove;
mod runtime;
mod start;
mod swarm;
mod terminal;
mod undo;

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use hsup_driver_kit::Program;

use self::{
    runtime::{DockerDriver, OpenError},
    swarm::Wish,
};

/// Where the engine is, whatever the environment and the Docker context say.
const HOST: &str = "--host";

/// Dynos on a Swarm, and how images come to its nodes.
const SWARM: &str = "--swarm";
const REGISTRY: &str = "--registry";

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
        .flag(
            SWARM,
            "Runs dynos as services of the Docker Swarm whose manager the engine is;\n\
             also dyno by dyno, with the option `swarm=true` of a request",
        )
        .value(
            REGISTRY,
            "HOST:PORT",
            "Through which registry images come to the nodes of the Swarm",
        )
        .main(args.into_iter().skip(1), async |given| {
            let registry = given.value(REGISTRY).map(OsStr::to_string_lossy);
            let wish = Wish::of_driver(given.has(SWARM), registry.as_deref());
            let wish = wish.map_err(OpenError::from)?;
            DockerDriver::open(given.value(HOST), given.socket(), wish).await
        })
}
