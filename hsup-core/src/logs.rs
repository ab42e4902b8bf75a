//! The log router: what every dyno writes, read once and handed to whoever wants it.
//!
//! ```text
//!  web.1 stdout ─┐                ┌─▶ rings          the last lines of every name: tail, crash reports
//!  web.1 stderr ─┼─▶ one thread ──┼─▶ subscriptions  hsupctl logs --tail
//!                │                ├─▶ drains         Logplex, syslog, files: a thread each
//!  web.2 …      ─┘       ▲        ├─▶ stdout         hsup's own: a thread, too
//!                        │        └─▶ stderr         and its stderr, where that is another place
//!                        └─ notes: hsup's own lines
//! ```
//!
//! - Only hsup's own standard output may hold up a dyno: where there are no drains, and as long
//!   as it takes anything at all. All others lose lines instead. Rings forget their oldest;
//!   drains, subscriptions, standard error and a standard output that is stuck are told how many
//!   lines are missing.
//! - A line ends at `\n`; a `\r` before it belongs to the line. A line of more than
//!   64 KiB is passed on in pieces of 64 KiB, each as a line. A line without an end is
//!   ended when its dyno is. Apart from that, bytes are kept as they are.
//! - Nothing grows without bound, and nothing here wakes up when nobody writes.

mod drain;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz {
    pub use super::{drain::fuzz::log_frames, router::fuzz::log_lines};
}
mod json;
mod line;
mod notes;
mod outlet;
mod output;
mod pace;
mod ring;
mod router;
mod shared;
mod stderr;
mod style;
mod subscription;
mod terminal;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::{sync::oneshot, time::timeout};
use tracing::error;

pub(crate) use self::output::write_some;
use self::{
    drain::Drains,
    ring::Rings,
    router::Router,
    shared::{Command, Dyno, Shared},
    subscription::{QUEUE_BYTES, Queue},
    terminal::Terminal,
};
pub use self::{
    drain::{Counts, DrainStatus, DrainTarget, ParseTargetError, Undelivered},
    line::{Filter, Line, Source, Stream},
    style::{Format, colour_of},
    subscription::{Batch, Subscription},
    terminal::TerminalSettings,
};
use crate::{
    name::{DynoId, DynoName},
    release::LogTarget,
};

/// The name of the column for lines that are about no dyno.
pub const SYSTEM: &str = "system";
/// The name of the column for lines about releases and the formation, as Heroku has it.
pub const API: &str = "api";

/// How many last lines the report of a dyno's end has at most.
const REPORT_LINES: usize = 50;
/// How long the last lines on a standard error of its own may take.
const STDERR_WITHIN: Duration = Duration::from_secs(1);

/// What the router keeps and shows.
#[derive(Debug)]
pub struct LogSettings {
    /// `None`: lines are kept and handed out, and shown nowhere.
    pub terminal: Option<TerminalSettings>,
    /// Where lines are sent to, for as long as hsup runs.
    pub drains: Vec<DrainTarget>,
    /// What is kept of one dyno, in bytes. A line that does not fit is not kept.
    pub ring_bytes: usize,
    /// What is kept of all dynos together, in bytes.
    pub total_bytes: usize,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            terminal: None,
            drains: Vec::new(),
            ring_bytes: 256 * 1024,
            total_bytes: 64 * 1024 * 1024,
        }
    }
}

/// The handle of the log router. When the last one is dropped, the router reads what is there, writes it, and ends.
#[derive(Clone, Debug)]
pub struct Logs {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    drains: Mutex<Drains>,
}

/// Whether everything got out in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "output that was cut off is no success"]
pub enum ShutdownOutcome {
    /// Every line has been written, or never can be.
    Complete,
    /// hsup's output took nothing until patience ended; what was left is lost.
    CutOff,
}

