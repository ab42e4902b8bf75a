//! The journal of dynos: which were started and have not been seen to end.
//!
//! One JSON object a line, appended with one write(2), because a dyno id must be on
//! disk before the driver hears of it: after a crash of hsup the journal is what tells
//! a dyno to adopt from an orphan to stop. There is no fsync. It must survive kill -9;
//! after a power cut there is nothing left to adopt.
//!
//! Loading never fails over its contents. A torn last line is what kill -9 leaves, or a
//! full disk; any other line that makes no sense is reported and skipped.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use thiserror::Error;

use super::Damage;
use crate::{
    exit::ExitStatus,
    name::{DynoId, DynoName},
};

/// A journal smaller than this is not worth rewriting.
const COMPACT_ABOVE: u64 = 1024 * 1024;

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The driver is about to be asked for this dyno.
    Start(LiveDyno),
    /// It has ended, or was lost for good.
    End { dyno_id: DynoId, status: ExitStatus },
}

/// A dyno that was started and is not known to have ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveDyno {
    pub dyno_id: DynoId,
    /// Which dyno of the formation it is.
    pub name: DynoName,
    /// The id that hsup gave its release.
    pub release: u64,
    /// When it was started, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub at_unix_ms: i64,
    /// Its PORT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Where its FIFOs are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_dir: Option<PathBuf>,
}

/// The journal could not be used.
#[derive(Debug, Error)]
pub enum JournalError {
    #[error("failed to open the journal of dynos `{}`", .path.display())]
    Open { path: PathBuf, source: io::Error },

    /// Nothing of what was to be written counts as written.
    #[error(
        "failed to write the journal of dynos `{}`; no dyno is started until it can be written, those that run go on",
        .path.display()
    )]
    Write { path: PathBuf, source: io::Error },
}

/// The journal, open for appending.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    live: BTreeMap<DynoId, LiveDyno>,
    /// How long the file is, as far as whole lines go.
    length: u64,
    /// A write stopped in the middle of a line and could not be undone.
    torn: bool,
    /// The length at which it is rewritten.
    compact_at: u64,
}

impl Journal {
    /// Opens the journal, finds out which dynos live, and rewrites it with those alone.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<Damage>), JournalError> {
        let failed = |source| JournalError::Open {
            path: path.to_owned(),
            source,
        };
        let mut file = open_for_append(path).map_err(failed)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;

        let contents = Contents::read(&text);
        let damage = contents.damage(path);
        let mut journal = Self {
            path: path.to_owned(),
            file,
            length: u64::try_from(text.len()).unwrap_or(u64::MAX),
            torn: text.last().is_some_and(|&last| last != b'\n'),
            compact_at: COMPACT_ABOVE,
            live: contents.live,
        };
        if contents.lines > journal.live.len() || !damage.is_empty() {
            journal.try_compact();
        }
        Ok((journal, damage))
    }

    /// The dynos that were started and are not known to have ended.
    pub fn live(&self) -> impl Iterator<Item = &LiveDyno> {
        self.live.values()
    }

    /// Appends all records or none, in one write.
    ///
    /// # Errors
    /// When they could not be written whole. A dyno may then not be started; its end may
    /// be written again later, or be found out by the next reconcile.
    pub fn append(&mut self, records: &[Record]) -> Result<(), JournalError> {
        if records.is_empty() {
            return Ok(());
        }
        let mut lines = Vec::with_capacity(records.len() * 128);
        if self.torn {
            lines.push(b'\n');
        }
        self.write(records, lines)
            .map_err(|source| JournalError::Write {
                path: self.path.clone(),
                source,
            })?;
        for record in records {
            apply(&mut self.live, record.clone());
        }
        if self.length > self.compact_at {
            self.try_compact();
        }
        Ok(())
    }

    fn write(&mut self, records: &[Record], mut lines: Vec<u8>) -> io::Result<()> {
        for record in records {
            serde_json::to_writer(&mut lines, record)?;
            lines.push(b'\n');
        }
        let written = loop {
            match self.file.write(&lines) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        let error = match written {
            Ok(count) if count == lines.len() => {
                self.length += u64::try_from(count).unwrap_or(u64::MAX);
                self.torn = false;
                return Ok(());
            }
            Ok(0) => io::ErrorKind::WriteZero.into(),
            // The disk filled up on the way.
            Ok(_) => {
                let undone = self.file.set_len(self.length);
                self.torn |= undone.is_err();
                io::ErrorKind::StorageFull.into()
            }
            Err(error) => error,
        };
        Err(error)
    }

    /// Rewrites the journal with the live dynos alone. When that cannot be done the old
    /// one is as good, only longer.
    fn try_compact(&mut self) {
        if let Err(error) = self.compact() {
            tracing::warn!(path = %self.path.display(), %error, "journal not compacted");
            self.compact_at = self.length.saturating_add(COMPACT_ABOVE);
        }
    }

    fn compact(&mut self) -> io::Result<()> {
        let mut lines = Vec::with_capacity(self.live.len() * 128);
        for dyno in self.live.values() {
            serde_json::to_writer(&mut lines, &Record::Start(dyno.clone()))?;
            lines.push(b'\n');
        }
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let mut file = NamedTempFile::new_in(dir)?;
        file.write_all(&lines)?;
        file.persist(&self.path)?;
        self.file = open_for_append(&self.path)?;
        self.length = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        self.torn = false;
        self.compact_at = COMPACT_ABOVE.max(self.length.saturating_mul(2));
        Ok(())
    }
}

