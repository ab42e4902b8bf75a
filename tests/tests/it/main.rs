//! hsup as a person meets it: the built binaries, real processes, real sockets.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod app;
mod bad_input;
mod check;
mod ctl;
mod follow;
mod look;
mod one_off;
mod releases;
mod running;
mod survival;
