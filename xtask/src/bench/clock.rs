//! One clock for every process of a benchmark.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since the machine was started; the same in every process.
pub(super) fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock");
    u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX)
}

/// The median and the least of some durations in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) best: f64,
    pub(super) worst: f64,
}

impl Spread {
    /// Of at least one duration, in milliseconds.
    pub(super) fn of_nanoseconds(mut taken: Vec<u64>) -> Self {
        taken.sort_unstable();
        #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
        let milliseconds = |index: usize| taken[index] as f64 / 1e6;
        Self {
            median: milliseconds(taken.len() / 2),
            best: milliseconds(0),
            worst: milliseconds(taken.len() - 1),
        }
    }
}