impl Logs {
    /// Starts the router's thread.
    ///
    /// # Errors
    /// When the system refuses the thread or the descriptors it needs.
    pub fn start(settings: LogSettings) -> io::Result<Self> {
        let wake =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let rings = Rings::new(settings.ring_bytes, settings.total_bytes);
        let mut terminal = settings.terminal.map(Terminal::new).transpose()?;
        let shared = Arc::new(Shared::new(rings, wake, terminal.as_ref()));
        if let Some(terminal) = &mut terminal {
            terminal.begin(&shared)?;
        }
        let drains = Drains::start(settings.drains, &shared)?;
        let router = Router::new(Arc::clone(&shared), terminal)?;
        let thread = thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || router.run())?;
        Ok(Self {
            handle: Arc::new(Handle {
                shared,
                thread: Mutex::new(Some(thread)),
                drains: Mutex::new(drains),
            }),
        })
    }

    /// Reads a dyno's output from now on.
    ///
    /// The descriptors are FIFOs opened for reading and writing, so that they have no
    /// end, or the reading ends of pipes. They are made non-blocking.
    pub fn add(&self, dyno_id: &DynoId, name: &DynoName, stdout: OwnedFd, stderr: OwnedFd) {
        let (run, name) = self.shared().lock().rings.begin(&name.to_string(), dyno_id);
        let dyno = Dyno {
            id: dyno_id.clone(),
            name,
            run,
            stdout,
            stderr,
        };
        // After the end there is nobody to read it.
        drop(self.shared().send(Command::Add(dyno)));
    }

    /// Makes the column of names wide enough for `name` before its first line comes.
    pub fn expect_name(&self, name: &str) {
        drop(self.shared().send(Command::Widen(name.len())));
    }

    /// Reads what a dyno that has ended left in its pipes, ends its last line and closes them.
    /// Resolves when all of it has been handed on, so that what is said next comes behind it; at
    /// once for a dyno that is not known.
    ///
    /// Where dynos wait for hsup's output it waits, too, so nothing that has to be prompt should.
    pub async fn finish(&self, dyno_id: &DynoId) {
        let (done, finished) = oneshot::channel();
        let command = Command::Finish {
            dyno_id: dyno_id.clone(),
            done,
        };
        if self.shared().send(command).is_ok() {
            // A router that ended first has read everything, too.
            let _: Result<(), oneshot::error::RecvError> = finished.await;
        }
    }

    /// Says something of hsup's own about a dyno, [`API`] or [`SYSTEM`]. Never blocks.
    pub fn note(&self, dyno: &str, text: impl AsRef<str>) {
        self.shared().note(dyno, text.as_ref());
    }

    /// Shows whole lines as they are on hsup's standard error, between other lines, and keeps
    /// them nowhere. Never blocks.
    pub fn print(&self, text: Vec<u8>) {
        self.shared().print(text);
    }

    /// The last `n` lines that `filter` wants, oldest first.
    pub fn tail(&self, filter: &Filter, n: usize) -> Vec<Line> {
        let tail = self.shared().lock().rings.tail(filter, n, usize::MAX);
        lines(tail.chunks)
    }

    /// The last `n` lines that one run of a dyno wrote, without hsup's own: one that lives, or
    /// the last of its name that ended.
    pub fn tail_of(&self, dyno_id: &DynoId, n: usize) -> Vec<Line> {
        let tail = self.shared().lock().rings.tail_of(dyno_id, n);
        lines(tail.chunks)
    }

    /// The last `n` lines that `filter` wants, as text and not too much of it.
    pub fn report(&self, filter: &Filter, n: usize) -> Arc<[String]> {
        line::report(&self.tail(filter, n))
    }

    /// The last of what one run of a dyno wrote, in the same way, to be kept when the lines are
    /// not any more.
    pub fn report_of(&self, dyno_id: &DynoId) -> Arc<[String]> {
        line::report(&self.tail_of(dyno_id, REPORT_LINES))
    }

    /// The last `backlog` lines and, with `follow`, every one after them: none twice, and none
    /// missing without a count. Of the backlog a megabyte at most is kept for the reader.
    pub fn subscribe(&self, filter: Filter, backlog: usize, follow: bool) -> Subscription {
        let queue = Arc::new(Queue::new(filter));
        let mut state = self.shared().lock();
        let tail = state.rings.tail(&queue.filter, backlog, QUEUE_BYTES);
        if follow && !state.ended {
            state.subscribers.retain(|queue| !queue.is_abandoned());
            state.subscribers.push(Arc::clone(&queue));
        } else {
            queue.end();
        }
        drop(state);
        Subscription::new(queue, tail)
    }

    /// Sends the lines from now on to the log target of the release that is wanted, too; `None`:
    /// it has none. What waits for the one before is still sent.
    pub fn drain_to(&self, target: Option<&LogTarget>) {
        let text = self.drains().follow(target, &self.handle.shared);
        if let Some(text) = text {
            self.note(SYSTEM, text);
        }
    }

    /// How every drain stands.
    pub fn drains_status(&self) -> Vec<DrainStatus> {
        self.drains().status()
    }

    /// Ends the drains once they have got what waits for them, after [`Logs::shutdown`]: in
    /// seconds, or at once when `stop` resolves. Answers which of them missed how many lines.
    pub async fn finish_drains(&self, stop: impl Future<Output = ()>) -> Vec<Undelivered> {
        let drains = self.drains().take();
        drain::finish_all(drains, stop).await
    }

    /// Reads no more of what dynos write, but for the lines that have been read in part: the rest
    /// is for whoever reads next. Before [`Logs::shutdown`].
    pub fn let_go(&self) {
        // After the end nothing is read anyway.
        drop(self.shared().send(Command::LetGo));
    }

    /// Reads and writes everything there is, ends the subscriptions and the threads. When
    /// `patience` ends first, what is left is lost and said to be, and the thread that is stuck
    /// in a write is left to itself: only the end of the process frees it.
    pub async fn shutdown(self, patience: impl Future<Output = ()>) -> ShutdownOutcome {
        let (done, ended) = oneshot::channel();
        let command = Command::End { done: Some(done) };
        let mut outcome = ShutdownOutcome::Complete;
        if self.shared().send(command).is_ok() {
            tokio::select! {
                biased;
                // A sender that is gone has ended, too.
                _ = ended => {}
                () = patience => outcome = ShutdownOutcome::CutOff,
            }
        }
        match outcome {
            ShutdownOutcome::Complete => self.join(),
            ShutdownOutcome::CutOff => {
                self.shared().note_cut();
                self.end_subscriptions();
            }
        }
        if let Some(stderr) = &self.shared().stderr {
            // Nobody waits for it while hsup runs, and not much at the end.
            drop(timeout(STDERR_WITHIN, stderr.close()).await);
        }
        outcome
    }

    fn join(&self) {
        let thread = self
            .handle
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Err(panic)) = thread.map(JoinHandle::join) {
            error!(?panic, "log router panicked");
        }
    }

    fn end_subscriptions(&self) {
        let (subscribers, drains) = {
            let mut state = self.shared().lock();
            let subscribers = std::mem::take(&mut state.subscribers);
            (subscribers, std::mem::take(&mut state.drains))
        };
        for queue in subscribers {
            queue.end();
        }
        for queue in drains {
            queue.end();
        }
    }

    fn drains(&self) -> MutexGuard<'_, Drains> {
        let drains = self.handle.drains.lock();
        drains.unwrap_or_else(PoisonError::into_inner)
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.shared.send(Command::End { done: None }));
    }
}

fn lines(chunks: Vec<line::Chunk>) -> Vec<Line> {
    chunks
        .into_iter()
        .flat_map(|mut chunk| std::iter::from_fn(move || chunk.pop()))
        .collect()
}

#[cfg(test)]
mod tests;
