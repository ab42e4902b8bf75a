//! When to let output gather before it is read.
//!
//! A dyno that writes line by line would wake the router for every line, which costs
//! both of them more than the line does. Rounds that follow each other at once and
//! bring little are a sign of it; then the router rests for a moment in which nobody
//! would notice a line's delay. A dyno that writes seldom, or much at once, never waits.

use std::time::Duration;

/// About what a line-by-line writer needs to half fill a pipe.
pub(super) const PAUSE: Duration = Duration::from_micros(100);
/// A wait shorter than this between two rounds is none.
const BUSY_GAP_US: i64 = 50;
/// So many rounds without a wait are a pattern.
const BUSY_ROUNDS: u32 = 8;
/// A round that brings as much was worth it.
const WORTHWHILE_BYTES: usize = 4 * 1024;

/// What the last rounds were like.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Bytes that this round brought.
    read: usize,
    ended_at: i64,
    busy_rounds: u32,
}

/// What to do before the next round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    None,
    /// Sleep for [`PAUSE`].
    Short,
}

impl Pace {
    /// A round begins; times are in microseconds.
    pub(super) fn begin(&mut self, now: i64) {
        let busy = now - self.ended_at < BUSY_GAP_US;
        self.busy_rounds = if busy {
            self.busy_rounds.saturating_add(1)
        } else {
            0
        };
        self.read = 0;
    }

    /// The round has read so many bytes more.
    pub(super) fn read(&mut self, bytes: usize) {
        self.read += bytes;
    }

    /// The round is over.
    pub(super) fn end(&mut self, now: i64) -> Rest {
        self.ended_at = now;
        if self.busy_rounds >= BUSY_ROUNDS && self.read < WORTHWHILE_BYTES {
            Rest::Short
        } else {
            Rest::None
        }
    }

    /// The rest is over. What gathered meanwhile is found at once, so it stays busy.
    pub(super) fn rested(&mut self, now: i64) {
        self.ended_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of 10 µs that bring `bytes`, `gap` µs apart; how many of them are followed by a rest.
    fn rests(rounds: usize, gap: i64, bytes: usize) -> usize {
        let mut pace = Pace::default();
        let mut now = 1_000_000;
        let mut rests = 0;
        for _ in 0..rounds {
            now += gap;
            pace.begin(now);
            pace.read(bytes);
            now += 10;
            if pace.end(now) == Rest::Short {
                rests += 1;
                now += 160;
                pace.rested(now);
            }
        }
        rests
    }

    #[test]
    fn a_line_by_line_writer_is_given_time() {
        assert_eq!(rests(100, 1, 100), 100 - BUSY_ROUNDS as usize);
    }

    #[test]
    fn who_writes_seldom_or_much_never_waits() {
        assert_eq!(rests(100, 1000, 100), 0);
        assert_eq!(rests(100, 1, 64 * 1024), 0);
    }
}
