//! The files of a control directory, and the order in which they change.
//!
//! `new` goes away last, once its verdict can be read in the other files, so a script
//! may wait for that. It goes by a rename to `.new`, and only if it still is what was
//! read: a release that somebody moves or writes there in between is put back, and is
//! next. The calls here block, some until the disk has it.

use std::{
    fs::{self, Metadata, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use crate::{
    errors::chain,
    files::{self, Links, ReadFileError, WriteFileError},
    source::{
        ControlText, Keep, News,
        control_file::{self, ControlFile, MAX_SIZE, ParseControlFileError},
    },
};

pub(super) const NEW: &str = "new";
/// What `new` is called on its way out.
pub(super) const LEAVING: &str = ".new";
const LOADED: &str = "loaded";
const REJECTED: &str = "rejected";
const LAST_ERROR: &str = "last_error";

/// Config vars are nobody else's business.
const PRIVATE: u32 = 0o600;

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Inbox {
    directory: PathBuf,
}

/// Whether the text of `new` may still be on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// Its writer has closed it.
    Done,
    /// Nobody knows.
    MayBeWriting,
    /// It was just made: of a file, nothing can be said yet.
    Begins,
}

/// Tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    contents: Contents,
    /// When its owner, its mode or its name changed last: what could not be read may be
    /// readable since.
    changed: (i64, i64),
}

/// Tells one text of a file from another, whatever the file is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Contents {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            contents: Contents::of(metadata),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Contents {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// What came of a look at `new`.
#[derive(Debug)]
pub(super) enum Found {
    /// There is nothing, or nothing that was not seen before.
    Nothing,
    /// It is not whole; look again in a moment whether it is another by then.
    Unfinished {
        stamp: Stamp,
        /// Somebody has it open for writing, as far as can be known.
        is_open: bool,
    },
    /// It is the release now.
    Taken {
        file: Box<ControlFile>,
        text: Vec<u8>,
        /// Whether `loaded` has it.
        is_kept: bool,
        left: Option<Stamp>,
        again: bool,
    },
    /// It is none.
    Refused {
        reason: String,
        left: Option<Stamp>,
        again: bool,
    },
}

/// What became of `new`, once its verdict was written.
enum Gone {
    Yes,
    /// It is another one by now, and back in its place.
    Replaced,
    /// It could not be moved.
    No(io::Error),
}

impl Inbox {
    pub(super) const fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Puts back what was on its way out when hsup ended, and removes what it was about to put in
    /// place: if another hsup may follow the directory, that may be about to.
    pub(super) fn recover(&self, is_exclusive: bool) {
        if is_exclusive {
            files::clear_temporaries(&self.directory);
        }
        if fs::symlink_metadata(self.path(LEAVING)).is_ok() {
            self.put_back();
        }
    }