fn open_for_append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

fn apply(live: &mut BTreeMap<DynoId, LiveDyno>, record: Record) {
    match record {
        Record::Start(dyno) => {
            live.insert(dyno.dyno_id.clone(), dyno);
        }
        Record::End { dyno_id, .. } => {
            live.remove(&dyno_id);
        }
    }
}

/// What the text of a journal says.
#[derive(Debug, Default)]
struct Contents {
    live: BTreeMap<DynoId, LiveDyno>,
    lines: usize,
    /// The numbers of lines that make no sense, from 1.
    bad: Vec<usize>,
    torn: bool,
}

impl Contents {
    fn read(text: &[u8]) -> Self {
        let mut contents = Self::default();
        let whole = text.last().is_none_or(|&last| last == b'\n');
        let mut lines = text.split(|&byte| byte == b'\n').enumerate().peekable();
        while let Some((index, line)) = lines.next() {
            if line.trim_ascii().is_empty() {
                continue;
            }
            contents.lines += 1;
            match serde_json::from_slice(line) {
                Ok(record) => apply(&mut contents.live, record),
                Err(_) if !whole && lines.peek().is_none() => contents.torn = true,
                Err(_) => contents.bad.push(index + 1),
            }
        }
        contents
    }

    fn damage(&self, path: &Path) -> Vec<Damage> {
        let path = path.display();
        let mut damage = Vec::new();
        if let Some(first) = self.bad.first() {
            let count = self.bad.len();
            damage.push(Damage(format!(
                "{count} of {} lines of the journal `{path}` make no sense, the first at line {first}; \
                 a dyno they speak of is stopped if it still runs",
                self.lines,
            )));
        }
        if self.torn {
            damage.push(Damage(format!(
                "the last line of the journal `{path}` was cut off; its dyno was never started, \
                 or its end is found out again"
            )));
        }
        damage
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn dyno(number: u64) -> LiveDyno {
        let name: DynoName = format!("web.{}", number + 1).parse().unwrap();
        LiveDyno {
            dyno_id: DynoId::mint(&name, number),
            name,
            release: 3,
            port: Some(5000),
            at_unix_ms: 7,
            io_dir: Some("/run/hsup/run/x/y".into()),
        }
    }

    fn start(number: u64) -> Record {
        Record::Start(dyno(number))
    }

    fn end(number: u64) -> Record {
        Record::End {
            dyno_id: dyno(number).dyno_id,
            status: ExitStatus::code(1, 42),
        }
    }

    fn live(journal: &Journal) -> Vec<LiveDyno> {
        journal.live().cloned().collect()
    }

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("journal")
        }

        fn open(&self) -> (Journal, Vec<Damage>) {
            Journal::open(&self.path()).unwrap()
        }

