//! Dynos in containers.

pub mod lease;
pub mod net;
pub mod stack;
