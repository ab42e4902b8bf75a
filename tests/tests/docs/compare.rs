//! Whether a command printed what a page says: the same, but for numbers, whether a time is one of
//! milliseconds or seconds, blanks at the ends of columns, and lines that the page leaves out
//! (`...`).

/// Whether `printed` is what the page shows.
pub(crate) fn is_as_shown(shown: &str, printed: &str) -> bool {
    let shown: Vec<String> = shown.lines().map(plain).collect();
    let printed: Vec<String> = printed.lines().map(plain).collect();
    fits(&shown, &printed)
}

fn fits(shown: &[String], printed: &[String]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=printed.len()).any(|left_out| fits(rest, &printed[left_out..]))
        }
        Some((first, rest)) => printed.first() == Some(first) && fits(rest, &printed[1..]),
    }
}

/// A line with every number as 0, and one blank between words.
fn plain(line: &str) -> String {
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut plain = String::new();
    let mut rest = line.as_str();
    while let Some(at) = rest.find(|char: char| char.is_ascii_digit()) {
        plain.push_str(&rest[..at]);
        plain.push('0');
        let number = rest[at..].trim_start_matches(|char: char| char.is_ascii_digit());
        let fraction = number
            .strip_prefix('.')
            .filter(|rest| rest.starts_with(|char: char| char.is_ascii_digit()));
        rest = fraction.map_or(number, |fraction| {
            fraction.trim_start_matches(|char: char| char.is_ascii_digit())
        });
    }
    (plain + rest).replace("0ms", "0s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_columns_may_differ_and_nothing_else() {
        for (shown, printed, fits) in [
            ("web.1  up  7.8M\n", "web.1 up 12M\n", true),
            ("web.1: up (~ 7s ago)", "web.12: up (~ 0s ago)\n", true),
            ("web.1 up", "web.1 down", false),
            ("a\n...\nd", "a\nb\nc\nd", true),
            ("a\n...\nd", "a\nd", true),
            ("a\n...\nd", "a\nb", false),
            ("...", "", true),
            ("a", "a\nb", false),
            ("a\nb", "a", false),
            ("7.", "8.", true),
            ("for 82ms", "for 1.1s", true),
        ] {
            assert_eq!(is_as_shown(shown, printed), fits, "{shown:?} {printed:?}");
        }
    }
}
