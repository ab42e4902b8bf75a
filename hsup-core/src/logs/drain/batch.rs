//! From waiting blocks to what one request or write carries: pure, but for the queue's lock.
//!
//! A line is never in two batches, however many messages it is: so it is sent or lost as a whole.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};
use hsup_driver_kit::hex;

use super::{
    encode::{Encoder, Missing},
    queue::{Announcement, Block, Portion, Queue, Tally},
};
use crate::random;

/// What one batch holds at most; a single line may be more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

/// What goes to the drain at once; the same for each try.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    /// 32 hexadecimal digits.
    pub(super) id: String,
    pub(super) body: Bytes,
    pub(super) messages: usize,
    /// The lines in it, and when the first was written.
    pub(super) lines: Tally,
    /// What it tells is missing.
    pub(super) announcement: Announcement,
}

/// A batch that is being filled.
#[derive(Debug)]
pub(super) struct Filling {
    limits: Limits,
    body: Vec<u8>,
    messages: usize,
    lines: Tally,
    announcement: Announcement,
}

impl Filling {
    /// Begins with what is to be announced.
    pub(super) fn new(
        limits: Limits,
        encoder: &mut Encoder,
        announcement: Announcement,
        now: i64,
    ) -> Self {
        let mut filling = Self {
            limits,
            body: Vec::with_capacity(limits.bytes.min(64 * 1024)),
            messages: 0,
            lines: Tally::default(),
            announcement,
        };
        for (missing, tally) in [
            (Missing::Dropped, announcement.dropped),
            (Missing::Lost, announcement.lost),
        ] {
            if tally.count > 0 {
                encoder.notice(missing, tally.count, tally.since, now, &mut filling.body);
                filling.messages += 1;
            }
        }
        filling
    }

    /// Adds what waits in the lane; answers whether the batch is full.
    pub(super) fn fill(
        &mut self,
        encoder: &mut Encoder,
        queue: &Queue,
        lane: usize,
        held: &mut VecDeque<Block>,
    ) -> bool {
        loop {
            let Some(block) = held.front_mut() else {
                let room = self.room();
                if room.bytes == 0 || room.lines == 0 {
                    return true;
                }
                queue.take(lane, room, held);
                if held.is_empty() {
                    return false;
                }
                continue;
            };
            if self.add(encoder, block) {
                return true;
            }
            held.pop_front();
        }
    }

    /// What still fits.
    pub(super) fn room(&self) -> Portion {
        Portion {
            bytes: self.limits.bytes.saturating_sub(self.body.len()),
            lines: self.limits.messages.saturating_sub(self.messages) as u64,
        }
    }

    /// Adds the lines of a block; answers whether one did not fit. What was added is taken out.
    fn add(&mut self, encoder: &mut Encoder, block: &mut Block) -> bool {
        encoder.begin(&block.chunk);
        let bytes = &block.chunk.bytes;
        let mut start = 0;
        let mut is_full = false;
        for end in memchr::memchr_iter(b'\n', bytes) {
            let line = &bytes[start..end];
            if self.messages > 0
                && (self.messages + encoder.messages(line.len()) > self.limits.messages
                    || self.body.len() + line.len() >= self.limits.bytes)
            {
                is_full = true;
                break;
            }
            self.messages += encoder.line(line, &mut self.body);
            if self.lines.count == 0 {
                self.lines.since = block.chunk.at_unix_us;
            }
            self.lines.count += 1;
            start = end + 1;
        }
        block.chunk.bytes.advance(start);
        is_full
    }

    /// The batch; `None` when there is nothing in it.
    pub(super) fn done(self) -> Option<Batch> {
        if self.messages == 0 {
            return None;
        }
        let id = [random::u64(), random::u64()]
            .map(u64::to_be_bytes)
            .concat();
        Some(Batch {
            id: hex::encode(&id),
            body: self.body.into(),
            messages: self.messages,
            lines: self.lines,
            announcement: self.announcement,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::logs::{
        drain::encode::Encoding,
        line::{Chunk, Origin},
    };

    const LIMITS: Limits = Limits {
        messages: 500,
        bytes: 256 * 1024,
    };

    fn queue(blocks: &[Vec<String>]) -> Queue {
        let queue = Queue::new(1, usize::MAX);
        for lines in blocks {
            let chunk = Chunk {
                at_unix_us: 7,
                origin: Origin::of_note("web.1"),
                dyno: "web.1".into(),
                bytes: format!("{}\n", lines.join("\n")).into(),
            };
            let count = chunk.count() as u64;
            queue.push(chunk, count);
        }
        queue
    }

    fn batches(queue: &Queue, limits: Limits, encoding: Encoding) -> Vec<Batch> {
        let mut encoder = Encoder::new(encoding);
        let mut held = VecDeque::new();
        std::iter::from_fn(|| {
            let mut filling = Filling::new(limits, &mut encoder, Announcement::default(), 0);
            filling.fill(&mut encoder, queue, 0, &mut held);
            filling.done()
        })
        .collect()
    }

    #[test]
    fn a_batch_ends_with_five_hundred_messages_or_a_quarter_of_a_megabyte() {
        let many = queue(&[vec!["x".to_owned(); 1200]]);
        let counts: Vec<_> = batches(&many, LIMITS, Encoding::Logplex)
            .iter()
            .map(|batch| batch.messages)
            .collect();
        assert_eq!(counts, [500, 500, 200]);
        let large = queue(&[vec!["x".repeat(5000); 100]]);
        let batches = batches(&large, LIMITS, Encoding::Logplex);
        assert_eq!(batches.len(), 2);
        assert!(
            batches
                .iter()
                .all(|batch| batch.body.len() <= LIMITS.bytes + 100)
        );
    }

    #[test]
    fn what_is_missing_comes_first_and_is_counted_as_a_message() {
        let announcement = Announcement {
            dropped: Tally { count: 3, since: 0 },
            lost: Tally { count: 4, since: 0 },
        };
        let mut encoder = Encoder::new(Encoding::Logplex);
        let filling = Filling::new(LIMITS, &mut encoder, announcement, 0);
        let batch = filling.done().unwrap();
        assert_eq!((batch.messages, batch.lines.count), (2, 0));
        assert_eq!(batch.id.len(), 32);
        let body = String::from_utf8(batch.body.to_vec()).unwrap();
        let l12 = body.find("Error L12: 3 messages dropped since").unwrap();
        let l13 = body.find("Error L13: 4 messages lost since").unwrap();
        assert!(l12 < l13);
    }

    proptest! {
        /// However lines come and whatever fits, all of them are in the batches, in order.
        #[test]
        fn batches_are_all_lines_in_order(
            blocks in prop::collection::vec(prop::collection::vec("[a-z]{0,12}", 1..20), 1..10),
            messages in 1_usize..30,
            bytes in 1_usize..2000,
        ) {
            let limits = Limits { messages, bytes };
            let batches = batches(&queue(&blocks), limits, Encoding::Text);
            let text: Vec<u8> = batches.iter().flat_map(|batch| batch.body.to_vec()).collect();
            let text = String::from_utf8(text).unwrap();
            let lines: Vec<_> = text.lines().map(|line| line.split_once("]: ").unwrap().1).collect();
            prop_assert_eq!(lines, blocks.concat());
            for batch in &batches {
                prop_assert_eq!(batch.lines.count, batch.messages as u64);
                prop_assert!(batch.messages <= messages);
            }
            let total: u64 = batches.iter().map(|batch| batch.lines.count).sum();
            prop_assert_eq!(total, blocks.concat().len() as u64);
        }
    }
}
