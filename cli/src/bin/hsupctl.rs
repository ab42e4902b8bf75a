//! Asks a running hsup, and tells it what to do.

use std::process::ExitCode;

fn main() -> ExitCode {
    hsup_cli::ctl::main()
}
