//! What waits for one drain, and the books of what became of it.
//!
//! The router puts blocks in and never waits. A queue may have several lanes, each emptied by
//! a sender of its own; all lines of a dyno are in one, so that they stay in order however many
//! senders there are. When the whole has no room, the oldest lines of the fullest lane go: who
//! floods loses its own.
//!
//! Every line that was put in is, at any time, exactly one of: waiting, held by a sender, sent,
//! dropped or lost. Dropped and lost ones are announced to the drain itself: a sender takes
//! the announcement with it, and brings it back when that could not be delivered either.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::logs::line::Chunk;

/// See the module.
#[derive(Debug)]
pub(in crate::logs) struct Queue {
    books: Mutex<Books>,
    /// One for each lane.
    changed: Box<[Notify]>,
    /// What may wait, in bytes.
    room: usize,
    ended: CancellationToken,
}

#[derive(Debug)]
struct Books {
    lanes: Box<[Lane]>,
    bytes: usize,
    counts: Counts,
    unannounced: Announcement,
    ended: bool,
}

#[derive(Debug, Default)]
struct Lane {
    blocks: VecDeque<Block>,
    bytes: usize,
    lines: u64,
    /// How much must wait until the sender is woken; `None`: it is at work.
    wake: Option<Portion>,
}

/// A block of lines, and how many there are.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) chunk: Chunk,
    pub(super) lines: u64,
}

/// A part of a lane: up to so many bytes or lines, whichever is reached first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portion {
    pub(super) bytes: usize,
    pub(super) lines: u64,
}

/// What became of the lines that a drain was to get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub read: u64,
    /// The drain has taken them, as far as its protocol tells.
    pub sent: u64,
    /// There was no room for them while they waited.
    pub dropped: u64,
    /// They could not be delivered.
    pub lost: u64,
    /// They wait.
    pub queued: u64,
    /// A sender holds them: they are gathered, or on their way.
    pub sending: u64,
    /// What waits, in bytes.
    pub queued_bytes: u64,
}

/// How many lines, and when the first of them was written, in microseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) count: u64,
    pub(super) since: i64,
}

/// What the drain is to be told is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Announcement {
    pub(super) dropped: Tally,
    pub(super) lost: Tally,
}

/// What a sender finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Lines, or something to announce.
    Work,
    Nothing,
    /// Nothing, and there will be nothing.
    End,
}

impl Counts {
    /// How many of them nothing has become of yet.
    const fn left(&self) -> u64 {
        self.read
            .saturating_sub(self.sent + self.dropped + self.lost)
    }
}

impl Tally {
    fn add(&mut self, other: Self) {
        if other.count == 0 {
            return;
        }
        self.since = if self.count == 0 {
            other.since
        } else {
            self.since.min(other.since)
        };
        self.count += other.count;
    }
}

impl Announcement {
    pub(super) const fn is_empty(&self) -> bool {
        self.dropped.count == 0 && self.lost.count == 0
    }

    fn add(&mut self, other: Self) {
        self.dropped.add(other.dropped);
        self.lost.add(other.lost);
    }
}

impl Queue {
    pub(super) fn new(lanes: usize, room: usize) -> Self {
        Self {
            books: Mutex::new(Books {
                lanes: (0..lanes).map(|_| Lane::default()).collect(),
                bytes: 0,
                counts: Counts::default(),
                unannounced: Announcement::default(),
                ended: false,
            }),
            changed: (0..lanes).map(|_| Notify::new()).collect(),
            room,
            ended: CancellationToken::new(),
        }
    }

    /// Adds a block of so many lines; the oldest ones make room for it.
    pub(in crate::logs) fn push(&self, chunk: Chunk, lines: u64) {
        let lane = self.lane_of(&chunk.dyno);
        let mut books = self.lock();
        if books.ended {
            return;
        }
        books.counts.read += lines;
        let bytes = chunk.cost();
        books.bytes += bytes;
        let place = &mut books.lanes[lane];
        place.bytes += bytes;
        place.lines += lines;
        make_room(&mut place.blocks);
        place.blocks.push_back(Block { chunk, lines });
        let is_awaited = place
            .wake
            .is_some_and(|portion| place.bytes >= portion.bytes || place.lines >= portion.lines);
        if is_awaited {
            place.wake = None;
        }
        while books.bytes > self.room && books.drop_oldest() {}
        drop(books);
        if is_awaited {
            self.changed[lane].notify_one();
        }
    }

