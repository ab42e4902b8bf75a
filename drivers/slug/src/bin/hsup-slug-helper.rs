//! A program that is nothing but the crate's own processes: the tests of the crate start it in
//! the place of a driver's binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    match hsup_slug::role(std::env::args_os()) {
        Some(0) => ExitCode::SUCCESS,
        Some(_) | None => ExitCode::FAILURE,
    }
}
