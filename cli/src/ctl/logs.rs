//! `hsupctl logs`: lines as `heroku logs` prints them, their bytes unchanged.

use std::{fmt::Write as _, io::Write};

use hsup_core::logs::colour_of;
use hsup_proto::control::{LogLine, LogsRequest, LogsResponse};
use jiff::Timestamp;
use serde::Serialize;

use super::{
    Outcome,
    args::{LogSource, LogsArgs, Output},
    connect::Supervisor,
    error::CtlError,
    promptly,
};
use crate::look::{Colour, Look};

pub async fn run(
    mut supervisor: Supervisor,
    args: LogsArgs,
    look: &Look,
    out: &mut impl Write,
) -> Result<Outcome, CtlError> {
    let asked = promptly(supervisor.client.logs(request(&args))).await;
    let mut stream = asked.map_err(CtlError::about_names)?;
    let mut text = Vec::new();
    let mut is_empty = true;
    // Where a count of lines that are missing begins.
    let mut since_us = look.now_ms * 1000;
    while let Some(answer) = stream.message().await? {
        text.clear();
        match args.output {
            Output::Text => write_text(&mut text, &answer, since_us, look),
            Output::Json => write_json(&mut text, &answer)?,
        }
        is_empty &= text.is_empty();
        // All that came at once, so that a reader sees it now.
        let written = out.write_all(&text).and_then(|()| out.flush());
        written.map_err(CtlError::Write)?;
        if let Some(last) = answer.lines.last() {
            since_us = last.at_unix_us;
        }
    }
    // What follows ends here once hsup has shut down: had it been killed, the stream would
    // have broken off.
    let mut outcome = Outcome::done(String::new());
    // Who asks for none is told nothing by their absence.
    if is_empty && !args.tail && args.lines != Some(0) {
        outcome.complaint = nothing(&args);
    }
    Ok(outcome)
}

/// That there is no such line, beside an output of nothing.
fn nothing(args: &LogsArgs) -> String {
    let names: Vec<_> = args.dyno_name.iter().chain(&args.process_type).collect();
    let of = match names[..] {
        [] => String::new(),
        [name] => format!(" of {name}"),
        [ref names @ .., last] => {
            let names: Vec<_> = names.iter().map(|name| name.as_str()).collect();
            format!(" of {} or {last}", names.join(", "))
        }
    };
    let source = match args.source {
        None => "",
        Some(LogSource::App) => " from the source app",
        Some(LogSource::Heroku) => " from the source heroku",
    };
    format!("hsupctl: there is no line{of}{source} yet\n")
}

fn request(args: &LogsArgs) -> LogsRequest {
    let source = match args.source {
        None => "",
        Some(LogSource::App) => "app",
        Some(LogSource::Heroku) => "heroku",
    };
    let names = args.dyno_name.iter().chain(&args.process_type);
    LogsRequest {
        follow: args.tail,
        lines: args.lines,
        select: names.cloned().collect(),
        source: source.to_owned(),
    }
}

/// `2026-11-23T19:42:45.249012+00:00`, always in UTC, as Heroku has it.
fn timestamp(at_us: i64) -> String {
    let at = Timestamp::from_microsecond(at_us).unwrap_or(Timestamp::UNIX_EPOCH);
    at.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00").to_string()
}

fn write_text(text: &mut Vec<u8>, answer: &LogsResponse, since_us: i64, look: &Look) {
    if answer.dropped > 0 {
        let at = answer
            .lines
            .first()
            .map_or(look.now_ms * 1000, |line| line.at_unix_us);
        let notice = format!(
            "{} {}: {}\n",
            timestamp(at),
            look.paint(Colour::Red, "heroku[logplex]"),
            overflow(answer.dropped, since_us),
        );
        text.extend_from_slice(notice.as_bytes());
    }
    for line in &answer.lines {
        write_line(text, line, look);
    }
}

/// Heroku's words for lines that a tail was too slow for.
fn overflow(dropped: u64, since_us: i64) -> String {
    let since = Timestamp::from_microsecond(since_us).unwrap_or(Timestamp::UNIX_EPOCH);
    format!(
        "Error L11 (Tail buffer overflow) -> This tail session dropped {dropped} messages since {}.",
        since.strftime("%Y-%m-%dT%H:%M:%S+00:00")
    )
}

