//! A slug's bytes, from where they are to whoever wants them, counted and verified.

mod file;
mod http;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::http::host;

use std::{fs::File, io, mem, os::fd::AsFd as _, path::PathBuf, time::Duration};

use hsup_driver_kit::file_url;
use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncReadExt as _, net::unix::pipe, task::spawn_blocking, time::timeout};

use crate::{
    error::SlugError,
    helper::{Helper, Program},
    id::SlugId,
    privilege::Peer,
    progress::{Progress, Step},
    wire::{self, Event, Report},
};

const TASK: &str = "fetch the slug";
/// What a pipe is made to hold: as much as may wait while the other end writes to a disk.
const PIPE: i32 = 1024 * 1024;
const BUFFER: usize = 256 * 1024;

/// A slug that is to be fetched.
#[derive(Clone)]
pub struct Fetch {
    url: String,
    /// What its compressed bytes must hash to, if the release says so.
    pub checksum: Option<SlugId>,
    /// Who wants it: a `file://` URL is opened as this user.
    pub peer: Peer,
    /// How long and how often it is tried.
    pub patience: Patience,
}

impl std::fmt::Debug for Fetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL is a secret.
        f.debug_struct("Fetch")
            .field("checksum", &self.checksum)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl Fetch {
    /// The slug at `url` for `peer`.
    pub fn new(url: String, checksum: Option<SlugId>, peer: Peer) -> Self {
        Self {
            url,
            checksum,
            peer,
            patience: Patience::default(),
        }
    }

    pub(crate) fn source(&self) -> Result<Source, SlugError> {
        if let Some(path) = file_url::path(&self.url) {
            let path = path.into_os_string().into_encoded_bytes();
            return Ok(if file_url::is_directory(&self.url) {
                Source::Directory(path)
            } else {
                Source::File(path)
            });
        }
        let scheme = self.url.split_once("://").map(|(scheme, _)| scheme);
        match scheme {
            Some(scheme)
                if scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http") =>
            {
                http::host(&self.url).ok_or(SlugError::Url)?;
                Ok(Source::Http(self.url.clone()))
            }
            Some(_) | None => Err(SlugError::Url),
        }
    }
}

/// How long and how often a download is tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For the next byte.
    pub stall: Duration,
    /// So many tries in a row that bring nothing.
    pub tries: u32,
    /// Before the second try; doubled for each one after that.
    pub backoff: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            tries: 5,
            backoff: Duration::from_millis(250),
        }
    }
}

/// Where a slug is.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum Source {
    Http(String),
    File(Vec<u8>),
    Directory(Vec<u8>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Source {
    /// What may be said of it.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Http(url) => http::host(url).unwrap_or_default(),
            Self::File(path) | Self::Directory(path) => String::from_utf8_lossy(path).into_owned(),
        }
    }

    pub(crate) fn is_directory(&self) -> bool {
        matches!(self, Self::Directory(_))
    }
}

/// What the process is to fetch.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    source: Source,
    user: Peer,
    patience: Patience,
    most: u64,
}

impl Job {
    pub(crate) fn prepare(&self) -> Result<(), SlugError> {
        self.user.embody(TASK)
    }

    pub(crate) fn run(self, report: &Report) -> Result<String, SlugError> {
        let out = File::from(wire::take(wire::OUTPUT));
        match self.source {
            Source::Http(url) => http::download(&url, &self.patience, self.most, out, report)?,
            Source::File(path) => file::copy(&path, self.user.uid, self.most, out, report)?,
            Source::Directory(path) => file::pack(&path, self.user.uid, out, report)?,
        }
        Ok(String::new())
    }
}

/// The bytes of a slug as they come. The last `None` means that all came and hash to what they
/// should: use nothing of it before. Dropped, its process is killed.
#[derive(Debug)]
pub struct Stream {
    helper: Helper,
    data: pipe::Receiver,
    buffer: Vec<u8>,
    hash: Sha256,
    expected: Option<SlugId>,
    from: String,
    patience: Duration,
    step: Step,
    done: u64,
    total: u64,
    most: u64,
    ended: bool,
    id: Option<SlugId>,
}

impl Stream {
    /// Begins to fetch at most `most` bytes. `downloader` is who speaks HTTP.
    ///
    /// # Errors
    /// When the URL is none, or no process can be started.
    pub async fn open(
        program: &Program,
        fetch: &Fetch,
        downloader: Peer,
        most: u64,
        step: Step,
    ) -> Result<Self, SlugError> {
        let source = fetch.source()?;
        if let Source::Directory(path) = &source
            && fetch.checksum.is_some()
        {
            use std::os::unix::ffi::OsStringExt as _;
            let path = PathBuf::from(std::ffi::OsString::from_vec(path.clone()));
            return Err(SlugError::DirectoryChecksum { path });
        }
        let from = source.shown();
        let (user, patience) = match &source {
            // It has its own patience, of which it tells us.
            Source::Http(_) => (
                downloader,
                fetch.patience.stall + fetch.patience.connect + Duration::from_secs(30),
            ),
            Source::File(_) | Source::Directory(_) => (fetch.peer.clone(), fetch.patience.stall),
        };
        let job = wire::Job::Fetch(Job {
            source,
            user,
            patience: fetch.patience.clone(),
            most,
        });
        let broken = |error: io::Error| SlugError::helper(TASK, &error);
        let (theirs, data) = pipe::pipe().map_err(broken)?;
        let theirs = theirs.into_blocking_fd().map_err(broken)?;
        widen(theirs.as_fd());
        let helper = Helper::start(program, TASK, &job, None, Some(theirs.as_fd())).await?;
        Ok(Self {
            helper,
            data,
            buffer: vec![0; BUFFER],
            hash: Sha256::new(),
            expected: fetch.checksum,
            from,
            patience,
            step,
            done: 0,
            total: 0,
            most,
            ended: false,
            id: None,
        })
    }

