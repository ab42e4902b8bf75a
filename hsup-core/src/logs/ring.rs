//! The last lines of every dyno, in memory of a fixed size.
//!
//! A ring belongs to a dyno's *name*, so the last lines of a dyno that crashed
//! are still there when its successor writes. It holds the bytes as they came,
//! with one [`Entry`] for each block that was read at once; a line is found again
//! by its `\n`. So keeping a megabyte of lines costs one copy, not ten thousand.
//!
//! Two bounds hold: `ring_bytes` for a name and `total_bytes` over all names,
//! where the oldest lines of all go first. Entries and names count, not only text.
//! Memory that was reserved for growth may exceed them by a quarter. None is reserved
//! before there are lines: a dyno that is silent costs its name.
//!
//! Order is the order of arrival (`seq`), not the clock's, which may step back.

mod lines;
mod tail;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::Arc,
};

pub(super) use self::tail::Tail;
use self::{
    lines::{ENTRY_BYTES, Entry, KnownRun, Ring},
    tail::collect,
};
use super::line::{Filter, Origin};
use crate::name::DynoId;

/// One name's place in [`Rings`]; valid while a run of that name is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RingKey(u32);

/// One life of a dyno: a place and a number that tells it from other lives of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) ring: RingKey,
    number: u32,
}

/// All rings.
#[derive(Debug)]
pub(super) struct Rings {
    ring_bytes: usize,
    total_bytes: usize,
    slots: Vec<Option<Ring>>,
    free: Vec<u32>,
    by_name: HashMap<Arc<str>, RingKey>,
    /// What all rings use together.
    used: usize,
    next_seq: u64,
    next_run: u32,
}

impl Rings {
    pub(super) fn new(ring_bytes: usize, total_bytes: usize) -> Self {
        Self {
            ring_bytes,
            total_bytes,
            slots: Vec::new(),
            free: Vec::new(),
            by_name: HashMap::new(),
            used: 0,
            next_seq: 1,
            next_run: 1,
        }
    }

    /// Makes room for the lines of a dyno that is about to run.
    pub(super) fn begin(&mut self, name: &str, dyno_id: &DynoId) -> (Run, Arc<str>) {
        let key = self.key(name);
        let number = self.next_run;
        self.next_run = self.next_run.wrapping_add(1).max(1);
        let ring = self.slots[key.slot()].get_or_insert_with(|| Ring::new(name));
        ring.runs.reserve_exact(1);
        ring.runs.push(KnownRun {
            dyno_id: dyno_id.clone(),
            number,
            is_live: true,
        });
        (Run { ring: key, number }, Arc::clone(&ring.name))
    }

    /// The dyno has ended; its lines stay until newer ones need the room.
    pub(super) fn end(&mut self, run: Run) {
        if let Some(ring) = &mut self.slots[run.ring.slot()] {
            ring.runs
                .retain(|known| known.is_live || known.number == run.number);
            if let Some(known) = ring
                .runs
                .iter_mut()
                .find(|known| known.number == run.number)
            {
                known.is_live = false;
            }
        }
    }

    /// Keeps `lines`, which are whole and end in `\n`, of a dyno.
    pub(super) fn append(&mut self, run: Run, origin: Origin, at_unix_us: i64, lines: &[u8]) {
        self.append_to(run.ring, run.number, origin, at_unix_us, lines);
    }

    /// Keeps hsup's own `lines` about `name`; answers the name as it is kept.
    pub(super) fn append_note(&mut self, name: &str, at_unix_us: i64, lines: &[u8]) -> Arc<str> {
        let key = self.key(name);
        let name = Arc::clone(
            &self.slots[key.slot()]
                .get_or_insert_with(|| Ring::new(name))
                .name,
        );
        self.append_to(key, 0, Origin::of_note(&name), at_unix_us, lines);
        name
    }

    /// The last `n` lines that `filter` wants, as many of them as have room in `bytes`.
    pub(super) fn tail(&self, filter: &Filter, n: usize, bytes: usize) -> Tail {
        let rings = self
            .slots
            .iter()
            .flatten()
            .filter(|ring| filter.wants_name(&ring.name));
        collect(rings, n, bytes, |entry| {
            filter.wants_source(entry.origin.source)
        })
    }

    /// The last `n` lines that one run of a dyno wrote: one that lives, or the
    /// last of its name that ended.
    pub(super) fn tail_of(&self, dyno_id: &DynoId, n: usize) -> Tail {
        let found = self.slots.iter().flatten().find_map(|ring| {
            let run = ring.runs.iter().find(|run| run.dyno_id == *dyno_id)?;
            Some((ring, run.number))
        });
        let Some((ring, number)) = found else {
            return Tail::default();
        };
        collect(std::iter::once(ring), n, usize::MAX, |entry| {
            entry.run == number
        })
    }

