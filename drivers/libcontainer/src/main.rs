//! `hsup-driver-libcontainer`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    hsup_driver_libcontainer::main(std::env::args_os())
}
