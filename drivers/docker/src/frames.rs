//! The engine's log of one of a dyno's outputs, and how far it was passed on.
//!
//! A frame of the log is a line, or a piece of one that is longer than 16 KiB, behind the time
//! at which its line began. Times do not go back within an output, and frames may share one. So
//! a place in the log is a time, how many frames of that time were passed on, and how many bytes
//! of the next one: a log that is read again from that time on is passed over until there.
//!
//! Engines up to 20.10 leave away the line feed of a line that is longer than a frame. Its pieces
//! share a time, and a line has one otherwise: so where another time follows an open line, the
//! line feed belongs between them. At the end of all nobody can tell.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    str,
};

use hsup_driver_kit::clock::now_unix_ms;

/// A second.
const SECOND: i64 = 1_000_000_000;

/// The time of a cursor that counts all that was passed on, since what the engine streams has no
/// times.
const STREAMED: i64 = i64::MIN;
/// What an engine takes up in its log for a line besides the line, at most.
const LINE: u64 = 64;
/// How much both outputs may take up for their log to be whole, which has five files of 20 MB: one
/// of them is for what was written and not read.
const WHOLE: u64 = 80_000_000;

/// How far an output was passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The time of the frame that was begun last, in nanoseconds since 1970.
    at: i64,
    /// How many frames of that time were passed on. How many lines at all, if `STREAMED`.
    frames: u64,
    /// How many bytes of the next one were, its line feed in front included. How many at all, if
    /// `STREAMED`.
    bytes: u64,
    line: Line,
}

/// How the frame before the next one ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    #[default]
    Ended,
    /// Without a line feed: the next frame may go on with it.
    Open,
    /// The same, and the next frame does not.
    Broken,
}

/// What is to be passed on of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rest<'a> {
    /// What belongs in front of it.
    pub(crate) before: &'static [u8],
    pub(crate) data: &'a [u8],
}

impl Cursor {
    pub(crate) const SIZE: usize = 25;

    /// The end of a log, as far as that can be told without it.
    pub(crate) fn now() -> Self {
        Self {
            at: now_unix_ms().saturating_mul(1_000_000),
            ..Self::default()
        }
    }

    /// The next one, of an output that is streamed from its beginning on, when `bytes` more were
    /// passed on.
    pub(crate) fn streamed(self, bytes: &[u8]) -> Self {
        Self {
            at: STREAMED,
            frames: self.frames + lines(bytes),
            bytes: self.bytes + bytes.len() as u64,
            line: Line::Ended,
        }
    }

    fn is_streamed(self) -> bool {
        self.at == STREAMED
    }

    /// What all that was passed on takes up in the log, if that is counted.
    pub(crate) fn size(self) -> u64 {
        if self.is_streamed() {
            size(self.bytes, self.frames)
        } else {
            0
        }
    }

    /// Whether the log may have lost what it is to be passed over by, when so much of `both` outputs
    /// was passed on.
    pub(crate) fn is_beyond_log(self, both: u64) -> bool {
        self.is_streamed() && both > WHOLE
    }

    /// The second from which the log is to be read again: the engine's clients have no finer one.
    pub(crate) fn since(self) -> i32 {
        if self.is_streamed() {
            return 0;
        }
        i32::try_from(self.at / SECOND).unwrap_or(i32::MAX)
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.at.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.frames.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[24] = self.line as u8;
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let mut parts = bytes.chunks_exact(8).map(|part| {
            let mut eight = [0; 8];
            eight.copy_from_slice(part);
            eight
        });
        let mut next = || parts.next().unwrap_or_default();
        Self {
            at: i64::from_le_bytes(next()),
            frames: u64::from_le_bytes(next()),
            bytes: u64::from_le_bytes(next()),
            line: match bytes[24] {
                0 => Line::Ended,
                1 => Line::Open,
                _ => Line::Broken,
            },
        }
    }
}

/// What these bytes take up in the log.
pub(crate) fn size_of(bytes: &[u8]) -> u64 {
    size(bytes.len() as u64, lines(bytes))
}

fn size(bytes: u64, lines: u64) -> u64 {
    bytes.saturating_add(lines.saturating_mul(LINE))
}

fn lines(bytes: &[u8]) -> u64 {
    bytes.split(|byte| *byte == b'\n').count() as u64 - 1
}

/// Reads a log from a cursor on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader {
    cursor: Cursor,
    /// How many frames of the cursor's time have gone by.
    passed_over: u64,
    /// How many bytes the log has yet that were streamed.
    streamed: u64,
    /// The cursor until then.
    before: Cursor,
    /// Everything from here on is new.
    caught_up: bool,
    /// The log may begin anew in the same answer.
    replays: bool,
    /// When that answer's first frame was, and what it was if it was a whole line.
    first: Option<(i64, Option<u64>)>,
}

