//! What hsup's own standard output and error look like.
//!
//! ```text
//! 14:20:50 web.1    | Listening on 5000
//! 14:20:50 worker.1 | started
//! ```
//!
//! A dyno's stdout goes to hsup's stdout, its stderr and hsup's own lines to
//! hsup's stderr.  Where both are the same terminal or pipe, everything takes the
//! one way in the order in which it came.
//!
//! The text of a line is passed on as it is, control characters included, on a
//! terminal too: what an app writes for a terminal (colours, most of all) is meant for one.

use std::os::fd::{AsFd as _, OwnedFd};

use jiff::{Timestamp, tz::TimeZone};
use nix::{
    errno::Errno,
    sys::stat::{SFlag, fstat},
};

use super::{
    line::{Origin, Source, Stream},
    output::{Output, WhenFull},
};

/// How lines are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Each line behind the dyno's name.
    Prefixed,
    /// The dynos' lines as they are; hsup's own keep the name before them.
    Bare,
    /// One JSON object a line, all of them to stdout:
    /// `{"at":…,"source":…,"dyno":…,"stream":…,"line":…}`, bytes that are not UTF-8 replaced.
    Json,
    /// Bytes unchanged and at once, whole lines or not, and no line of hsup's own: for `hsup run`.
    Raw,
}

/// hsup's own outputs.
#[derive(Debug)]
pub struct TerminalSettings {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub format: Format,
    /// The local time before the name ([`Format::Prefixed`], and hsup's own lines with [`Format::Bare`]).
    pub timestamps: bool,
    /// A colour for each process type.
    pub colour: bool,
}

impl TerminalSettings {
    /// The standard output and error of this process, with time and without colour.
    ///
    /// # Errors
    /// When the descriptors cannot be duplicated.
    pub fn standard(format: Format) -> std::io::Result<Self> {
        Ok(Self {
            stdout: std::io::stdout().as_fd().try_clone_to_owned()?,
            stderr: std::io::stderr().as_fd().try_clone_to_owned()?,
            format,
            timestamps: true,
            colour: false,
        })
    }
}

/// The narrowest that the column of names gets.
const MIN_WIDTH: usize = 6;

/// What stands before the lines of one stream, made anew when the second or the column's width changes.
#[derive(Debug, Default)]
pub(super) struct Prefix {
    text: Vec<u8>,
    second: i64,
    width: usize,
}

#[derive(Debug)]
pub(super) struct Terminal {
    stdout: Output,
    /// `None`: the same place as `stdout`.
    stderr: Option<Output>,
    format: Format,
    timestamps: bool,
    colour: bool,
    width: usize,
    clock: Clock,
    note_prefix: Prefix,
}

impl Terminal {
    pub(super) fn new(settings: TerminalSettings) -> Self {
        let when_full = match settings.format {
            Format::Raw => WhenFull::GiveUp,
            Format::Prefixed | Format::Bare | Format::Json => WhenFull::Lose,
        };
        let same = settings.format == Format::Json
            || (settings.format != Format::Raw && same_place(&settings.stdout, &settings.stderr));
        Self {
            stdout: Output::new(settings.stdout, when_full),
            stderr: (!same).then(|| Output::new(settings.stderr, when_full)),
            format: settings.format,
            timestamps: settings.timestamps,
            colour: settings.colour,
            width: MIN_WIDTH,
            clock: Clock::default(),
            note_prefix: Prefix::default(),
        }
    }

    /// Makes the column of names wide enough.
    pub(super) fn widen(&mut self, name_len: usize) {
        self.width = self.width.max(name_len);
    }

    /// Why standard output was given up.
    pub(super) fn gone(&self) -> Option<Errno> {
        self.stdout.gone()
    }

    /// Bytes as they were read; only [`Format::Raw`] shows them.
    pub(super) fn bytes(&mut self, stream: Stream, bytes: &[u8]) {
        if self.format == Format::Raw {
            self.output(stream).write_through(bytes);
        }
    }

    /// Whole lines of a dyno, each with its `\n`.
    pub(super) fn lines(
        &mut self,
        stream: Stream,
        name: &str,
        prefix: &mut Prefix,
        at_unix_us: i64,
        lines: &[u8],
    ) {
        match self.format {
            Format::Raw => {}
            Format::Bare => self.output(stream).push(b"", lines),
            Format::Prefixed => {
                self.renew(prefix, name, at_unix_us);
                push_lines(self.output(stream), &prefix.text, lines);
            }
            Format::Json => {
                let origin = Origin {
                    source: Source::App,
                    stream,
                };
                self.json(origin, name, at_unix_us, lines);
            }
        }
    }

