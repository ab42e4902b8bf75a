//! How long a crashed dyno waits before it is started again.
//!
//! The first restart is immediate, for most crashes are not repeated; the ones
//! after it wait exponentially longer, with jitter so that dynos that fell
//! together do not come back together. A run that was healthy for long enough
//! makes the next crash a first one again, and so does a restart by hand.
//!
//! Nothing here reads a clock or draws a random number: the caller brings both.

use std::{fmt, str::FromStr, time::Duration};

use thiserror::Error;

/// The first wait above zero of the default policy.
pub const DEFAULT_BASE: Duration = Duration::from_secs(1);
/// The longest wait of the default policy.
pub const DEFAULT_CAP: Duration = Duration::from_mins(5);
/// How long a run must last for the crash after it to count as the first.
pub const DEFAULT_HEALTHY: Duration = Duration::from_mins(1);

/// Heroku's cool-off after the second crash in a row.
const HEROKU_BASE: Duration = Duration::from_mins(10);
const HEROKU_CAP: Duration = Duration::from_hours(24);

/// How waits grow.
///
/// Written on the command line as `BASE..CAP`, such as `1s..5m`, or `heroku`.
/// There is no `none`: a dyno that ends at once would keep a processor busy doing
/// nothing else. `100ms..100ms` is as eager as anybody should need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Zero, then `base`, doubling up to `cap`; each shortened by up to half.
    Exponential {
        base: Duration,
        cap: Duration,
        /// A run at least this long makes the next crash a first one.
        healthy: Duration,
    },
    /// Heroku's table: zero, then 10, 20, 40 minutes and so on up to 24 hours, without
    /// jitter (Dev Center, "dynos", 2013).
    Heroku,
}

impl Policy {
    /// The wait after the `crashes`th crash in a row, counted from 1.
    ///
    /// `random` is any number: all 64 bits are used for the jitter.
    pub fn wait(self, crashes: u32, random: u64) -> Duration {
        let Some(doublings) = crashes.checked_sub(2) else {
            return Duration::ZERO;
        };
        let (base, cap) = match self {
            Self::Exponential { base, cap, .. } => (base, cap),
            Self::Heroku => (HEROKU_BASE, HEROKU_CAP),
        };
        let factor = 2_u32.checked_pow(doublings).unwrap_or(u32::MAX);
        let full = base.saturating_mul(factor).min(cap);
        match self {
            Self::Exponential { .. } => full.saturating_sub(fraction(full / 2, random)),
            Self::Heroku => full,
        }
    }

    /// A run at least this long makes the next crash a first one.
    pub const fn healthy(self) -> Duration {
        match self {
            Self::Exponential { healthy, .. } => healthy,
            Self::Heroku => DEFAULT_HEALTHY,
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::Exponential {
            base: DEFAULT_BASE,
            cap: DEFAULT_CAP,
            healthy: DEFAULT_HEALTHY,
        }
    }
}

/// `duration` × `random` / 2⁶⁴.
fn fraction(duration: Duration, random: u64) -> Duration {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let scaled = (u128::from(nanos) * u128::from(random)) >> 64;
    Duration::from_nanos(u64::try_from(scaled).expect("a u64 times less than one fits a u64"))
}

/// The text is not a restart backoff.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParsePolicyError {
    #[error(
        "`{0}` is not a restart backoff: expected `heroku`, or the first and the longest wait, such as `1s..5m`"
    )]
    Form(String),

    #[error("the first wait of the restart backoff `{0}` must be above zero")]
    Zero(String),

    #[error("the first wait of the restart backoff `{0}` is longer than its longest")]
    Order(String),
}

impl FromStr for Policy {
    type Err = ParsePolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "heroku" {
            return Ok(Self::Heroku);
        }
        let parse = || {
            let (base, cap) = text.split_once("..")?;
            Some((duration(base)?, duration(cap)?))
        };
        let (base, cap) = parse().ok_or_else(|| ParsePolicyError::Form(text.to_owned()))?;
        if base.is_zero() {
            return Err(ParsePolicyError::Zero(text.to_owned()));
        }
        if base > cap {
            return Err(ParsePolicyError::Order(text.to_owned()));
        }
        Ok(Self::Exponential {
            base,
            cap,
            healthy: DEFAULT_HEALTHY,
        })
    }
}

fn duration(text: &str) -> Option<Duration> {
    Duration::try_from(text.trim().parse::<jiff::SignedDuration>().ok()?).ok()
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heroku => f.write_str("heroku"),
            Self::Exponential { base, cap, .. } => {
                let text = |duration: &Duration| {
                    jiff::SignedDuration::try_from(*duration).map_err(|_| fmt::Error)
                };
                write!(f, "{:#}..{:#}", text(base)?, text(cap)?)
            }
        }
    }
}

