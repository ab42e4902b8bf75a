//! What every hsup driver shares.

pub mod client;
pub mod launch;
pub mod listen;
pub mod orphans;
pub mod serve;
pub mod service;
pub mod spawn;
