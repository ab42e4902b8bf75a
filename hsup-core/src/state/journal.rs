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

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Damage;
use crate::{
    exit::ExitStatus,
    files,
    name::{DynoId, DynoName},
};

/// What the records of one dyno that is replaced take at most, about: its end, its successor's
/// start and that this is ready, and the same again when that is undone.
const ROOM_PER_DYNO: u64 = 4 * 512;

/// A journal smaller than this is not worth rewriting.
const COMPACT_ABOVE: u64 = 1024 * 1024;

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The driver is about to be asked for this dyno.
    Start(LiveDyno),
    /// It is a web that accepts connections.
    Ready { dyno_id: DynoId },
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
    #[serde(rename = "release")]
    pub release_id: u64,
    /// When it was started, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub at_unix_ms: i64,
    /// Its PORT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Where its FIFOs are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_dir: Option<PathBuf>,
    /// It is a web that has accepted connections.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ready: bool,
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

    #[error("there is no room to journal the dynos of the release in `{}`", .path.display())]
    NoRoom { path: PathBuf, source: io::Error },
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
    /// What has happened and could not be written.
    owed: Vec<Record>,
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
            owed: Vec::new(),
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
    /// When they could not be written whole. A dyno may then not be started.
    pub fn append(&mut self, records: &[Record]) -> Result<(), JournalError> {
        if records.is_empty() && self.owed.is_empty() {
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
        self.owed.clear();
        for record in records {
            apply(&mut self.live, record.clone());
        }
        if self.length > self.compact_at {
            self.try_compact();
        }
        Ok(())
    }

    /// Appends what has happened whether it can be written or not: where it cannot, it is written
    /// with what comes next, or by [`Journal::catch_up`].
    ///
    /// # Errors
    /// When it could not be written yet.
    pub fn note(&mut self, record: Record) -> Result<(), JournalError> {
        let noted = self.append(std::slice::from_ref(&record));
        if noted.is_err() {
            apply(&mut self.live, record.clone());
            self.owed.push(record);
        }
        noted
    }

    /// Writes what could not be written when it happened.
    ///
    /// # Errors
    /// When it still cannot be.
    pub fn catch_up(&mut self) -> Result<(), JournalError> {
        self.append(&[])
    }

    /// Whether something has happened that could not be written yet.
    pub fn is_behind(&self) -> bool {
        !self.owed.is_empty()
    }

    /// Makes sure that `dynos` of them can be replaced, and put back, without the disk being
    /// full half-way. A file system that cannot promise this is taken at its best.
    ///
    /// # Errors
    /// When there is no room.
    pub fn reserve(&self, dynos: usize) -> Result<(), JournalError> {
        let room = ROOM_PER_DYNO.saturating_mul(u64::try_from(dynos).unwrap_or(u64::MAX));
        let [offset, room] = [self.length, room].map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        if room == 0 {
            return Ok(());
        }
        match fallocate(
            &self.file,
            FallocateFlags::FALLOC_FL_KEEP_SIZE,
            offset,
            room,
        ) {
            Err(errno @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)) => {
                Err(JournalError::NoRoom {
                    path: self.path.clone(),
                    source: errno.into(),
                })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Gives back what was reserved and not needed.
    pub fn unreserve(&self) {
        if !self.torn
            && let Err(error) = self.file.set_len(self.length)
        {
            tracing::debug!(%error, "room of the journal not given back");
        }
    }

    fn write(&mut self, records: &[Record], mut lines: Vec<u8>) -> io::Result<()> {
        for record in self.owed.iter().chain(records) {
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
        let mut file = files::temporary_in(dir)?;
        file.write_all(&lines)?;
        // Opened before it takes its place: nothing may fail once it has, or what comes next would
        // be written to the old one, which nobody finds any more.
        let opened = open_for_append(file.path())?;
        file.persist(&self.path)?;
        self.file = opened;
        // The live dynos are without those that have ended.
        self.owed.clear();
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
        Record::Ready { dyno_id } => {
            if let Some(dyno) = live.get_mut(&dyno_id) {
                dyno.ready = true;
            }
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

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzz;
#[cfg(test)]
mod tests;