    fn key(&mut self, name: &str) -> RingKey {
        if let Some(key) = self.by_name.get(name) {
            return *key;
        }
        let ring = Ring::new(name);
        self.used += ring.used();
        let name = Arc::clone(&ring.name);
        let key = if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(ring);
            RingKey(slot)
        } else {
            push_sparingly(&mut self.slots, Some(ring));
            RingKey(u32::try_from(self.slots.len() - 1).expect("a name costs more than a byte"))
        };
        self.by_name.insert(name, key);
        key
    }

    fn append_to(&mut self, key: RingKey, run: u32, origin: Origin, at_unix_us: i64, lines: &[u8]) {
        let Some(ring) = self.slots[key.slot()].as_mut() else {
            return;
        };
        let fitting = last_that_fit(lines, self.ring_bytes.saturating_sub(ENTRY_BYTES));
        if fitting.len() < lines.len() {
            // What was there is older than what does not fit, and no ring has a hole.
            let before = ring.used();
            while !ring.entries.is_empty() {
                ring.drop_front();
            }
            self.used -= before - ring.used();
        }
        let lines = fitting;
        let Ok(len) = u32::try_from(lines.len()) else {
            return;
        };
        if len == 0 {
            return;
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        let before = ring.used();
        ring.make_room(lines.len() + ENTRY_BYTES, self.ring_bytes);
        ring.push(
            Entry {
                seq,
                at_unix_us,
                len,
                run,
                origin,
            },
            lines,
        );
        ring.give_back();
        self.used = self.used + ring.used() - before;
        if self.used > self.total_bytes {
            self.evict();
        }
    }

    /// Drops the oldest lines of all until an eighth of the room is free, so that
    /// the search for them is made once for many lines.
    fn evict(&mut self) {
        let target = self.total_bytes - self.total_bytes / 8;
        let mut oldest: BinaryHeap<Reverse<(u64, usize)>> = self
            .slots
            .iter()
            .enumerate()
            .filter_map(|(slot, ring)| {
                let front = ring.as_ref()?.entries.front();
                Some(Reverse((front.map_or(0, |entry| entry.seq), slot)))
            })
            .collect();
        let mut touched = Vec::new();
        while self.used > target
            && let Some(Reverse((_, slot))) = oldest.pop()
        {
            let Some(ring) = self.slots[slot].as_mut() else {
                continue;
            };
            let before = ring.used();
            let next = oldest.peek().map_or(u64::MAX, |Reverse((seq, _))| *seq);
            while self.used - (before - ring.used()) > target
                && ring.entries.front().is_some_and(|entry| entry.seq < next)
            {
                ring.drop_front();
            }
            self.used -= before - ring.used();
            if let Some(front) = ring.entries.front() {
                oldest.push(Reverse((front.seq, slot)));
                touched.push(slot);
            } else if ring.runs.iter().all(|run| !run.is_live) {
                self.used -= ring.used();
                self.by_name.remove(&ring.name);
                self.slots[slot] = None;
                self.free.extend(u32::try_from(slot));
            } else {
                touched.push(slot);
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for slot in touched {
            if let Some(ring) = self.slots[slot].as_mut() {
                ring.shrink();
            }
        }
    }

    /// The memory that lines have, reserved or used.
    #[cfg(test)]
    fn allocated(&self) -> usize {
        let rings = self.slots.iter().flatten();
        rings
            .map(|ring| ring.bytes.capacity() + ring.entries.capacity() * ENTRY_BYTES)
            .sum()
    }

    /// The memory of all of it.
    #[cfg(test)]
    fn footprint(&self) -> usize {
        let rings = self.slots.iter().flatten();
        let names: usize = rings
            .map(|ring| ring.runs.capacity() * size_of::<KnownRun>() + ring.name.len() + 16)
            .sum();
        let entry = size_of::<(Arc<str>, RingKey)>() + 1;
        let tables =
            self.slots.capacity() * size_of::<Option<Ring>>() + self.by_name.capacity() * entry;
        self.allocated() + names + tables
    }
}

impl RingKey {
    const fn slot(self) -> usize {
        self.0 as usize
    }
}

/// The end of `lines` that has room in `limit` bytes, cut at a line's beginning.
fn last_that_fit(lines: &[u8], limit: usize) -> &[u8] {
    let Some(excess) = lines.len().checked_sub(limit).filter(|excess| *excess > 0) else {
        return lines;
    };
    memchr::memchr(b'\n', &lines[excess - 1..]).map_or(&[], |at| &lines[excess + at..])
}

/// Adds to a table that has an element for each dyno, and grows it by an eighth.
pub(super) fn push_sparingly<T>(table: &mut Vec<T>, element: T) {
    if table.len() == table.capacity() {
        table.reserve_exact((table.len() / 8).max(8));
    }
    table.push(element);
}

#[cfg(test)]
mod tests;
