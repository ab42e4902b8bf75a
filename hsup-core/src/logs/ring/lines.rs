//! The last lines of one name: their bytes as they came, and an entry for each block.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use crate::{logs::line::Origin, name::DynoId};

/// A block of whole lines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) seq: u64,
    pub(super) at_unix_us: i64,
    pub(super) len: u32,
    /// 0 for hsup's own lines.
    pub(super) run: u32,
    pub(super) origin: Origin,
}

pub(super) const ENTRY_BYTES: usize = size_of::<Entry>();
/// What a name costs before its first line.
pub(super) const NAME_BYTES: usize = size_of::<Ring>() + size_of::<KnownRun>() + 64;
/// What a ring may have reserved beyond what it holds, beside a quarter of that.
pub(super) const SLACK: usize = 1024;

/// A life of a dyno of this name.
#[derive(Debug)]
pub(super) struct KnownRun {
    pub(super) dyno_id: DynoId,
    pub(super) number: u32,
    pub(super) is_live: bool,
}

/// The lines of one name.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) name: Arc<str>,
    pub(super) bytes: VecDeque<u8>,
    pub(super) entries: VecDeque<Entry>,
    /// Those that live, and the one that ended last: its end is about to be reported.
    pub(super) runs: Vec<KnownRun>,
}

impl Ring {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            bytes: VecDeque::new(),
            entries: VecDeque::new(),
            runs: Vec::new(),
        }
    }

    pub(super) fn used(&self) -> usize {
        NAME_BYTES + self.bytes.len() + self.entries.len() * ENTRY_BYTES
    }

    /// Drops the oldest lines until `incoming` more bytes fit under `limit`.
    pub(super) fn make_room(&mut self, incoming: usize, limit: usize) {
        let held = |ring: &Self| ring.bytes.len() + ring.entries.len() * ENTRY_BYTES;
        while let Some(front) = self.entries.front()
            && held(self) + incoming > limit
        {
            let excess = held(self) + incoming - limit;
            let len = front.len as usize;
            // Where the first line that may stay begins.
            let cut = if excess < len {
                self.newline_after(excess - 1, len)
            } else {
                None
            };
            match cut {
                Some(cut) if cut < len => self.cut_front(cut),
                _ => self.drop_front(),
            }
        }
    }

    /// The position behind the first `\n` at or after `from` within the first `len` bytes.
    fn newline_after(&self, from: usize, len: usize) -> Option<usize> {
        let (first, second) = self.bytes.as_slices();
        let split = first.len();
        let in_first = (from < split)
            .then(|| memchr::memchr(b'\n', &first[from..len.min(split)]))
            .flatten()
            .map(|at| from + at + 1);
        in_first.or_else(|| {
            let start = from.max(split);
            (start < len)
                .then(|| memchr::memchr(b'\n', &second[start - split..len - split]))
                .flatten()
                .map(|at| start + at + 1)
        })
    }

    fn cut_front(&mut self, cut: usize) {
        drop(self.bytes.drain(..cut));
        if let Some(front) = self.entries.front_mut() {
            front.len -= u32::try_from(cut).unwrap_or(front.len);
        }
    }

    pub(super) fn drop_front(&mut self) {
        if let Some(front) = self.entries.pop_front() {
            drop(self.bytes.drain(..front.len as usize));
        }
    }

    pub(super) fn push(&mut self, entry: Entry, lines: &[u8]) {
        reserve(&mut self.bytes, lines.len());
        reserve(&mut self.entries, 1);
        self.bytes.extend(lines);
        self.entries.push_back(entry);
    }

    /// Frees what many lines needed that have gone at once.
    pub(super) fn give_back(&mut self) {
        let bytes = self.bytes.len();
        if self.bytes.capacity() > bytes + bytes / 4 + SLACK {
            self.bytes.shrink_to(bytes);
        }
        let entries = self.entries.len();
        if self.entries.capacity() > entries + entries / 4 + SLACK / ENTRY_BYTES {
            self.entries.shrink_to(entries);
        }
    }

    pub(super) fn shrink(&mut self) {
        let bytes = self.bytes.len();
        if self.bytes.capacity() > bytes + bytes / 8 {
            self.bytes.shrink_to(bytes);
        }
        let entries = self.entries.len();
        if self.entries.capacity() > entries + entries / 8 {
            self.entries.shrink_to(entries);
        }
    }

    /// A copy of the last `n` lines of the block that begins at `start`, and how many those are.
    pub(super) fn copy_lines(&self, start: usize, len: usize, n: usize) -> (Bytes, usize) {
        let mut block = Vec::with_capacity(len);
        let (first, second) = self.bytes.as_slices();
        let split = first.len();
        block.extend_from_slice(&first[start.min(split)..(start + len).min(split)]);
        block
            .extend_from_slice(&second[start.max(split) - split..(start + len).max(split) - split]);
        let mut from = len;
        let mut count = 0;
        // The last byte is the `\n` of the last line.
        for newline in memchr::memrchr_iter(b'\n', &block[..len - 1]) {
            count += 1;
            if count == n {
                from = newline + 1;
                break;
            }
        }
        if count < n {
            from = 0;
            count += 1;
        }
        // A slice would keep the whole block alive.
        if from > 0 {
            block.drain(..from);
        }
        (Bytes::from(block), count)
    }
}

/// Grows by an eighth rather than to the double: rings are many and live long.
fn reserve<T>(deque: &mut VecDeque<T>, more: usize) {
    if deque.capacity() - deque.len() < more {
        deque.reserve_exact(more.max(deque.len() / 8).max(4));
    }
}
