//! How lines look: what stands before them, and in which colour.
//!
//! ```text
//! 14:20:50 web.1    | Listening on 5000
//! 14:20:50 worker.1 | started
//! ```

use jiff::{Timestamp, tz::TimeZone};

use super::line::process_type_of;

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
}

/// The narrowest that the column of names gets.
const MIN_WIDTH: usize = 6;

/// What one output needs to know to show lines.
#[derive(Debug)]
pub(super) struct Style {
    pub(super) format: Format,
    timestamps: bool,
    colour: bool,
    width: usize,
    clock: Clock,
    prefix: Prefix,
}

/// What stands before lines, made anew when the name, the second or the column's width changes.
#[derive(Debug, Default)]
struct Prefix {
    text: Vec<u8>,
    name: String,
    second: i64,
    width: usize,
}

impl Style {
    pub(super) fn new(format: Format, timestamps: bool, colour: bool) -> Self {
        Self {
            format,
            timestamps,
            colour,
            width: MIN_WIDTH,
            clock: Clock::default(),
            prefix: Prefix::default(),
        }
    }

    /// Makes the column of names wide enough.
    pub(super) fn widen(&mut self, name_len: usize) {
        self.width = self.width.max(name_len);
    }

    /// What stands before a dyno's own lines.
    pub(super) fn before_lines(&mut self, name: &str, at_unix_us: i64) -> &[u8] {
        match self.format {
            Format::Prefixed => self.prefix(name, at_unix_us),
            Format::Bare | Format::Json => b"",
        }
    }

    /// What stands before hsup's lines about `name`.
    pub(super) fn before_note(&mut self, name: &str, at_unix_us: i64) -> &[u8] {
        self.widen(name.len());
        self.prefix(name, at_unix_us)
    }

    fn prefix(&mut self, name: &str, at_unix_us: i64) -> &[u8] {
        let second = if self.timestamps {
            at_unix_us.div_euclid(1_000_000)
        } else {
            0
        };
        let Prefix {
            text,
            name: of,
            second: at,
            width,
        } = &mut self.prefix;
        if !text.is_empty() && *at == second && *width == self.width && of == name {
            return text;
        }
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
        of.clear();
        of.push_str(name);
        *at = second;
        *width = self.width;
        text
    }
}

/// The colour that a process type always gets, as an escape sequence; the usual ones differ
/// from each other.
pub fn colour_of(name: &str) -> &'static str {
    const COLOURS: [&str; 9] = [
        "\x1b[36m", "\x1b[33m", "\x1b[32m", "\x1b[35m", "\x1b[34m", "\x1b[96m", "\x1b[93m",
        "\x1b[92m", "\x1b[95m",
    ];
    let index = match process_type_of(name) {
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
            // Looked up late: without timestamps nobody needs it.
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
