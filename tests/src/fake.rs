//! Servers that hsup talks to, as strict as the real ones, on real sockets.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

pub mod faulty_proxy;
pub mod logplex;
pub mod platform;
pub mod storage;
pub mod stream;
pub mod syslog;
