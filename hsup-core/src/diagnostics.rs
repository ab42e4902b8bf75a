//! The last of what hsup did and decided, kept in memory for when something is wrong.
//!
//! A [`tracing`] layer that keeps the last 64 KiB of hsup's own events from `DEBUG`
//! up, and other crates' from `WARN` up. `SIGUSR1` prints them to standard error, as
//! the original hsup did; until somebody asks, they cost a copy and no I/O.
//! Everything else is filtered out before it is formatted.
//!
//! ```text
//! 2026-11-24T03:20:24.123456Z DEBUG hsup_core::dyno dyno{name=web.1}: exited status=1
//! ```
//!
//! One event is one line: control characters in values are escaped. Secrets never
//! get here, because they are never logged.

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
    io::{self, IsTerminal as _},
    os::fd::AsFd as _,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
    subscriber::SetGlobalDefaultError,
};
use tracing_subscriber::{
    Layer, Registry,
    filter::filter_fn,
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
};

use crate::logs::write_some;

/// What is kept, in bytes.
const KEPT_BYTES: usize = 64 * 1024;
/// A longer event is cut: it must not push out all others.
const EVENT_BYTES: usize = 4 * 1024;

/// The last diagnostics; a cheap handle.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    kept: Arc<Mutex<VecDeque<u8>>>,
}

impl Diagnostics {
    /// Keeps nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes this the process's only subscriber of `tracing`.
    ///
    /// # Errors
    /// When there is one already.
    pub fn install(&self) -> Result<(), SetGlobalDefaultError> {
        tracing::subscriber::set_global_default(Registry::default().with(self.layer()))
    }

    /// The layer that fills it, with its filter; other layers beside it see what they want.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let filter = filter_fn(is_kept).with_max_level_hint(LevelFilter::DEBUG);
        Keeper {
            diagnostics: self.clone(),
        }
        .with_filter(filter)
    }

    /// All that is kept, oldest first, each event on a line of its own.
    pub fn dump(&self) -> Vec<u8> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().copied().collect()
    }

    /// Prints all that is kept to standard error whenever SIGUSR1 comes, for as long as the
    /// runtime that this is called in lives. For a command that has no log router.
    ///
    /// # Errors
    /// When the signal cannot be received.
    pub fn print_on_signal(&self) -> io::Result<()> {
        let mut asked = signal(SignalKind::user_defined1())?;
        let this = self.clone();
        tokio::spawn(async move {
            while asked.recv().await.is_some() {
                this.print().await;
            }
        });
        Ok(())
    }

    async fn print(&self) {
        let text = self.dump();
        let (done, printed) = oneshot::channel();
        // A thread of its own, and past the lock of the standard library's stream: standard
        // error may take nothing for hours, and hsup goes on meanwhile, and ends.
        let print = move || {
            write_to_stderr(&text);
            let _: Result<(), ()> = done.send(());
        };
        if thread::Builder::new()
            .name("diagnostics".to_owned())
            .spawn(print)
            .is_ok()
        {
            // It says so even if it fails; there is nobody to tell why.
            let _: Result<(), oneshot::error::RecvError> = printed.await;
        }
    }

    fn keep(&self, line: &str) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let excess = (kept.len() + line.len()).saturating_sub(KEPT_BYTES);
        if excess > 0 {
            let newline = kept.iter().skip(excess - 1).position(|byte| *byte == b'\n');
            let cut = newline.map_or(kept.len(), |at| excess + at);
            drop(kept.drain(..cut));
        }
        kept.extend(line.as_bytes());
    }
}

fn write_to_stderr(text: &[u8]) {
    let stderr = io::stderr();
    let mut shown = Vec::with_capacity(text.len());
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        shown.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
        // A terminal that `hsup run` has made raw stays in its column at a newline alone.
        shown.extend_from_slice(if stderr.is_terminal() { b"\r\n" } else { b"\n" });
    }
    let mut left = &shown[..];
    while !left.is_empty()
        && let Ok(written) = write_some(stderr.as_fd(), left)
    {
        left = &left[written..];
    }
}

fn is_kept(metadata: &Metadata<'_>) -> bool {
    let crate_name = metadata.target().split("::").next().unwrap_or_default();
    let ours = crate_name == "hsup" || crate_name == "hsupctl" || crate_name.starts_with("hsup_");
    let level = if ours { Level::DEBUG } else { Level::WARN };
    *metadata.level() <= level
}

struct Keeper {
    diagnostics: Diagnostics,
}

/// A span's fields as text, made when it begins.
struct SpanFields(String);

