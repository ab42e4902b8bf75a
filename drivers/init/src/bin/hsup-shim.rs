//! `hsup-shim`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    hsup_init::shim::main()
}
