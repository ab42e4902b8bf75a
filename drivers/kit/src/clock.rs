//! The time of day, for people.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970. A clock that stands before that year is as good as at its begin.
pub fn now_unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}
