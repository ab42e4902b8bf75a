//! One line of output, and the blocks of lines that travel inside the router.
//!
//! The router never handles lines one by one where it can help it: what one
//! `read` brought is a block of whole lines with one time and one origin. A
//! [`Chunk`] is such a block once somebody wants to see it; it becomes
//! [`Line`]s only in the hands of whoever asked.

use std::sync::Arc;

use bytes::Bytes;
use hsup_proto::control;

use super::API;

/// Who wrote a line, in the words of Heroku's tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The app: its dynos, and whoever changed its release or formation (the name is `api` then).
    App,
    /// hsup, about a dyno or itself.
    Heroku,
}

impl Source {
    /// The word on the wire and in JSON: `app` or `heroku`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Heroku => "heroku",
        }
    }
}

/// Where a line was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    /// A dyno's standard error; hsup's own lines count as this, too.
    Stderr,
}

impl Stream {
    /// The word in JSON: `stdout` or `stderr`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One line, as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When hsup read it, in microseconds since 1970.
    pub at_unix_us: i64,
    pub source: Source,
    pub stream: Stream,
    /// The dyno's name (`web.1`), or `api` or `system` for lines about no dyno.
    pub dyno: Arc<str>,
    /// Without its line end; any bytes.
    pub text: Bytes,
}

impl From<Line> for control::LogLine {
    fn from(line: Line) -> Self {
        Self {
            at_unix_us: line.at_unix_us,
            source: line.source.as_str().to_owned(),
            dyno: line.dyno.as_ref().to_owned(),
            line: line.text.into(),
            stderr: line.stream == Stream::Stderr,
        }
    }
}

/// `1 line`, `2 lines`.
pub(super) fn counted(lines: u64) -> String {
    match lines {
        1 => "1 line".to_owned(),
        _ => format!("{lines} lines"),
    }
}

/// `1 line was`, `2 lines were`.
pub(super) fn counted_past(lines: u64) -> String {
    let verb = if lines == 1 { "was" } else { "were" };
    format!("{} {verb}", counted(lines))
}

/// How much of a dyno's last lines a report of its end has.
const REPORT_BYTES: usize = 16 * 1024;

/// The last of `lines` as text, within [`REPORT_BYTES`]: a report is kept for as long as its
/// dyno, while lines make room for newer ones.
pub(super) fn report(lines: &[Line]) -> Arc<[String]> {
    let mut left = REPORT_BYTES;
    let mut report: Vec<String> = lines
        .iter()
        .rev()
        .map_while(|line| {
            let mut text = String::from_utf8_lossy(&line.text).into_owned();
            if text.len() > left && left == REPORT_BYTES {
                // The last one alone is too long; its beginning says most.
                text.truncate(text.floor_char_boundary(left));
                text.push('…');
            }
            let fits = text.len() <= left || left == REPORT_BYTES;
            left = left.saturating_sub(text.len().max(1));
            fits.then_some(text)
        })
        .collect();
    report.reverse();
    report.into()
}

/// Which lines are wanted. The default wants all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Dyno names and process types; empty means all.
    pub select: Vec<String>,
    /// Lines of one source only; `None` means both.
    pub source: Option<Source>,
}

impl Filter {
    /// Everything that is kept under one name.
    pub fn dyno(name: &str) -> Self {
        Self {
            select: vec![name.to_owned()],
            source: None,
        }
    }

    pub(super) fn wants_name(&self, name: &str) -> bool {
        let process_type = process_type_of(name);
        self.select.is_empty()
            || self
                .select
                .iter()
                .any(|wanted| wanted == name || wanted == process_type)
    }

    pub(super) fn wants_source(&self, source: Source) -> bool {
        self.source.is_none_or(|wanted| wanted == source)
    }
}

/// What stands before the number in a dyno's name; another name is its own.
pub(super) fn process_type_of(name: &str) -> &str {
    name.rsplit_once('.')
        .map_or(name, |(process_type, _)| process_type)
}

/// What a block of lines has in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) source: Source,
    pub(super) stream: Stream,
}

impl Origin {
    /// Of hsup's own lines under `name`.
    pub(super) fn of_note(name: &str) -> Self {
        Self {
            source: if name == API {
                Source::App
            } else {
                Source::Heroku
            },
            stream: Stream::Stderr,
        }
    }
}

/// Whole lines of one origin and one time, each with its `\n`.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) at_unix_us: i64,
    pub(super) origin: Origin,
    pub(super) dyno: Arc<str>,
    pub(super) bytes: Bytes,
}

