//! `hsupctl logs`: lines as `heroku logs` has them, an app's bytes unchanged.

use std::io::{self, Write};

use hsup_proto::control::{LogLine, LogsRequest, LogsResponse};
use serde::Serialize;

use super::{connect::Client, error::CtlError};
use crate::{
    moment::log_time,
    style::{Colour, Style},
};

/// How `logs` and `events` print for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Json {
    /// One JSON object on each line
    Json,
}

/// Whose lines to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Source {
    /// What the dynos wrote
    App,
    /// What hsup says of them
    Heroku,
}

/// Shows what the dynos wrote and what hsup says of them
///
/// Here -s means --source: hsup's socket is given as --control-socket, or as -s before the word
/// `logs`.
#[derive(Clone, Debug, clap::Args)]
pub struct LogsArgs {
    /// Keep showing new lines
    #[arg(short, long)]
    tail: bool,

    /// How many of the last lines to show; 100 unless given
    #[arg(short, long, value_name = "N")]
    num: Option<u32>,

    /// Only this dyno, such as `web.1` (can be repeated)
    #[arg(short, long, value_name = "DYNO")]
    dyno_name: Vec<String>,

    /// Only this process type, such as `web` (can be repeated)
    #[arg(short, long, value_name = "TYPE")]
    process_type: Vec<String>,

    /// Only lines of this source
    #[arg(short, long, value_enum, value_name = "SOURCE")]
    source: Option<Source>,

    /// How to print them, instead of as `heroku logs` does
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Json>,
}

impl LogsArgs {
    fn request(&self) -> LogsRequest {
        let select = self.dyno_name.iter().chain(&self.process_type);
        LogsRequest {
            follow: self.tail,
            lines: self.num,
            select: select.cloned().collect(),
            source: match self.source {
                Some(Source::App) => "app",
                Some(Source::Heroku) => "heroku",
                None => "",
            }
            .to_owned(),
        }
    }

    /// Prints lines until there are no more; with `--tail`, until hsup goes away.
    ///
    /// # Errors
    /// When hsup refuses or goes away, or nobody reads.
    pub async fn run(
        self,
        client: &mut Client,
        output: &mut (impl Write + Send),
        style: Style,
    ) -> Result<(), CtlError> {
        let mut stream = client.logs(self.request()).await?.into_inner();
        while let Some(batch) = stream.message().await? {
            match self.output {
                None => print_lines(output, &batch, style),
                Some(Json::Json) => print_json(output, &batch),
            }
            .and_then(|()| output.flush())
            .map_err(CtlError::Output)?;
        }
        if self.tail {
            Err(CtlError::Gone)
        } else {
            Ok(())
        }
    }
}

fn print_lines(output: &mut impl Write, batch: &LogsResponse, style: Style) -> io::Result<()> {
    if batch.dropped > 0 {
        let at = batch.lines.first().map_or(0, |line| line.at_unix_us);
        let messages = if batch.dropped == 1 {
            "message"
        } else {
            "messages"
        };
        writeln!(
            output,
            "{} {} Error L11 (Tail buffer overflow) -> This tail session dropped {} {messages}.",
            log_time(at),
            style.paint(Colour::Red, "heroku[logplex]:"),
            batch.dropped
        )?;
    }
    for line in &batch.lines {
        print_line(output, line, style)?;
    }
    Ok(())
}

fn print_line(output: &mut impl Write, line: &LogLine, style: Style) -> io::Result<()> {
    let identifier = format!("{}[{}]:", line.source, line.dyno);
    let identifier = style.paint(colour_of(&line.dyno), &identifier);
    write!(output, "{} {identifier} ", log_time(line.at_unix_us))?;
    output.write_all(&line.line)?;
    output.write_all(b"\n")
}

