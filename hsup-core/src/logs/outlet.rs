//! One of hsup's own two outputs: a buffer with a bound, and a thread that writes it out.
//!
//! ```text
//!  router, notes ──▶ waiting ──swap──▶ thread ──▶ descriptor
//! ```
//!
//! Only that thread waits for whoever reads the output, and no lock is held while it does.
//! What has no room is dropped, and how many lines that were is written in their place.
//!
//! An output that *holds* has whoever brings the dynos' lines wait long before that, so that
//! they wait in turn, as writers of a pipe do: nothing is lost for a reader that is slow. It
//! does so for as long as anything is taken at all. When nothing is for [`Bounds::patience`],
//! its reader is taken for stuck, and nobody waits for it until it takes something again.

use std::{
    io, mem,
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tokio::sync::oneshot;

use super::output::{Flow, Lost, Output};

/// Whoever brings lines to an output that holds waits while this much is unwritten.
pub(super) const HOLD_BYTES: usize = 256 * 1024;

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// What has no room in as many bytes is dropped.
    pub(super) room: usize,
    /// What the buffers keep of it while nothing is written.
    pub(super) kept: usize,
    /// How long nothing may be taken before an output that holds lets go.
    pub(super) patience: Duration,
}

/// What happens to an output, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// What was dropped is written where it is missing, and all that came after it.
    Flows { dropped: u64 },
    /// A write failed, for the first time.
    Fails(Lost),
    /// The end has come, and this was never written.
    Ends(Lost),
}

/// The way to an output. When the last one is dropped, the thread writes what is there and ends.
#[derive(Clone, Debug)]
pub(super) struct Outlet(Arc<Owner>);

#[derive(Debug)]
struct Owner {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    waiting: Mutex<Waiting>,
    /// There is something for the thread.
    filled: Condvar,
    /// The thread has taken it.
    emptied: Condvar,
    flow: Arc<Flow>,
    bounds: Bounds,
}

#[derive(Debug, Default)]
struct Waiting {
    next: Batch,
    /// How many lines are missing behind the batch that the thread is writing.
    dropped_before: u64,
    /// The gap that it or the one before has is told.
    is_told: bool,
    holds: bool,
    /// How far the flow was when it was last found to be stuck.
    stuck_at: Option<u64>,
    thread: Thread,
    /// Nothing more will come.
    closed: bool,
    /// Who wants to know when everything is written.
    done: Vec<oneshot::Sender<()>>,
}

/// What is written at once.
#[derive(Debug, Default)]
struct Batch {
    /// Whole lines.
    bytes: Vec<u8>,
    /// Lines that came after those and had no room.
    dropped: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Thread {
    #[default]
    Busy,
    /// It waits for a batch.
    Idle,
    Over,
}

impl Outlet {
    /// A buffer, for the time being without its thread.
    pub(super) fn new(bounds: Bounds) -> Self {
        let inner = Arc::new(Inner {
            waiting: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            flow: Arc::default(),
            bounds,
        });
        Self(Arc::new(Owner { inner }))
    }

    /// Starts the thread, which writes to `fd`; `notice` makes the line that says how many are
    /// missing in its place.
    ///
    /// # Errors
    /// When the system refuses it.
    pub(super) fn write_to(
        &self,
        fd: OwnedFd,
        name: &str,
        notice: impl Fn(u64) -> Vec<u8> + Send + 'static,
        tell: impl Fn(News) + Send + 'static,
    ) -> io::Result<()> {
        let inner = Arc::clone(&self.0.inner);
        let output = Output::new(fd, Arc::clone(&inner.flow));
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || inner.write_out(output, notice, tell))
            .map(drop)
    }

    /// Whether whoever brings lines is to wait for it, or lines are dropped.
    pub(super) fn hold(&self, holds: bool) {
        self.inner().lock().holds = holds;
        self.inner().emptied.notify_one();
    }

    /// Adds each of `lines`, which end in `\n`, behind the prefix, and drops those without room.
    pub(super) fn push(&self, prefix: &[u8], lines: &[u8]) {
        let mut waiting = self.inner().lock();
        let room = self.inner().bounds.room;
        waiting.next.add(prefix, lines, usize::MAX, room);
    }

    /// The same; waits for room first where the output holds.
    pub(super) fn push_held(&self, prefix: &[u8], lines: &[u8]) {
        let inner = self.inner();
        let mut waiting = inner.lock();
        let mut rest = lines;
        loop {
            let until = if waiting.holds_up(&inner.flow) {
                HOLD_BYTES
            } else {
                usize::MAX
            };
            let added = waiting.next.add(prefix, rest, until, inner.bounds.room);
            rest = &rest[added..];
            if rest.is_empty() {
                return;
            }
            waiting = inner.wait_for_room(waiting);
        }
    }

    /// Has the thread write what has gathered; answers whether lines are missing from it and
    /// nobody has asked since they are.
    pub(super) fn flush(&self) -> bool {
        let mut waiting = self.inner().lock();
        if !waiting.next.is_empty() {
            self.inner().wake(&waiting);
        }
        waiting.next.dropped > 0 && !mem::replace(&mut waiting.is_told, true)
    }

