//! The hsup supervisor as a library.

pub mod rollout;