impl Reader {
    pub(crate) fn new(cursor: Cursor) -> Self {
        let (from, streamed) = if cursor.is_streamed() {
            (Cursor::default(), cursor.bytes)
        } else {
            (cursor, 0)
        };
        Self {
            cursor: from,
            streamed,
            before: cursor,
            passed_over: 0,
            caught_up: false,
            replays: false,
            first: None,
        }
    }

    /// The same of a log that may begin anew in the same answer: a Swarm's does when a node is
    /// heard of again. It begins with the frame that the answer began with.
    pub(crate) fn replaying(cursor: Cursor) -> Self {
        let mut reader = Self::new(cursor);
        reader.replays = true;
        reader
    }

    pub(crate) const fn cursor(&self) -> Cursor {
        if self.streamed > 0 {
            self.before
        } else {
            self.cursor
        }
    }

    /// What is to be passed on of the next frame; none if all of it was.
    pub(crate) fn rest<'a>(&mut self, at: i64, data: &'a [u8]) -> Option<Rest<'a>> {
        let mut begun = 0;
        if self.replays && self.begins_anew(at, data) {
            self.caught_up = false;
            self.passed_over = 0;
        }
        if !self.caught_up {
            if at < self.cursor.at {
                return None;
            }
            if at == self.cursor.at {
                if self.passed_over < self.cursor.frames {
                    self.passed_over += 1;
                    return None;
                }
                begun = usize::try_from(self.cursor.bytes).unwrap_or(usize::MAX);
            }
            self.caught_up = true;
        }
        if at != self.cursor.at {
            let line = match self.cursor.line {
                Line::Ended => Line::Ended,
                Line::Open | Line::Broken => Line::Broken,
            };
            self.cursor = Cursor {
                at,
                line,
                ..Cursor::default()
            };
        }
        let before = match self.cursor.line {
            Line::Broken => b"\n".as_slice(),
            Line::Ended | Line::Open => b"",
        };
        let in_data = begun.saturating_sub(before.len());
        Some(Rest {
            before: self.unstreamed(before.get(begun..).unwrap_or_default()),
            data: self.unstreamed(data.get(in_data..).unwrap_or_default()),
        })
    }

    /// What is left of these bytes without what was streamed.
    fn unstreamed<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let known = usize::try_from(self.streamed).unwrap_or(usize::MAX);
        let (over, rest) = bytes.split_at(known.min(bytes.len()));
        self.streamed -= over.len() as u64;
        self.wrote(over.len());
        rest
    }

    /// Whether this frame is the one that the answer began with. Times may go back with the clock,
    /// and pieces of a line share one; whole lines that are the same share none.
    fn begins_anew(&mut self, at: i64, data: &[u8]) -> bool {
        let line = data.ends_with(b"\n").then(|| {
            let mut hasher = DefaultHasher::new();
            data.hash(&mut hasher);
            hasher.finish()
        });
        match self.first {
            None => {
                self.first = Some((at, line));
                false
            }
            Some((first, first_line)) => {
                first == at && (at < self.cursor.at || (line.is_some() && line == first_line))
            }
        }
    }

    /// So many bytes of the frame were passed on.
    pub(crate) fn wrote(&mut self, bytes: usize) {
        self.cursor.bytes += bytes as u64;
    }

    /// All of the frame was, which is `data`.
    pub(crate) fn finished(&mut self, data: &[u8]) {
        self.cursor.frames += 1;
        self.cursor.bytes = 0;
        self.cursor.line = if data.ends_with(b"\n") {
            Line::Ended
        } else {
            Line::Open
        };
    }
}

