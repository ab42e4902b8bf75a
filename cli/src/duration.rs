//! Times on the command line, the same for both programs.

use std::time::Duration;

/// As long as anybody waits for anything; times are added to others.
const LONGEST: Duration = Duration::from_hours(24 * 366);

/// `30`, `30s`, `500ms`, `5m`, `1h 30m`: a number alone is seconds.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let explain = || format!("`{text}` is not a time: use 30, 30s, 500ms or 5m");
    let duration = if let Ok(seconds) = text.parse() {
        Duration::from_secs(seconds)
    } else {
        let duration: jiff::SignedDuration = text.parse().map_err(|_| explain())?;
        Duration::try_from(duration).map_err(|_| explain())?
    };
    if duration > LONGEST {
        return Err(format!("`{text}` is longer than a year"));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_what_people_write() {
        for (text, expected) in [
            ("30", Some(30_000)),
            ("500ms", Some(500)),
            ("5m", Some(300_000)),
            ("-1s", None),
            ("soon", None),
            ("366 days", None),
            ("8784h", Some(8784 * 3_600_000)),
            ("8784h 1s", None),
            ("18446744073709551615", None),
        ] {
            let parsed = parse(text).ok();
            assert_eq!(parsed, expected.map(Duration::from_millis), "{text}");
        }
    }
}
