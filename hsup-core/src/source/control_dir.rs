//! A control directory as a source: somebody writes the file `new`, and hsup runs it.
//!
//! | file | what it is |
//! |---|---|
//! | `new` | a release that is wanted; goes away once there is a verdict |
//! | `loaded` | the last release that was taken in, for a cold start (0600) |
//! | `rejected` | the last `new` that was none, or whose release did not come up |
//! | `last_error` | when and why (0400) |
//!
//! `rejected` and `last_error` speak of the newest attempt: a `new` that is taken in
//! removes them, so a script that waits until `new` is gone finds `last_error` only if it
//! failed. (The original left them for ever.) `loaded` never keeps a release that is
//! known to be bad: when one does not come up, the text before it returns.
//!
//! The directory is made where there is none, for its owner alone; the original asked
//! for it to be there. A symbolic link, a directory or a FIFO under the name `new` is
//! refused and left alone.
//!
//! inotify tells when a writer has closed `new` or moved it there. A slow poll finds what
//! inotify cannot see (a network's file system, a hard link); it cannot know whether a
//! writer is done, so a text that only lacks its end gets a second more.

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use self::{
    inbox::{Found, Inbox, LEAVING, NEW, Stamp, Writer},
    watch::{Change, Watch},
};
use super::{
    Loaded, Origin, Update,
    control_file::{self, ControlFile, ParseControlFileError},
};
use crate::{
    errors::chain,
    files::{ReadFileError, WriteFileError},
};

mod inbox;
mod watch;

/// How often to look where the kernel tells of changes, and where it does not.
const POLL: Duration = Duration::from_secs(10);
const POLL_UNWATCHED: Duration = Duration::from_secs(1);
/// How long a text that lacks its end may stay so.
const UNFINISHED: Duration = Duration::from_secs(1);

/// A control directory could not be used.
#[derive(Debug, Error)]
pub enum OpenControlDirError {
    /// It could not be made.
    #[error("failed to create the control directory `{}`", .path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be looked at.
    #[error("failed to open the control directory `{}`", .path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The files of a control directory do not say that a release was rejected.
#[derive(Debug, Error)]
#[error("failed to keep a rejected release in `{}`", .directory.display())]
pub struct RejectReleaseError {
    directory: PathBuf,
    source: WriteFileError,
}

/// The release of a control directory could not be read.
#[derive(Debug, Error)]
pub enum ReadLoadedError {
    /// The file could not be read.
    #[error("failed to read the release of the control directory `{}`", .directory.display())]
    Read {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: ReadFileError,
    },
    /// It is none.
    #[error("`{}` is not a release", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ParseControlFileError,
    },
}

/// Reads the release that a control directory's supervisor took in last, and changes
/// nothing: for a `run` beside a `start`, which `new` belongs to. `None`: none yet.
///
/// # Errors
/// When there is one that cannot be read.
pub fn read_loaded(directory: &Path) -> Result<Option<ControlFile>, ReadLoadedError> {
    let inbox = Inbox::new(directory.to_owned());
    let text = inbox.loaded().map_err(|source| ReadLoadedError::Read {
        directory: directory.to_owned(),
        source,
    })?;
    let parse = |text: Vec<u8>| {
        control_file::parse(&text).map_err(|source| ReadLoadedError::Parse {
            path: inbox.path("loaded"),
            source,
        })
    };
    text.map(parse).transpose()
}

/// A control directory that is watched.
#[derive(Debug)]
pub struct ControlDir {
    path: PathBuf,
    inbox: Inbox,
    /// What is found out but not yet told.
    updates: VecDeque<Update>,
    /// The text of `loaded` at the start, until it is known whether there is a `new`.
    cold: Option<ColdStart>,
    watch: Option<Watch>,
    /// A look at `new` that is due, and one that is under way.
    due: Option<Writer>,
    looking: Option<JoinHandle<Found>>,
    poll_at: Instant,
    /// Until when an unfinished `new` may become whole.
    unfinished_until: Option<Instant>,
    is_missing: bool,
    left: Option<Stamp>,
    last_id: u64,
    /// The release that was read from `loaded`.
    cold_start: Option<u64>,
    /// The texts of releases that are neither accepted nor rejected.
    undecided: Vec<(u64, Arc<[u8]>)>,
    good: Option<Arc<[u8]>>,
}

#[derive(Debug)]
struct ColdStart {
    loaded: Result<Option<Vec<u8>>, ReadFileError>,
}

