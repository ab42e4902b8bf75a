//! Where the lines of one look into a pipe go.

use super::Reader;
use crate::logs::{
    line::{Origin, Source},
    shared::Shared,
    terminal::Terminal,
};

/// Everybody who gets lines, at one time.
pub(super) struct Sink<'a> {
    pub(super) shared: &'a Shared,
    pub(super) terminal: Option<&'a mut Terminal>,
    pub(super) at_unix_us: i64,
}

impl Sink<'_> {
    /// Takes whole lines.
    pub(super) fn take(&mut self, reader: &Reader, lines: &[u8]) {
        let origin = Origin {
            source: Source::App,
            stream: reader.stream,
        };
        {
            let mut state = self.shared.lock();
            let state = &mut *state;
            state
                .rings
                .append(reader.run, origin, self.at_unix_us, lines);
            state.publish(&reader.name, origin, self.at_unix_us, lines);
        }
        if let Some(terminal) = &mut self.terminal {
            terminal.lines(reader.stream, &reader.name, self.at_unix_us, lines);
        }
    }

    /// Takes a line, or a piece of one, that has no `\n`.
    pub(super) fn take_unterminated(&mut self, reader: &Reader, piece: &[u8]) {
        let mut line = Vec::with_capacity(piece.len() + 1);
        line.extend_from_slice(piece);
        line.push(b'\n');
        self.take(reader, &line);
    }
}
