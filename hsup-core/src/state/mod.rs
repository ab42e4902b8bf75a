//! What hsup remembers on disk, and who may.
//!
//! ```text
//! lock             held by the one `start` that owns the directory; holds its pid
//! supervisor_id    who the drivers know us as, for as long as the directory lives
//! journal          dynos that were started and have not ended   (survives kill -9)
//! history.json     releases, with their config                  (survives a power cut)
//! memory.json      scaling, stops, ports' order              (survives a power cut)
//! ```
//!
//! The directory is 0700 and every file in it 0600, for releases hold config vars.
//! What is damaged is set aside and reported, never a reason not to start.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz {
    pub use super::{history::fuzz::history, journal::fuzz::journal};
}
mod history;
mod journal;
mod json;
mod memory;

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use thiserror::Error;

pub use self::{
    history::{Artifact, History, KEEP, ReleasePhase, ReleaseRecord, ReleaseState, TakenIn},
    journal::{Journal, JournalError, LiveDyno, Record},
    json::{LoadError, SaveError},
    memory::{Memory, Remembered},
};
use crate::files::{clear_temporaries, write_atomic};

/// How often a lock is tried: another process may hold it for a moment, as `run` does
/// while it takes in a release.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The state directory of one app, which nobody else has open.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    supervisor_id: SupervisorId,
    /// The lock lasts as long as this descriptor.
    _lock: File,
}

/// The state directory could not be opened.
#[derive(Debug, Error)]
pub enum OpenStateError {
    #[error("failed to create the state directory `{}`", .path.display())]
    Create { path: PathBuf, source: io::Error },

    #[error("the state directory `{}` belongs to user {owner}, not to user {us}", .path.display())]
    Owner { path: PathBuf, owner: u32, us: u32 },

    #[error("failed to lock the state directory with `{}`", .path.display())]
    Lock { path: PathBuf, source: io::Error },

    #[error(
        "the state directory `{}` is in use by {}",
        .path.display(),
        .owner.map_or_else(|| "another hsup".to_owned(), |pid| format!("the hsup with pid {pid}"))
    )]
    InUse { path: PathBuf, owner: Option<u32> },

    #[error("failed to read or write the supervisor id `{}`", .path.display())]
    SupervisorId { path: PathBuf, source: io::Error },

    #[error(
        "`{}` holds no supervisor id; when no dyno of this app runs any more, remove it",
        .path.display()
    )]
    BadSupervisorId { path: PathBuf },
}