/// The colour of a process type: always the same, so that people learn it.
fn colour_of(dyno: &str) -> Colour {
    const OTHERS: [Colour; 4] = [Colour::Green, Colour::Magenta, Colour::Yellow, Colour::Cyan];
    match dyno.split('.').next().unwrap_or(dyno) {
        "run" => Colour::Yellow,
        "web" => Colour::Cyan,
        "api" => Colour::Grey,
        name => {
            let sum = name.bytes().fold(0_usize, |sum, byte| {
                sum.wrapping_mul(31).wrapping_add(byte.into())
            });
            OTHERS[sum % OTHERS.len()]
        }
    }
}

#[derive(Serialize)]
struct LineView<'a> {
    at: String,
    source: &'a str,
    dyno: &'a str,
    stream: Option<&'static str>,
    line: &'a str,
}

#[derive(Serialize)]
struct DroppedView {
    dropped: u64,
}

fn print_json(output: &mut impl Write, batch: &LogsResponse) -> io::Result<()> {
    if batch.dropped > 0 {
        serde_json::to_writer(
            &mut *output,
            &DroppedView {
                dropped: batch.dropped,
            },
        )?;
        output.write_all(b"\n")?;
    }
    for line in &batch.lines {
        let stream = match (line.source.as_str(), line.stderr) {
            ("app", true) => Some("stderr"),
            ("app", false) => Some("stdout"),
            _ => None,
        };
        let view = LineView {
            at: log_time(line.at_unix_us),
            source: &line.source,
            dyno: &line.dyno,
            stream,
            line: &String::from_utf8_lossy(&line.line),
        };
        serde_json::to_writer(&mut *output, &view)?;
        output.write_all(b"\n")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> LogsResponse {
        let at = 1_795_462_965_249_012;
        LogsResponse {
            lines: vec![
                LogLine {
                    at_unix_us: at,
                    source: "heroku".to_owned(),
                    dyno: "web.1".to_owned(),
                    line: b"State changed from starting to up".to_vec(),
                    stderr: false,
                },
                LogLine {
                    at_unix_us: at + 1_000_000,
                    source: "app".to_owned(),
                    dyno: "worker.1".to_owned(),
                    line: b"caf\xe9 \x1b[1mbold\0".to_vec(),
                    stderr: true,
                },
            ],
            dropped: 0,
        }
    }

    fn printed(batch: &LogsResponse, style: Style) -> Vec<u8> {
        let mut output = Vec::new();
        print_lines(&mut output, batch, style).unwrap();
        output
    }

    #[test]
    fn lines_look_as_heroku_logs_and_keep_their_bytes() {
        assert_eq!(
            printed(&batch(), Style::Plain).as_slice(),
            b"2026-11-23T19:42:45.249012+00:00 heroku[web.1]: State changed from starting to up\n\
              2026-11-23T19:42:46.249012+00:00 app[worker.1]: caf\xe9 \x1b[1mbold\0\n"
        );
    }

    #[test]
    fn the_identifier_is_coloured_and_nothing_else() {
        let text = printed(&batch(), Style::Coloured);
        let start = b"2026-11-23T19:42:45.249012+00:00 \x1b[36mheroku[web.1]:\x1b[0m State";
        assert!(text.starts_with(start), "{}", text.escape_ascii());
    }

    #[test]
    fn what_was_dropped_is_said() {
        let mut batch = batch();
        batch.dropped = 12;
        let text = printed(&batch, Style::Plain);
        let start = b"2026-11-23T19:42:45.249012+00:00 heroku[logplex]: Error L11 \
            (Tail buffer overflow) -> This tail session dropped 12 messages.\n";
        assert!(text.starts_with(start), "{}", text.escape_ascii());
        let mut json = Vec::new();
        print_json(&mut json, &batch).unwrap();
        let json = String::from_utf8(json).unwrap();
        let mut lines = json.lines();
        assert_eq!(lines.next(), Some(r#"{"dropped":12}"#));
        let line: serde_json::Value = serde_json::from_str(lines.nth(1).unwrap()).unwrap();
        assert_eq!(line["dyno"], "worker.1");
        assert_eq!(line["stream"], "stderr");
    }
}