impl<S> Layer<S> for Keeper
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        context: Context<'_, S>,
    ) {
        if let Some(span) = context.span(id) {
            let mut text = String::new();
            attributes.record(&mut Text(&mut text));
            span.extensions_mut().insert(SpanFields(text));
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<SpanFields>()
        {
            values.record(&mut Text(&mut fields.0));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut line = format!(
            "{:.6} {:<5} {}",
            jiff::Timestamp::now(),
            metadata.level(),
            metadata.target()
        );
        if let Some(scope) = context.event_scope(event) {
            for span in scope.from_root() {
                line.push(' ');
                line.push_str(span.name());
                let extensions = span.extensions();
                if let Some(SpanFields(fields)) = extensions.get()
                    && !fields.is_empty()
                {
                    line.push('{');
                    line.push_str(fields);
                    line.push('}');
                }
            }
        }
        line.push(':');
        event.record(&mut Text(&mut line));
        if line.len() > EVENT_BYTES {
            line.truncate(line.floor_char_boundary(EVENT_BYTES));
            line.push('…');
        }
        line.push('\n');
        self.diagnostics.keep(&line);
    }
}

/// Appends fields to a line, separated by spaces, the message without its name.
struct Text<'a>(&'a mut String);

impl Text<'_> {
    fn value(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        if field.name() != "message" {
            self.0.push_str(field.name());
            self.0.push('=');
        }
        // Writing to a string cannot fail; a value's own Display may, and then it is left out.
        if Escaped(self.0).write_fmt(value).is_err() {
            self.0.push('?');
        }
    }
}

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.value(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.value(field, format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.value(field, format_args!("{value}"));
        let mut cause = value.source();
        while let Some(error) = cause {
            // The chain belongs to the same value.
            if write!(Escaped(self.0), ": {error}").is_err() {
                self.0.push('?');
            }
            cause = error.source();
        }
    }
}

/// Keeps a value on its line.
struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if !text.contains(char::is_control) {
            self.0.push_str(text);
            return Ok(());
        }
        for character in text.chars() {
            if character.is_control() {
                self.0.extend(character.escape_default());
            } else {
                self.0.push(character);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tracing::{debug, debug_span, info, trace, warn};

    use super::*;

    /// What is kept of what `events` does.
    fn kept(events: impl FnOnce()) -> Vec<String> {
        let diagnostics = Diagnostics::new();
        let subscriber = Registry::default().with(diagnostics.layer());
        tracing::subscriber::with_default(subscriber, events);
        let text = String::from_utf8(diagnostics.dump()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// A line behind its time.
    fn behind_time(line: &str) -> &str {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
        rest
    }

    #[test]
    fn an_event_is_one_line_with_who_and_what() {
        let lines = kept(|| {
            let span = debug_span!(target: "hsup_core::dyno", "dyno", name = "web.1", id = tracing::field::Empty);
            span.record("id", 7);
            let _entered = span.enter();
            info!(target: "hsup_core::dyno", status = 1, why = "line\nbreak", "exited");
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(
            behind_time(&lines[0]),
            r"INFO  hsup_core::dyno dyno{name=web.1 id=7}: exited status=1 why=line\nbreak"
        );
    }

    #[test]
    fn an_error_comes_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("failed to read `x`")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::ErrorKind::NotFound.into());
        let lines = kept(|| warn!(error = &error as &dyn std::error::Error, "no release"));
        assert!(
            lines[0].ends_with(": no release error=failed to read `x`: entity not found"),
            "{lines:?}"
        );
    }

    #[test]
    fn only_what_is_worth_it_is_kept() {
        let lines = kept(|| {
            debug!(target: "hsup", "1");
            debug!(target: "hsup_driver_kit::serve", "2");
            trace!(target: "hsup_core", "too fine");
            info!(target: "h2::proto", "too foreign");
            debug!(target: "hsupper", "no crate of ours");
            warn!(target: "h2::proto", "3");
        });
        let ends: Vec<&str> = lines
            .iter()
            .filter_map(|line| line.rsplit_once(": "))
            .map(|(_, end)| end)
            .collect();
        assert_eq!(ends, ["1", "2", "3"]);
    }

    #[test]
    fn the_last_64_kib_are_kept_in_whole_lines() {
        let long = "x".repeat(10_000);
        let lines = kept(|| {
            for number in 0..2000 {
                debug!(target: "hsup", number, "an event of a usual length, more or less");
            }
            debug!(target: "hsup", long, "cut");
        });
        let bytes: usize = lines.iter().map(|line| line.len() + 1).sum();
        assert!(
            bytes <= KEPT_BYTES && bytes > KEPT_BYTES - 2 * EVENT_BYTES,
            "{bytes}"
        );
        let (last, rest) = lines.split_last().unwrap();
        assert!(last.ends_with("x…") && last.len() < EVENT_BYTES + 8);
        assert!(rest.last().unwrap().ends_with("number=1999"));
        behind_time(&lines[0]);
    }
}
