//! How long an HTTP server asks to be left alone.

use std::time::Duration;

use jiff::fmt::rfc2822;
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};

/// `Retry-After`, in seconds or as a time; the time is compared with the server's own, for the
/// clock of this machine may be another.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok();
    let wanted = text(RETRY_AFTER)?.trim();
    if let Ok(seconds) = wanted.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let time = |text| rfc2822::parse(text).ok().map(|time| time.timestamp());
    let wait = time(wanted)?.as_second() - time(text(DATE)?)?.as_second();
    u64::try_from(wait).ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};
    use test_case::test_case;

    use super::*;

    #[test_case("Retry-After: 7" => Some(7); "seconds")]
    #[test_case("Retry-After: -7" => None; "less than nothing")]
    #[test_case("Retry-After: soon" => None; "a word")]
    #[test_case("X: y" => None; "nothing")]
    #[test_case("Retry-After: Sun, 06 Nov 1994 08:50:07 GMT|Date: Sun, 06 Nov 1994 08:49:37 GMT" => Some(30); "a time by the clock of the server")]
    #[test_case("Retry-After: Sun, 06 Nov 1994 08:49:07 GMT|Date: Sun, 06 Nov 1994 08:49:37 GMT" => None; "a time gone by")]
    #[test_case("Retry-After: Sun, 06 Nov 1994 08:49:07 GMT" => None; "a time by no clock")]
    fn waits(headers: &str) -> Option<u64> {
        let headers = headers.split('|').map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            let name: HeaderName = name.parse().unwrap();
            (name, HeaderValue::from_str(value).unwrap())
        });
        retry_after(&headers.collect()).map(|wait| wait.as_secs())
    }
}
