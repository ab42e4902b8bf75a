//! Whether a `file://` slug is still what it was, without reading it.

use std::{
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nix::{
    fcntl::readlinkat,
    sys::stat::{FileStat, SFlag, fstat},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use crate::{
    error::SlugError,
    fetch::Patience,
    helper::{Helper, Program},
    id::SlugId,
    privilege::Peer,
    progress::Silent,
    walk::{self, WalkError, kind, walk},
    wire,
};

const TASK: &str = "look at the slug";
/// How long a driver looks. A Build's first answer waits for it, and callers allow 30 s for that.
const LOOK: Duration = Duration::from_secs(10);

/// What the process is to look at.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    peer: Peer,
    path: Vec<u8>,
}

/// A digest of the state of a directory (of everything in it the name, type, mode, size, time
/// of change and the target of a link) or of a file (size, time, inode), as `peer` sees it.
/// Two equal ones: nothing that matters has changed.
///
/// # Errors
/// When the peer may not look, or there is nothing, or it takes longer than `patience` says.
pub async fn changed(
    program: &Program,
    peer: &Peer,
    path: &Path,
    patience: &Patience,
) -> Result<String, SlugError> {
    let job = wire::Job::Changed(Job {
        peer: peer.clone(),
        path: path.as_os_str().as_bytes().to_vec(),
    });
    let look = async {
        let mut helper = Helper::start(program, TASK, &job, None, None).await?;
        helper.answer(&Silent).await
    };
    timeout(patience.stall, look).await.unwrap_or_else(|_| {
        Err(SlugError::Stalled {
            from: path.display().to_string(),
            seconds: patience.stall.as_secs(),
        })
    })
}

/// What tells one state of a slug from another, as a driver says it to the kit. One that takes too
/// long to look at is another each time: its Build is made, which reads what there is. `None` where
/// something is wrong with it, which the Build will say.
pub async fn state(program: &Program, peer: &Peer, path: &Path) -> Option<Vec<u8>> {
    static STALLED: AtomicU64 = AtomicU64::new(0);
    let patience = Patience {
        stall: LOOK,
        ..Patience::default()
    };
    match changed(program, peer, path, &patience).await {
        Ok(digest) => Some(digest.into_bytes()),
        Err(SlugError::Stalled { .. }) => {
            let number = STALLED.fetch_add(1, Ordering::Relaxed);
            Some(number.to_le_bytes().into())
        }
        Err(_) => None,
    }
}

impl Job {
    pub(crate) fn prepare(&self) -> Result<(), SlugError> {
        self.peer.embody(TASK)
    }

    pub(crate) fn run(&self) -> Result<String, SlugError> {
        let path = PathBuf::from(std::ffi::OsString::from_vec(self.path.clone()));
        let fail = |at: &Path, error: std::io::Error| SlugError::File {
            path: at.to_owned(),
            uid: self.peer.uid,
            missing: error.kind() == std::io::ErrorKind::NotFound,
            cause: error.to_string(),
        };
        let root = walk::open(&path).map_err(|errno| fail(&path, errno.into()))?;
        let stat = fstat(&root).map_err(|errno| fail(&path, errno.into()))?;
        let mut digest = Sha256::new();
        if kind(&stat) != SFlag::S_IFDIR {
            add(&mut digest, b"", &stat, b"");
            digest.update(stat.st_ino.to_le_bytes());
            return Ok(SlugId::new(digest.finalize().into()).to_string());
        }
        add(&mut digest, b"", &stat, b"");
        let mut gone = 0_u64;
        let walked = walk(
            root,
            &mut |found| {
                let target = if found.kind() == SFlag::S_IFLNK {
                    readlinkat(found.parent, found.name).unwrap_or_default()
                } else {
                    std::ffi::OsString::new()
                };
                add(&mut digest, found.path, &found.stat, target.as_bytes());
                Ok(())
            },
            &mut |_| gone += 1,
        );
        match walked {
            Ok(()) => {}
            Err(WalkError::At(at, error)) => return Err(fail(&path.join(at), error)),
            Err(WalkError::Visit(error)) => return Err(error),
        }
        // What vanished meanwhile makes it another state than any that stays.
        digest.update(gone.to_le_bytes());
        Ok(SlugId::new(digest.finalize().into()).to_string())
    }
}

fn add(digest: &mut Sha256, name: &[u8], stat: &FileStat, target: &[u8]) {
    for text in [name, target] {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    }
    // How big a directory is says nothing but how it was filled.
    let size = if kind(stat) == SFlag::S_IFDIR {
        0
    } else {
        stat.st_size
    };
    digest.update(stat.st_mode.to_le_bytes());
    for number in [size, stat.st_mtime, stat.st_mtime_nsec] {
        digest.update(number.to_le_bytes());
    }
}
