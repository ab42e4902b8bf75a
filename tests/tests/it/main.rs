//! hsup as a person meets it: the built binaries, real processes, real sockets.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod app;
mod bad_input;
mod check;
mod ctl;
mod cycling;
mod day;
mod drains;
mod faults;
mod follow;
mod full_disk;
mod heroku;
mod look;
mod one_off;
mod output;
mod overtaken;
mod ports;
mod release_phase;
mod releases;
mod restarts;
mod rollouts;
mod run_socket;
mod running;
mod secrets;
mod survival;
mod terminal;
mod wishes;
