//! hsup's own standard error, where that is a place of its own.
//!
//! Nobody waits for it: neither a dyno, nor hsup's standard output, nor hsup itself.  What
//! is to be written waits in a buffer of fixed size, and a thread of its own writes it,
//! which may block for hours.  While the buffer is full, what comes is not shown, and how
//! many lines that were is said in their place.

use std::{
    io, mem,
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use tokio::sync::oneshot;

use super::{output::Output, style::Style};

/// What may wait.
const WAITING_BYTES: usize = 256 * 1024;
/// What the buffer keeps of its room once it is empty.
const KEPT_BYTES: usize = 16 * 1024;

/// The way to standard error.  When the last one is dropped, the thread writes what is there and ends.
#[derive(Clone, Debug)]
pub(super) struct Stderr(Arc<Owner>);

#[derive(Debug)]
struct Owner {
    queue: Arc<Queue>,
}

#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug)]
struct Waiting {
    style: Style,
    bytes: Vec<u8>,
    /// Lines that came after those in `bytes` and had no room.
    dropped: usize,
    /// Nothing more will come.
    closed: bool,
    end: End,
}

#[derive(Debug)]
enum End {
    /// The thread lives.
    Open,
    /// Somebody wants to know when it has written everything.
    Awaited(oneshot::Sender<()>),
    /// It has.
    Over,
}

impl Stderr {
    /// Starts the thread.
    pub(super) fn start(fd: OwnedFd, style: Style) -> io::Result<Self> {
        let queue = Arc::new(Queue {
            waiting: Mutex::new(Waiting {
                style,
                bytes: Vec::new(),
                dropped: 0,
                closed: false,
                end: End::Open,
            }),
            changed: Condvar::new(),
        });
        let written = Arc::clone(&queue);
        thread::Builder::new()
            .name("stderr".to_owned())
            .spawn(move || written.write_out(Output::new(fd)))?;
        Ok(Self(Arc::new(Owner { queue })))
    }

    /// Makes the column of names wide enough.
    pub(super) fn widen(&self, name_len: usize) {
        self.queue().lock().style.widen(name_len);
    }

    /// Whole lines of a dyno, each with its `\n`.
    pub(super) fn lines(&self, name: &str, at_unix_us: i64, lines: &[u8]) {
        self.queue().change(|waiting| {
            let prefix = waiting.style.before_lines(name, at_unix_us);
            push_lines(&mut waiting.bytes, &mut waiting.dropped, prefix, lines);
        });
    }

    /// hsup's own lines, each with its `\n`.
    pub(super) fn note(&self, name: &str, at_unix_us: i64, lines: &[u8]) {
        self.queue().change(|waiting| {
            let prefix = waiting.style.before_note(name, at_unix_us);
            push_lines(&mut waiting.bytes, &mut waiting.dropped, prefix, lines);
        });
    }

    /// Whole lines that are nobody's: as they are.
    pub(super) fn text(&self, text: &[u8]) {
        self.queue().change(|waiting| {
            push_lines(&mut waiting.bytes, &mut waiting.dropped, b"", text);
        });
    }

    /// Lets nothing more in; what it returns resolves when everything is written.
    pub(super) fn close(&self) -> oneshot::Receiver<()> {
        let (done, written) = oneshot::channel();
        self.queue().change(|waiting| {
            waiting.closed = true;
            match waiting.end {
                // The receiver is in our hands.
                End::Over => drop(done.send(())),
                End::Open | End::Awaited(_) => waiting.end = End::Awaited(done),
            }
        });
        written
    }

    fn queue(&self) -> &Queue {
        &self.0.queue
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.queue.change(|waiting| waiting.closed = true);
    }
}

impl Queue {
    fn change(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.lock());
        self.changed.notify_one();
    }

    /// The thread's life.
    fn write_out(&self, mut output: Output) {
        let mut bytes = Vec::new();
        loop {
            let mut waiting = self.lock();
            while waiting.bytes.is_empty() && waiting.dropped == 0 && !waiting.closed {
                waiting = self
                    .changed
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            mem::swap(&mut bytes, &mut waiting.bytes);
            let dropped = mem::take(&mut waiting.dropped);
            if bytes.is_empty() && dropped == 0 {
                break;
            }
            drop(waiting);
            output.write_through(&bytes);
            if dropped > 0 {
                output.write_through(notice(dropped).as_bytes());
            }
            bytes.clear();
            bytes.shrink_to(KEPT_BYTES);
        }
        // Whoever waits for the end may want to read up to it.
        drop(output);
        if let End::Awaited(done) = mem::replace(&mut self.lock().end, End::Over) {
            // Nobody waits any more: that is theirs to decide.
            let _: Result<(), ()> = done.send(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds each of `lines` behind the prefix, and counts those without room: once one had none,
/// none has until the count is told.
fn push_lines(bytes: &mut Vec<u8>, dropped: &mut usize, prefix: &[u8], lines: &[u8]) {
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        if *dropped == 0 && bytes.len() + prefix.len() + line.len() <= WAITING_BYTES {
            bytes.extend_from_slice(prefix);
            bytes.extend_from_slice(line);
        } else {
            *dropped += 1;
        }
    }
}

fn notice(dropped: usize) -> String {
    let lines = if dropped == 1 { "line" } else { "lines" };
    format!("hsup: {dropped} {lines} not shown: standard error took nothing\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_is_counted_and_so_is_all_behind_it() {
        let (mut bytes, mut dropped) = (Vec::new(), 0);
        let long = format!("{}\n", "x".repeat(WAITING_BYTES - 10)).into_bytes();
        push_lines(&mut bytes, &mut dropped, b"web.1 | ", &long);
        assert_eq!((bytes.len(), dropped), (WAITING_BYTES - 1, 0));
        push_lines(&mut bytes, &mut dropped, b"", b"\n\nthree\n");
        assert_eq!((bytes.len(), dropped), (WAITING_BYTES, 2));
        // There would be room for nothing now, but there is none for the order either.
        bytes.clear();
        push_lines(&mut bytes, &mut dropped, b"", b"four\n");
        assert_eq!((bytes.len(), dropped), (0, 3));
        assert_eq!(
            notice(1),
            "hsup: 1 line not shown: standard error took nothing\n"
        );
    }
}
