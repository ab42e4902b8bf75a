//! The wall clock, for what people read, and moments of tokio's clock, which durations are
//! measured with.

use std::{
    future::pending,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::{Instant, sleep_until};

/// Milliseconds since the Unix epoch.
pub fn now_unix_ms() -> i64 {
    unix_ms(SystemTime::now())
}

/// Milliseconds since the Unix epoch `wait` from now.
pub fn unix_ms_in(wait: Duration) -> i64 {
    unix_ms(SystemTime::now() + wait)
}

/// Resolves at that moment, if there is one.
pub(crate) async fn reached(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
