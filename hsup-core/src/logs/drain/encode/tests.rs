//! What each reader gets.

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
