//! What every hsup driver shares.

pub mod client;
pub mod launch;
pub mod orphans;
pub mod spawn;