impl ControlDir {
    /// Opens the control directory `path`; makes it where there is none.
    ///
    /// # Errors
    /// When it cannot be made, or is no directory.
    pub fn open(path: &Path) -> Result<Self, OpenControlDirError> {
        let mut updates = VecDeque::new();
        if !path.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|source| OpenControlDirError::Create {
                    path: path.to_owned(),
                    source,
                })?;
            updates.push_back(Update::Warning(format!(
                "made the control directory `{}`, which did not exist",
                path.display()
            )));
        }
        let open = |source| OpenControlDirError::Open {
            path: path.to_owned(),
            source,
        };
        // Whatever becomes of the current directory, it stays the same one.
        let path = path.canonicalize().map_err(open)?;
        let metadata = fs::metadata(&path).map_err(open)?;
        if !metadata.is_dir() {
            return Err(open(io::ErrorKind::NotADirectory.into()));
        }
        if metadata.permissions().mode() & 0o002 != 0 {
            updates.push_back(Update::Warning(format!(
                "everybody may write to the control directory `{}`, and so run commands as this user",
                path.display()
            )));
        }
        let inbox = Inbox::new(path.clone());
        inbox.recover();
        Ok(Self {
            cold: Some(ColdStart {
                loaded: inbox.loaded(),
            }),
            path,
            inbox,
            updates,
            watch: None,
            due: Some(Writer::MayBeWriting),
            looking: None,
            poll_at: Instant::now(),
            unfinished_until: None,
            is_missing: false,
            left: None,
            last_id: 0,
            cold_start: None,
            undecided: Vec::new(),
            good: None,
        })
    }

    /// The directory, as a canonical path.
    pub const fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Waits for what the directory has to say next. Must run in a tokio runtime with
    /// I/O and time. Cancel safe.
    pub async fn next(&mut self) -> Update {
        loop {
            if let Some(update) = self.updates.pop_front() {
                return update;
            }
            self.watch_again();
            if let Some(looking) = &mut self.looking {
                let found = looking.await;
                self.looking = None;
                match found {
                    Ok(found) => self.settle(found),
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        // The runtime ends, and this with it.
                        Err(_) => std::future::pending().await,
                    },
                }
            } else if let Some(writer) = self.due.take() {
                let (inbox, left) = (self.inbox.clone(), self.left);
                // It waits for the disk.
                let look = move || inbox.look(writer, left);
                self.looking = Some(tokio::task::spawn_blocking(look));
            } else {
                self.wait().await;
            }
        }
    }

    /// Makes sure that the directory is watched, if it can be.
    fn watch_again(&mut self) {
        if self.watch.is_some() || Instant::now() < self.poll_at {
            return;
        }
        match Watch::new(&self.path) {
            Ok(watch) => {
                self.watch = Some(watch);
                self.due.get_or_insert(Writer::MayBeWriting);
                if self.is_missing {
                    self.is_missing = false;
                    tracing::info!(path = %self.path.display(), "control directory is back");
                }
            }
            Err(error) if self.path.is_dir() => {
                self.is_missing = false;
                self.due.get_or_insert(Writer::MayBeWriting);
                tracing::debug!(%error, "control directory polled, not watched");
            }
            Err(_) if self.is_missing => {}
            Err(_) => {
                self.is_missing = true;
                self.updates.push_back(Update::Warning(format!(
                    "the control directory `{}` is gone: what runs goes on, and hsup waits for it to be back",
                    self.path.display()
                )));
            }
        }
        self.poll_at = Instant::now() + self.poll_interval();
    }

    const fn poll_interval(&self) -> Duration {
        if self.watch.is_some() {
            POLL
        } else {
            POLL_UNWATCHED
        }
    }

    /// Waits until `new` may be worth a look.
    async fn wait(&mut self) {
        let patience = self.unfinished_until;
        let timer = patience.map_or(self.poll_at, |until| until.min(self.poll_at));
        let change = async {
            match &self.watch {
                Some(watch) => watch.changed(&[NEW, LEAVING]).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = change => match change {
                Ok(Change::File) => self.due = Some(Writer::Done),
                Ok(Change::Made) => self.due = Some(Writer::Begins),
                Ok(Change::Directory) | Err(_) => {
                    self.watch = None;
                    self.poll_at = Instant::now();
                }
            },
            () = sleep_until(timer) => {
                let waited_enough = patience.is_some_and(|until| until <= Instant::now());
                self.due = Some(if waited_enough { Writer::Done } else { Writer::MayBeWriting });
                if self.watch.is_some() {
                    // A directory that was moved away is watched where it went.
                    if !self.path.is_dir() {
                        self.watch = None;
                    }
                    self.poll_at = Instant::now() + self.poll_interval();
                }
            }
        }
    }

    /// Turns what came of a look into what is told.
    fn settle(&mut self, found: Found) {
        let cold = match &found {
            Found::Unfinished => None,
            _ => self.cold.take(),
        };
        if !matches!(found, Found::Unfinished) {
            self.unfinished_until = None;
        }
        match found {
            Found::Unfinished => {
                let now = Instant::now();
                let until = self.unfinished_until.filter(|until| *until > now);
                self.unfinished_until = Some(until.unwrap_or(now + UNFINISHED));
            }
            Found::Nothing => self.start_cold(cold, true),
            Found::Taken {
                file,
                text,
                left,
                again,
            } => {
                self.looked(left, again);
                if let Some(ColdStart {
                    loaded: Ok(Some(before)),
                }) = cold
                    && control_file::parse(&before).is_ok()
                {
                    self.good = Some(before.into());
                }
                self.load(*file, text);
            }
            Found::Refused {
                reason,
                left,
                again,
            } => {
                self.looked(left, again);
                self.updates.push_back(Update::Rejected { reason });
                self.start_cold(cold, false);
            }
        }
    }

    fn looked(&mut self, left: Option<Stamp>, again: bool) {
        self.left = left;
        if again {
            self.due = Some(Writer::MayBeWriting);
        }
    }

    fn load(&mut self, file: ControlFile, text: Vec<u8>) {
        self.last_id += 1;
        self.undecided.push((self.last_id, text.into()));
        self.updates.push_back(Update::Release(Box::new(Loaded {
            id: self.last_id,
            release: file.release,
            warnings: file.warnings,
            origin: Origin::ControlDirectory,
        })));
    }

    /// Takes up what ran before hsup was started.
    fn start_cold(&mut self, cold: Option<ColdStart>, says_nothing: bool) {
        let Some(ColdStart { loaded }) = cold else {
            return;
        };
        let path = self.inbox.path("loaded");
        match loaded {
            Ok(Some(text)) => match control_file::parse(&text) {
                Ok(file) => {
                    self.load(file, text);
                    self.cold_start = Some(self.last_id);
                }
                Err(error) => self.updates.push_back(Update::Rejected {
                    reason: format!("{}: {error}", path.display()),
                }),
            },
            Ok(None) if says_nothing => self.updates.push_back(Update::Warning(format!(
                "no release yet: write one to `{}`",
                self.inbox.path(NEW).display()
            ))),
            Ok(None) => {}
            Err(error) => self.updates.push_back(Update::Rejected {
                reason: chain(&error),
            }),
        }
    }

    /// Tells that the release `id` is the one that runs now: its text is what a rejected
    /// one after it gives way to.
    pub fn accept(&mut self, id: u64) {
        let accepted = self
            .undecided
            .iter()
            .find(|(undecided, _)| *undecided == id);
        if let Some((_, text)) = accepted {
            self.good = Some(Arc::clone(text));
        }
        self.undecided.retain(|(undecided, _)| *undecided > id);
    }

    /// Tells that the release `id` could not be built, or did not come up: it becomes
    /// `rejected`, `reason` goes to `last_error`, and `loaded` is again the last one that
    /// ran. Does nothing when a newer release is there already.
    ///
    /// A release that was read from `loaded` itself, when hsup started, stays there: what
    /// failed may have been the machine.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub async fn reject(&mut self, id: u64, reason: &str) -> Result<(), RejectReleaseError> {
        let rejected = self
            .undecided
            .iter()
            .find(|(undecided, _)| *undecided == id);
        let text = rejected.map(|(_, text)| Arc::clone(text));
        self.undecided.retain(|(undecided, _)| *undecided != id);
        let Some(text) = text.filter(|_| id == self.last_id) else {
            return Ok(());
        };
        let good = self.good.clone();
        let was_cold_start = self.cold_start == Some(id);
        let (inbox, reason) = (self.inbox.clone(), reason.to_owned());
        let withdraw = move || {
            if was_cold_start {
                inbox.note_error(&reason);
                return Ok(());
            }
            inbox.withdraw(&text, good.as_deref(), &reason)
        };
        match tokio::task::spawn_blocking(withdraw).await {
            Ok(result) => result.map_err(|source| RejectReleaseError {
                directory: self.path.clone(),
                source,
            }),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => std::future::pending().await,
            },
        }
    }
}

#[cfg(test)]
mod tests;
