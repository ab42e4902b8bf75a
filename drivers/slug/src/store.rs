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

mod collect;
mod files;
mod refs;
mod staging;

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::{net::unix::pipe, task::spawn_blocking};

pub use self::collect::Collected;
use self::{files::Layout, staging::Staging};
use crate::{
    error::{SlugError, is_full},
    fetch::{Fetch, Source, Stream, widen},
    helper::{Helper, Program},
    id::SlugId,
    privilege::Peer,
    progress::{Progress, Step},
    unpack, wire,
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

/// How often a slug that changes all the time is read.
const READINGS: usize = 5;

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
    /// Opens, or makes, the store in `directory`, and removes what was half made by somebody
    /// who is not there any more.
    ///
    /// # Errors
    /// When the directory cannot be made or read, or the uid is root's.
    pub fn open(directory: &Path, settings: Settings) -> Result<Self, SlugError> {
        if settings.uid == 0 && geteuid().is_root() {
            return Err(SlugError::Helper {
                task: unpack::TASK.to_owned(),
                cause: "it must not be root: another uid has to be configured".to_owned(),
            });
        }
        let layout = Layout::open(directory)?;
        collect::half_made(&layout)?;
        Ok(Self {
            layout: Arc::new(layout),
            settings,
        })
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

    async fn make(
        &self,
        fetch: &Fetch,
        owner: &Owner,
        progress: &dyn Progress,
    ) -> Result<SlugId, SlugError> {
        let source = fetch.source()?;
        if let Some(id) = fetch.checksum
            && !source.is_directory()
        {
            let lock = self.layout.wait_for(&id).await?;
            if self.layout.has_tree(&id) {
                if !refs::has(&self.layout, owner.peer, &id) {
                    // It has to be shown that this user has it too.
                    self.read(fetch, Step::Check, None, progress).await?;
                }
            } else {
                self.fetch_and_unpack(fetch, &source, progress).await?;
            }
            self.refer(owner, id).await?;
            drop(lock);
            return Ok(id);
        }
        if let Source::Http(_) = source {
            return self.spooled(fetch, owner, progress).await;
        }
        // A local slug without a checksum is read twice: the first time tells whether it is
        // here already, which is so each time but the first.
        for _ in 0..READINGS {
            let id = self.read(fetch, Step::Check, None, progress).await?;
            let lock = self.layout.wait_for(&id).await?;
            if self.layout.has_tree(&id) {
                self.refer(owner, id).await?;
                drop(lock);
                return Ok(id);
            }
            let mut expected = fetch.clone();
            expected.checksum = Some(id);
            match self.fetch_and_unpack(&expected, &source, progress).await {
                Ok(()) => {
                    self.refer(owner, id).await?;
                    return Ok(id);
                }
                // It is being written to just now: what is it now?
                Err(SlugError::Checksum { .. }) => {
                    progress.note("the slug changed while it was read: once more");
                }
                Err(error) => return Err(error),
            }
        }
        Err(SlugError::Changed {
            from: source.shown(),
        })
    }

    /// A download without a checksum: nobody knows what it is until it is here.
    async fn spooled(
        &self,
        fetch: &Fetch,
        owner: &Owner,
        progress: &dyn Progress,
    ) -> Result<SlugId, SlugError> {
        let directory = self.layout.staging.clone();
        let spool = self
            .blocking(move |store| {
                tempfile::tempfile_in(&directory).map_err(|error| store.failed("write to")(error))
            })
            .await?;
        let mut spool = tokio::fs::File::from_std(spool);
        let id = self
            .read(fetch, Step::Fetch, Some(&mut spool), progress)
            .await?;
        let lock = self.layout.wait_for(&id).await?;
        if !self.layout.has_tree(&id) {
            spool.rewind().await.map_err(self.failed("read in"))?;
            self.unpack_from(&mut Spool::new(spool, id), true, progress)
                .await?;
        }
        self.refer(owner, id).await?;
        drop(lock);
        Ok(id)
    }

    /// Reads all of it, and says what it is.
    async fn read(
        &self,
        fetch: &Fetch,
        step: Step,
        mut spool: Option<&mut tokio::fs::File>,
        progress: &dyn Progress,
    ) -> Result<SlugId, SlugError> {
        let mut stream = self.stream(fetch, step).await?;
        while let Some(bytes) = stream.chunk(progress).await? {
            if let Some(spool) = &mut spool {
                let written = spool.write_all(bytes).await;
                written.map_err(self.failed("write to"))?;
            }
        }
        if let Some(spool) = spool {
            spool.flush().await.map_err(self.failed("write to"))?;
        }
        stream.id().ok_or(SlugError::Url)
    }

    async fn stream(&self, fetch: &Fetch, step: Step) -> Result<Stream, SlugError> {
        let Settings {
            program, limits, ..
        } = &self.settings;
        let user = self.unprivileged();
        let mut fetch = fetch.clone();
        // That of a directory is ours, and is compared below.
        if fetch.source()?.is_directory() && step == Step::Unpack {
            let expected = fetch.checksum.take();
            let mut stream = Stream::open(program, &fetch, user, limits.max_bytes, step).await?;
            stream.expect(expected);
            return Ok(stream);
        }
        let most = if fetch.source()?.is_directory() {
            limits.max_bytes
        } else {
            limits.max_download
        };
        Stream::open(program, &fetch, user, most, step).await
    }

    async fn fetch_and_unpack(
        &self,
        fetch: &Fetch,
        source: &Source,
        progress: &dyn Progress,
    ) -> Result<(), SlugError> {
        let step = match source {
            Source::Http(_) => Step::Fetch,
            Source::File(_) | Source::Directory(_) => Step::Unpack,
        };
        let mut stream = self.stream(fetch, step).await?;
        self.unpack_from(&mut stream, !source.is_directory(), progress)
            .await
            .map(drop)
    }

    async fn unpack_from(
        &self,
        input: &mut impl Input,
        compressed: bool,
        progress: &dyn Progress,
    ) -> Result<(), SlugError> {
        let Settings { uid, gid, .. } = self.settings;
        let staging = self
            .blocking(move |store| Staging::new(Arc::clone(&store.layout), uid, gid))
            .await?;
        match self.fill(&staging, input, compressed, progress).await {
            Ok(id) => {
                self.blocking(move |store| {
                    let made = Made { uid, gid };
                    write_made(staging.path(), &made).map_err(store.failed("write to"))?;
                    staging.persist(&id)
                })
                .await
            }
            Err(error) => {
                self.blocking(move |_| {
                    staging.remove();
                    Ok(())
                })
                .await?;
                Err(error)
            }
        }
    }

    async fn fill(
        &self,
        staging: &Staging,
        input: &mut impl Input,
        compressed: bool,
        progress: &dyn Progress,
    ) -> Result<SlugId, SlugError> {
        let job = wire::Job::Unpack(unpack::Job {
            user: self.unprivileged(),
            limits: self.settings.limits.clone(),
            compressed,
            store: self.layout.directory.display().to_string(),
        });
        let broken = |error: io::Error| SlugError::helper(unpack::TASK, &error);
        let (mut to, theirs) = pipe::pipe().map_err(broken)?;
        let theirs = theirs.into_blocking_fd().map_err(broken)?;
        widen(theirs.as_fd());
        let mut helper = Helper::start(
            &self.settings.program,
            unpack::TASK,
            &job,
            Some(theirs.as_fd()),
            Some(staging.root()),
        )
        .await?;
        drop(theirs);
        let fed = feed(input, &mut to, progress).await;
        drop(to);
        let unpacked = match fed {
            Ok(Fed::All) => helper.answer(progress).await,
            // It has had enough, and says why. But a slug that is not what it should be is
            // that above all, so the rest is looked at.
            Ok(Fed::Refused) => {
                let error = match helper.answer(progress).await {
                    Ok(_) => broken(io::ErrorKind::BrokenPipe.into()),
                    Err(error) => error,
                };
                if !matches!(error, SlugError::NoSpace { .. }) && input.is_expected() {
                    while input.next(progress).await?.is_some() {}
                }
                Err(error)
            }
            Err(error) => Err(error),
        };
        helper.end().await;
        unpacked?;
        input.id().ok_or(SlugError::Url)
    }

    fn unprivileged(&self) -> Peer {
        Peer {
            uid: self.settings.uid,
            gid: self.settings.gid,
            groups: Some(Vec::new()),
        }
    }

    async fn refer(&self, owner: &Owner, id: SlugId) -> Result<(), SlugError> {
        let owner = owner.clone();
        self.blocking(move |store| refs::add(&store.layout, &owner, &id))
            .await
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

fn write_made(staging: &Path, made: &Made) -> io::Result<()> {
    let mut file = File::create_new(staging.join("slug.json"))?;
    file.write_all(&serde_json::to_vec(made)?)?;
    file.sync_all()?;
    File::open(staging)?.sync_all()
}

pub(crate) enum Fed {
    All,
    /// The other end reads no more.
    Refused,
}

pub(crate) async fn feed(
    input: &mut impl Input,
    to: &mut pipe::Sender,
    progress: &dyn Progress,
) -> Result<Fed, SlugError> {
    while let Some(bytes) = input.next(progress).await? {
        if to.write_all(bytes).await.is_err() {
            return Ok(Fed::Refused);
        }
    }
    Ok(Fed::All)
}

/// Where the bytes of a slug come from.
pub(crate) trait Input {
    async fn next(&mut self, progress: &dyn Progress) -> Result<Option<&[u8]>, SlugError>;
    /// What it is, once it has ended.
    fn id(&self) -> Option<SlugId>;
    /// Whether it is known what it should be.
    fn is_expected(&self) -> bool;
}

impl Input for Stream {
    async fn next(&mut self, progress: &dyn Progress) -> Result<Option<&[u8]>, SlugError> {
        self.chunk(progress).await
    }

    fn id(&self) -> Option<SlugId> {
        self.id()
    }

    fn is_expected(&self) -> bool {
        true
    }
}

/// A slug that is here already, and is known.
struct Spool {
    file: tokio::fs::File,
    id: SlugId,
    buffer: Vec<u8>,
    done: u64,
}

impl Spool {
    fn new(file: tokio::fs::File, id: SlugId) -> Self {
        Self {
            file,
            id,
            buffer: vec![0; 256 * 1024],
            done: 0,
        }
    }
}

impl Input for Spool {
    async fn next(&mut self, progress: &dyn Progress) -> Result<Option<&[u8]>, SlugError> {
        let read = self.file.read(&mut self.buffer).await;
        let read = read.map_err(SlugError::store("read", Path::new("the slug")))?;
        self.done += read as u64;
        progress.progress(Step::Unpack, self.done, 0);
        Ok((read > 0).then(|| &self.buffer[..read]))
    }

    fn id(&self) -> Option<SlugId> {
        Some(self.id)
    }

    fn is_expected(&self) -> bool {
        false
    }
}
