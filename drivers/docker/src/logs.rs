//! Passing on what a dyno writes: from the engine to the dyno's FIFO.
//!
//! The engine keeps what was written, and its log is read again from where it broke off. A FIFO
//! that nobody reads holds up only the reading of the log: the rest waits in the engine, which
//! keeps the last of it. A dyno to whose outputs the driver is attached is held up instead.

mod stream;

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bollard::{
    Docker,
    container::LogOutput,
    query_parameters::{LogsOptions, LogsOptionsBuilder},
};
use futures_util::{StreamExt as _, stream::BoxStream};
use hsup_driver_kit::errors;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::write,
};
use thiserror::Error;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinSet,
    time,
};
use tokio_util::sync::CancellationToken;

use crate::{
    attach::Reads,
    cursor::CursorFile,
    engine::{self, Engine},
    frames::{self, Cursor, Reader},
    swarm::Cluster,
};

/// How long a FIFO that nobody reads holds back the news that a stopped dyno has ended. The end of
/// any other dyno is held back until the FIFO is read, as if the dyno itself waited for that.
const UNREAD: Duration = Duration::from_secs(2);
/// How soon a log that broke off is read again, at first and at last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often an engine that answers may fail to read what is left after a dyno's end: a record of
/// its log that is torn stays so, and the dyno's end is told only after its log.
const TRIES: u32 = 8;

/// Whose log it is. By its id.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Container(String),
    /// A service of one task.
    Service(String, Cluster),
}

impl Source {
    /// The engine's id of it.
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Container(id) | Self::Service(id, _) => id,
        }
    }

    /// Waits until whoever has it is away: what is read meanwhile would come twice when it is back.
    async fn until_away(&self) {
        match self {
            // The engine's connection breaks.
            Self::Container(_) => std::future::pending().await,
            Self::Service(id, cluster) => cluster.until_away(id).await,
        }
    }

    fn logs(
        &self,
        docker: &Docker,
        options: LogsOptions,
    ) -> BoxStream<'static, Result<LogOutput, bollard::errors::Error>> {
        match self {
            Self::Container(id) => docker.logs(id, Some(options)).boxed(),
            Self::Service(id, _) => docker.service_logs(id, Some(options)).boxed(),
        }
    }
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

