//! hsup as a person meets it: the built binaries, real processes, real sockets.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod activation;
mod app;
mod bad_input;
mod chaos;
mod check;
mod config;
mod core_dumps;
mod ctl;
mod cycling;
mod day;
mod doctor;
mod drain_faults;
mod drains;
mod driver_options;
mod export;
mod fault_driver;
mod faults;
mod follow;
mod full_disk;
mod heroku;
mod kills;
mod look;
mod moments;
mod one_off;
mod output;
mod overtaken;
mod release_phase;
mod releases;
mod restarts;
mod rollouts;
mod run_socket;
mod running;
mod secrets;
mod strangers;
mod survival;
mod terminal;
mod top;
mod upgrades;
mod wishes;
