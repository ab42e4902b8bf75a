//! Dynos in containers.

pub mod lease;
