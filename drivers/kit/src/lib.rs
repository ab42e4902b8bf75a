//! What every hsup driver shares: serving the protocol with its rules, running processes,
//! and the supervisor's side of it.

pub mod client;
pub mod errors;
pub mod fifo;
pub mod file_url;
pub mod launch;
pub mod listen;
pub mod orphans;
pub mod processes;
pub mod pty;
pub mod serve;
pub mod service;
pub mod socket;
pub mod spawn;
pub mod stats;
