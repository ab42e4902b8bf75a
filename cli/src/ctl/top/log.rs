//! The lines that `top` shows. Pure.

use std::collections::VecDeque;

use hsup_proto::control::LogLine;

use crate::look::one_line;

/// How many lines of one log are kept.
pub(super) const KEPT: usize = 2000;

/// A line of the log, fit for a screen.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) at_us: i64,
    pub(super) dyno: String,
    pub(super) text: String,
}

/// The last lines of one dyno, or of all.
#[derive(Debug, Default)]
pub(super) struct Log {
    lines: VecDeque<Line>,
}

impl Log {
    /// Takes in what follows, and forgets the oldest where there is too much.
    pub(super) fn extend(&mut self, lines: Vec<LogLine>) {
        self.lines.extend(lines.into_iter().map(Line::from));
        let surplus = self.lines.len().saturating_sub(KEPT);
        self.lines.drain(..surplus);
    }

    pub(super) fn clear(&mut self) {
        self.lines.clear();
    }

    /// The last so many lines, above the last `back`.
    pub(super) fn last(&self, count: usize, back: usize) -> Vec<&Line> {
        let above = self.lines.iter().rev().skip(back);
        let mut last: Vec<_> = above.take(count).collect();
        last.reverse();
        last
    }

    /// How many lines there are below the oldest: one can go back no further.
    pub(super) fn furthest(&self) -> usize {
        self.lines.len().saturating_sub(1)
    }
}

impl From<LogLine> for Line {
    fn from(line: LogLine) -> Self {
        Self {
            at_us: line.at_unix_us,
            dyno: line.dyno,
            text: fit(&String::from_utf8_lossy(&line.line)),
        }
    }
}

/// Without the colours that a program gave it: what a terminal would do with them is not
/// known here.
fn fit(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.trim_end_matches('\r').chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\x1b' if rest.peek() == Some(&'[') => {
                // To the letter that ends the sequence.
                rest.next();
                while rest.next().is_some_and(|c| !('\x40'..='\x7e').contains(&c)) {}
            }
            '\t' => plain.push_str("    "),
            other => plain.push(other),
        }
    }
    one_line(&plain)
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test]
    fn it_is_bounded() {
        let line = |text: &str| LogLine {
            line: text.as_bytes().to_vec(),
            ..LogLine::default()
        };
        let mut log = Log::default();
        log.extend(vec![line("x"); KEPT]);
        log.extend(vec![line("last")]);
        assert_eq!(log.furthest(), KEPT - 1);
        let last = log.last(2, 0);
        assert_eq!((&*last[0].text, &*last[1].text), ("x", "last"));
        assert_eq!(log.last(10, log.furthest()).len(), 1, "that is the oldest");
    }

    #[test_case("plain", "plain")]
    #[test_case("\x1b[31mred\x1b[0m", "red")]
    #[test_case("a\tb\r", "a    b")]
    #[test_case("\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"; "what moves more than colours is shown")]
    #[test_case("\x1b[", "")]
    fn a_line_is_fit_for_a_screen(text: &str, expected: &str) {
        assert_eq!(fit(text), expected);
    }
}
