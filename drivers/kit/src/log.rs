//! A driver's log: what an operator would be told, as lines on the driver's standard error.
//!
//! ```text
//! hsup-driver-simple: warning: refused a connection of a user who may not call this driver uid=1000
//! ```
//!
//! No time: whoever keeps the lines (hsup, journald) adds one. Events hold no config vars, and
//! a reader who does not read must not stop the driver, so a line that finds no room is lost.

use std::{
    fmt::{self, Write as _},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::write,
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};

/// Has this process log to its standard error under the driver's name. Without effect where
/// something logs already.
pub(crate) fn begin(name: &'static str) {
    begin_at(name, Level::INFO);
}

/// The same of errors alone; for a driver's helper processes. What becomes standard error later
/// gets none of it: the lines go to a copy of the descriptor, which is closed on exec.
pub fn begin_errors(name: &'static str) {
    begin_at(name, Level::ERROR);
}

fn begin_at(name: &'static str, least: Level) {
    if let Ok(to) = io::stderr().as_fd().try_clone_to_owned() {
        drop(tracing::subscriber::set_global_default(Lines {
            name,
            least,
            to,
        }));
    }
}

/// Writes `text` unless nobody makes room for it.
pub(crate) fn say(to: BorrowedFd<'_>, text: &str) {
    let mut fds = [PollFd::new(to, PollFlags::POLLOUT)];
    let has_room = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
    if has_room {
        // A pipe that has room has it for as much (pipe(7)).
        let end = text.len().min(libc::PIPE_BUF);
        // Nobody may have the other end: then nobody looks.
        let _ = write(to, &text.as_bytes()[..end]);
    }
}

/// Writes each event as one line.
#[derive(Debug)]
struct Lines {
    name: &'static str,
    /// What is less grave is not written.
    least: Level,
    to: OwnedFd,
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.least && metadata.is_event()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.least))
    }

    fn event(&self, event: &Event<'_>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            _ => "",
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields { message, others } = fields;
        say(
            self.to.as_fd(),
            &format!("{}: {level}{message}{others}\n", self.name),
        );
    }

    // The kit makes no spans, and those of libraries are not enabled.
    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}

    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}

    fn enter(&self, _span: &span::Id) {}

    fn exit(&self, _span: &span::Id) {}
}

/// The message of an event, and its other fields behind it.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = one_line(&format!("{value:?}"));
        if field.name() == "message" {
            self.message = text;
        } else {
            // Writing to a string does not fail.
            let _ = write!(self.others, " {}={text}", field.name());
        }
    }
}

/// The text without what would end the line, or move the reader's cursor.
fn one_line(text: &str) -> String {
    text.chars().fold(String::new(), |mut line, char| {
        if char.is_control() {
            line.extend(char.escape_default());
        } else {
            line.push(char);
        }
        line
    })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _};

    use nix::{fcntl::OFlag, unistd::pipe2};
    use tracing::subscriber::with_default;

    use super::*;

    fn lines() -> (Lines, File) {
        lines_from(Level::INFO)
    }

    fn lines_from(least: Level) -> (Lines, File) {
        let (read, to) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let name = "drv";
        (Lines { name, least, to }, read.into())
    }

    #[test]
    fn a_helper_writes_its_errors_alone() {
        let (log, mut read) = lines_from(Level::ERROR);
        with_default(log, || {
            tracing::warn!("a controller is missing");
            tracing::error!("no room");
        });
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "drv: error: no room\n");
    }

    #[test]
    fn an_event_is_a_line_with_its_level_and_fields() {
        let (log, mut read) = lines();
        with_default(log, || {
            tracing::warn!(uid = 7, error = %"no\nroom", "refused a connection");
            tracing::info!(dyno_id = "a", "stopping a dyno");
            tracing::debug!("nobody's business");
        });
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(
            text,
            "drv: warning: refused a connection uid=7 error=no\\nroom\n\
             drv: stopping a dyno dyno_id=a\n"
        );
    }

    #[test]
    fn nobody_waits_for_a_reader() {
        let (log, mut read) = lines();
        with_default(log, || {
            // More than any pipe takes; a log that waited would never get past this.
            for _ in 0..10_000 {
                tracing::warn!(filler = "x".repeat(100), "again");
            }
        });
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("x\n"), "a line was cut");
    }
}
