//! The open-file limit: hsup itself takes all it may have, for every dyno costs it two
//! descriptors; dynos get the one that hsup was started with, for a program that uses
//! select(2) breaks above 1,024.

use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};

/// Raises the soft limit of this process to its hard limit.
pub fn raise_open_files() -> Result<(), Errno> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        hsup_driver_kit::launch::remember_open_files(soft, hard);
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}
