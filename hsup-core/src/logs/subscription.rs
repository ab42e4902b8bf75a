//! A reader of lines that never holds up the writer.
//!
//! The router puts blocks into a bounded [`Queue`]; when the reader is too slow,
//! the oldest blocks go and their lines are counted. Every line is either in a
//! batch or in a count, and the count stands where the lines are missing.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::{
    line::{Chunk, Filter, Line},
    ring::Tail,
};

/// What may wait for one reader, in bytes; as much may stand before it when it comes.
pub(super) const QUEUE_BYTES: usize = 1024 * 1024;
/// A batch ends behind the line that reaches one of these, well below what one gRPC message may hold.
const BATCH_BYTES: usize = 256 * 1024;
const BATCH_LINES: usize = 1024;

/// Lines in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// How many lines this reader was too slow for, just before these.
    pub dropped: u64,
    pub lines: Vec<Line>,
}

/// Lines as they come; ends when hsup's logs do, or after the backlog.
#[derive(Debug)]
pub struct Subscription {
    queue: Arc<Queue>,
    /// Already this reader's: the backlog at first, then what the queue held.
    pending: VecDeque<Chunk>,
    /// Lines of the backlog that had no room, and are not told yet.
    left_out: u64,
}

impl Subscription {
    /// A reader that begins with `backlog`.
    pub(super) fn new(queue: Arc<Queue>, backlog: Tail) -> Self {
        Self {
            queue,
            pending: backlog.chunks.into(),
            left_out: backlog.left_out,
        }
    }

    /// The next lines, or `None` when there will be none any more. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Option<Batch> {
        loop {
            if !self.pending.is_empty() {
                let left_out = mem::take(&mut self.left_out);
                return Some(self.batch(left_out));
            }
            let taken = self.queue.take();
            self.pending = taken.chunks;
            if taken.dropped > 0 || !self.pending.is_empty() {
                return Some(self.batch(taken.dropped));
            }
            if taken.ended {
                return None;
            }
            self.queue.changed.notified().await;
        }
    }

    fn batch(&mut self, dropped: u64) -> Batch {
        let mut lines = Vec::new();
        let mut bytes = 0;
        while lines.len() < BATCH_LINES
            && bytes < BATCH_BYTES
            && let Some(chunk) = self.pending.front_mut()
        {
            match chunk.pop() {
                Some(line) => {
                    bytes += line.text.len();
                    lines.push(line);
                }
                None => drop(self.pending.pop_front()),
            }
        }
        // An emptied block at the front would make the next batch an empty one.
        if self
            .pending
            .front()
            .is_some_and(|chunk| chunk.bytes.is_empty())
        {
            self.pending.pop_front();
        }
        Batch { dropped, lines }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.queue.abandon();
    }
}

/// What waits for one reader.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) filter: Filter,
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    dropped: u64,
    ended: bool,
    abandoned: bool,
}

impl Queue {
    pub(super) fn new(filter: Filter) -> Self {
        Self {
            filter,
            waiting: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Adds a block; the oldest ones make room for it.
    pub(super) fn push(&self, chunk: Chunk) {
        let mut waiting = self.lock();
        if waiting.abandoned {
            return;
        }
        waiting.bytes += chunk.cost();
        waiting.chunks.push_back(chunk);
        while waiting.bytes > QUEUE_BYTES
            && let Some(oldest) = waiting.chunks.pop_front()
        {
            waiting.bytes -= oldest.cost();
            waiting.dropped += oldest.count() as u64;
        }
        drop(waiting);
        self.changed.notify_one();
    }

    /// Nothing will be added any more.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_one();
    }

    /// Whether its reader has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.lock().abandoned
    }

    fn take(&self) -> Waiting {
        let mut waiting = self.lock();
        let ended = waiting.ended;
        mem::replace(
            &mut *waiting,
            Waiting {
                ended,
                ..Waiting::default()
            },
        )
    }

    fn abandon(&self) {
        *self.lock() = Waiting {
            abandoned: true,
            ended: true,
            ..Waiting::default()
        };
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
