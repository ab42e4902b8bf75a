//! How a slug gets into the store: fetched, verified and unpacked, or found to be here.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::AsFd as _,
    path::Path,
    sync::Arc,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _},
    net::unix::pipe,
};

use super::{Made, Owner, Settings, Store, refs, staging::Staging};
use crate::{
    error::SlugError,
    feed::{Fed, Input, feed},
    fetch::{Fetch, Source, Stream, widen},
    helper::Helper,
    id::SlugId,
    privilege::Peer,
    progress::{Progress, Step},
    unpack, wire,
};

/// How often a slug that changes all the time is read.
const READINGS: usize = 5;

impl Store {
    /// The slug, in the store and known to be `owner`'s.
    pub(super) async fn make(
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
}

fn write_made(staging: &Path, made: &Made) -> io::Result<()> {
    let mut file = File::create_new(staging.join("slug.json"))?;
    file.write_all(&serde_json::to_vec(made)?)?;
    file.sync_all()?;
    File::open(staging)?.sync_all()
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