    /// The text of `loaded`; `None` where there is none.
    pub(super) fn loaded(&self) -> Result<Option<Vec<u8>>, ReadFileError> {
        match files::read_regular(&self.path(LOADED), Links::Refuse, MAX_SIZE) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks at `new`, unless it is what was `left` there before, and does what follows.
    pub(super) fn look(&self, writer: Writer, left: Option<Stamp>) -> Found {
        let path = self.path(NEW);
        let (file, metadata) = match files::open_regular(&path, Links::Refuse) {
            Ok(opened) => opened,
            Err(error) if error.is_not_found() => return Found::Nothing,
            Err(error) => return self.refuse_in_place(&path, left, &chain(&error)),
        };
        let stamp = Stamp::of(&metadata);
        if left == Some(stamp) || writer == Writer::Begins {
            return Found::Nothing;
        }
        let read = file
            .try_clone()
            .map_err(|source| ReadFileError::Read {
                path: path.clone(),
                source,
            })
            .and_then(|reader| files::read_limited(reader, &path, MAX_SIZE));
        // The open file keeps the inode's number from being used again meanwhile.
        if file.metadata().map(|now| Contents::of(&now)).ok() != Some(stamp.contents) {
            return Found::Unfinished {
                stamp,
                is_open: false,
            };
        }
        let text = match read {
            Ok(text) => text,
            Err(ReadFileError::TooLarge { .. }) => {
                let too_large = ParseControlFileError::TooLarge;
                return self.refuse(&too_large.to_string(), None, stamp);
            }
            Err(error) => return self.refuse_in_place(&path, left, &chain(&error)),
        };
        match control_file::parse(&text) {
            Err(error) if writer == Writer::MayBeWriting && error.is_truncated() => {
                let is_open = files::is_open_for_writing(&file).unwrap_or(false);
                Found::Unfinished { stamp, is_open }
            }
            Err(error) => self.refuse(&error.to_string(), Some(&text), stamp),
            Ok(parsed) => self.take(parsed, text, stamp),
        }
    }

    fn take(&self, mut parsed: ControlFile, text: Vec<u8>, stamp: Stamp) -> Found {
        let kept = files::write_with_mode(&self.path(LOADED), &text, PRIVATE);
        let is_kept = kept.is_ok();
        let gone = match kept {
            Ok(()) => {
                self.forget_rejected();
                self.dismiss(stamp, None)
            }
            // It stays `new`, so a cold start finds it there.
            Err(error) => Gone::No(io::Error::other(chain(&error))),
        };
        if let Gone::No(error) = &gone {
            parsed.warnings.push(format!(
                "`{}` runs, but stays where it is: {error}",
                self.path(NEW).display()
            ));
        }
        Found::Taken {
            file: Box::new(parsed),
            text,
            is_kept,
            left: matches!(gone, Gone::No(_)).then_some(stamp),
            again: matches!(gone, Gone::Replaced),
        }
    }

    /// Refuses what is no release, and keeps it as `rejected`. A `text` that was read is
    /// written there anew: the file itself may be readable for others, or somebody else's.
    fn refuse(&self, why: &str, text: Option<&[u8]>, stamp: Stamp) -> Found {
        self.note_error(&format!("{NEW}: {why}"));
        let gone = match text {
            None => self.dismiss(stamp, Some(REJECTED)),
            Some(text) => match files::write_with_mode(&self.path(REJECTED), text, PRIVATE) {
                Ok(()) => self.dismiss(stamp, None),
                Err(error) => Gone::No(io::Error::other(chain(&error))),
            },
        };
        let path = self.path(NEW);
        let mut reason = format!("{}: {why}", path.display());
        if let Gone::No(error) = &gone {
            reason = format!("{reason} (and it could not be moved away: {error})");
        }
        Found::Refused {
            reason,
            left: matches!(gone, Gone::No(_)).then_some(stamp),
            again: matches!(gone, Gone::Replaced),
        }
    }

    /// Refuses what cannot be read or moved, such as a directory: it stays, and is
    /// spoken of once.
    fn refuse_in_place(&self, path: &Path, left: Option<Stamp>, why: &str) -> Found {
        let Ok(metadata) = fs::symlink_metadata(path) else {
            return Found::Nothing;
        };
        let stamp = Stamp::of(&metadata);
        if left == Some(stamp) {
            return Found::Nothing;
        }
        let reason = format!("{why}: remove it, then write a release there");
        self.note_error(&reason);
        Found::Refused {
            reason,
            left: Some(stamp),
            again: false,
        }
    }

    /// Writes what the supervisor says: what became of the newest release, and what `loaded`
    /// is to hold. The one does not depend on the other.
    pub(super) fn tell(
        &self,
        keep: Option<&Keep>,
        news: Option<&News>,
    ) -> Result<(), WriteFileError> {
        let told = match news {
            None => Ok(()),
            Some(News::TakenIn) => {
                self.forget_rejected();
                Ok(())
            }
            Some(News::Rejected { text, reason }) => {
                self.note_error(reason);
                self.write(REJECTED, text)
            }
        };
        let kept = match keep {
            None | Some(Keep::WhatIsThere) => Ok(()),
            Some(Keep::Release(text)) => self.write(LOADED, text),
            Some(Keep::Nothing) => {
                self.remove(LOADED);
                Ok(())
            }
        };
        told.and(kept)
    }

    fn write(&self, name: &str, text: &ControlText) -> Result<(), WriteFileError> {
        files::write_with_mode(&self.path(name), text.expose().as_bytes(), PRIVATE)
    }

    fn forget_rejected(&self) {
        self.remove(REJECTED);
        self.remove(LAST_ERROR);
    }

    /// Writes `last_error`. That it cannot be written is no reason to do otherwise.
    fn note_error(&self, reason: &str) {
        let text = format!("{:.0}: {reason}\n", Timestamp::now());
        if let Err(error) = files::write_with_mode(&self.path(LAST_ERROR), text.as_bytes(), 0o400) {
            tracing::warn!(error = chain(&error), "last error not written");
        }
    }

    fn remove(&self, name: &str) {
        let path = self.path(name);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "stale file not removed");
        }
    }

    /// Moves `new` away, to `to` or for good, if it still is what `stamp` says.
    fn dismiss(&self, stamp: Stamp, to: Option<&str>) -> Gone {
        let leaving = self.path(LEAVING);
        match fs::rename(self.path(NEW), &leaving) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Gone::Yes,
            Err(error) => return Gone::No(error),
        }
        let same =
            fs::symlink_metadata(&leaving).is_ok_and(|now| Contents::of(&now) == stamp.contents);
        if !same {
            self.put_back();
            return Gone::Replaced;
        }
        let moved = match to {
            Some(name) => {
                make_private(&leaving);
                fs::rename(&leaving, self.path(name))
            }
            None => fs::remove_file(&leaving),
        };
        let synced = moved.and_then(|()| files::sync_directory(&self.directory));
        if let Err(error) = synced {
            tracing::warn!(%error, "directory not synced");
        }
        Gone::Yes
    }

    /// Puts back what is on its way out, unless there is a newer one, which replaces it.
    fn put_back(&self) {
        let (leaving, new) = (self.path(LEAVING), self.path(NEW));
        // Unlike a rename, a link never replaces what is there.
        let result = match fs::hard_link(&leaving, &new) {
            Ok(()) => fs::remove_file(&leaving),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs::remove_file(&leaving),
            // A directory, or a file system without links.
            Err(_) => fs::rename(&leaving, &new),
        };
        if let Err(error) = result {
            tracing::warn!(path = %leaving.display(), %error, "file not put back");
        }
    }
}

fn make_private(path: &Path) {
    if let Err(error) = fs::set_permissions(path, Permissions::from_mode(PRIVATE)) {
        tracing::warn!(path = %path.display(), %error, "file of somebody else not made private");
    }
}

#[cfg(test)]
impl Inbox {
    /// What becomes of `new` when `meanwhile` happens between reading and moving it.
    pub(super) fn race(&self, meanwhile: impl FnOnce()) -> &'static str {
        let (_held, metadata) = files::open_regular(&self.path(NEW), Links::Refuse).unwrap();
        meanwhile();
        match self.dismiss(Stamp::of(&metadata), None) {
            Gone::Yes => "gone",
            Gone::Replaced => "put back",
            Gone::No(error) => panic!("{error}"),
        }
    }
}
