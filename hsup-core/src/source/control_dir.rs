//! A control directory as a source: somebody writes the file `new`, and hsup runs it.
//!
//! | file | what it is |
//! |---|---|
//! | `new` | a release that is wanted; goes away once there is a verdict |
//! | `loaded` | the release that a cold start begins with: the newest that is not rejected (0600) |
//! | `rejected` | the last `new` that was none, or whose release did not come up (0600) |
//! | `last_error` | when and why (0400) |
//!
//! `rejected` and `last_error` speak of the newest attempt: a release that is taken in
//! removes them, so a script that waits until `new` is gone finds `last_error` only if it
//! failed. (The original left them for ever.) `loaded` never keeps a release that is
//! known to be bad. Which release it is to hold is the supervisor's to decide, from its
//! history: this source only writes it there ([`ControlDir::tell`]).
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
    thread,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    task::{JoinError, JoinHandle},
    time::{Instant, sleep_until},
};

use self::{
    claim::Claim,
    inbox::{Found, Inbox, LEAVING, NEW, Stamp, Writer},
    watch::{Change, Watch},
};
use super::{
    ControlText, Keep, Loaded, News, Origin, Update,
    control_file::{self, ControlFile, ParseControlFileError},
};
use crate::{
    errors::chain,
    files::{ReadFileError, WriteFileError},
    releases::Newness,
};

mod claim;
mod inbox;
mod watch;

/// How often to look where the kernel tells of changes, and where it does not.
const POLL: Duration = Duration::from_secs(10);
const POLL_UNWATCHED: Duration = Duration::from_secs(1);
/// What becomes of the app while there is no directory to follow.
const WAITS: &str = "what runs goes on, and hsup waits for it to be back";
/// How often a claim is tried: `run` has one for a moment, while it takes in a release.
const CLAIM_TRIES: u32 = 10;
const CLAIM_PAUSE: Duration = Duration::from_millis(20);
/// How long a text that lacks its end may stay the same.
const UNFINISHED: Duration = Duration::from_secs(1);
/// The same where its writer still has it open: it may be a person's `cat > new`, or come over
/// a slow network.
const BEING_WRITTEN: Duration = Duration::from_mins(10);

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
    /// Another hsup takes in what is written there, and two would share it out.
    #[error(
        "another hsup follows the control directory `{}`: stop that one first, or use another directory",
        .path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

/// The files of a control directory do not say what they should.
#[derive(Debug, Error)]
#[error("failed to update the control directory `{}`", .directory.display())]
pub struct WriteControlDirError {
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

/// Whose the files in the directory are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Ours,
    /// Another hsup's.
    Anothers,
    /// There is no directory.
    Missing,
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
    /// Held, it keeps others from following the directory.
    claim: Option<Claim>,
    watch: Option<Watch>,
    /// A look at `new` that is due, and one that is under way.
    due: Option<Writer>,
    looking: Option<JoinHandle<Found>>,
    poll_at: Instant,
    /// An unfinished `new`, and until when it may go on.
    unfinished: Option<(Stamp, Instant)>,
    hold: Hold,
    left: Option<Stamp>,
    /// The release that `loaded` holds, as far as is known.
    loaded: Option<ControlText>,
    /// What could not be written to it.
    failed: Option<Keep>,
}

type ColdStart = Result<Option<Vec<u8>>, ReadFileError>;