    /// The next bytes; `None` once all have come and are what they should be.
    ///
    /// # Errors
    /// When the slug cannot be fetched, or is another than it should be.
    pub async fn chunk(&mut self, progress: &dyn Progress) -> Result<Option<&[u8]>, SlugError> {
        let read = self.read(progress).await?;
        if read == 0 {
            let actual = SlugId::new(self.hash.clone().finalize().into());
            if let Some(expected) = self.expected
                && expected != actual
            {
                return Err(SlugError::Checksum { expected, actual });
            }
            self.id = Some(actual);
            return Ok(None);
        }
        self.hash(read).await?;
        self.done += read as u64;
        if self.done > self.most {
            return Err(too_big(self.most));
        }
        progress.progress(self.step, self.done, self.total);
        Ok(Some(&self.buffer[..read]))
    }

    /// Hashes what was read where it keeps nobody waiting: a slug is hundreds of megabytes, and
    /// whoever calls has one thread for all.
    async fn hash(&mut self, read: usize) -> Result<(), SlugError> {
        let (mut hash, buffer) = (self.hash.clone(), mem::take(&mut self.buffer));
        let hashed = spawn_blocking(move || {
            hash.update(&buffer[..read]);
            (hash, buffer)
        });
        (self.hash, self.buffer) = hashed.await.map_err(|error| SlugError::Helper {
            task: TASK.to_owned(),
            cause: error.to_string(),
        })?;
        Ok(())
    }

    /// Makes it an error to be another slug than this.
    pub(crate) fn expect(&mut self, id: Option<SlugId>) {
        self.expected = id;
    }

    /// What the slug is known by, once all of it came.
    pub fn id(&self) -> Option<SlugId> {
        self.id
    }

    /// The next bytes into the buffer; 0 after the process has said that it is done.
    async fn read(&mut self, progress: &dyn Progress) -> Result<usize, SlugError> {
        let mut at_end = false;
        while !self.ended {
            let stalled = SlugError::Stalled {
                from: self.from.clone(),
                seconds: self.patience.as_secs(),
            };
            let next = async {
                // A pipe that has ended is always readable.
                tokio::select! {
                    biased;
                    read = self.data.read(&mut self.buffer), if !at_end => Next::Read(read),
                    event = self.helper.event() => Next::Event(event),
                }
            };
            match timeout(self.patience, next).await.map_err(|_| stalled)? {
                Next::Read(Ok(0)) => at_end = true,
                Next::Read(Ok(read)) => return Ok(read),
                Next::Read(Err(error)) => {
                    return Err(SlugError::Helper {
                        task: TASK.to_owned(),
                        cause: error.to_string(),
                    });
                }
                Next::Event(event) => match event? {
                    Event::Total(total) => {
                        self.total = total;
                        progress.progress(self.step, self.done, total);
                    }
                    Event::Note(text) => progress.note(&text),
                    Event::Trying | Event::Failed(_) => {}
                    Event::Done(_) => self.ended = true,
                },
            }
        }
        // It has written all that it ever will; what is in the pipe is still to be read.
        if at_end {
            return Ok(0);
        }
        self.data
            .read(&mut self.buffer)
            .await
            .map_err(|error| SlugError::Helper {
                task: TASK.to_owned(),
                cause: error.to_string(),
            })
    }
}

enum Next {
    Read(io::Result<usize>),
    Event(Result<Event, SlugError>),
}

/// More fits into the pipe where the machine allows it.
pub(crate) fn widen(pipe: std::os::fd::BorrowedFd<'_>) {
    let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE));
}

/// A slug that is bigger than any may be.
fn too_big(most: u64) -> SlugError {
    SlugError::TooMuch {
        limit: most,
        of: "bytes, compressed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn fetch(url: &str) -> Fetch {
        Fetch::new(url.to_owned(), None, Peer::of_uid(1_000, 1_000))
    }

    #[test_case(
        "https://user:pass@host.example:8443/a?sig=SECRET",
        "host.example:8443"
    )]
    #[test_case("HTTP://host/", "host")]
    #[test_case("file:///srv/slug.tgz?sig=SECRET", "/srv/slug.tgz")]
    #[test_case("file:///srv/app/", "/srv/app/")]
    fn what_is_shown_of_a_url(url: &str, shown: &str) {
        let fetch = fetch(url);
        assert_eq!(fetch.source().unwrap().shown(), shown);
        assert!(!format!("{fetch:?}").contains("SECRET"));
        assert!(!format!("{:?}", fetch.source()).contains("SECRET"));
    }

    #[test_case("")]
    #[test_case("ftp://host/slug.tgz")]
    #[test_case("file://host/slug.tgz")]
    #[test_case("https://")]
    #[test_case("data:text/plain,x")]
    fn no_url(url: &str) {
        assert!(matches!(fetch(url).source(), Err(SlugError::Url)));
    }
}
