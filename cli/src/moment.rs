//! Times as people read them: when something was, and how long ago.
//!
//! The clock and the time zone are values, so that what is printed can be tested.

use std::time::Duration;

use jiff::{Timestamp, tz::TimeZone};

/// What a time is told against.
#[derive(Clone, Debug)]
pub struct Moment {
    /// Now, in milliseconds since the Unix epoch.
    pub now_unix_ms: i64,
    /// The zone that times are shown in.
    pub zone: TimeZone,
}

impl Moment {
    /// This machine's clock and zone.
    pub fn now() -> Self {
        Self {
            now_unix_ms: Timestamp::now().as_millisecond(),
            zone: TimeZone::system(),
        }
    }

    /// `2026/11/23 18:42:10 +0000`, as `heroku ps` has it.
    pub fn slashed(&self, unix_ms: i64) -> String {
        self.format(unix_ms, "%Y/%m/%d %H:%M:%S %z")
    }

    /// `Mon 2026-11-23 18:42:10 UTC`, as systemd has it.
    pub fn dated(&self, unix_ms: i64) -> String {
        self.format(unix_ms, "%a %Y-%m-%d %H:%M:%S %Z")
    }

    fn format(&self, unix_ms: i64, format: &str) -> String {
        Timestamp::from_millisecond(unix_ms).map_or_else(
            |_| "-".to_owned(),
            |time| {
                time.to_zoned_datetime(self.zone.clone())
                    .strftime(format)
                    .to_string()
            },
        )
    }

    /// How long ago that was; zero for what is to come, as clocks differ a little.
    pub fn since(&self, unix_ms: i64) -> Duration {
        Duration::from_millis(u64::try_from(self.now_unix_ms.saturating_sub(unix_ms)).unwrap_or(0))
    }

    /// How long until then; zero for what is past.
    pub fn until(&self, unix_ms: i64) -> Duration {
        Duration::from_millis(u64::try_from(unix_ms.saturating_sub(self.now_unix_ms)).unwrap_or(0))
    }

    /// ` (~ 1h ago)` as `heroku ps` has it: nothing beyond a day and an hour.
    pub fn ago(&self, unix_ms: i64) -> String {
        match self.since(unix_ms).as_secs() {
            seconds @ 0..60 => format!(" (~ {seconds}s ago)"),
            seconds @ 60..3600 => format!(" (~ {}m ago)", seconds / 60),
            seconds @ 3600..90_000 => format!(" (~ {}h ago)", seconds / 3600),
            _ => String::new(),
        }
    }
}

/// A duration in its two largest units: `12s`, `8m2s`, `3h5m`, `2d4h`.
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let pair = |large: u64, large_unit, small: u64, small_unit| {
        if small == 0 {
            format!("{large}{large_unit}")
        } else {
            format!("{large}{large_unit}{small}{small_unit}")
        }
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => pair(seconds / 60, 'm', seconds % 60, 's'),
        3600..86400 => pair(seconds / 3600, 'h', seconds % 3600 / 60, 'm'),
        _ => pair(seconds / 86400, 'd', seconds % 86400 / 3600, 'h'),
    }
}

/// A wait that is still to come, rounded up: it never shows `0s` while there is any.
pub fn remaining(duration: Duration) -> String {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    short(Duration::from_secs(seconds))
}

/// RFC 3339 in UTC, for programs; nothing for a time that is not known.
pub fn rfc3339(unix_ms: i64) -> Option<String> {
    let time = Timestamp::from_millisecond(unix_ms).ok()?;
    (unix_ms != 0).then(|| format!("{time:.3}"))
}

/// `2026-11-23T19:42:45.249012+00:00`, as `heroku logs` has it.
pub fn log_time(unix_us: i64) -> String {
    Timestamp::from_microsecond(unix_us).map_or_else(
        |_| "-".to_owned(),
        |time| time.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string(),
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use test_case::test_case;

    use super::*;

    /// 2026-11-23T19:42:10Z, in UTC.
    pub(crate) fn moment() -> Moment {
        Moment {
            now_unix_ms: 1_795_462_930_000,
            zone: TimeZone::UTC,
        }
    }

    #[test]
    fn times_read_as_in_heroku_and_systemd() {
        let now = moment();
        let then = now.now_unix_ms - 3_600_000;
        assert_eq!(now.slashed(then), "2026/11/23 18:42:10 +0000");
        assert_eq!(now.dated(then), "Mon 2026-11-23 18:42:10 UTC");
        assert_eq!(rfc3339(then).unwrap(), "2026-11-23T18:42:10.000Z");
        assert_eq!(
            log_time(then * 1000 + 249_012),
            "2026-11-23T18:42:10.249012+00:00"
        );
        assert_eq!(rfc3339(0), None);
    }

    #[test_case(0 => " (~ 0s ago)")]
    #[test_case(59 => " (~ 59s ago)")]
    #[test_case(60 => " (~ 1m ago)")]
    #[test_case(3600 => " (~ 1h ago)")]
    #[test_case(24 * 3600 => " (~ 24h ago)")]
    #[test_case(25 * 3600 => "")]
    #[test_case(-5 => " (~ 0s ago)"; "clocks differ")]
    fn ages(seconds: i64) -> String {
        let now = moment();
        now.ago(now.now_unix_ms - seconds * 1000)
    }

    #[test_case(0 => "0s")]
    #[test_case(59 => "59s")]
    #[test_case(482 => "8m2s")]
    #[test_case(3600 => "1h")]
    #[test_case(11_100 => "3h5m")]
    #[test_case(187_200 => "2d4h")]
    fn durations(seconds: u64) -> String {
        short(Duration::from_secs(seconds))
    }

    #[test]
    fn a_countdown_rounds_up() {
        assert_eq!(remaining(Duration::from_millis(1)), "1s");
        assert_eq!(remaining(Duration::from_secs(12)), "12s");
        assert_eq!(remaining(Duration::ZERO), "0s");
    }
}
