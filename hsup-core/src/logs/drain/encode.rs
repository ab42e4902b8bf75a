//! How lines are written for a drain: pure, and made once for a block of lines where it can be.
//!
//! ```text
//! Logplex   72 <190>1 2026-11-28T12:00:00.000000+00:00 shuttle app web.1 - - Listening\n
//! HTTPS     67 <190>1 2026-11-28T12:00:00.000000+00:00 host app web.1 - Listening\n
//! syslog    70 <190>1 2026-11-28T12:00:00.000000+00:00 myhost app web.1 - - Listening
//! text      2026-11-28T12:00:00.000000+00:00 app[web.1]: Listening
//! JSON      {"at":"2026-11-28T12:00:00.000000Z","source":"app","dyno":"web.1",…}
//! ```
//!
//! Logplex reads only messages with both dashes, and Heroku's HTTPS drains get one: each reader
//! gets the form that it knows. A frame is counted in bytes, the final `\n` included.

use std::io::Write as _;

use jiff::Timestamp;

use crate::logs::{
    API,
    json::write_json,
    line::{Chunk, Origin, Source, Stream},
};

/// Where Heroku cuts long lines ("split into 10000 byte chunks").
const PIECE_BYTES: usize = 10_000;
/// Logplex takes a longer frame for malformed, and refuses the whole request for it.
pub(super) const FRAME_BYTES: usize = 10_240;
/// The longest frame that every syslog receiver should take (RFC 5425, 4.3.1), and that rsyslog
/// does by default.
const SYSLOG_BYTES: usize = 8_192;
/// How long a frame's length and the blank behind it are at most.
const LENGTH_BYTES: usize = 6;

/// What a reader understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Logplex,
    Https,
    Syslog { hostname: String },
    Text,
    Json,
}

/// Lines that did not get to the drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// They waited until there was no room: L12, or L10 where Logplex would say that.
    Dropped,
    /// They could not be delivered: L13.
    Lost,
}

/// Writes lines; keeps what a block of them has in common.
#[derive(Debug)]
pub(super) struct Encoder {
    encoding: Encoding,
    clock: Clock,
    header: Vec<u8>,
    origin: Origin,
    dyno: String,
}

impl Encoder {
    pub(super) fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            clock: Clock::default(),
            header: Vec::new(),
            origin: Origin::of_note(API),
            dyno: String::new(),
        }
    }

    /// The next lines are of this block.
    pub(super) fn begin(&mut self, block: &Chunk) {
        self.origin = block.origin;
        self.dyno.clear();
        self.dyno.push_str(&block.dyno);
        let Self {
            encoding,
            clock,
            header,
            ..
        } = self;
        let at = clock.text(block.at_unix_us);
        header.clear();
        let source = block.origin.source;
        let written = match encoding {
            Encoding::Text => write!(header, "{at} {}[{}]: ", source.as_str(), block.dyno),
            Encoding::Json => write!(header, "{}Z", at.trim_end_matches("+00:00")),
            _ => {
                let priority = priority(source, &block.dyno);
                let dyno = token(&block.dyno, 128);
                syslog_header(header, encoding, priority, at, source.as_str(), &dyno)
            }
        };
        written.expect("memory takes everything");
    }

    /// Writes one line, without its `\n`; answers how many messages it is.
    pub(super) fn line(&self, mut text: &[u8], out: &mut Vec<u8>) -> usize {
        match self.encoding {
            Encoding::Text => {
                out.extend_from_slice(&self.header);
                out.extend_from_slice(text);
                out.push(b'\n');
                return 1;
            }
            Encoding::Json => {
                let at = str::from_utf8(&self.header).unwrap_or_default();
                write_json(out, at, self.origin, &self.dyno, text);
                return 1;
            }
            Encoding::Logplex | Encoding::Https | Encoding::Syslog { .. } => {}
        }
        let most = self.piece_bytes();
        let mut messages = 0;
        loop {
            let (piece, rest) = split(text, most);
            frame(&self.header, piece, self.line_end(), out);
            messages += 1;
            text = rest;
            if text.is_empty() {
                return messages;
            }
        }
    }

    /// How many messages a line of so many bytes is at most.
    pub(super) fn messages(&self, bytes: usize) -> usize {
        match self.encoding {
            Encoding::Text | Encoding::Json => 1,
            // A cut goes back by three bytes at most.
            _ => 1 + bytes / (self.piece_bytes() - 3),
        }
    }

    /// Writes that lines are missing; times are in microseconds since 1970.
    pub(super) fn notice(
        &mut self,
        missing: Missing,
        count: u64,
        since: i64,
        now: i64,
        out: &mut Vec<u8>,
    ) {
        let since = Clock::default().text(since).to_owned();
        let text = match (&self.encoding, missing) {
            (_, Missing::Lost) => format!("Error L13: {count} messages lost since {since}"),
            (Encoding::Logplex, Missing::Dropped) => {
                format!("Error L12: {count} messages dropped since {since}")
            }
            (_, Missing::Dropped) => format!(
                "Error L10 (output buffer overflow): {count} messages dropped since {}+00:00.",
                &since[..SECOND_BYTES]
            ),
        };
        let origin = Origin {
            source: Source::Heroku,
            stream: Stream::Stderr,
        };
        let at = self.clock.text(now);
        let mut header = Vec::new();
        let written = match &self.encoding {
            Encoding::Text => write!(header, "{at} heroku[logplex]: "),
            Encoding::Json => {
                let at = format!("{}Z", at.trim_end_matches("+00:00"));
                return write_json(out, &at, origin, "logplex", text.as_bytes());
            }
            Encoding::Logplex => write!(header, "<172>1 {at} heroku app log-shuttle - - "),
            encoding => syslog_header(&mut header, encoding, 172, at, "heroku", "logplex"),
        };
        written.expect("memory takes everything");
        if self.encoding == Encoding::Text {
            out.extend_from_slice(&header);
            out.extend_from_slice(text.as_bytes());
            out.push(b'\n');
        } else {
            frame(&header, text.as_bytes(), self.line_end(), out);
        }
    }

    fn line_end(&self) -> &'static [u8] {
        match self.encoding {
            // The count of bytes is what ends a message.
            Encoding::Syslog { .. } => b"",
            _ => b"\n",
        }
    }

    fn piece_bytes(&self) -> usize {
        let frame = match self.encoding {
            Encoding::Syslog { .. } => SYSLOG_BYTES,
            _ => FRAME_BYTES,
        };
        let around = LENGTH_BYTES + self.header.len() + 1;
        PIECE_BYTES.min(frame.saturating_sub(around))
    }
}