impl Output {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A log could not be passed on.
#[derive(Debug, Error)]
pub(crate) enum CopyError {
    #[error("failed to read a dyno's log")]
    Read(#[source] bollard::errors::Error),
    #[error("the engine failed to read a dyno's log: {0}")]
    Said(String),
    #[error("failed to read what a dyno writes")]
    Stream(#[source] io::Error),
    #[error("failed to write to a dyno's FIFO")]
    Write(#[source] io::Error),
    /// It is not read for so long that the log is not to wait for it.
    #[error("a dyno's FIFO is full")]
    Full,
    #[error("failed to keep how far a dyno's log was passed on")]
    Keep(#[source] io::Error),
}

impl CopyError {
    /// Whether an engine that answers cannot do better.
    fn is_engines(&self) -> bool {
        match self {
            Self::Read(error) => engine::code(error).is_some(),
            Self::Said(_) => true,
            Self::Stream(_) | Self::Write(_) | Self::Full | Self::Keep(_) => false,
        }
    }
}

/// One output of a dyno, on its way.
#[derive(Debug)]
pub(crate) struct Copy {
    engine: Engine,
    source: Source,
    output: Output,
    fifo: AsyncFd<OwnedFd>,
    file: CursorFile,
    cursor: Cursor,
    /// What all that was passed on of both outputs takes up in the log, as far as it is counted.
    passed: Arc<AtomicU64>,
}

impl Copy {
    pub(crate) fn new(
        engine: Engine,
        source: Source,
        output: Output,
        fifo: OwnedFd,
        (file, cursor): (CursorFile, Cursor),
        passed: Arc<AtomicU64>,
    ) -> io::Result<Self> {
        passed.fetch_add(cursor.size(), Ordering::Relaxed);
        Ok(Self {
            engine,
            source,
            output,
            fifo: non_blocking(fifo, Interest::WRITABLE)?,
            file,
            cursor,
            passed,
        })
    }

    /// Passes on all that the dyno writes, until it `ended`, and then what is left. `stream` is what
    /// the engine streams, where the driver was attached before the dyno began.
    pub(crate) async fn run(mut self, stream: Option<Reads>, ended: CancellationToken) {
        if let Some(stream) = stream
            && self.follow(stream, &ended).await
        {
            return;
        }
        self.go_on_in_log();
        let mut backoff = BACKOFF.0;
        let mut failed = 0;
        loop {
            let up = self.engine.up().await;
            // What is read after its end is all there will be.
            let is_last = ended.is_cancelled();
            let before = self.passed.load(Ordering::Relaxed);
            let read = if is_last {
                self.read(&up.docker, false).await
            } else {
                let source = self.source.clone();
                let reading = async {
                    tokio::select! {
                        read = self.read(&up.docker, true) => read,
                        () = source.until_away() => Ok(()),
                    }
                };
                // Podman goes on for seconds to wait for more, and a Swarm for ever.
                let read = ended.run_until_cancelled(reading).await;
                read.unwrap_or(Ok(()))
            };
            // A Swarm reads it when the node is back.
            let is_here = matches!(self.source, Source::Container(_));
            let is_refused = is_here && read.as_ref().is_err_and(CopyError::is_engines);
            match read {
                Ok(()) if is_last => return,
                Err(CopyError::Read(error)) if engine::is_unknown(&error) => return,
                Ok(()) => {}
                // Once there is room, the log is read again from where it was.
                Err(CopyError::Full) => {
                    if let Err(error) = self.fifo.writable().await {
                        tracing::warn!(%error, "failed to wait for a dyno's FIFO");
                    }
                    continue;
                }
                Err(CopyError::Read(error)) => {
                    tracing::debug!(error = errors::chain(&error), "a dyno's log broke off");
                    self.engine.suspect();
                }
                Err(error) => {
                    tracing::warn!(error = errors::chain(&error), "a dyno's log broke off");
                }
            }
            let passed = self.passed.load(Ordering::Relaxed);
            if before != passed {
                backoff = BACKOFF.0;
                failed = 0;
            }
            if is_last && is_refused {
                failed += 1;
            }
            if failed == TRIES {
                let (container, output) = (self.source.id(), self.output.name());
                tracing::error!(
                    container,
                    output,
                    since = self.cursor.since(),
                    "the end of a dyno's log cannot be read: what it wrote later is not known"
                );
                return;
            }
            let pause = time::sleep(backoff);
            backoff = (backoff * 2).min(BACKOFF.1);
            if is_last {
                pause.await;
            } else {
                tokio::select! {
                    () = pause => {}
                    () = ended.cancelled() => {}
                }
            }
        }
    }

    /// Reads the log from the cursor on: to its end, or as it grows.
    async fn read(&mut self, docker: &Docker, follow: bool) -> Result<(), CopyError> {
        let mut reader = match self.source {
            Source::Container(_) => Reader::new(self.cursor),
            Source::Service(..) => Reader::replaying(self.cursor),
        };
        let options = LogsOptionsBuilder::new()
            .follow(follow)
            .stdout(self.output == Output::Stdout)
            .stderr(self.output == Output::Stderr)
            .since(self.cursor.since())
            .timestamps(true)
            .build();
        let mut log = self.source.logs(docker, options);
        while let Some(frame) = log.next().await {
            let bytes = match frame.map_err(CopyError::Read)? {
                LogOutput::StdOut { message } | LogOutput::StdErr { message } => message,
                // Not a dyno's.
                LogOutput::Console { message } | LogOutput::StdIn { message } => {
                    // Behind the head of a frame of a kind that the client library does not know.
                    let text = message.get(8..).filter(|_| message[0] < b' ');
                    let said = String::from_utf8_lossy(text.unwrap_or(&message));
                    let said = said.trim().to_owned();
                    return Err(CopyError::Said(said));
                }
            };
            let Some((at, data)) = frames::parse(&bytes) else {
                return Err(CopyError::Said("a frame without a time".to_owned()));
            };
            let Some(rest) = reader.rest(at, data) else {
                continue;
            };
            for mut bytes in [rest.before, rest.data] {
                while !bytes.is_empty() {
                    let length = self.write_in_time(bytes).await?;
                    let (written, rest) = bytes.split_at(length);
                    reader.wrote(length);
                    self.reached(&reader)?;
                    self.count(written);
                    bytes = rest;
                }
            }
            reader.finished(data);
            self.reached(&reader)?;
        }
        Ok(())
    }

    fn reached(&mut self, reader: &Reader) -> Result<(), CopyError> {
        self.cursor = reader.cursor();
        self.keep()
    }

    fn keep(&self) -> Result<(), CopyError> {
        self.file.write(self.cursor).map_err(CopyError::Keep)
    }

    fn count(&self, written: &[u8]) {
        let size = frames::size_of(written);
        self.passed.fetch_add(size, Ordering::Relaxed);
    }

    /// The engine's log of a container waits on its disk. That of a service waits in the memory of
    /// the Swarm's manager, and is let go instead.
    async fn write_in_time(&self, bytes: &[u8]) -> Result<usize, CopyError> {
        let writing = self.write(bytes);
        let written = match self.source {
            Source::Container(_) => writing.await,
            Source::Service(..) => match time::timeout(UNREAD, writing).await {
                Ok(written) => written,
                Err(_) => return Err(CopyError::Full),
            },
        };
        written.map_err(CopyError::Write)
    }

    /// Writes as much as there is room for, once there is any.
    async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.fifo.writable().await?;
            if let Ok(written) = ready.try_io(|fifo| Ok(write(fifo.get_ref(), bytes)?)) {
                return written;
            }
        }
    }
}

/// The outputs of a dyno, being passed on. They go no further once this is dropped.
#[derive(Debug)]
pub(crate) struct Copying {
    copies: JoinSet<()>,
    passed: Arc<AtomicU64>,
}

impl Copying {
    /// Passes on what the dyno writes until it `ended`, and then what is left. `passed` is what
    /// they count in.
    pub(crate) fn begin(
        copies: Vec<(Copy, Option<Reads>)>,
        passed: Arc<AtomicU64>,
        ended: &CancellationToken,
    ) -> Self {
        let mut begun = JoinSet::new();
        for (copy, stream) in copies {
            begun.spawn(copy.run(stream, ended.clone()));
        }
        Self {
            copies: begun,
            passed,
        }
    }

    /// Waits, after the end of the dyno, until all that it wrote was passed on. `false` if nobody
    /// reads it, and the dyno was `stopped`.
    pub(crate) async fn settle(&mut self, stopped: &CancellationToken) -> bool {
        let mut before = self.passed.load(Ordering::Relaxed);
        while !self.copies.is_empty() {
            let unread = async {
                stopped.cancelled().await;
                time::sleep(UNREAD).await;
            };
            tokio::select! {
                _ = self.copies.join_next() => continue,
                () = unread => {}
            }
            let now = self.passed.load(Ordering::Relaxed);
            if now == before {
                return false;
            }
            before = now;
        }
        true
    }

    /// Waits for a reader of what is left, as long as the dyno is known.
    pub(crate) async fn rest(&mut self) {
        while self.copies.join_next().await.is_some() {}
    }
}

/// A descriptor of ours alone, which does not block any more.
#[expect(unsafe_code, reason = "tokio's way to say who owns a descriptor")]
pub(crate) fn non_blocking(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    // SAFETY: an OwnedFd stays the same open descriptor for as long as it is owned.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(|error| error.into_parts().1)
}