/// Something on disk that was not as hsup had left it, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage(String);

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StateDir {
    /// Opens the directory, makes it where there is none, and keeps others out of it.
    ///
    /// # Errors
    /// When it cannot be made, is another user's, or is held by another process.
    pub fn open(path: &Path) -> Result<Self, OpenStateError> {
        let create = |source| OpenStateError::Create {
            path: path.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(create)?;
        let metadata = fs::metadata(path).map_err(create)?;
        let us = nix::unistd::geteuid().as_raw();
        if metadata.uid() != us {
            return Err(OpenStateError::Owner {
                path: path.to_owned(),
                owner: metadata.uid(),
                us,
            });
        }
        if metadata.mode() & 0o777 != 0o700 {
            fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(create)?;
        }
        let lock = lock(path)?;
        clear_temporaries(path);
        Ok(Self {
            supervisor_id: supervisor_id(&path.join("supervisor_id"))?,
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who the drivers know us as.
    pub const fn supervisor_id(&self) -> &SupervisorId {
        &self.supervisor_id
    }

    /// Opens the journal of dynos, with what was wrong in it.
    ///
    /// # Errors
    /// When it cannot be opened or read.
    pub fn journal(&self) -> Result<(Journal, Vec<Damage>), JournalError> {
        Journal::open(&self.path.join("journal"))
    }

    /// Loads the history of releases; one that makes no sense is set aside.
    ///
    /// # Errors
    /// When it cannot be read, or not be set aside.
    pub fn history(&self) -> Result<(History, Option<Damage>), LoadError> {
        History::load(self.path.join("history.json"))
    }

    /// Loads what people asked for; a file that makes no sense is set aside.
    ///
    /// # Errors
    /// When it cannot be read, or not be set aside.
    pub fn memory(&self) -> Result<(Memory, Option<Damage>), LoadError> {
        Memory::load(self.path.join("memory.json"))
    }
}

fn lock(dir: &Path) -> Result<File, OpenStateError> {
    let path = dir.join("lock");
    let failed = |source| OpenStateError::Lock {
        path: path.clone(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    for tried in 1.. {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(source)) => return Err(failed(source)),
            Err(TryLockError::WouldBlock) if tried < LOCK_TRIES => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let owner = file
                    .read_to_string(&mut text)
                    .ok()
                    .and_then(|_| text.trim().parse().ok());
                return Err(OpenStateError::InUse {
                    path: dir.to_owned(),
                    owner,
                });
            }
        }
    }
    // The pid is for people only, so a full disk is no reason to stop here.
    let said = file
        .set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = said {
        tracing::debug!(path = %path.display(), %error, "pid not written to lock file");
    }
    Ok(file)
}

/// Who a supervisor is to a driver: `[a-z0-9][a-z0-9-]{0,62}`, as a dyno id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SupervisorId(String);

/// The text is not a supervisor id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "not a supervisor id: expected 1 to 63 lower-case letters, digits and `-`, not starting with `-`"
)]
pub struct ParseSupervisorIdError;

impl SupervisorId {
    /// A new one, which nobody else has: 13 characters, so that socket paths stay short.
    ///
    /// # Errors
    /// When the system has no random numbers to give.
    pub fn random() -> io::Result<Self> {
        const ALPHABET: [u8; 32] = *b"abcdefghijklmnopqrstuvwxyz234567";
        let bits = getrandom::u64().map_err(io::Error::other)?;
        let letters = (0..13).map(|place| {
            let index = (bits >> (place * 5)) & 31;
            char::from(ALPHABET[usize::try_from(index).expect("five bits fit any integer")])
        });
        Ok(Self(letters.collect()))
    }

    /// The text that goes over the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SupervisorId {
    type Err = ParseSupervisorIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let fits =
            (1..=63).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-');
        fits.then(|| Self(text.to_owned()))
            .ok_or(ParseSupervisorIdError)
    }
}

impl fmt::Display for SupervisorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

fn supervisor_id(path: &Path) -> Result<SupervisorId, OpenStateError> {
    let failed = |source| OpenStateError::SupervisorId {
        path: path.to_owned(),
        source,
    };
    match fs::read(path) {
        Ok(bytes) => std::str::from_utf8(&bytes)
            .ok()
            .and_then(|text| text.trim_end().parse().ok())
            .ok_or_else(|| OpenStateError::BadSupervisorId {
                path: path.to_owned(),
            }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = SupervisorId::random().map_err(failed)?;
            write_atomic(path, format!("{id}\n").as_bytes()).map_err(failed)?;
            Ok(id)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_made_private_and_the_id_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hsup/shop");
        let id = StateDir::open(&path).unwrap().supervisor_id().clone();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", entry.path().display());
        }
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(StateDir::open(&path).unwrap().supervisor_id(), &id);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
    }

    #[test]
    fn what_a_killed_one_was_writing_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (_, left) = crate::files::temporary_in(dir.path())
            .unwrap()
            .keep()
            .unwrap();
        drop(StateDir::open(dir.path()).unwrap());
        assert!(!left.exists());
    }

    #[test]
    fn only_one_may_have_it_open_and_the_other_is_told_who() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let error = StateDir::open(dir.path()).unwrap_err();
        let pid = std::process::id();
        assert_eq!(
            error.to_string(),
            format!(
                "the state directory `{}` is in use by the hsup with pid {pid}",
                dir.path().display()
            )
        );
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_damaged_supervisor_id_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("supervisor_id");
        for bad in ["", "../etc\n", "\u{fffd}"] {
            write_atomic(&path, bad.as_bytes()).unwrap();
            let error = StateDir::open(dir.path()).unwrap_err();
            assert!(
                matches!(error, OpenStateError::BadSupervisorId { .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn two_supervisors_differ() {
        assert_ne!(
            SupervisorId::random().unwrap(),
            SupervisorId::random().unwrap()
        );
    }
}
