//! The driver that runs dynos in a Docker engine.

mod artifact;
#[expect(dead_code, reason = "the runtime that calls it comes next")]
mod images;

use std::{ffi::OsString, process::ExitCode};

/// Runs the program in the role that its arguments name; `args` begin with its own name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match hsup_slug::role(args) {
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        None => ExitCode::FAILURE,
    }
}