    /// Lets nothing more in; each of `done` is dropped when everything is written and the thread
    /// has told its news.
    pub(super) fn close(&self, done: Vec<oneshot::Sender<()>>) {
        self.inner().close(done);
    }

    /// How many bytes wait to be written, and how many lines had no room and are not told.
    pub(super) fn unwritten(&self) -> (usize, u64) {
        let waiting = self.inner().lock();
        let bytes = waiting.next.bytes.len() + self.inner().flow.left();
        (bytes, waiting.dropped_before + waiting.next.dropped)
    }

    fn inner(&self) -> &Inner {
        &self.0.inner
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.inner.close(Vec::new());
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, waiting: &Waiting) {
        if waiting.thread == Thread::Idle {
            self.filled.notify_one();
        }
    }

    fn close(&self, done: Vec<oneshot::Sender<()>>) {
        let mut waiting = self.lock();
        waiting.closed = true;
        waiting.holds = false;
        // Dropped, they say the same: a thread that is over has written everything.
        if waiting.thread != Thread::Over {
            waiting.done.extend(done);
        }
        self.wake(&waiting);
    }

    /// Waits until the thread has taken what waits, or is found to be stuck.
    fn wait_for_room<'a>(&self, mut waiting: MutexGuard<'a, Waiting>) -> MutexGuard<'a, Waiting> {
        let mut seen = self.flow.taken();
        while waiting.next.bytes.len() >= HOLD_BYTES && waiting.holds_up(&self.flow) {
            self.wake(&waiting);
            let (guard, wait) = self
                .emptied
                .wait_timeout(waiting, self.bounds.patience)
                .unwrap_or_else(PoisonError::into_inner);
            waiting = guard;
            if wait.timed_out() {
                let taken = self.flow.taken();
                if taken == seen {
                    waiting.stuck_at = Some(taken);
                }
                seen = taken;
            }
        }
        waiting
    }

    /// The thread's life.
    fn write_out(&self, mut output: Output, notice: impl Fn(u64) -> Vec<u8>, tell: impl Fn(News)) {
        let mut batch = Batch::default();
        let (mut gap, mut has_failed) = (0, false);
        loop {
            let is_last = self.take(&mut batch);
            output.write_through(&batch.bytes);
            batch.bytes.clear();
            if batch.dropped > 0 {
                output.write_through(&notice(batch.dropped));
                gap += mem::take(&mut batch.dropped);
            }
            match output.lost() {
                None if gap > 0 && (is_last || self.is_through()) => {
                    let dropped = mem::take(&mut gap);
                    tell(News::Flows { dropped });
                }
                Some(lost) if !mem::replace(&mut has_failed, true) => tell(News::Fails(lost)),
                _ => {}
            }
            if is_last {
                break;
            }
        }
        if let Some(lost) = output.lost() {
            tell(News::Ends(lost));
        }
        // Whoever waits for the end may want to read up to it.
        drop(output);
        let mut waiting = self.lock();
        waiting.thread = Thread::Over;
        waiting.done.clear();
    }

    /// Waits for something to write, and takes it; answers whether it is the last.
    fn take(&self, batch: &mut Batch) -> bool {
        let mut waiting = self.lock();
        waiting.dropped_before = 0;
        while waiting.next.is_empty() && !waiting.closed {
            waiting.thread = Thread::Idle;
            for bytes in [&mut waiting.next.bytes, &mut batch.bytes] {
                bytes.shrink_to(self.bounds.kept);
            }
            waiting = self
                .filled
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
        waiting.thread = Thread::Busy;
        mem::swap(&mut waiting.next, batch);
        waiting.dropped_before = batch.dropped;
        self.emptied.notify_one();
        waiting.closed
    }

    /// Whether all that came is written; then the next gap is another one.
    fn is_through(&self) -> bool {
        let mut waiting = self.lock();
        let is_through = waiting.next.is_empty();
        if is_through {
            waiting.is_told = false;
        }
        is_through
    }
}

impl Waiting {
    fn holds_up(&self, flow: &Flow) -> bool {
        self.holds && self.stuck_at != Some(flow.taken())
    }
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.dropped == 0
    }

    /// Adds lines until so many bytes wait; answers how much of `lines` is dealt with. Once one
    /// had no room, none has until the count is told: that stands where they are missing.
    fn add(&mut self, prefix: &[u8], lines: &[u8], until: usize, room: usize) -> usize {
        let is_all = self.dropped == 0 && self.bytes.len() + lines.len() <= room.min(until);
        if prefix.is_empty() && is_all {
            self.bytes.extend_from_slice(lines);
            return lines.len();
        }
        let mut start = 0;
        for newline in memchr::memchr_iter(b'\n', lines) {
            if self.bytes.len() >= until {
                return start;
            }
            let line = &lines[start..=newline];
            if self.dropped == 0 && self.bytes.len() + prefix.len() + line.len() <= room {
                self.bytes.extend_from_slice(prefix);
                self.bytes.extend_from_slice(line);
            } else {
                self.dropped += 1;
            }
            start = newline + 1;
        }
        start
    }
}

#[cfg(test)]
mod tests;