/// The crashes of one dyno in a row, and the policy that turns them into waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    policy: Policy,
    crashes: u32,
    random: SplitMix64,
}

impl Backoff {
    /// No crash yet. `seed` is any random number; it must differ between dynos.
    pub const fn new(policy: Policy, seed: u64) -> Self {
        Self {
            policy,
            crashes: 0,
            random: SplitMix64(seed),
        }
    }

    /// Counts a crash after a run of `uptime` and says how long to wait.
    pub fn crashed(&mut self, uptime: Duration) -> Duration {
        if uptime >= self.policy.healthy() {
            self.crashes = 0;
        }
        self.crashes = self.crashes.saturating_add(1);
        self.policy.wait(self.crashes, self.random.next())
    }

    /// Forgets all crashes.
    pub const fn reset(&mut self) {
        self.crashes = 0;
    }

    /// How many crashes there were without a healthy run between them.
    pub const fn crashes(&self) -> u32 {
        self.crashes
    }
}

/// Spreads one seed over any number of waits
/// (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug, PartialEq, Eq)]
struct SplitMix64(u64);

impl SplitMix64 {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn heroku_waits_as_its_table_says() {
        let minutes = |crashes| Policy::Heroku.wait(crashes, u64::MAX).as_secs() / 60;
        let waits: Vec<u64> = (1..=10).map(minutes).collect();
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 320, 640, 1280, 1440]);
    }

    #[test]
    fn the_default_doubles_up_to_its_cap() {
        let longest = |crashes| Policy::default().wait(crashes, 0).as_secs();
        let waits: Vec<u64> = (1..=12).map(longest).collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }

    #[test]
    fn a_healthy_run_makes_the_next_crash_a_first_one() {
        let mut backoff = Backoff::new(Policy::default(), 7);
        for _ in 0..5 {
            backoff.crashed(SECOND);
        }
        assert_eq!(backoff.crashes(), 5);
        assert_eq!(backoff.crashed(DEFAULT_HEALTHY), Duration::ZERO);
        assert_eq!(backoff.crashes(), 1);
        assert!(backoff.crashed(Duration::from_millis(59_999)) > Duration::ZERO);
    }

    #[test]
    fn two_dynos_do_not_wait_alike() {
        let waits = |seed| {
            let mut backoff = Backoff::new(Policy::default(), seed);
            [backoff.crashed(SECOND), backoff.crashed(SECOND)]
        };
        assert_ne!(waits(1), waits(2));
    }

    #[test_case("1s..5m", Policy::default())]
    #[test_case("heroku", Policy::Heroku)]
    #[test_case("500ms .. 1h 30m", Policy::Exponential {
        base: Duration::from_millis(500), cap: Duration::from_mins(90), healthy: DEFAULT_HEALTHY,
    })]
    fn a_policy_parses_and_prints(text: &str, policy: Policy) {
        assert_eq!(text.parse::<Policy>().unwrap(), policy);
        assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
    }

    #[test_case("" => matches ParsePolicyError::Form(_))]
    #[test_case("none" => matches ParsePolicyError::Form(_))]
    #[test_case("1s" => matches ParsePolicyError::Form(_))]
    #[test_case("1s..x" => matches ParsePolicyError::Form(_))]
    #[test_case("-1s..5s" => matches ParsePolicyError::Form(_))]
    #[test_case("0s..5s" => matches ParsePolicyError::Zero(_))]
    #[test_case("10s..5s" => matches ParsePolicyError::Order(_))]
    fn what_is_no_policy(text: &str) -> ParsePolicyError {
        text.parse::<Policy>().unwrap_err()
    }

    proptest! {
        #[test]
        fn a_wait_lies_between_half_and_all_of_its_step(
            base_ms in 1_u64..100_000,
            times in 1_u32..1000,
            crashes in any::<u32>(),
            random in any::<u64>(),
        ) {
            let base = Duration::from_millis(base_ms);
            let cap = base * times;
            let policy = Policy::Exponential { base, cap, healthy: SECOND };
            let wait = policy.wait(crashes, random);
            if crashes < 2 {
                prop_assert_eq!(wait, Duration::ZERO);
            } else {
                let full = policy.wait(crashes, 0);
                prop_assert!(full <= cap && full >= base);
                prop_assert!(wait <= full && wait * 2 >= full);
                prop_assert!(policy.wait(crashes.saturating_add(1), 0) >= full);
            }
        }

        #[test]
        fn counting_never_overflows(uptimes in prop::collection::vec(0_u64..120, 0..100), seed: u64) {
            let mut backoff = Backoff { crashes: u32::MAX - 10, ..Backoff::new(Policy::default(), seed) };
            for uptime in uptimes {
                let wait = backoff.crashed(Duration::from_secs(uptime));
                prop_assert!(wait <= DEFAULT_CAP);
                prop_assert!(backoff.crashes() >= 1);
            }
        }
    }
}