        fn text(&self) -> String {
            fs::read_to_string(self.path()).unwrap()
        }
    }

    #[test]
    fn what_was_started_and_has_not_ended_is_found_again() {
        let dir = Dir::new();
        let (mut journal, damage) = dir.open();
        assert_eq!(damage, []);
        journal.append(&[start(0), start(1)]).unwrap();
        journal.append(&[end(0), start(2)]).unwrap();
        assert_eq!(live(&journal), [dyno(1), dyno(2)]);
        drop(journal);

        let (journal, damage) = dir.open();
        assert_eq!((live(&journal), damage), (vec![dyno(1), dyno(2)], vec![]));
        assert_eq!(dir.text().lines().count(), 2, "not compacted on open");
    }

    #[test]
    fn a_line_is_what_the_manual_says() {
        let dir = Dir::new();
        dir.open().0.append(&[start(0), end(0)]).unwrap();
        assert_eq!(
            dir.text(),
            concat!(
                r#"{"start":{"dyno_id":"web-1-0000000000000","name":"web.1","release":3,"at_unix_ms":7,"port":5000,"io_dir":"/run/hsup/run/x/y"}}"#,
                "\n",
                r#"{"end":{"dyno_id":"web-1-0000000000000","status":{"how":{"code":1},"at_unix_ms":42}}}"#,
                "\n"
            )
        );
    }

    #[test]
    fn garbage_is_reported_and_skipped() {
        let dir = Dir::new();
        dir.open().0.append(&[start(0), start(1)]).unwrap();
        let (first, second) = {
            let text = dir.text();
            let mut lines = text.lines().map(str::to_owned);
            (lines.next().unwrap(), lines.next().unwrap())
        };
        let mut text = format!("{first}\n\0\0\0\n{{\"start\":7}}\n{second}\n").into_bytes();
        text.extend(b"\xff\xfe\n{\"start\":{\"dyno_id\":\"we");
        crate::files::write_atomic(&dir.path(), &text).unwrap();

        let (journal, damage) = dir.open();
        assert_eq!(live(&journal), [dyno(0), dyno(1)]);
        let damage: Vec<String> = damage.iter().map(ToString::to_string).collect();
        assert_eq!(damage.len(), 2, "{damage:?}");
        assert!(damage[0].starts_with("3 of 6 lines"), "{damage:?}");
        assert!(damage[1].contains("cut off"), "{damage:?}");
        assert_eq!(dir.open().1, [], "damage is reported once");
    }

    #[test]
    fn a_journal_that_cannot_be_compacted_on_open_is_still_appended_to() {
        let dir = Dir::new();
        let (mut journal, _) = dir.open();
        journal.append(&[start(0)]).unwrap();
        // A line that a full disk cut off, and that could not be undone.
        journal.file.write_all(b"{\"start\":{\"dy").unwrap();
        journal.torn = true;
        journal.append(&[start(1)]).unwrap();
        let (journal, damage) = dir.open();
        assert_eq!(live(&journal), [dyno(0), dyno(1)]);
        assert_eq!(damage.len(), 1, "{damage:?}");
    }

    #[test]
    fn a_full_disk_is_an_error_that_says_what_happens_and_ends() {
        let dir = Dir::new();
        let (mut journal, _) = dir.open();
        journal.append(&[start(0)]).unwrap();
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut journal.file, full);
        let error = journal.append(&[start(1)]).unwrap_err();
        let JournalError::Write { source, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().contains("no dyno is started"), "{error}");
        assert!(error.to_string().contains("journal`"), "{error}");
        assert_eq!(
            live(&journal),
            [dyno(0)],
            "what was not written does not count"
        );

        journal.file = file;
        journal.append(&[start(1)]).unwrap();
        drop(journal);
        let (journal, damage) = dir.open();
        assert_eq!((live(&journal), damage), (vec![dyno(0), dyno(1)], vec![]));
    }

    #[test]
    fn a_write_that_stops_half_way_does_not_spoil_the_next() {
        let dir = Dir::new();
        let (mut journal, _) = dir.open();
        // A pipe takes the first 64 KiB, and cannot be cut back to where it was.
        let (_reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        let file = std::mem::replace(&mut journal.file, File::from(writer));
        let many: Vec<Record> = (0..2000).map(start).collect();
        let error = journal.append(&many).unwrap_err();
        let JournalError::Write { source, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        assert_eq!(live(&journal), []);

        journal.file = file;
        journal.append(&[start(1)]).unwrap();
        journal.append(&[start(2)]).unwrap();
        let text = dir.text();
        assert!(text.starts_with("\n{") && !text.contains("}\n\n"), "{text}");
        assert_eq!(Contents::read(text.as_bytes()).live.len(), 2);
    }

    #[test]
    fn it_stays_small_however_many_dynos_come_and_go() {
        let dir = Dir::new();
        let (mut journal, _) = dir.open();
        journal.append(&[start(0)]).unwrap();
        let mut largest = 0;
        for round in 0..40 {
            let batch: Vec<Record> = (1..500)
                .flat_map(|n| [start(round * 1000 + n), end(round * 1000 + n)])
                .collect();
            journal.append(&batch).unwrap();
            largest = largest.max(fs::metadata(dir.path()).unwrap().len());
        }
        assert!(largest < 2 * COMPACT_ABOVE, "{largest}");
        assert_eq!(live(&journal), [dyno(0)]);
        assert_eq!(live(&dir.open().0), [dyno(0)]);
    }

    #[test]
    fn many_live_dynos_do_not_make_every_append_a_rewrite() {
        let dir = Dir::new();
        let (mut journal, _) = dir.open();
        let many: Vec<Record> = (0..10_000).map(start).collect();
        journal.append(&many).unwrap();
        assert!(journal.length > COMPACT_ABOVE);
        assert!(journal.compact_at > journal.length * 3 / 2);
    }

    proptest! {
        #[test]
        fn cut_anywhere_it_loses_at_most_the_last_line(cut in 0.0..1.0_f64) {
            let dir = Dir::new();
            dir.open().0.append(&[start(0), start(1), end(0), start(2)]).unwrap();
            let text = dir.text();
            #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "a place in a short text")]
            let text = &text[..(text.len() as f64 * cut) as usize];
            let whole: String = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
            let expected = Contents::read(whole.as_bytes());
            prop_assert!(expected.bad.is_empty() && !expected.torn);
            let got = Contents::read(text.as_bytes());
            prop_assert!(got.bad.is_empty());
            // A line that only lacks its end still counts.
            prop_assert!(got.live.len() >= expected.live.len() || got.lines > expected.lines);
            prop_assert!(got.lines <= expected.lines + 1);
        }

        #[test]
        fn reading_never_panics(text in prop::collection::vec(any::<u8>(), 0..300)) {
            Contents::read(&text);
        }
    }
}
