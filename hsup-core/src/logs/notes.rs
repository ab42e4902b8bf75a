//! hsup's own lines on their way to a terminal that may be blocked.
//!
//! Who has something to say never waits for it. When the terminal takes nothing
//! for long, the newest lines are not shown, and how many is said once it flows again.

use std::sync::Arc;

use super::{SYSTEM, line::counted};

/// What may wait.
const MAX_NOTES: usize = 1024;
const MAX_BYTES: usize = 256 * 1024;

/// One or more lines of hsup's own about one dyno.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) name: Arc<str>,
    pub(super) at_unix_us: i64,
    /// Each with its `\n`.
    pub(super) lines: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct Notes {
    waiting: Vec<Note>,
    bytes: usize,
    dropped: u64,
}

impl Notes {
    pub(super) fn push(&mut self, note: Note) {
        if self.waiting.len() == MAX_NOTES || self.bytes + note.lines.len() > MAX_BYTES {
            self.dropped += memchr::memchr_iter(b'\n', &note.lines).count() as u64;
            return;
        }
        self.bytes += note.lines.len();
        self.waiting.push(note);
    }

    /// What waited, and a last note about what did not fit.
    pub(super) fn into_notes(self, at_unix_us: i64) -> Vec<Note> {
        let mut notes = self.waiting;
        if self.dropped > 0 {
            let text = format!(
                "{} of hsup's own not shown: the terminal took nothing\n",
                counted(self.dropped)
            );
            notes.push(Note {
                name: SYSTEM.into(),
                at_unix_us,
                lines: text.into_bytes(),
            });
        }
        notes
    }
}

/// The text of a note as lines: an end for the last one, and none for lines that are not there.
pub(super) fn lines_of(text: &str) -> Vec<u8> {
    let text = text.trim_end_matches('\n');
    let mut lines = Vec::with_capacity(text.len() + 1);
    lines.extend_from_slice(text.as_bytes());
    lines.push(b'\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut notes = Notes::default();
        for index in 0..MAX_NOTES + 5 {
            notes.push(Note {
                name: "web.1".into(),
                at_unix_us: 0,
                lines: lines_of(&format!("{index}\nsecond")),
            });
        }
        let notes = notes.into_notes(9);
        assert_eq!(notes.len(), MAX_NOTES + 1);
        assert_eq!(notes[MAX_NOTES - 1].lines, b"1023\nsecond\n");
        let last = &notes[MAX_NOTES];
        assert_eq!((&*last.name, last.at_unix_us), ("system", 9));
        assert_eq!(
            last.lines,
            b"10 lines of hsup's own not shown: the terminal took nothing\n"
        );
    }
}
