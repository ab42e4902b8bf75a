//! The releases that hsup took in, and what became of each.
//!
//! The history is what a cold start falls back to when the newest release is a bad one,
//! so it holds whole releases, config and all: the file is 0600 and its records show no
//! config in `Debug`. It is written at once with every change, and it is kept short.
//!
//! A release that was good once stays so: from current it can only become superseded,
//! whatever happens to it when hsup is started again.

use std::{collections::BTreeSet, path::PathBuf};

use hsup_proto::control;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::{
    Damage,
    json::{JsonFile, LoadError, SaveError},
};
use crate::{driver::DriverOptions, name::ProcessType, release::Release, source::ControlText};

/// How many releases are remembered.
pub const KEEP: usize = 20;

/// How many of those that ran are, however many follow that were rejected: they are the way back.
const KEEP_GOOD: usize = 15;

/// What became of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseState {
    /// Taken in; the driver makes an artifact of it.
    Building,
    /// Its dynos replace those of the release before.
    RollingOut,
    /// It runs.
    Current,
    /// It was never, or is no longer, running.
    Rejected,
    /// It ran until a better one came.
    Superseded,
}

impl ReleaseState {
    /// Whether a release in this state runs, or did until a better one came.
    pub const fn is_good(self) -> bool {
        matches!(self, Self::Current | Self::Superseded)
    }

    /// Whether it is still to be seen what becomes of it.
    pub const fn is_undecided(self) -> bool {
        matches!(self, Self::Building | Self::RollingOut)
    }
}

impl From<ReleaseState> for control::ReleaseState {
    fn from(state: ReleaseState) -> Self {
        match state {
            ReleaseState::Building => Self::Building,
            ReleaseState::RollingOut => Self::RollingOut,
            ReleaseState::Current => Self::Current,
            ReleaseState::Rejected => Self::Rejected,
            ReleaseState::Superseded => Self::Superseded,
        }
    }
}

/// How far a release's release command is. It is written down before the command is started,
/// for it is never run twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleasePhase {
    /// It was to be started.
    Begun,
    /// It has ended well.
    Done,
}

/// What a driver made of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// The name of the driver, for an artifact means nothing to another.
    pub driver: String,
    /// What it was told for it, which may have made it what it is.
    #[serde(default, skip_serializing_if = "DriverOptions::is_empty")]
    pub options: DriverOptions,
    /// Its word for it, opaque to us.
    pub artifact: String,
}

/// One release of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRecord {
    /// Counts what hsup took in: distinct even where versions repeat.
    #[serde(deserialize_with = "counted")]
    pub id: u64,
    pub state: ReleaseState,
    /// Why it was rejected.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Where it came from: "Procfile", "control directory", "Heroku", "apply", "rollback to v3".
    pub source: String,
    /// When hsup took it in, in milliseconds since the Unix epoch.
    pub at_unix_ms: i64,
    /// For how long fewer dynos than wanted ran because of it.
    #[serde(default)]
    pub gap_ms: i64,
    /// The last lines of the dyno that did not come up, or of the release command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_lines: Vec<String>,
    /// What the driver made of it, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<Artifact>,
    /// The release itself. Its config is secret.
    pub release: Release,
    /// The text that it came as, for the file `loaded` of a control directory: kept as long
    /// as it is good, or may become so. Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<ControlText>,
    /// The release that this one repeats, for a rollback: what was made of it will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeats: Option<u64>,
    /// How far its release command is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_phase: Option<ReleasePhase>,
    /// Why its release command failed, where that was seen before it could count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_failure: Option<String>,
    /// Process types that somebody scaled after it was taken in: there, that is the later
    /// word.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub scaled_since: BTreeSet<ProcessType>,
}

impl ReleaseRecord {
    /// A release that is taken in at that moment and is now building.
    pub fn new(id: u64, release: Release, source: impl Into<String>, at_unix_ms: i64) -> Self {
        Self {
            id,
            state: ReleaseState::Building,
            reason: String::new(),
            source: source.into(),
            at_unix_ms,
            gap_ms: 0,
            last_lines: Vec::new(),
            artifact: None,
            release,
            text: None,
            repeats: None,
            release_phase: None,
            release_failure: None,
            scaled_since: BTreeSet::new(),
        }
    }
}

/// What came of taking in a release.
#[derive(Debug)]
pub struct TakenIn {
    /// The new release's id.
    pub id: u64,
    /// The records that were forgotten for it: their artifacts may be removed.
    pub forgotten: Vec<ReleaseRecord>,
}

/// The history, newest release first. A change that cannot be saved still counts
/// as long as hsup runs.
#[derive(Debug)]
pub struct History {
    file: JsonFile,
    contents: Contents,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Contents {
    #[serde(deserialize_with = "counted")]
    last_id: u64,
    releases: Vec<ReleaseRecord>,
}

/// An id. Nobody counts to one that leaves no room for more: such a file is damaged.
fn counted<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match u64::deserialize(deserializer)? {
        id if id <= u64::MAX / 2 => Ok(id),
        _ => Err(D::Error::custom("no release has such an id")),
    }
}

