//! What every hsup driver shares.

mod background;
pub mod client;
pub mod launch;
pub mod orphans;