    /// hsup's own lines, each with its `\n`.
    pub(super) fn note(&mut self, name: &str, at_unix_us: i64, lines: &[u8]) {
        match self.format {
            Format::Raw => {}
            Format::Prefixed | Format::Bare => {
                self.widen(name.len());
                let mut prefix = std::mem::take(&mut self.note_prefix);
                // It belongs to no name, so it is never fresh.
                prefix.text.clear();
                self.renew(&mut prefix, name, at_unix_us);
                push_lines(self.output(Stream::Stderr), &prefix.text, lines);
                self.note_prefix = prefix;
            }
            Format::Json => self.json(Origin::NOTE, name, at_unix_us, lines),
        }
    }

    /// Writes what has gathered.
    pub(super) fn flush(&mut self) {
        self.stdout.flush();
        if let Some(stderr) = &mut self.stderr {
            stderr.flush();
        }
    }

    fn output(&mut self, stream: Stream) -> &mut Output {
        match (stream, &mut self.stderr) {
            (Stream::Stderr, Some(stderr)) => stderr,
            _ => &mut self.stdout,
        }
    }

    fn renew(&mut self, prefix: &mut Prefix, name: &str, at_unix_us: i64) {
        let second = if self.timestamps {
            at_unix_us.div_euclid(1_000_000)
        } else {
            0
        };
        if !prefix.text.is_empty() && prefix.second == second && prefix.width == self.width {
            return;
        }
        let text = &mut prefix.text;
        text.clear();
        if self.colour {
            text.extend_from_slice(colour_of(name).as_bytes());
        }
        if self.timestamps {
            text.extend_from_slice(self.clock.text(second));
            text.push(b' ');
        }
        text.extend_from_slice(name.as_bytes());
        text.resize(text.len() + self.width.saturating_sub(name.len()), b' ');
        text.extend_from_slice(b" |");
        if self.colour {
            text.extend_from_slice(b"\x1b[0m");
        }
        text.push(b' ');
        prefix.second = second;
        prefix.width = self.width;
    }

    fn json(&mut self, origin: Origin, name: &str, at_unix_us: i64, lines: &[u8]) {
        #[derive(serde::Serialize)]
        struct Object<'a> {
            at: &'a str,
            source: &'static str,
            dyno: &'a str,
            stream: &'static str,
            line: &'a str,
        }
        let at = Timestamp::from_microsecond(at_unix_us)
            .map(|at| format!("{at:.6}"))
            .unwrap_or_default();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let object = Object {
                at: &at,
                source: origin.source.as_str(),
                dyno: name,
                stream: origin.stream.as_str(),
                line: &String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line)),
            };
            self.stdout.compose(|buffer| {
                let start = buffer.len();
                // Strings into memory: there is nothing that could fail.
                if serde_json::to_writer(&mut *buffer, &object).is_err() {
                    buffer.truncate(start);
                } else {
                    buffer.push(b'\n');
                }
            });
        }
    }
}

fn push_lines(output: &mut Output, prefix: &[u8], lines: &[u8]) {
    let mut start = 0;
    for newline in memchr::memchr_iter(b'\n', lines) {
        output.push(prefix, &lines[start..=newline]);
        start = newline + 1;
    }
}

/// Whether two descriptors lead to one terminal, pipe or socket.  Files do not count: each descriptor has its own position in them.
fn same_place(one: &OwnedFd, other: &OwnedFd) -> bool {
    let (Ok(one), Ok(other)) = (fstat(one), fstat(other)) else {
        return false;
    };
    let kind = SFlag::from_bits_truncate(one.st_mode) & SFlag::S_IFMT;
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino) && kind != SFlag::S_IFREG
}

/// The colour that a process type always gets, as an escape sequence; the usual ones differ
/// from each other.
pub fn colour_of(name: &str) -> &'static str {
    const COLOURS: [&str; 9] = [
        "\x1b[36m", "\x1b[33m", "\x1b[32m", "\x1b[35m", "\x1b[34m", "\x1b[96m", "\x1b[93m",
        "\x1b[92m", "\x1b[95m",
    ];
    let process_type = name.rsplit_once('.').map_or(name, |(kind, _)| kind);
    let index = match process_type {
        "web" => 0,
        "worker" => 1,
        "clock" | "scheduler" => 2,
        "release" => 3,
        "run" => 4,
        "system" | "api" => return "\x1b[1m",
        // FNV-1a: the standard library's hash may change from one version to the next.
        other => {
            let hash = other.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
                (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
            });
            5 + hash as usize % (COLOURS.len() - 5)
        }
    };
    COLOURS[index]
}

/// The local time as text, made once a second.
#[derive(Debug, Default)]
struct Clock {
    zone: Option<TimeZone>,
    second: i64,
    text: Vec<u8>,
}

impl Clock {
    fn text(&mut self, second: i64) -> &[u8] {
        if self.second != second || self.text.is_empty() {
            // Looked up late: `hsup run` shows no time and has none to lose.
            let zone = self.zone.get_or_insert_with(TimeZone::system);
            let at = Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH);
            let time = zone.to_datetime(at).time();
            let text = format!(
                "{:02}:{:02}:{:02}",
                time.hour(),
                time.minute(),
                time.second()
            );
            self.text = text.into_bytes();
            self.second = second;
        }
        &self.text
    }
}
