//! When to ask next, and what to tell: a pure function of how it went.
//!
//! Every wait is a multiple of the interval that people choose, so that all of it can be made
//! faster or slower. With the usual 10 s: an API that fails is asked after 10 s, 20 s, up to
//! 5 min; one that denies after 1 min, up to 15 min; one that has had enough after 30 s at
//! least, up to 15 min. Heroku allows an account 4500 requests an hour, and one look takes two.

use std::{collections::BTreeMap, time::Duration};

use super::error::Trouble;

/// No wait that Heroku asks for is longer.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(1);
/// A failure that may pass is told when it happens so often in a row.
const TOLD_AFTER: u32 = 2;

/// How asking went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Went {
    /// Well; how many requests are left, if that was said.
    Well {
        /// `RateLimit-Remaining`.
        remaining: Option<u32>,
    },
    /// Not well.
    Badly(Trouble),
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Next {
    /// How long to wait before the next look.
    pub(super) delay: Duration,
    pub(super) tell: Tell,
}

/// What to tell people now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tell {
    Nothing,
    /// What went wrong, which is so from now on.
    Trouble,
    /// That it is over.
    Over,
    /// That asking is slower now, for so many requests are left.
    Slower(u32),
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    interval: Duration,
    /// What went wrong since it went well last. One kind of trouble does not end another: a
    /// service that is ill may say both by turns.
    troubles: BTreeMap<Kind, Since>,
    told_slower: bool,
    has_answered: bool,
}

/// One kind of trouble since it went well last.
#[derive(Clone, Copy, Debug, Default)]
struct Since {
    failures: u32,
    is_told: bool,
}

/// A kind of trouble, which is told once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Passing,
    Limited,
    Denied,
}

impl Pace {
    pub(super) const fn new(interval: Duration) -> Self {
        Self {
            interval,
            troubles: BTreeMap::new(),
            told_slower: false,
            has_answered: false,
        }
    }

    /// What follows when it `went` so; `random` is the jitter, all bits of it.
    pub(super) fn after(&mut self, went: Went, random: u64) -> Next {
        match went {
            Went::Well { remaining } => self.well(remaining, random),
            Went::Badly(trouble) => self.badly(trouble, random),
        }
    }

    fn well(&mut self, remaining: Option<u32>, random: u64) -> Next {
        let troubles = std::mem::take(&mut self.troubles);
        let is_over = troubles.values().any(|since| since.is_told);
        self.has_answered = true;
        let stretch = stretch(remaining);
        let was_slow = std::mem::replace(&mut self.told_slower, stretch >= 8);
        let tell = match remaining {
            _ if is_over => Tell::Over,
            Some(remaining) if stretch >= 8 && !was_slow => Tell::Slower(remaining),
            _ => Tell::Nothing,
        };
        Next {
            delay: jittered(self.interval * stretch, 10, random),
            tell,
        }
    }

    fn badly(&mut self, trouble: Trouble, random: u64) -> Next {
        let (kind, first, most, retry_after) = match trouble {
            Trouble::Passing { retry_after } => (Kind::Passing, 1, 30, retry_after),
            Trouble::Limited { retry_after } => (Kind::Limited, 3, 90, retry_after),
            Trouble::Denied => (Kind::Denied, 6, 90, None),
        };
        let since = self.troubles.entry(kind).or_default();
        let factor = 2_u32
            .saturating_pow(since.failures.min(16))
            .saturating_mul(first);
        since.failures = since.failures.saturating_add(1);
        let wanted = retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
        let backoff = jittered(self.interval * factor.min(most), 25, random);
        // The first word must not wait: whoever started hsup looks.
        let is_known = kind != Kind::Passing || since.failures >= TOLD_AFTER || !self.has_answered;
        let tell = if is_known && !since.is_told {
            since.is_told = true;
            Tell::Trouble
        } else {
            Tell::Nothing
        };
        Next {
            // Never before the time that was asked for.
            delay: backoff.max(wanted),
            tell,
        }
    }
}

/// How much slower to ask with so many requests left. They come back at 75 a minute, and others
/// want some.
const fn stretch(remaining: Option<u32>) -> u32 {
    match remaining {
        None | Some(500..) => 1,
        Some(250..) => 2,
        Some(100..) => 4,
        Some(20..) => 8,
        Some(_) => 30,
    }
}

