//! Trees of real processes, held together by what every descendant inherits.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like one")]

mod trees;

use std::io;

use hsup_driver_kit::processes::{Cgroups, Processes};

/// How the tests begin.
fn start() -> io::Result<Processes> {
    Processes::start(None, Cgroups::Never)
}
