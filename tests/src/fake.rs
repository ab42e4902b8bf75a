//! Services that hsup talks to, as fakes on real sockets that keep the real ones' rules.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

pub mod platform;