impl ControlDir {
    /// Opens the control directory `path`; makes it where there is none. What is in it may be
    /// another's until it is claimed.
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
        Ok(Self {
            inbox: Inbox::new(path.clone()),
            path,
            cold: None,
            claim: None,
            updates,
            watch: None,
            due: Some(Writer::MayBeWriting),
            looking: None,
            poll_at: Instant::now(),
            unfinished: None,
            hold: Hold::Ours,
            left: None,
            loaded: None,
            failed: None,
        })
    }

    /// Makes its files this process's to take in. Blocks for a fifth of a second at most.
    ///
    /// # Errors
    /// When they are another's, or there is no directory any more.
    pub fn claim(&mut self) -> Result<(), OpenControlDirError> {
        let path = self.path.clone();
        for tried in 1.. {
            self.hold = self.hold();
            match self.hold {
                Hold::Ours => break,
                Hold::Anothers if tried < CLAIM_TRIES => thread::sleep(CLAIM_PAUSE),
                Hold::Anothers => return Err(OpenControlDirError::InUse { path }),
                Hold::Missing => {
                    let source = io::ErrorKind::NotFound.into();
                    return Err(OpenControlDirError::Open { path, source });
                }
            }
        }
        self.inbox
            .recover(self.claim.as_ref().is_some_and(Claim::is_exclusive));
        self.cold = Some(self.inbox.loaded());
        Ok(())
    }

    /// Whose the directory is that is there now. One that was made anew is claimed anew.
    fn hold(&mut self) -> Hold {
        if self.is_claimed() {
            return Hold::Ours;
        }
        self.claim = None;
        match Claim::of(&self.path) {
            Ok(Some(claim)) => {
                self.claim = Some(claim);
                Hold::Ours
            }
            Ok(None) => Hold::Anothers,
            Err(_) => Hold::Missing,
        }
    }

    /// Whether the directory that is there now is the one that was claimed.
    fn is_claimed(&self) -> bool {
        let claim = self.claim.as_ref();
        claim.is_some_and(|claim| claim.is_of(&self.path))
    }

    /// The directory, as a canonical path.
    pub const fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Waits for what the directory, once it is claimed, has to say next. Must run in a tokio
    /// runtime with I/O and time. Cancel safe.
    pub async fn next(&mut self) -> Update {
        loop {
            if let Some(update) = self.updates.pop_front() {
                return update;
            }
            self.watch_again();
            if self.hold != Hold::Ours {
                self.due = None;
            }
            if self.looking.is_some() {
                self.finish_look().await;
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
        let before = self.hold;
        let is_known = self.is_claimed();
        self.hold = self.hold();
        match self.hold {
            Hold::Ours => {
                self.due.get_or_insert(Writer::MayBeWriting);
                match Watch::new(&self.path) {
                    Ok(watch) => self.watch = Some(watch),
                    Err(error) => tracing::debug!(%error, "control directory polled, not watched"),
                }
                if !is_known {
                    // What was written into it may be in another one, or another's.
                    self.loaded = None;
                    self.failed = None;
                    self.say(if before == Hold::Ours {
                        "was made anew"
                    } else {
                        "is back"
                    });
                }
            }
            hold if hold == before => {}
            Hold::Anothers => self.say(&format!("is followed by another hsup now: {WAITS}")),
            Hold::Missing => self.say(&format!("is gone: {WAITS}")),
        }
        self.poll_at = Instant::now() + self.poll_interval();
    }

    fn say(&mut self, what: &str) {
        let path = self.path.display();
        let text = format!("the control directory `{path}` {what}");
        self.updates.push_back(Update::Warning(text));
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
        let patience = self.unfinished.map(|(_, until)| until);
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
                self.due = Some(Writer::MayBeWriting);
                if self.watch.is_some() {
                    // A directory that was moved away is watched where it went.
                    if !self.is_claimed() {
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
            Found::Unfinished { .. } => None,
            _ => self.cold.take(),
        };
        if !matches!(found, Found::Unfinished { .. }) {
            self.unfinished = None;
        }
        match found {
            Found::Unfinished { stamp, is_open } => {
                let patience = if is_open { BEING_WRITTEN } else { UNFINISHED };
                let now = Instant::now();
                self.unfinished = match self.unfinished {
                    Some((before, until)) if before == stamp && until <= now => {
                        self.due = Some(Writer::Done);
                        None
                    }
                    Some(known) if known.0 == stamp => Some(known),
                    _ => Some((stamp, now + patience)),
                };
            }
            Found::Nothing => self.start_cold(cold),
            Found::Taken {
                file,
                text,
                is_kept,
                left,
                again,
            } => {
                self.looked(left, again);
                let text = ControlText::new(&text);
                if is_kept {
                    self.loaded = Some(text.clone());
                }
                self.load(*file, text, Newness::New);
            }
            Found::Refused {
                reason,
                left,
                again,
            } => {
                self.looked(left, again);
                self.updates.push_back(Update::Rejected { reason });
                self.start_cold(cold);
            }
        }
    }

    fn looked(&mut self, left: Option<Stamp>, again: bool) {
        self.left = left;
        if again {
            self.due = Some(Writer::MayBeWriting);
        }
    }

    fn load(&mut self, file: ControlFile, text: ControlText, newness: Newness) {
        self.updates.push_back(Update::Release(Box::new(Loaded {
            release: file.release,
            warnings: file.warnings,
            origin: Origin::ControlDirectory,
            newness,
            text: Some(text),
        })));
    }

    /// Takes up what ran before hsup was started.
    fn start_cold(&mut self, cold: Option<ColdStart>) {
        let Some(loaded) = cold else {
            return;
        };
        let path = self.inbox.path("loaded");
        let why = match loaded {
            Ok(Some(text)) => match control_file::parse(&text) {
                Ok(file) => {
                    let text = ControlText::new(&text);
                    self.loaded = Some(text.clone());
                    return self.load(file, text, Newness::Kept);
                }
                Err(error) => format!("`{}` is not a release: {error}", path.display()),
            },
            Ok(None) => format!("there is no `{}`", path.display()),
            Err(error) => chain(&error),
        };
        self.updates.push_back(Update::Empty {
            why,
            is_final: false,
        });
    }

    /// Tells what `loaded` is to hold, and what came of the newest release, which `rejected`
    /// and `last_error` then say. A release that was taken in meanwhile is newer than what
    /// is told here, and changes nothing until its own turn has come.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub async fn tell(
        &mut self,
        keep: &Keep,
        news: Option<News>,
    ) -> Result<(), WriteControlDirError> {
        if news.is_none() && (!self.is_new(keep) || self.failed.as_ref() == Some(keep)) {
            return Ok(());
        }
        // Another hsup's files are not for this one to write, and where there are none they are
        // written once they are back.
        if self.hold != Hold::Ours {
            return Ok(());
        }
        self.finish_look().await;
        let is_overtaken = |update: &Update| matches!(update, Update::Release(_));
        if self.updates.iter().any(is_overtaken) {
            return Ok(());
        }
        let keep = self.is_new(keep).then(|| keep.clone());
        let inbox = self.inbox.clone();
        let told = keep.clone();
        let write = move || inbox.tell(told.as_ref(), news.as_ref());
        match blocking(write).await {
            Ok(()) => match keep {
                Some(Keep::Release(text)) => self.loaded = Some(text),
                Some(Keep::Nothing) => self.loaded = None,
                Some(Keep::WhatIsThere) | None => {}
            },
            Err(source) => {
                self.failed = keep;
                return Err(WriteControlDirError {
                    directory: self.path.clone(),
                    source,
                });
            }
        }
        self.failed = None;
        Ok(())
    }

    /// What could not be written may be tried again.
    pub fn forgive(&mut self) {
        self.failed = None;
    }

    fn is_new(&self, keep: &Keep) -> bool {
        match keep {
            Keep::Release(text) => self.loaded.as_ref() != Some(text),
            Keep::Nothing => self.loaded.is_some(),
            Keep::WhatIsThere => false,
        }
    }

    /// Waits for a look that is under way: it may be changing the files.
    async fn finish_look(&mut self) {
        if let Some(looking) = &mut self.looking {
            let found = joined(looking.await).await;
            self.looking = None;
            self.settle(found);
        }
    }
}

/// Does what waits for the disk where nobody waits for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(tokio::task::spawn_blocking(work).await).await
}

async fn joined<T>(result: Result<T, JoinError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and this with it.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests;
