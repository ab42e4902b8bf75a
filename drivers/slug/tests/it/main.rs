//! The crate with real processes, a real server and real archives.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like one")]

mod archive;
mod fetch;
mod hostile;
mod layer;
mod privileged;
mod server;
mod store;
mod support;
