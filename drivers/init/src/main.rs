//! `hsup-init` and `hsup-wait`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    hsup_init::main()
}