    /// Takes blocks out of a lane, up to the one that reaches the portion.
    pub(super) fn take(&self, lane: usize, portion: Portion, to: &mut VecDeque<Block>) {
        let mut books = self.lock();
        let mut taken = Portion { bytes: 0, lines: 0 };
        while taken.bytes < portion.bytes
            && taken.lines < portion.lines
            && let Some(block) = books.pop(lane)
        {
            taken.bytes += block.chunk.cost();
            taken.lines += block.lines;
            to.push_back(block);
        }
    }

    /// What there is for the sender of a lane.
    pub(super) fn look(&self, lane: usize) -> Found {
        let books = self.lock();
        if !books.lanes[lane].blocks.is_empty() || !books.unannounced.is_empty() {
            Found::Work
        } else if books.ended {
            Found::End
        } else {
            Found::Nothing
        }
    }

    /// Whether the lane holds nothing, and never will.
    pub(super) fn is_through(&self, lane: usize) -> bool {
        let books = self.lock();
        books.ended && books.lanes[lane].blocks.is_empty()
    }

    /// Waits until that much is in the lane, or the end. Cancelling it loses nothing.
    pub(super) async fn wait(&self, lane: usize, portion: Portion) {
        loop {
            {
                let mut books = self.lock();
                let place = &mut books.lanes[lane];
                if place.bytes >= portion.bytes || place.lines >= portion.lines {
                    return;
                }
                place.wake = Some(portion);
                if books.ended {
                    return;
                }
            }
            self.changed[lane].notified().await;
        }
    }

    /// What is to be announced, for one sender to do.
    pub(super) fn announce(&self) -> Announcement {
        std::mem::take(&mut self.lock().unannounced)
    }

    /// So many lines were delivered.
    pub(super) fn sent(&self, lines: u64) {
        self.lock().counts.sent += lines;
    }

    /// Lines could not be delivered, nor what was to be announced before them.
    pub(super) fn lost(&self, lines: Tally, announcement: Announcement) {
        let mut books = self.lock();
        books.counts.lost += lines.count;
        books.unannounced.add(announcement);
        books.unannounced.lost.add(lines);
    }

    pub(in crate::logs) fn counts(&self) -> Counts {
        let books = self.lock();
        let queued = books.lanes.iter().map(|lane| lane.lines).sum();
        Counts {
            queued,
            sending: books.counts.left().saturating_sub(queued),
            queued_bytes: books.bytes as u64,
            ..books.counts
        }
    }

    /// Nothing will be added any more; what waits is still sent.
    pub(in crate::logs) fn end(&self) {
        self.lock().ended = true;
        for changed in &self.changed {
            changed.notify_one();
        }
        self.ended.cancel();
    }

    /// Resolves when nothing will be added any more.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Gives up what waits or is on its way; answers how many lines that is.
    pub(super) fn give_up(&self) -> u64 {
        let mut books = self.lock();
        books.ended = true;
        for lane in &mut books.lanes {
            *lane = Lane::default();
        }
        books.bytes = 0;
        let left = books.counts.left();
        books.counts.lost += left;
        left
    }

    fn lane_of(&self, dyno: &str) -> usize {
        // FNV-1a: names differ in their last digits.
        let hash = dyno.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        usize::try_from(hash % self.changed.len() as u64).expect("there are few lanes")
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    fn pop(&mut self, lane: usize) -> Option<Block> {
        let lane = &mut self.lanes[lane];
        let block = lane.blocks.pop_front()?;
        let bytes = block.chunk.cost();
        lane.bytes -= bytes;
        lane.lines -= block.lines;
        self.bytes -= bytes;
        give_back(&mut lane.blocks);
        Some(block)
    }

    /// Drops the oldest block of the fullest lane; answers whether there was one.
    fn drop_oldest(&mut self) -> bool {
        let fullest = (0..self.lanes.len()).max_by_key(|lane| self.lanes[*lane].bytes);
        let Some(block) = fullest.and_then(|lane| self.pop(lane)) else {
            return false;
        };
        self.counts.dropped += block.lines;
        self.unannounced.dropped.add(Tally {
            count: block.lines,
            since: block.chunk.at_unix_us,
        });
        true
    }
}

/// How many unused places a table may have beyond a quarter of those in use.
const SLACK: usize = 64;

/// Makes room for one more, and not for twice as many: a block may be smaller than its place.
fn make_room(blocks: &mut VecDeque<Block>) {
    if blocks.len() == blocks.capacity() {
        blocks.reserve_exact((blocks.len() / 8).max(8));
    }
}

/// Frees the room of many blocks that have gone.
fn give_back(blocks: &mut VecDeque<Block>) {
    let len = blocks.len();
    if blocks.capacity() > len + len / 4 + SLACK {
        blocks.shrink_to(len + len / 8);
    }
}

#[cfg(test)]
mod allocated;
#[cfg(test)]
mod tests;
