//! The hsup supervisor as a library: where releases come from, and what keeps their dynos running.

pub mod backoff;
pub mod command;
pub mod control;
pub mod diagnostics;
pub mod environment;
pub mod exit;
pub mod files;
pub mod lifecycle;
pub mod logs;
pub mod name;
pub mod paths;
pub mod plan;
pub mod ports;
pub mod release;
pub mod rollout;
pub mod source;
pub mod state;
