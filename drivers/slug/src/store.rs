//! The slugs that are kept: each once, known by its hash, for as long as somebody needs it.
//!
//! ```text
//! slugs/                    0700, as everything in it down to root/
//!   lock                    held for the few calls that must be seen together
//!   locks/ID                held by who fetches and unpacks that slug
//!   staging/XXXXXX/root/    half made; its maker holds a lock on root/
//!   trees/ID/root/app/      the tree; whoever uses it holds a shared lock on root/
//!   trees/ID/slug.json      who owns its files on disk
//!   refs/UID/ID/APP         that user added it for that app, when the file says
//!   trash/XXXXXX/           on its way out
//! ```
//!
//! A slug is made in `staging`, synced, and renamed to `trees`: what is there is whole. It
//! goes by being renamed to `trash`. Locks are flock(2)s, so a process that dies holds none,
//! and a lock can be inherited: the tree of a dyno that outlives its driver stays in use.
//!
//! **A user may only use what that user added.** Knowing a checksum is not having the slug, so
//! a slug that another user has added is fetched and verified again; it is only not unpacked
//! again. One that the same user has added is not even fetched.

mod add;
mod collect;
mod files;
mod refs;
mod staging;

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

pub use self::collect::Collected;
use self::files::Layout;
use crate::{
    error::{SlugError, is_full},
    fetch::Fetch,
    helper::Program,
    id::SlugId,
    progress::Progress,
    unpack,
};

/// What a slug may at most be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// As it is fetched.
    pub max_download: u64,
    /// Unpacked, what is ignored included.
    pub max_bytes: u64,
    /// One file of it.
    pub max_file_bytes: u64,
    /// Entries of the archive, whatever they are.
    pub max_entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_download: 4 << 30,
            max_bytes: 8 << 30,
            max_file_bytes: 4 << 30,
            max_entries: 500_000,
        }
    }
}

/// How a store works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The uid that downloads and unpacks, and that owns the files then. It should own nothing
    /// else on this machine, and no dyno should have it. A driver that is not root has its own.
    pub uid: u32,
    /// Its group; likewise.
    pub gid: u32,
    /// What a slug may at most be.
    pub limits: Limits,
    /// How many releases of an app are kept.
    pub keep: usize,
    /// What is executed for the processes that fetch and unpack.
    pub program: Program,
}

impl Settings {
    /// The usual ones, with this uid and a group of the same number.
    pub fn new(uid: u32) -> Self {
        Self {
            uid,
            gid: uid,
            limits: Limits::default(),
            keep: 5,
            program: Program::default(),
        }
    }
}

/// For whom a slug is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    peer: u32,
    app: String,
}

impl Owner {
    /// The app of this user.
    ///
    /// # Errors
    /// When the app is called something that is no name of a file.
    pub fn new(peer: u32, app: &str) -> Result<Self, SlugError> {
        let is_name = !app.is_empty()
            && app.len() <= 128
            && !app.starts_with('.')
            && app
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if is_name {
            Ok(Self {
                peer,
                app: app.to_owned(),
            })
        } else {
            Err(SlugError::App(app.escape_debug().to_string()))
        }
    }
}

/// A slug in use.
#[derive(Debug)]
pub struct Slug {
    /// Its app: the root of `/app`. Read only, whoever you are.
    pub path: PathBuf,
    /// Who owns every file in it.
    pub owner_uid: u32,
    /// The group of every file in it.
    pub owner_gid: u32,
    /// While this, or a copy that a process has inherited, is open, the slug is not removed.
    pub lock: OwnedFd,
}

/// What is written beside a tree.
#[derive(Debug, Serialize, Deserialize)]
struct Made {
    uid: u32,
    gid: u32,
}

/// Where slugs are kept. Several processes may have the same one.
#[derive(Clone, Debug)]
pub struct Store {
    layout: Arc<Layout>,
    settings: Settings,
}

