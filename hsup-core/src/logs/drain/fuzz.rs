//! Whether what a drain is sent is its lines: read back by the rules of who reads it.

use std::collections::VecDeque;

use super::{
    HTTP_LIMITS, WRITE_LIMITS,
    batch::{Batch, Filling, Limits},
    encode::{Encoder, Encoding, token},
    queue::Queue,
};
use crate::logs::line::{Chunk, Origin, Source, Stream};

/// What a frame may hold of a line, and what it may be in all: Heroku's word for a piece, and
/// what Logplex and syslog's receivers take.
const PIECE: usize = 10_000;
const LOGPLEX: usize = 10_240;
const SYSLOG: usize = 8_192;

/// Lines of two dynos, by way of a queue into batches: the first byte chooses the reader, the
/// second how much waits, each line begins with whose it is; 0xff repeats what is before it a
/// thousand times.
pub fn log_frames(data: &[u8]) {
    let [reader, room, lines @ ..] = data else {
        return;
    };
    let encoding = match reader % 5 {
        0 => Encoding::Logplex,
        1 => Encoding::Https,
        2 => Encoding::Syslog {
            hostname: token(&"host ".repeat(usize::from(*reader)), 255),
        },
        3 => Encoding::Text,
        _ => Encoding::Json,
    };
    let limits = match reader % 5 {
        0 | 1 => HTTP_LIMITS,
        _ => WRITE_LIMITS,
    };
    let queue = Queue::new(1, 64 * 1024 * (1 + usize::from(*room)));
    let lines: Vec<(&str, Vec<u8>)> = lines
        .split(|byte| *byte == b'\n')
        .take(64)
        .map(|line| match line {
            [b'w', text @ ..] => ("worker.2", repeated(text)),
            text => ("web.1", repeated(text)),
        })
        .collect();
    for (at_unix_us, (dyno, text)) in (1_795_867_200_000_042..).zip(&lines) {
        let chunk = Chunk {
            at_unix_us,
            origin: Origin {
                source: Source::App,
                stream: Stream::Stdout,
            },
            dyno: (*dyno).into(),
            bytes: [&text[..], b"\n"].concat().into(),
        };
        queue.push(chunk, 1);
    }
    let dropped = queue.counts().dropped;
    let (batches, sent) = batches(&queue, &encoding, limits);
    // Each line is sent or announced, and the oldest go first.
    assert_eq!(sent + dropped, lines.len() as u64);
    let left = &lines[usize::try_from(dropped).expect("not that many")..];
    check(&encoding, limits, &batches, left, dropped > 0);
}

fn repeated(text: &[u8]) -> Vec<u8> {
    let mut line = Vec::new();
    let mut parts = text.split(|byte| *byte == 0xff).take(4).peekable();
    while let Some(part) = parts.next() {
        let times = if parts.peek().is_some() { 1000 } else { 1 };
        line.extend_from_slice(&part[..part.len().min(40)].repeat(times));
    }
    line
}

/// Everything that a sender makes of a queue, and how many lines that is.
fn batches(queue: &Queue, encoding: &Encoding, limits: Limits) -> (Vec<Batch>, u64) {
    let mut encoder = Encoder::new(encoding.clone());
    let mut held = VecDeque::new();
    let mut batches = Vec::new();
    loop {
        let mut filling = Filling::new(limits, &mut encoder, queue.announce(), 7);
        filling.fill(&mut encoder, queue, 0, &mut held);
        let Some(batch) = filling.done() else {
            assert!(held.is_empty());
            let lines = batches.iter().map(|batch: &Batch| batch.lines.count).sum();
            return (batches, lines);
        };
        batches.push(batch);
    }
}