/// Heroku's facility and severity of a line.
fn priority(source: Source, dyno: &str) -> u8 {
    match source {
        Source::App if dyno == API => 134,
        Source::App => 190,
        Source::Heroku => 45,
    }
}

fn syslog_header(
    header: &mut Vec<u8>,
    encoding: &Encoding,
    priority: u8,
    at: &str,
    source: &str,
    dyno: &str,
) -> std::io::Result<()> {
    let (host, dashes) = match encoding {
        Encoding::Logplex => ("shuttle", "- -"),
        Encoding::Syslog { hostname } => (&**hostname, "- -"),
        _ => ("host", "-"),
    };
    write!(
        header,
        "<{priority}>1 {at} {host} {source} {dyno} {dashes} "
    )
}

/// A name as a field of a message: no blanks, nothing but printable ASCII (RFC 5424, 6).
pub(super) fn token(name: &str, most: usize) -> String {
    let printable = |c: char| if c.is_ascii_graphic() { c } else { '_' };
    let mut token: String = name.chars().take(most).map(printable).collect();
    if token.is_empty() {
        token.push('-');
    }
    token
}

fn frame(header: &[u8], text: &[u8], end: &[u8], out: &mut Vec<u8>) {
    push_number(header.len() + text.len() + end.len(), out);
    out.push(b' ');
    out.extend_from_slice(header);
    out.extend_from_slice(text);
    out.extend_from_slice(end);
}

fn push_number(mut number: usize, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).expect("one digit");
        number /= 10;
        if number == 0 {
            return out.extend_from_slice(&digits[at..]);
        }
    }
}

/// At most `most` bytes of the text and the rest, cut between two characters where it is UTF-8.
fn split(text: &[u8], most: usize) -> (&[u8], &[u8]) {
    if text.len() <= most {
        return (text, b"");
    }
    let begins_character = |at: &usize| text[*at] & 0xc0 != 0x80;
    let nearest = (most.saturating_sub(3).max(1)..=most)
        .rev()
        .find(begins_character);
    text.split_at(nearest.unwrap_or(most.max(1)))
}

/// How much of a time is its seconds: `2026-11-28T12:00:00`.
const SECOND_BYTES: usize = 19;

/// Times as text, made anew with the second.
#[derive(Debug, Default)]
struct Clock {
    second: i64,
    text: String,
}

impl Clock {
    /// `2026-11-28T12:00:00.000000+00:00`.
    fn text(&mut self, at_unix_us: i64) -> &str {
        let second = at_unix_us.div_euclid(1_000_000);
        if self.second != second || self.text.is_empty() {
            let at = Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH);
            self.text = at.strftime("%Y-%m-%dT%H:%M:%S").to_string();
            self.second = second;
        }
        self.text.truncate(SECOND_BYTES);
        let micros = at_unix_us.rem_euclid(1_000_000);
        std::fmt::Write::write_fmt(&mut self.text, format_args!(".{micros:06}+00:00"))
            .expect("memory takes everything");
        &self.text
    }
}

#[cfg(test)]
mod tests;