/// `time`, give or take so many per cent.
fn jittered(time: Duration, percent: u32, random: u64) -> Duration {
    let spread = time * percent / 100;
    let share = u32::try_from(random >> 32).unwrap_or(u32::MAX);
    time.saturating_sub(spread) + spread.mul_f64(2.0 * f64::from(share) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    /// Neither early nor late.
    const MIDDLE: u64 = 1 << 63;
    const FAILED: Went = Went::Badly(Trouble::Passing { retry_after: None });
    const DENIED: Went = Went::Badly(Trouble::Denied);

    fn well(remaining: u32) -> Went {
        let remaining = Some(remaining);
        Went::Well { remaining }
    }

    fn limited(seconds: u64) -> Went {
        let retry_after = Some(SECOND * u32::try_from(seconds).unwrap());
        Went::Badly(Trouble::Limited { retry_after })
    }

    fn pace() -> Pace {
        let mut pace = Pace::new(SECOND * 10);
        pace.after(well(4000), MIDDLE);
        pace
    }

    fn rounded(delay: Duration) -> u64 {
        (delay + SECOND / 2).as_secs()
    }

    /// The seconds to wait, rounded, and what is told.
    fn steps(pace: &mut Pace, all: &[Went]) -> Vec<(u64, Tell)> {
        let step = |went: &Went| {
            let next = pace.after(*went, MIDDLE);
            (rounded(next.delay), next.tell)
        };
        all.iter().map(step).collect()
    }

    #[test_case(4500 => 10)]
    #[test_case(500 => 10)]
    #[test_case(499 => 20)]
    #[test_case(249 => 40)]
    #[test_case(99 => 80)]
    #[test_case(0 => 300)]
    fn fewer_requests_are_left(remaining: u32) -> u64 {
        steps(&mut pace(), &[well(remaining)])[0].0
    }

    #[test]
    fn being_slow_is_told_once() {
        let mut pace = pace();
        let steps = steps(
            &mut pace,
            &[well(200), well(90), well(80), well(900), well(5)],
        );
        let told: Vec<_> = steps.iter().map(|(_, tell)| *tell).collect();
        let nothing = Tell::Nothing;
        assert_eq!(
            told,
            [nothing, Tell::Slower(90), nothing, nothing, Tell::Slower(5)]
        );
    }

    #[test]
    fn what_may_pass_is_told_when_it_does_not() {
        use Tell::{Nothing, Over, Trouble};
        let mut pace = pace();
        assert_eq!(
            steps(
                &mut pace,
                &[FAILED, FAILED, FAILED, well(900), FAILED, well(900)]
            ),
            [
                (10, Nothing),
                (20, Trouble),
                (40, Nothing),
                (10, Over),
                (10, Nothing),
                (10, Nothing)
            ]
        );
        let many = steps(&mut pace, &[FAILED; 40]);
        assert_eq!(many[39], (300, Nothing));
        assert_eq!(many.iter().filter(|(_, tell)| *tell == Trouble).count(), 1);
    }

    #[test]
    fn the_first_failure_of_all_is_told() {
        let mut pace = Pace::new(SECOND * 10);
        assert_eq!(
            steps(&mut pace, &[FAILED, FAILED]),
            [(10, Tell::Trouble), (20, Tell::Nothing)]
        );
    }

    #[test]
    fn a_denial_is_told_once_and_asked_about_rarely() {
        use Tell::{Nothing, Over, Trouble};
        assert_eq!(
            steps(
                &mut pace(),
                &[DENIED, DENIED, DENIED, DENIED, DENIED, DENIED, well(900)]
            ),
            [
                (60, Trouble),
                (120, Nothing),
                (240, Nothing),
                (480, Nothing),
                (900, Nothing),
                (900, Nothing),
                (10, Over)
            ]
        );
    }

    #[test]
    fn another_kind_of_trouble_is_told_too() {
        use Tell::{Nothing, Over, Trouble};
        let all = [FAILED, FAILED, DENIED, limited(0), DENIED, well(900)];
        assert_eq!(
            steps(&mut pace(), &all),
            [
                (10, Nothing),
                (20, Trouble),
                (60, Trouble),
                (30, Trouble),
                (120, Nothing),
                (10, Over)
            ]
        );
    }

    #[test]
    fn kinds_by_turns_wait_longer_and_longer_all_the_same() {
        use Tell::{Nothing, Trouble};
        assert_eq!(
            steps(&mut pace(), &[FAILED, limited(0)].repeat(3)),
            [
                (10, Nothing),
                (30, Trouble),
                (20, Trouble),
                (60, Nothing),
                (40, Nothing),
                (120, Nothing)
            ]
        );
    }

    #[test]
    fn heroku_is_left_alone_for_as_long_as_it_wants() {
        let mut pace = pace();
        let waits: Vec<_> = steps(
            &mut pace,
            &[limited(1), limited(400), limited(1), limited(1)],
        )
        .into_iter()
        .map(|(seconds, _)| seconds)
        .collect();
        assert_eq!(waits, [30, 400, 120, 240]);
        assert_eq!(
            steps(&mut pace, &[limited(999_999)])[0].0,
            3600,
            "but not for ever"
        );
        let retry_after = Some(SECOND * 50);
        let busy = Went::Badly(Trouble::Passing { retry_after });
        assert_eq!(steps(&mut pace, &[busy])[0].0, 50);
    }

    #[test]
    fn jitter_stays_within_its_share() {
        let mut pace = pace();
        let mut delay = |went, random| rounded(pace.after(went, random).delay);
        assert_eq!((delay(well(900), 0), delay(well(900), u64::MAX)), (9, 11));
        assert_eq!(delay(limited(30), 0), 30, "never before the time");
        assert_eq!(delay(limited(30), u64::MAX), 75);
    }
}
