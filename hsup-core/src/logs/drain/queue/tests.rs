//! The books of a queue, and who is woken when.

use bytes::Bytes;
use proptest::prelude::*;

use super::{allocated::allocated, *};
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
fn the_bound_is_one_of_memory_for_the_smallest_lines_too() {
    const ROOM: usize = 1 << 20;
    let queue = Queue::new(1, ROOM);
    let dyno: std::sync::Arc<str> = "web.1".into();
    let before = allocated();
    let mut most = 0;
    // The blocks of a dyno that flushes each byte, and later those of one that does not.
    for size in [1, 1, 1, 1, 2000] {
        let text = "x".repeat(size - 1) + "\n";
        for at in 0..20_000 {
            let bytes = Bytes::copy_from_slice(text.as_bytes());
            // Whoever else has it counts references to it.
            drop(bytes.clone());
            let chunk = Chunk {
                at_unix_us: at,
                origin: Origin::of_note("web.1"),
                dyno: std::sync::Arc::clone(&dyno),
                bytes,
            };
            queue.push(chunk, 1);
            most = most.max(allocated() - before);
        }
        let counts = queue.counts();
        assert!(counts.dropped > 0 && counts.queued_bytes > ROOM as u64 * 9 / 10);
    }
    let bound = isize::try_from(ROOM + SLACK * size_of::<Block>()).unwrap();
    assert!(most <= bound, "{most} bytes with room for {ROOM}");
    assert!(most > bound / 2, "no more is counted than there is: {most}");

    // What a sender takes has a bound, too.
    let mut taken = VecDeque::new();
    let queue = Queue::new(1, ROOM);
    for at in 0..5000 {
        push(&queue, "web.1", at, "\n");
    }
    let portion = Portion {
        bytes: 10_000,
        lines: u64::MAX,
    };
    queue.take(0, portion, &mut taken);
    let cost: usize = taken.iter().map(|block| block.chunk.cost()).sum();
    assert!((10_000..11_000).contains(&cost), "{cost}");
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
