//! Dynos in containers.

pub mod stack;
