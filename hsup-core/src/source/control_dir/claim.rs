//! Who follows a control directory: one process on a machine.
//!
//! A lock in the directory would keep it from being seen to be deleted while it is held: an open
//! file keeps its directory's inode, and inotify tells only of one that is gone. So the claim is
//! a socket in the [abstract namespace], which goes with its process and is nowhere on a disk.
//!
//! [abstract namespace]: https://man7.org/linux/man-pages/man7/unix.7.html

use std::{
    fs, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::MetadataExt as _,
            net::{SocketAddr, UnixListener},
        },
    },
    path::Path,
    thread,
    time::Duration,
};

/// How often it is tried: `run` holds it for a moment, while it takes in a release.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// Keeps others from following a directory.
#[derive(Debug)]
pub(super) struct Claim {
    _bound: UnixListener,
}

impl Claim {
    /// Claims the directory at `path`; `None` when another process has it. Blocks for a fifth of
    /// a second at most.
    pub(super) fn of(path: &Path) -> io::Result<Option<Self>> {
        let metadata = fs::metadata(path)?;
        let name = format!("hsup/control-dir/{}/{}", metadata.dev(), metadata.ino());
        let address = SocketAddr::from_abstract_name(name)?;
        for tried in 1.. {
            match UnixListener::bind_addr(&address) {
                Ok(bound) => return Ok(Some(Self { _bound: bound })),
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => return Err(error),
                Err(_) if tried < TRIES => thread::sleep(PAUSE),
                Err(_) => break,
            }
        }
        Ok(None)
    }
}
