//! The log router: what every dyno writes, read once and handed to whoever wants it.
//!
//! ```text
//!  web.1 stdout ─┐                ┌─▶ rings          the last lines of every name: tail, crash reports
//!  web.1 stderr ─┼─▶ one thread ──┼─▶ subscriptions  hsupctl logs --tail, log sinks
//!  web.2 …      ─┘       ▲        └─▶ terminal       hsup's own stdout and stderr
//!                        └─ notes: hsup's own lines
//! ```
//!
//! - Nothing but hsup's own output may hold up a dyno.  Rings forget their oldest
//!   lines, subscriptions lose theirs and are told how many; the terminal loses nothing,
//!   so while it blocks, nothing is read.  All else stays prompt meanwhile.
//! - A line ends at `\n`; a `\r` before it belongs to the line.  A line of more than
//!   64 KiB is passed on in pieces of 64 KiB, each as a line.  A line without an end is
//!   ended when its dyno is.  Apart from that, bytes are kept as they are.
//! - Nothing grows without bound, and nothing here wakes up when nobody writes.

mod line;
mod notes;
mod output;
mod pace;
mod ring;
mod router;
mod stdin;
mod subscription;
mod terminal;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::eventfd::{EfdFlags, EventFd},
};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};
use tracing::error;

use self::{
    line::Origin,
    notes::{Note, lines_of},
    ring::Rings,
    router::{Command, Dyno, Router, Shared, now_unix_us},
    subscription::Queue,
    terminal::Terminal,
};
pub use self::{
    line::{Filter, Line, Source, Stream},
    stdin::{PumpEnd, StdinPump},
    subscription::{Batch, Subscription},
    terminal::{Format, TerminalSettings, colour_of},
};
use crate::name::{DynoId, DynoName};

/// The name of the column for lines that are about no dyno.
pub const SYSTEM: &str = "system";
/// The name of the column for lines about releases, as Heroku has it.
pub const API: &str = "api";

/// What the router keeps and shows.
#[derive(Debug)]
pub struct LogSettings {
    /// `None`: lines are kept and handed out, and shown nowhere.
    pub terminal: Option<TerminalSettings>,
    /// What is kept of one dyno, in bytes.  A line that does not fit is not kept.
    pub ring_bytes: usize,
    /// What is kept of all dynos together, in bytes.
    pub total_bytes: usize,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            terminal: None,
            ring_bytes: 256 * 1024,
            total_bytes: 64 * 1024 * 1024,
        }
    }
}

/// The handle of the log router.  When the last one is dropped, the router reads what is there, writes it, and ends.
#[derive(Clone, Debug)]
pub struct Logs {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Only a terminal needs notes to wait for it.
    has_terminal: bool,
}

/// Whether everything got out in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownOutcome {
    /// Every line has been written.
    Complete,
    /// hsup's output took nothing until the deadline; what was left is lost.
    TimedOut,
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
        let shared = Arc::new(Shared::new(rings, wake));
        let has_terminal = settings.terminal.is_some();
        let terminal = settings.terminal.map(Terminal::new);
        let router = Router::new(Arc::clone(&shared), terminal)?;
        let thread = thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || router.run())?;
        Ok(Self {
            handle: Arc::new(Handle {
                shared,
                thread: Mutex::new(Some(thread)),
                has_terminal,
            }),
        })
    }

    /// Reads a dyno's output from now on.
    ///
    /// The descriptors are FIFOs opened for reading and writing, so that they have no
    /// end, or the reading ends of pipes.  They are made non-blocking.
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
    /// Resolves when all of it has been written; at once for a dyno that is not known.
    ///
    /// It waits for as long as hsup's output blocks, so nothing that has to be prompt should wait for it.
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

    /// Says something of hsup's own about a dyno, [`API`] or [`SYSTEM`].  Never blocks.
    pub fn note(&self, dyno: &str, text: impl AsRef<str>) {
        let at_unix_us = now_unix_us();
        let lines = lines_of(text.as_ref());
        {
            let mut state = self.shared().lock();
            let state = &mut *state;
            let name = state.rings.append_note(dyno, at_unix_us, &lines);
            state.publish(&name, Origin::NOTE, at_unix_us, &lines);
            if !self.handle.has_terminal {
                return;
            }
            state.notes.push(Note {
                name,
                at_unix_us,
                lines,
            });
        }
        self.shared().wake();
    }

    /// The last `n` lines that `filter` wants, oldest first.
    pub fn tail(&self, filter: &Filter, n: usize) -> Vec<Line> {
        let chunks = self.shared().lock().rings.tail(filter, n);
        lines(chunks)
    }

    /// The last `n` lines that one run of a dyno wrote, without hsup's own, also after it ended.
    pub fn tail_of(&self, dyno_id: &DynoId, n: usize) -> Vec<Line> {
        let chunks = self.shared().lock().rings.tail_of(dyno_id, n);
        lines(chunks)
    }

    /// The last `backlog` lines and, with `follow`, every one after them: none twice, and none missing without a count.
    pub fn subscribe(&self, filter: Filter, backlog: usize, follow: bool) -> Subscription {
        let queue = Arc::new(Queue::new(filter));
        let mut state = self.shared().lock();
        let chunks = state.rings.tail(&queue.filter, backlog);
        if follow && !state.ended {
            state.subscribers.retain(|queue| !queue.is_abandoned());
            state.subscribers.push(Arc::clone(&queue));
        } else {
            queue.end();
        }
        drop(state);
        Subscription::new(queue, chunks)
    }

    /// Resolves when hsup's standard output has been given up, and says why: a reader that has gone (`BrokenPipe`), mostly.
    /// The dynos and everything else here go on.
    pub async fn terminal_gone(&self) -> io::Error {
        let mut gone: watch::Receiver<Option<Errno>> = self.shared().terminal_gone.subscribe();
        let errno = gone
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|gone| *gone);
        // The sender lives as long as this handle.
        errno.unwrap_or(Errno::EPIPE).into()
    }

    /// Whether hsup's standard output has been given up by now.
    pub fn is_terminal_gone(&self) -> bool {
        self.shared().terminal_gone.borrow().is_some()
    }

    /// Reads and writes everything there is, ends the subscriptions and the thread.  After the
    /// `deadline` the thread is left to itself: only the end of the process frees one that is stuck in a write.
    pub async fn shutdown(self, deadline: Duration) -> ShutdownOutcome {
        let (done, ended) = oneshot::channel();
        let command = Command::End { done: Some(done) };
        if self.shared().send(command).is_ok() && timeout(deadline, ended).await.is_err() {
            self.end_subscriptions();
            return ShutdownOutcome::TimedOut;
        }
        let thread = self
            .handle
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Err(panic)) = thread.map(JoinHandle::join) {
            error!(?panic, "log router panicked");
        }
        ShutdownOutcome::Complete
    }

    fn end_subscriptions(&self) {
        let subscribers = std::mem::take(&mut self.shared().lock().subscribers);
        for queue in subscribers {
            queue.end();
        }
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