/// Parts a frame into its time and what the dyno wrote. None of what is no frame of a dyno's.
pub(crate) fn parse(frame: &[u8]) -> Option<(i64, &[u8])> {
    let space = frame.iter().position(|byte| *byte == b' ')?;
    let (time, data) = frame.split_at(space);
    let time: jiff::Timestamp = str::from_utf8(time).ok()?.parse().ok()?;
    let at = i64::try_from(time.as_nanosecond()).ok()?;
    Some((at, &data[1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is passed on of these frames.
    fn passed(mut reader: Reader, frames: &[(i64, &str)]) -> String {
        let mut passed = String::new();
        for (at, text) in frames {
            if let Some(rest) = reader.rest(*at, text.as_bytes()) {
                passed.push_str(str::from_utf8(rest.data).unwrap());
                reader.wrote(rest.data.len());
                reader.finished(text.as_bytes());
            }
        }
        passed
    }

    #[test]
    fn a_log_that_begins_anew_is_passed_over_until_where_it_was() {
        let log = [(1, "a\n"), (2, "b\n"), (2, "c\n"), (2, "d\n"), (3, "e\n")];
        for first in 1..log.len() {
            let frames = [&log[..first], &log].concat();
            let reader = Reader::replaying(Cursor::default());
            assert_eq!(passed(reader, &frames), "a\nb\nc\nd\ne\n", "{first}");
        }
        // Pieces of a line, which are the same.
        let pieces = [(1, "aa"), (1, "aa"), (1, "a\n")];
        let reader = Reader::replaying(Cursor::default());
        assert_eq!(passed(reader, &pieces), "aaaaa\n");
    }

    #[test]
    fn a_clock_that_is_set_back_takes_no_line_along() {
        let frames = [(5, "a\n"), (7, "b\n"), (6, "c\n"), (7, "d\n")];
        for reader in [
            Reader::new(Cursor::default()),
            Reader::replaying(Cursor::default()),
        ] {
            assert_eq!(passed(reader, &frames), "a\nb\nc\nd\n");
        }
    }

    #[test]
    fn a_frame_is_a_time_and_bytes() {
        let (at, data) = parse(b"1970-01-01T00:00:01.000000002Z a b\xff\n").unwrap();
        assert_eq!((at, data), (SECOND + 2, &b"a b\xff\n"[..]));
        let (at, data) = parse(b"1970-01-01T01:00:00.5+01:00 ").unwrap();
        assert_eq!((at, data), (SECOND / 2, &b""[..]));
        for wrong in [
            &b"Error grabbing logs: EOF\n"[..],
            b"",
            b" x",
            b"\xff\xff x",
        ] {
            assert_eq!(parse(wrong), None);
        }
    }

    fn line(at: i64, text: &str) -> (i64, Vec<u8>) {
        (at, text.as_bytes().to_vec())
    }

    /// Writes so many bytes of the frames from the cursor on, and answers the next cursor.
    fn write(frames: &[(i64, Vec<u8>)], cursor: Cursor, budget: usize, to: &mut Vec<u8>) -> Cursor {
        let mut left = budget;
        let mut reader = Reader::new(Cursor::from_bytes(cursor.to_bytes()));
        let since = i64::from(cursor.since()) * SECOND;
        for (at, data) in frames.iter().filter(|(at, _)| *at >= since) {
            let Some(rest) = reader.rest(*at, data) else {
                continue;
            };
            for bytes in [rest.before, rest.data] {
                let length = bytes.len().min(left);
                to.extend_from_slice(&bytes[..length]);
                reader.wrote(length);
                left -= length;
                if length < bytes.len() {
                    return reader.cursor();
                }
            }
            reader.finished(data);
        }
        reader.cursor()
    }

    #[test]
    fn a_long_line_has_its_line_feed() {
        let second = 2 * SECOND;
        let long = [line(SECOND, "lo"), line(SECOND, "ng"), line(second, "x\n")];
        let right = [
            line(SECOND, "lo"),
            line(SECOND, "ng\n"),
            line(second, "x\n"),
        ];
        let open = [line(SECOND, "a\n"), line(second, "open")];
        for (frames, expected) in [
            (&long[..], "long\nx\n"),
            (&right, "long\nx\n"),
            (&open, "a\nopen"),
        ] {
            for first in 0..expected.len() {
                let mut written = Vec::new();
                let cursor = write(frames, Cursor::default(), first, &mut written);
                write(frames, cursor, usize::MAX, &mut written);
                assert_eq!(String::from_utf8(written).unwrap(), expected, "{first}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_cursor_is_read_as_it_was_written(at: i64, frames: u64, bytes: u64, line in 0..3_u8) {
            let line = [Line::Ended, Line::Open, Line::Broken][usize::from(line)];
            let cursor = Cursor { at, frames, bytes, line };
            prop_assert_eq!(Cursor::from_bytes(cursor.to_bytes()), cursor);
        }

        /// However often the log breaks off, and wherever in a frame, every byte comes once.
        #[test]
        fn nothing_is_lost_and_nothing_comes_twice(
            steps in prop::collection::vec((0..3_i64, prop::collection::vec(any::<u8>(), 0..5)), 0..40),
            budgets in prop::collection::vec(0..9_usize, 0..30),
        ) {
            let mut now = 5 * SECOND;
            let frames: Vec<(i64, Vec<u8>)> = steps
                .into_iter()
                .map(|(step, data)| {
                    // Often the same time, sometimes the next second.
                    now += match step { 0 => 0, 1 => 1, _ => SECOND };
                    (now, data)
                })
                .collect();
            let mut all = Vec::new();
            write(&frames, Cursor::default(), usize::MAX, &mut all);
            let mut cursor = Cursor::default();
            let mut written = Vec::new();
            // The last time there is no end to what it may write.
            for budget in budgets.into_iter().chain([usize::MAX]) {
                cursor = write(&frames, cursor, budget, &mut written);
            }
            prop_assert_eq!(&written, &all);
            // Nor where the first ones were streamed: the log is read on behind them.
            let streamed = all.len() - written.len().min(all.len() / 2);
            let mut rest = all[..streamed].to_vec();
            let mut cursor = Cursor::default().streamed(&all[..streamed]);
            for budget in [1, 2, usize::MAX] {
                cursor = write(&frames, cursor, budget, &mut rest);
            }
            prop_assert_eq!(&rest, &all);
            // Nothing but line feeds was added.
            let given = frames.iter().map(|(_, data)| data.len()).sum::<usize>();
            prop_assert!(all.len() >= given && all.len() <= given + frames.len());
        }
    }
}
