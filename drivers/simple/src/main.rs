//! `hsup-driver-simple`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    hsup_driver_simple::main(std::env::args_os().skip(1))
}
