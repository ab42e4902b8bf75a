//! `hsup`: see `hsup --help`.
//!
//! Started under the name `hsup-driver-simple` it is that driver: so one `cargo run` does
//! all of it, out of process and over the same protocol as any other driver.

use std::{env, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let name = env::args_os().next().unwrap_or_default();
    if Path::new(&name).file_name() == Some("hsup-driver-simple".as_ref()) {
        // In the process list, too: whoever kills `hsup` by name means hsup.
        let _ = nix::sys::prctl::set_name(c"hsup-driver-simple");
        return hsup_driver_simple::main(env::args_os().skip(1));
    }
    hsup_cli::hsup::main()
}
