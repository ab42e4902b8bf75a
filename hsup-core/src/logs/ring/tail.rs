//! The last lines of several names together, in the order in which they came.

use std::{collections::BinaryHeap, sync::Arc};

use super::lines::{Entry, Ring};
use crate::logs::line::{CHUNK_BYTES, Chunk};

/// The last lines of one or many rings.
#[derive(Debug, Default)]
pub(in crate::logs) struct Tail {
    /// Oldest first.
    pub(in crate::logs) chunks: Vec<Chunk>,
    /// How many lines before them had no room.
    pub(in crate::logs) left_out: u64,
}

/// Walks the entries of all `rings` from the newest back, until `n` lines are together, and
/// only counts those for which `room` has none left.
pub(super) fn collect<'a>(
    rings: impl Iterator<Item = &'a Ring>,
    n: usize,
    mut room: usize,
    wanted: impl Fn(&Entry) -> bool,
) -> Tail {
    struct Cursor<'a> {
        ring: &'a Ring,
        /// Entries before this index are still to come.
        index: usize,
        /// Where the last of them ends.
        end: usize,
    }
    let mut cursors: Vec<Cursor<'_>> = Vec::new();
    let mut newest = BinaryHeap::new();
    for ring in rings {
        if let Some(entry) = ring.entries.back() {
            newest.push((entry.seq, cursors.len()));
            cursors.push(Cursor {
                ring,
                index: ring.entries.len(),
                end: ring.bytes.len(),
            });
        }
    }
    let mut missing = n;
    let mut tail = Tail::default();
    while missing > 0
        && let Some((_, at)) = newest.pop()
    {
        let cursor = &mut cursors[at];
        cursor.index -= 1;
        let entry = cursor.ring.entries[cursor.index];
        let len = entry.len as usize;
        cursor.end -= len;
        if wanted(&entry) {
            let (bytes, count) = cursor.ring.copy_lines(cursor.end, len, missing);
            missing -= count;
            // Older ones that would fit have no place behind a gap.
            if tail.left_out > 0 || bytes.len() + CHUNK_BYTES > room {
                tail.left_out += count as u64;
            } else {
                room -= bytes.len() + CHUNK_BYTES;
                tail.chunks.push(Chunk {
                    at_unix_us: entry.at_unix_us,
                    origin: entry.origin,
                    dyno: Arc::clone(&cursor.ring.name),
                    bytes,
                });
            }
        }
        if let Some(before) = cursor.index.checked_sub(1) {
            newest.push((cursor.ring.entries[before].seq, at));
        }
    }
    tail.chunks.reverse();
    tail
}