fn write_line(text: &mut Vec<u8>, line: &LogLine, look: &Look) {
    let mut prefix = timestamp(line.at_unix_us);
    // The colour that the dyno has in the terminal of `hsup start`.
    let (colour, reset) = if look.colour {
        (colour_of(&line.dyno), "\x1b[0m")
    } else {
        ("", "")
    };
    let (source, dyno) = (&line.source, &line.dyno);
    write!(prefix, " {colour}{source}[{dyno}]{reset}: ").expect("writing to a string cannot fail");
    text.extend_from_slice(prefix.as_bytes());
    text.extend_from_slice(&line.line);
    text.push(b'\n');
}

#[derive(Serialize)]
struct JsonLine<'a> {
    at: String,
    source: &'a str,
    dyno: &'a str,
    stream: &'static str,
    line: std::borrow::Cow<'a, str>,
}

#[derive(Serialize)]
struct JsonDropped {
    dropped: u64,
}

fn write_json(text: &mut Vec<u8>, answer: &LogsResponse) -> Result<(), CtlError> {
    let mut push = |value: serde_json::Result<Vec<u8>>| -> Result<(), CtlError> {
        text.extend(value.map_err(CtlError::Json)?);
        text.push(b'\n');
        Ok(())
    };
    if answer.dropped > 0 {
        let dropped = answer.dropped;
        push(serde_json::to_vec(&JsonDropped { dropped }))?;
    }
    for line in &answer.lines {
        let at = Timestamp::from_microsecond(line.at_unix_us).unwrap_or(Timestamp::UNIX_EPOCH);
        push(serde_json::to_vec(&JsonLine {
            // As all other JSON of hsup has it.
            at: format!("{at:.6}"),
            source: &line.source,
            dyno: &line.dyno,
            stream: if line.stderr { "stderr" } else { "stdout" },
            line: String::from_utf8_lossy(&line.line),
        }))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::look::tests::{NOW, plain};

    fn answer() -> LogsResponse {
        let line = |source: &str, line: &[u8]| LogLine {
            at_unix_us: NOW * 1000 + 249_012,
            source: source.to_owned(),
            dyno: "web.1".to_owned(),
            line: line.to_vec(),
            stderr: source == "app",
        };
        LogsResponse {
            lines: vec![
                line("heroku", b"State changed from starting to up"),
                line("app", b"\xff\0 \x1b[1mbold\x1b[0m  "),
            ],
            dropped: 12,
        }
    }

    #[test]
    fn lines_are_herokus_and_their_bytes_the_dynos() {
        let mut text = Vec::new();
        write_text(&mut text, &answer(), (NOW - 1000) * 1000, &plain());
        let expected: &[u8] = b"2026-11-23T19:42:10.249012+00:00 heroku[logplex]: \
            Error L11 (Tail buffer overflow) -> This tail session dropped 12 messages since 2026-11-23T19:42:09+00:00.\n\
            2026-11-23T19:42:10.249012+00:00 heroku[web.1]: State changed from starting to up\n\
            2026-11-23T19:42:10.249012+00:00 app[web.1]: \xff\0 \x1b[1mbold\x1b[0m  \n";
        assert_eq!(text, expected, "{}", String::from_utf8_lossy(&text));
    }

    #[test]
    fn only_the_identifier_is_coloured() {
        let look = Look {
            colour: true,
            ..plain()
        };
        let mut text = Vec::new();
        write_line(&mut text, &answer().lines[0], &look);
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "2026-11-23T19:42:10.249012+00:00 \x1b[36mheroku[web.1]\x1b[0m: State changed from starting to up\n"
        );
    }

    #[test]
    fn json_is_an_object_a_line() {
        let mut text = Vec::new();
        write_json(&mut text, &answer()).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "{\"dropped\":12}\n\
             {\"at\":\"2026-11-23T19:42:10.249012Z\",\"source\":\"heroku\",\"dyno\":\"web.1\",\
             \"stream\":\"stdout\",\"line\":\"State changed from starting to up\"}\n\
             {\"at\":\"2026-11-23T19:42:10.249012Z\",\"source\":\"app\",\"dyno\":\"web.1\",\
             \"stream\":\"stderr\",\"line\":\"\u{fffd}\\u0000 \\u001b[1mbold\\u001b[0m  \"}\n"
        );
    }
}