/// What an allocator adds to a small allocation at most: its own header, and rounding up.
const ALLOCATION_BYTES: usize = 32;
/// What a block that is kept for a reader costs beside its text: its place in a queue (with its
/// count of lines) that is a quarter longer than it must be, its text's allocation, and that of
/// the text's reference count.
pub(super) const CHUNK_BYTES: usize =
    (size_of::<Chunk>() + size_of::<u64>()) * 5 / 4 + 2 * ALLOCATION_BYTES;

impl Chunk {
    /// What it takes of a reader's memory.
    pub(super) fn cost(&self) -> usize {
        self.bytes.len() + CHUNK_BYTES
    }

    /// How many lines are left in it.
    pub(super) fn count(&self) -> usize {
        memchr::memchr_iter(b'\n', &self.bytes).count()
    }

    /// Takes the first line out of it.
    pub(super) fn pop(&mut self) -> Option<Line> {
        if self.bytes.is_empty() {
            return None;
        }
        let end = memchr::memchr(b'\n', &self.bytes).unwrap_or(self.bytes.len());
        let text = self.bytes.slice(..end);
        self.bytes = self.bytes.slice((end + 1).min(self.bytes.len())..);
        Some(Line {
            at_unix_us: self.at_unix_us,
            source: self.origin.source,
            stream: self.origin.stream,
            dyno: Arc::clone(&self.dyno),
            text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_gives_its_lines_in_order_and_unchanged() {
        let mut chunk = Chunk {
            at_unix_us: 7,
            origin: Origin::of_note("web.1"),
            dyno: "web.1".into(),
            bytes: Bytes::from_static(b"one\r\n\n\xff\0\n"),
        };
        assert_eq!(chunk.count(), 3);
        let lines: Vec<_> = std::iter::from_fn(|| chunk.pop())
            .map(|line| line.text)
            .collect();
        assert_eq!(lines, [&b"one\r"[..], b"", b"\xff\0"]);
    }

    #[test]
    fn releases_and_formation_are_the_apps_and_else_hsup_is_heroku() {
        assert_eq!(Origin::of_note("api").source, Source::App);
        for name in ["system", "web.1", "api.1"] {
            assert_eq!(Origin::of_note(name).source, Source::Heroku);
        }
    }

    #[test]
    fn one_line_is_not_spoken_of_as_many() {
        assert_eq!(
            [counted(0), counted(1), counted(2)],
            ["0 lines", "1 line", "2 lines"]
        );
        assert_eq!(
            [counted_past(1), counted_past(2)],
            ["1 line was", "2 lines were"]
        );
    }

    #[test]
    fn a_filter_takes_names_and_process_types() {
        let filter = Filter {
            select: vec!["web".into(), "worker.2".into()],
            source: Some(Source::App),
        };
        assert!(filter.wants_name("web.1"));
        assert!(filter.wants_name("worker.2"));
        assert!(!filter.wants_name("worker.1"));
        assert!(!filter.wants_name("website.1"));
        assert!(!filter.wants_source(Source::Heroku));
        assert!(Filter::default().wants_name("system"));
    }

    #[test]
    fn a_line_on_the_wire_keeps_its_bytes() {
        let wire = control::LogLine::from(Line {
            at_unix_us: 5,
            source: Source::App,
            stream: Stream::Stderr,
            dyno: "web.1".into(),
            text: Bytes::from_static(b"\xff\0"),
        });
        assert_eq!(wire.line, b"\xff\0");
        assert_eq!((wire.source.as_str(), wire.stderr), ("app", true));
    }

    #[test]
    fn a_report_has_the_last_lines_and_is_never_long() {
        let line = |text: String| Line {
            at_unix_us: 0,
            source: Source::App,
            stream: Stream::Stderr,
            dyno: "web.1".into(),
            text: text.into(),
        };
        let short: Vec<_> = ["panic", "", "at main.rs"]
            .map(|text| line(text.to_owned()))
            .into();
        assert_eq!(*report(&short), ["panic", "", "at main.rs"]);
        let many: Vec<_> = (0..50)
            .map(|number| line(format!("{number:1000}")))
            .collect();
        let kept = report(&many);
        assert_eq!(kept.len(), 16);
        assert_eq!(kept[15].trim_start(), "49");
        let long = [line("short".to_owned()), line("ä".repeat(60_000))];
        let kept = report(&long);
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].chars().count(), REPORT_BYTES / 2 + 1);
        assert!(kept[0].ends_with("ä…"));
    }
}
