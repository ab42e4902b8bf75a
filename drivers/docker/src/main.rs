//! `hsup-driver-docker`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    hsup_driver_docker::main(std::env::args_os().skip(1))
}