impl Store {
    /// Opens, or makes, the store in `directory`.
    ///
    /// # Errors
    /// When the directory cannot be made, or the uid is root's.
    pub fn open(directory: &Path, settings: Settings) -> Result<Self, SlugError> {
        if settings.uid == 0 && geteuid().is_root() {
            return Err(SlugError::Helper {
                task: unpack::TASK.to_owned(),
                cause: "it must not be root: another uid has to be configured".to_owned(),
            });
        }
        let layout = Layout::open(directory)?;
        Ok(Self {
            layout: Arc::new(layout),
            settings,
        })
    }

    /// Removes what was half made by somebody who is not there any more, and the rest of what
    /// was removed. That may be a lot, so it is for a thread that nobody waits for.
    ///
    /// # Errors
    /// When something cannot be read or removed. What nothing keeps has gone all the same.
    pub fn tidy(&self) -> Result<(), SlugError> {
        collect::half_made(&self.layout)
    }

    /// Fetches, verifies and unpacks a slug, or finds that it is here, and keeps it for
    /// `owner`. What is half made when this fails or is dropped goes again.
    ///
    /// # Errors
    /// Whatever is wrong with the slug, its URL, the network or the disk.
    pub async fn add(
        &self,
        fetch: &Fetch,
        owner: &Owner,
        progress: &dyn Progress,
    ) -> Result<SlugId, SlugError> {
        let id = self.make(fetch, owner, progress).await?;
        self.blocking(move |store| collect::overdue(&store.layout, store.settings.keep))
            .await?;
        Ok(id)
    }

    /// A slug that this user has added, in use from now on; `None` if there is none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn get(&self, peer: u32, id: &SlugId) -> Result<Option<Slug>, SlugError> {
        if !refs::has(&self.layout, peer, id) {
            return Ok(None);
        }
        let tree = self.layout.tree(id);
        let Some(lock) = self.layout.lock_tree(id)? else {
            return Ok(None);
        };
        let made = tree.join("slug.json");
        let text = std::fs::read(&made).map_err(SlugError::store("read", &made))?;
        let made: Made = serde_json::from_slice(&text)
            .map_err(|error| SlugError::store("read", &made)(error.into()))?;
        Ok(Some(Slug {
            path: tree.join("root/app"),
            owner_uid: made.uid,
            owner_gid: made.gid,
            lock,
        }))
    }

    /// Forgets that this user added the slug; it goes if nobody else did.
    ///
    /// # Errors
    /// When it is in use, or the store cannot be written to.
    pub async fn remove(&self, peer: u32, id: &SlugId) -> Result<(), SlugError> {
        let id = *id;
        self.blocking(move |store| collect::remove(&store.layout, peer, &id))
            .await
    }

    /// Forgets all but the newest releases of each app, and removes what nobody needs any
    /// more. What is in use stays.
    ///
    /// # Errors
    /// When the store cannot be read or written to.
    pub async fn collect(&self) -> Result<Collected, SlugError> {
        self.blocking(move |store| {
            collect::half_made(&store.layout)?;
            collect::overdue(&store.layout, store.settings.keep)
        })
        .await
    }

    /// Does something with files where it keeps nobody waiting.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, SlugError> + Send + 'static,
    ) -> Result<T, SlugError> {
        let store = self.clone();
        match spawn_blocking(move || work(&store)).await {
            Ok(result) => result,
            Err(error) => Err(SlugError::Helper {
                task: "keep the slugs".to_owned(),
                cause: error.to_string(),
            }),
        }
    }

    fn failed(&self, operation: &'static str) -> impl Fn(io::Error) -> SlugError {
        let directory = self.layout.directory.clone();
        move |error| {
            if is_full(&error) {
                SlugError::NoSpace {
                    store: directory.clone(),
                }
            } else {
                SlugError::store(operation, &directory)(error)
            }
        }
    }
}
