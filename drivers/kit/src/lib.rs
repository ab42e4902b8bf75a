//! What every hsup driver shares: serving the protocol with its rules, running processes,
//! and the supervisor's side of it.

pub mod client;
pub mod clock;
pub mod errors;
pub mod fifo;
pub mod file_url;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod hex;
pub mod identity;
pub mod launch;
pub mod listen;
pub mod locked;
pub mod log;
mod marks;
pub mod open_files;
pub mod orphans;
pub mod processes;
mod procfs;
pub mod program;
pub mod pty;
pub mod secrecy;
pub mod serve;
pub mod service;
pub mod signal;
pub mod socket;
pub mod spawn;
mod stat;
mod stats;

pub use hsup_proto::driver as proto;
pub use tokio_util::sync::CancellationToken;
pub use tonic::Status;

pub use self::{program::Program, signal::Signal};