impl History {
    pub(super) fn load(path: PathBuf) -> Result<(Self, Option<Damage>), LoadError> {
        let (file, mut contents, damage): (_, Contents, _) = JsonFile::load(path)?;
        let newest = contents.releases.iter().map(|record| record.id).max();
        contents.last_id = contents.last_id.max(newest.unwrap_or(0));
        Ok((Self { file, contents }, damage))
    }

    /// The releases, newest first.
    pub fn iter(&self) -> impl Iterator<Item = &ReleaseRecord> {
        self.contents.releases.iter()
    }

    /// The release with this id.
    pub fn get(&self, id: u64) -> Option<&ReleaseRecord> {
        self.iter().find(|record| record.id == id)
    }

    /// The release that runs.
    pub fn current(&self) -> Option<&ReleaseRecord> {
        self.iter()
            .find(|record| record.state == ReleaseState::Current)
    }

    /// The newest release that ran: the current one, or else the last that was.
    pub fn last_good(&self) -> Option<&ReleaseRecord> {
        self.current().or_else(|| {
            self.iter()
                .find(|record| record.state == ReleaseState::Superseded)
        })
    }

    /// Takes in a release, which is now building, and the text that it came as; `repeats` is the
    /// earlier one that it is, whose record stays then.
    ///
    /// # Errors
    /// When it cannot be saved: then it is not taken in, for after a crash nobody would know
    /// whose dynos those of it are.
    pub fn take_in(
        &mut self,
        release: Release,
        text: Option<ControlText>,
        source: impl Into<String>,
        repeats: Option<u64>,
        at_unix_ms: i64,
    ) -> Result<TakenIn, SaveError> {
        let before = self.contents.clone();
        self.contents.last_id += 1;
        let id = self.contents.last_id;
        let record = ReleaseRecord {
            text,
            repeats,
            ..ReleaseRecord::new(id, release, source, at_unix_ms)
        };
        self.contents.releases.insert(0, record);
        let forgotten = self.forget();
        match self.save() {
            Ok(()) => Ok(TakenIn { id, forgotten }),
            Err(error) => {
                self.contents = before;
                Err(error)
            }
        }
    }

    /// Changes the record of a release; making one current supersedes the one before, and
    /// one that was good stays so.
    ///
    /// An id that is not known changes nothing.
    ///
    /// # Errors
    /// When the change could not be saved; it counts nevertheless.
    pub fn update(
        &mut self,
        id: u64,
        change: impl FnOnce(&mut ReleaseRecord),
    ) -> Result<(), SaveError> {
        let releases = &mut self.contents.releases;
        let Some(record) = releases.iter_mut().find(|record| record.id == id) else {
            return Ok(());
        };
        let before = record.clone();
        change(record);
        record.id = id;
        if before.state.is_good() && !record.state.is_good() {
            record.state = before.state;
        }
        if record.state == ReleaseState::Rejected {
            record.text = None;
        }
        if !record.state.is_undecided() {
            record.scaled_since.clear();
        }
        if *record == before && !self.file.is_behind() {
            return Ok(());
        }
        if record.state == ReleaseState::Current {
            for other in releases {
                if other.state == ReleaseState::Current && other.id != id {
                    other.state = ReleaseState::Superseded;
                    other.text = None;
                }
            }
        }
        self.save()
    }

    /// Drops what is too old, but never one of the last good releases, one that is on its way, or the
    /// one that this repeats: what was built of it is needed.
    fn forget(&mut self) -> Vec<ReleaseRecord> {
        let good = self.iter().filter(|record| record.state.is_good());
        let last_good = self.last_good().map(|record| record.id);
        let undecided = self.iter().filter(|record| record.state.is_undecided());
        let kept: BTreeSet<_> = good
            .take(KEEP_GOOD)
            .map(|record| record.id)
            .chain(last_good)
            .chain(undecided.filter_map(|record| record.repeats))
            .collect();
        let releases = &mut self.contents.releases;
        let mut surplus = releases.len().saturating_sub(KEEP);
        let mut forgotten = Vec::new();
        let mut index = releases.len();
        while surplus > 0 && index > 0 {
            index -= 1;
            let record = &releases[index];
            if !kept.contains(&record.id) && !record.state.is_undecided() {
                forgotten.push(releases.remove(index));
                surplus -= 1;
            }
        }
        forgotten
    }

    /// Saves what could not be saved before.
    ///
    /// # Errors
    /// When it still cannot.
    pub fn save_again(&mut self) -> Result<(), SaveError> {
        if self.file.is_behind() {
            self.save()
        } else {
            Ok(())
        }
    }

    /// Whether there is something that could not be saved.
    pub const fn is_behind(&self) -> bool {
        self.file.is_behind()
    }

    fn save(&mut self) -> Result<(), SaveError> {
        self.file.save(&self.contents)
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzz;
#[cfg(test)]
mod tests;
