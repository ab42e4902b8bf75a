//! Times on the command line, the same for both programs.

use std::time::Duration;

/// `30`, `30s`, `500ms`, `5m`, `1h 30m`: a number alone is seconds.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let explain = || format!("`{text}` is not a time: use 30, 30s, 500ms or 5m");
    let duration: jiff::SignedDuration = text.parse().map_err(|_| explain())?;
    Duration::try_from(duration).map_err(|_| explain())
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
        ] {
            let parsed = parse(text).ok();
            assert_eq!(parsed, expected.map(Duration::from_millis), "{text}");
        }
    }
}
