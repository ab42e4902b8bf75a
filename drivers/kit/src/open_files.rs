//! The limit on open files: a driver, or hsup, takes all it may have, for every dyno and every
//! caller costs it descriptors; whom it starts gets the limit that it was started with, for a
//! program that uses select(2) breaks above 1,024.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The limits (soft, hard) that this process was started with, if it has raised its own since.
static GIVEN: OnceLock<(u64, u64)> = OnceLock::new();

/// Raises the soft limit of this process to its hard limit. What the kit starts from now on
/// gets the limits of before.
///
/// # Errors
/// When the kernel refuses.
pub fn raise() -> nix::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        // The first word counts.
        let _ = GIVEN.set((soft, hard));
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// What a process that is started is to get instead of ours: soft and hard, if it differs.
pub fn given() -> Option<(u64, u64)> {
    GIVEN.get().copied()
}