/// Reads the batches as their reader does.
fn check(
    encoding: &Encoding,
    limits: Limits,
    batches: &[Batch],
    lines: &[(&str, Vec<u8>)],
    is_announced: bool,
) {
    let mut lines = lines.iter();
    for (at, batch) in batches.iter().enumerate() {
        let mut messages = messages(encoding, &batch.body).into_iter();
        let count = messages.len();
        // Logplex refuses a request whose Msg-Count is wrong.
        assert_eq!(count, batch.messages);
        assert!(count <= limits.messages || batch.lines.count == 1);
        if at == 0 && is_announced {
            let (_, text) = messages.next().expect("the announcement");
            let text = String::from_utf8_lossy(text);
            assert!(text.contains("messages dropped since"), "{text}");
        }
        for _ in 0..batch.lines.count {
            let (dyno, line) = lines.next().expect("no more lines than there were");
            let mut rest = &line[..];
            loop {
                let (of, piece) = messages.next().expect("all of the line");
                assert_eq!(of, *dyno);
                if *encoding == Encoding::Json {
                    // What is no text in it cannot be kept.
                    let expected = String::from_utf8_lossy(line);
                    let found: String = serde_json::from_slice(piece).expect("a JSON string");
                    assert_eq!(found, expected);
                    break;
                }
                rest = rest.strip_prefix(piece).expect("the line in order");
                assert!(*encoding == Encoding::Text || piece.len() <= PIECE);
                // No character is cut in two.
                assert!(str::from_utf8(line).is_err() || str::from_utf8(piece).is_ok());
                if rest.is_empty() {
                    break;
                }
                assert!(!piece.is_empty());
            }
        }
        assert!(messages.next().is_none());
    }
    assert!(lines.next().is_none());
}

/// Whose each message is, and its text.
fn messages<'a>(encoding: &Encoding, mut body: &'a [u8]) -> Vec<(&'a str, &'a [u8])> {
    let mut messages = Vec::new();
    while !body.is_empty() {
        let message = match encoding {
            Encoding::Text | Encoding::Json => until(&mut body, b'\n'),
            _ => {
                let before = body.len();
                let length = str::from_utf8(until(&mut body, b' ')).expect("digits");
                let length: usize = length.parse().expect("a number");
                let message = body.split_off(..length).expect("as many bytes as it says");
                let most = match encoding {
                    Encoding::Syslog { .. } => SYSLOG,
                    _ => LOGPLEX,
                };
                assert!(before - body.len() <= most);
                message
            }
        };
        messages.push(parted(encoding, message));
    }
    messages
}

fn parted<'a>(encoding: &Encoding, mut message: &'a [u8]) -> (&'a str, &'a [u8]) {
    let text = |bytes: &'a [u8]| str::from_utf8(bytes).expect("a header of text");
    match encoding {
        Encoding::Json => {
            let line = message.strip_suffix(b"}").expect("an object");
            let mark = br#","line":"#;
            let at = line.windows(mark.len()).position(|it| it == mark);
            let (head, line) = line.split_at(at.expect("a line"));
            let dyno = text(head).split_once(r#""dyno":""#).expect("a dyno").1;
            let dyno = dyno.split('"').next().unwrap_or_default();
            (dyno, &line[mark.len()..])
        }
        Encoding::Text => {
            until(&mut message, b'[');
            let dyno = until(&mut message, b']');
            (text(dyno), message.strip_prefix(b": ").expect("a text"))
        }
        _ => {
            // PRI and version, time, host, app.
            for _ in 0..4 {
                assert!(!until(&mut message, b' ').is_empty());
            }
            let dyno = until(&mut message, b' ');
            let dashes: &[u8] = match encoding {
                Encoding::Https => b"- ",
                _ => b"- - ",
            };
            let message = message.strip_prefix(dashes).expect("the dashes");
            let message = match encoding {
                Encoding::Syslog { .. } => message,
                _ => message.strip_suffix(b"\n").expect("its end"),
            };
            (text(dyno), message)
        }
    }
}

/// Takes what is before the first such byte, and that byte.
fn until<'a>(bytes: &mut &'a [u8], end: u8) -> &'a [u8] {
    let at = memchr::memchr(end, bytes).expect("its end");
    let (before, rest) = bytes.split_at(at);
    *bytes = &rest[1..];
    before
}
