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
//! Logplex reads a message only with both dashes, and an HTTPS drain of Heroku's gets one: each
//! is written as its reader knows it.  A frame is counted in bytes, the final `\n` included.

use std::io::Write as _;

use jiff::Timestamp;

use crate::logs::{
    API,
    json::write_json,
    line::{Chunk, Origin, Source, Stream},
};

/// Where Heroku cuts long lines ("split into 10000 byte chunks").
const PIECE_BYTES: usize = 10_000;
/// What Logplex takes a longer frame for is malformed, and one such refuses its whole request.
pub(super) const FRAME_BYTES: usize = 10_240;
/// What a syslog receiver should take (RFC 5425, 4.3.1), and rsyslog takes unless told otherwise.
const SYSLOG_BYTES: usize = 8_192;
/// The most digits a frame's length and the blank behind it have.
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
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    const AT: i64 = 1_795_867_200_000_042;

    fn block(dyno: &str, origin: Origin) -> Chunk {
        Chunk {
            at_unix_us: AT,
            origin,
            dyno: dyno.into(),
            bytes: Bytes::new(),
        }
    }

    fn app() -> Origin {
        Origin {
            source: Source::App,
            stream: Stream::Stdout,
        }
    }

    fn written(encoding: Encoding, dyno: &str, origin: Origin, text: &[u8]) -> String {
        let mut encoder = Encoder::new(encoding);
        encoder.begin(&block(dyno, origin));
        let mut out = Vec::new();
        assert_eq!(encoder.line(text, &mut out), 1);
        String::from_utf8(out).unwrap()
    }

    fn syslog() -> Encoding {
        Encoding::Syslog {
            hostname: "box".to_owned(),
        }
    }

    #[test]
    fn each_reader_gets_what_it_knows() {
        for (encoding, expected) in [
            (
                Encoding::Logplex,
                "65 <190>1 2026-11-28T12:00:00.000042+00:00 shuttle app web.1 - - hi\n",
            ),
            (
                Encoding::Https,
                "60 <190>1 2026-11-28T12:00:00.000042+00:00 host app web.1 - hi\n",
            ),
            (
                syslog(),
                "60 <190>1 2026-11-28T12:00:00.000042+00:00 box app web.1 - - hi",
            ),
            (
                Encoding::Text,
                "2026-11-28T12:00:00.000042+00:00 app[web.1]: hi\n",
            ),
            (
                Encoding::Json,
                "{\"at\":\"2026-11-28T12:00:00.000042Z\",\"source\":\"app\",\"dyno\":\"web.1\",\
                 \"stream\":\"stdout\",\"line\":\"hi\"}\n",
            ),
        ] {
            assert_eq!(written(encoding, "web.1", app(), b"hi"), expected);
        }
    }

    #[test]
    fn priorities_are_herokus() {
        let priority = |dyno: &str, origin| {
            let text = written(Encoding::Logplex, dyno, origin, b"x");
            let (_, rest) = text.split_once('<').unwrap();
            rest.split_once('>').unwrap().0.to_owned()
        };
        assert_eq!(priority("web.1", app()), "190");
        assert_eq!(priority("web.1", Origin::of_note("web.1")), "45");
        assert_eq!(priority("system", Origin::of_note("system")), "45");
        assert_eq!(priority("api", Origin::of_note("api")), "134");
    }

    #[test]
    fn what_is_missing_is_told_in_the_readers_words() {
        let told = |encoding, missing| {
            let mut out = Vec::new();
            Encoder::new(encoding).notice(missing, 222, AT - 1_000_000, AT, &mut out);
            let text = String::from_utf8(out).unwrap();
            text.split_once(' ').unwrap().1.to_owned()
        };
        assert_eq!(
            told(Encoding::Logplex, Missing::Dropped),
            "<172>1 2026-11-28T12:00:00.000042+00:00 heroku app log-shuttle - - Error L12: 222 \
             messages dropped since 2026-11-28T11:59:59.000042+00:00\n"
        );
        assert_eq!(
            told(Encoding::Logplex, Missing::Lost),
            "<172>1 2026-11-28T12:00:00.000042+00:00 heroku app log-shuttle - - Error L13: 222 \
             messages lost since 2026-11-28T11:59:59.000042+00:00\n"
        );
        assert_eq!(
            told(Encoding::Https, Missing::Dropped),
            "<172>1 2026-11-28T12:00:00.000042+00:00 host heroku logplex - Error L10 (output \
             buffer overflow): 222 messages dropped since 2026-11-28T11:59:59+00:00.\n"
        );
        assert_eq!(
            told(Encoding::Text, Missing::Dropped),
            "heroku[logplex]: Error L10 (output buffer overflow): 222 messages dropped since \
             2026-11-28T11:59:59+00:00.\n"
        );
    }

    #[test]
    fn an_empty_line_is_a_message() {
        let text = written(Encoding::Logplex, "web.1", app(), b"");
        assert!(text.ends_with(" - - \n"), "{text:?}");
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let text = "ä".repeat(5001);
        let (first, rest) = split(text.as_bytes(), 9_999);
        assert_eq!((first.len(), rest.len()), (9_998, 4));
        let broken = [0x80; 20];
        assert_eq!(split(&broken, 10).0.len(), 10);
    }

    /// What a strict reader makes of a body.
    fn read(mut body: &[u8]) -> Vec<&[u8]> {
        let mut frames = Vec::new();
        while !body.is_empty() {
            let blank = body.iter().position(|byte| *byte == b' ').unwrap();
            let len: usize = str::from_utf8(&body[..blank]).unwrap().parse().unwrap();
            assert!(blank + 1 + len <= FRAME_BYTES, "{len}");
            let (frame, rest) = body[blank + 1..].split_at(len);
            frames.push(frame);
            body = rest;
        }
        frames
    }

    proptest! {
        /// Whatever is written, a strict reader gets it back, in frames that are short enough.
        #[test]
        fn frames_are_read_back(
            texts in prop::collection::vec(
                prop_oneof![
                    ".{0,300}".prop_map(String::into_bytes),
                    ("[äß€😀x]{1,9}", 0_usize..3000).prop_map(|(text, times)| text.repeat(times).into_bytes()),
                    (prop::collection::vec(11_u8.., 1..20), 0_usize..2000).prop_map(|(bytes, times)| bytes.repeat(times)),
                ],
                1..5,
            ),
            dyno in "[ -~é]{0,200}",
            which in 0..3,
        ) {
            let encoding = match which {
                0 => Encoding::Logplex,
                1 => Encoding::Https,
                _ => syslog(),
            };
            let mut encoder = Encoder::new(encoding);
            encoder.begin(&block(&dyno, app()));
            for text in &texts {
                let mut out = Vec::new();
                let messages = encoder.line(text, &mut out);
                prop_assert!(messages <= encoder.messages(text.len()));
                let frames = read(&out);
                prop_assert_eq!(frames.len(), messages);
                let pieces: Vec<&[u8]> = frames
                    .iter()
                    .map(|frame| frame.strip_prefix(&encoder.header[..]).unwrap())
                    .map(|piece| piece.strip_suffix(encoder.line_end()).unwrap())
                    .collect();
                prop_assert_eq!(&pieces.concat(), text);
                prop_assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES));
                if str::from_utf8(text).is_ok() {
                    prop_assert!(pieces.iter().all(|piece| str::from_utf8(piece).is_ok()));
                }
            }
        }
    }
}
