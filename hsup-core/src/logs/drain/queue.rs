//! What waits for one drain, and the books of what became of it.
//!
//! The router puts blocks in and never waits.  A queue may have several lanes, each emptied by
//! a sender of its own; all lines of a dyno are in one, so that they stay in order however many
//! senders there are.  When the whole has no room, the oldest lines of the fullest lane go: who
//! floods loses its own.
//!
//! Every line that was put in is, at any time, exactly one of: waiting, held by a sender, sent,
//! dropped or lost.  Dropped and lost ones are announced to the drain itself: a sender takes
//! the announcement with it, and brings it back when that could not be delivered either.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::logs::line::{CHUNK_BYTES, Chunk};

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

/// So much of a lane: whichever is reached first.
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
    /// What waits, in bytes.
    pub queued_bytes: u64,
}

/// So many lines, the first of them then (microseconds since 1970).
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
        let bytes = chunk.bytes.len() + CHUNK_BYTES;
        books.bytes += bytes;
        let place = &mut books.lanes[lane];
        place.bytes += bytes;
        place.lines += lines;
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
            taken.bytes += block.chunk.bytes.len();
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
        let lanes = books.lanes.iter();
        Counts {
            queued: lanes.map(|lane| lane.lines).sum(),
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
        let Counts {
            read,
            sent,
            dropped,
            lost,
            ..
        } = books.counts;
        let left = read.saturating_sub(sent + dropped + lost);
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
        let bytes = block.chunk.bytes.len() + CHUNK_BYTES;
        lane.bytes -= bytes;
        lane.lines -= block.lines;
        self.bytes -= bytes;
        if lane.blocks.is_empty() {
            // Room for the next flood is not kept until then.
            lane.blocks.shrink_to(64);
        }
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::logs::line::Origin;

    const ALL: Portion = Portion {
        bytes: usize::MAX,
        lines: u64::MAX,
    };

    fn chunk(dyno: &str, at: i64, text: &str) -> (Chunk, u64) {
        let chunk = Chunk {
            at_unix_us: at,
            origin: Origin::of_note("web.1"),
            dyno: dyno.into(),
            bytes: Bytes::copy_from_slice(text.as_bytes()),
        };
        let lines = chunk.count() as u64;
        (chunk, lines)
    }

    fn push(queue: &Queue, dyno: &str, at: i64, text: &str) {
        let (chunk, lines) = chunk(dyno, at, text);
        queue.push(chunk, lines);
    }

    #[test]
    fn who_floods_loses_its_own_lines_and_they_are_counted() {
        let queue = Queue::new(8, 4096);
        let quiet = (1..100)
            .map(|number| format!("web.{number}"))
            .find(|name| queue.lane_of(name) != queue.lane_of("flood.1"))
            .unwrap();
        push(&queue, &quiet, 1, "one\n");
        for at in 2..100 {
            push(&queue, "flood.1", at, &format!("{}\n\n", "x".repeat(500)));
        }
        let counts = queue.counts();
        assert_eq!(counts.read, 197);
        assert_eq!(counts.dropped + counts.queued, 197);
        assert!(counts.queued_bytes <= 4096 && counts.queued > 8);
        let mut taken = VecDeque::new();
        queue.take(queue.lane_of(&quiet), ALL, &mut taken);
        assert_eq!(&taken[0].chunk.bytes[..], b"one\n");
        let told = queue.announce().dropped;
        assert_eq!((told.count, told.since), (counts.dropped, 2));
        assert!(queue.announce().is_empty(), "told once");
    }

    #[test]
    fn what_could_not_be_announced_is_announced_later_with_its_first_time() {
        let queue = Queue::new(1, 1);
        push(&queue, "web.1", 7, "a\n");
        let first = queue.announce();
        push(&queue, "web.1", 9, "b\nc\n");
        let lines = Tally { count: 5, since: 8 };
        queue.lost(lines, first);
        assert_eq!(
            queue.announce(),
            Announcement {
                dropped: Tally { count: 3, since: 7 },
                lost: lines
            }
        );
    }

    #[tokio::test]
    async fn a_sender_wakes_for_its_portion_and_for_the_end() {
        let queue = Queue::new(1, 1 << 20);
        let portion = Portion {
            bytes: usize::MAX,
            lines: 2,
        };
        let mut wait = Box::pin(queue.wait(0, portion));
        assert!(futures_util::poll!(&mut wait).is_pending());
        push(&queue, "web.1", 0, "a\n");
        assert!(futures_util::poll!(&mut wait).is_pending());
        push(&queue, "web.1", 0, "b\n");
        wait.await;
        let mut taken = VecDeque::new();
        queue.take(0, ALL, &mut taken);
        assert_eq!(queue.look(0), Found::Nothing);
        let mut wait = Box::pin(queue.wait(0, portion));
        assert!(futures_util::poll!(&mut wait).is_pending());
        queue.end();
        wait.await;
        assert_eq!(queue.look(0), Found::End);
        push(&queue, "web.1", 0, "late\n");
        assert_eq!(queue.counts().read, 2);
        assert_eq!(queue.give_up(), 2, "taken, and never said to be sent");
    }

    proptest! {
        #[test]
        fn the_books_balance(
            steps in prop::collection::vec((0_u8..5, 0_usize..6, 1_usize..400), 1..200),
        ) {
            let queue = Queue::new(3, 2000);
            let mut held = 0;
            for (step, dyno, size) in steps {
                match step {
                    0..=2 => push(&queue, &format!("web.{dyno}"), 1, &"x\n".repeat(size)),
                    3 => {
                        let mut taken = VecDeque::new();
                        let portion = Portion { bytes: size, lines: u64::MAX };
                        queue.take(dyno % 3, portion, &mut taken);
                        held += taken.iter().map(|block| block.lines).sum::<u64>();
                    }
                    _ => {
                        let half = held / 2;
                        queue.sent(half);
                        queue.lost(Tally { count: held - half, since: 0 }, Announcement::default());
                        held = 0;
                    }
                }
                let counts = queue.counts();
                prop_assert_eq!(
                    counts.read,
                    counts.sent + counts.dropped + counts.lost + counts.queued + held
                );
                prop_assert!(counts.queued_bytes <= 2000);
            }
            let before = queue.counts();
            prop_assert_eq!(queue.give_up(), before.queued + held);
        }
    }
}
