//! The hsup supervisor as a library: where releases come from, and what keeps their dynos running.

pub mod backoff;
pub mod build;
pub mod command;
pub mod control;
pub mod diagnostics;
pub mod driver;
pub mod dyno;
pub mod environment;
pub mod exit;
pub mod files;
pub mod formation;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod lifecycle;
pub mod locate;
pub mod logs;
mod loopback;
mod memory;
pub mod name;
mod notify;
pub mod paths;
pub mod plan;
pub mod ports;
pub mod random;
pub mod release;
pub mod releases;
mod retry_after;
pub mod rollout;
pub mod run;
mod signals;
pub mod source;
pub mod start;
pub mod state;
pub mod supervisor;
pub mod time;

pub use hsup_driver_kit::{errors, secrecy};
