//! What every hsup driver shares.

pub mod client;
