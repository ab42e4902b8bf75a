//! What follows from a drain's answer: pure.

use std::time::Duration;

/// The first pause, and the longest one.
const BASE: Duration = Duration::from_millis(100);
const CAP: Duration = Duration::from_secs(5);
/// The longest that a drain may ask us to wait.
const LONGEST_ASKED: Duration = Duration::from_mins(1);
/// A batch that is older than this is given up: what waits behind it is newer.
const GIVE_UP_AFTER: Duration = Duration::from_secs(90);

/// What came of one try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The drain has taken all of it.
    Taken,
    /// An HTTP status, and how long the drain would like us to wait.
    Status(u16, Option<Duration>),
    /// Nobody can tell what became of it; says why, without a secret.
    Broken(String),
    /// Nothing of it is in the file; says why. A disk is made room on by whoever it belongs to,
    /// however long that takes.
    Unwritten(String),
}

impl Answer {
    /// How long the drain asked to be left alone, whatever becomes of what it was sent.
    pub(super) fn asked(&self) -> Duration {
        match self {
            Self::Status(408 | 429 | 500..=599, Some(asked)) => (*asked).min(LONGEST_ASKED),
            _ => Duration::ZERO,
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Sent,
    /// The same again after this pause.
    Again(Duration),
    /// It is of no use.
    Lost,
}

/// Judges the answer to try number `tries`, from 1, of a batch that was first tried `elapsed`
/// ago. `jitter` is any random number.
///
/// What was refused for good is lost at once (4xx, a redirect); a server that is broken or busy
/// (5xx, 429, 408) is asked again, and so is one that could not be reached. A file is waited for
/// without an end: its queue is bounded, and what is written in between is counted.
pub(super) fn judge(answer: &Answer, tries: u32, elapsed: Duration, jitter: u64) -> Verdict {
    let asked = match answer {
        Answer::Taken | Answer::Status(200..=299, _) => return Verdict::Sent,
        Answer::Status(408 | 429 | 500..=599, asked) => *asked,
        Answer::Status(..) => return Verdict::Lost,
        Answer::Broken(_) => None,
        Answer::Unwritten(_) => return Verdict::Again(backoff(tries, jitter)),
    };
    let pause = match asked {
        Some(asked) => asked.min(LONGEST_ASKED) + backoff(1, jitter),
        None => backoff(tries, jitter),
    };
    if elapsed + pause > GIVE_UP_AFTER {
        Verdict::Lost
    } else {
        Verdict::Again(pause)
    }
}

/// The pause after `failures` in a row: doubled each time, and between its half and its whole,
/// so that not everybody comes back at once.
pub(super) fn backoff(failures: u32, jitter: u64) -> Duration {
    let exponent = failures.saturating_sub(1).min(16);
    let whole = (BASE * 2_u32.pow(exponent)).min(CAP);
    let half = whole / 2;
    let spread = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_micros(jitter % spread)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    fn first(answer: &Answer) -> Verdict {
        judge(answer, 1, Duration::ZERO, 0)
    }

    #[test_case(200; "ok")]
    #[test_case(204; "no content")]
    fn a_success_is_one(status: u16) {
        assert_eq!(first(&Answer::Status(status, None)), Verdict::Sent);
    }

    #[test_case(302; "a redirect")]
    #[test_case(400; "bad request")]
    #[test_case(401; "unauthorized")]
    #[test_case(413; "too large")]
    fn what_is_refused_for_good_is_lost_at_once(status: u16) {
        let asked = Some(Duration::from_secs(1));
        assert_eq!(first(&Answer::Status(status, asked)), Verdict::Lost);
    }

    #[test_case(429, Some(7) => 7)]
    #[test_case(503, Some(7000) => 60; "longer than anybody may ask for")]
    #[test_case(503, None => 0)]
    #[test_case(400, Some(7) => 0; "refused for good")]
    fn a_drain_is_left_alone_for_as_long_as_it_asks(status: u16, asked: Option<u64>) -> u64 {
        let answer = Answer::Status(status, asked.map(Duration::from_secs));
        answer.asked().as_secs()
    }

    #[test_case(&Answer::Status(500, None))]
    #[test_case(&Answer::Status(503, None); "booting")]
    #[test_case(&Answer::Status(429, None); "busy")]
    #[test_case(&Answer::Broken(String::new()); "no connection")]
    fn what_may_pass_is_tried_again(answer: &Answer) {
        assert_eq!(first(answer), Verdict::Again(BASE / 2));
        let late = judge(answer, 20, GIVE_UP_AFTER, 0);
        assert_eq!(late, Verdict::Lost);
    }

    #[test]
    fn a_disk_is_waited_for() {
        let full = Answer::Unwritten(String::new());
        assert_eq!(first(&full), Verdict::Again(BASE / 2));
        let late = judge(&full, 1000, GIVE_UP_AFTER * 10, 0);
        assert_eq!(late, Verdict::Again(CAP / 2));
    }

    #[test]
    fn a_drain_may_ask_for_time_but_not_for_ever() {
        let wait = |seconds| match first(&Answer::Status(429, Some(Duration::from_secs(seconds)))) {
            Verdict::Again(wait) => wait.as_secs(),
            other => panic!("{other:?}"),
        };
        assert_eq!(wait(7), 7);
        assert_eq!(wait(86_400), 60);
    }

    proptest! {
        #[test]
        fn pauses_grow_to_a_cap_and_differ(failures in 1_u32..1000, jitter: u64) {
            let pause = backoff(failures, jitter);
            let whole = (BASE * 2_u32.pow(failures.min(10) - 1)).min(CAP);
            prop_assert!(pause >= whole / 2 && pause <= whole);
        }

        /// Whatever a drain answers, no batch is tried for ever.
        #[test]
        fn every_batch_comes_to_an_end(
            answers in prop::collection::vec((0_u16..600, prop::option::of(0_u64..100_000)), 2000),
            jitter: u64,
        ) {
            let mut elapsed = Duration::ZERO;
            let mut ended = false;
            for (tries, (status, asked)) in (1..).zip(answers) {
                match judge(&Answer::Status(status, asked.map(Duration::from_secs)), tries, elapsed, jitter) {
                    Verdict::Again(pause) => elapsed += pause,
                    Verdict::Sent | Verdict::Lost => {
                        ended = true;
                        break;
                    }
                }
            }
            prop_assert!(ended);
        }
    }
}
