//! The releases that hsup took in, and what became of each.
//!
//! The history is what a cold start falls back to when the newest release is a bad one,
//! so it holds whole releases, config and all: the file is 0600 and its records show no
//! config in `Debug`. It is written at once with every change, and it is kept short.

use std::path::PathBuf;

use hsup_proto::control;
use serde::{Deserialize, Serialize};

use super::{
    Damage,
    json::{JsonFile, LoadError, SaveError},
};
use crate::release::Release;

/// How many releases are remembered. The last good one is, however many follow it.
pub const KEEP: usize = 20;

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

/// What a driver made of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// The name of the driver, for an artifact means nothing to another.
    pub driver: String,
    /// Its word for it, opaque to us.
    pub artifact: String,
}

/// One release of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRecord {
    /// Counts what hsup took in: distinct even where versions repeat.
    pub id: u64,
    pub state: ReleaseState,
    /// Why it was rejected.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Where it came from: "Procfile", "control directory", "apply".
    pub source: String,
    /// When hsup took it in, in milliseconds since the Unix epoch.
    pub at_unix_ms: i64,
    /// For how long fewer dynos than wanted ran because of it.
    #[serde(default)]
    pub gap_ms: i64,
    /// The last lines of the dyno that did not come up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_lines: Vec<String>,
    /// What the driver made of it, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<Artifact>,
    /// The release itself. Its config is secret.
    pub release: Release,
}

/// What came of taking in a release.
#[derive(Debug)]
pub struct TakenIn {
    /// The new release's id.
    pub id: u64,
    /// The records that were forgotten for it: their artifacts may be removed.
    pub forgotten: Vec<ReleaseRecord>,
    /// Whether the disk has it too.
    pub saved: Result<(), SaveError>,
}

/// The history, newest release first. A change that cannot be saved still counts
/// as long as hsup runs.
#[derive(Debug)]
pub struct History {
    file: JsonFile,
    contents: Contents,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Contents {
    last_id: u64,
    releases: Vec<ReleaseRecord>,
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

    /// Takes in a release, which is now building.
    pub fn take_in(
        &mut self,
        release: Release,
        source: impl Into<String>,
        at_unix_ms: i64,
    ) -> TakenIn {
        self.contents.last_id += 1;
        let id = self.contents.last_id;
        let record = ReleaseRecord {
            id,
            state: ReleaseState::Building,
            reason: String::new(),
            source: source.into(),
            at_unix_ms,
            gap_ms: 0,
            last_lines: Vec::new(),
            artifact: None,
            release,
        };
        self.contents.releases.insert(0, record);
        let forgotten = self.forget();
        TakenIn {
            id,
            forgotten,
            saved: self.save(),
        }
    }

    /// Changes the record of a release; making one current supersedes the one before.
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
        if *record == before && !self.file.is_behind() {
            return Ok(());
        }
        if record.state == ReleaseState::Current {
            for other in releases {
                if other.state == ReleaseState::Current && other.id != id {
                    other.state = ReleaseState::Superseded;
                }
            }
        }
        self.save()
    }

    /// Drops what is too old, but never the last good release or one that is on its way.
    fn forget(&mut self) -> Vec<ReleaseRecord> {
        let good = self.last_good().map(|record| record.id);
        let releases = &mut self.contents.releases;
        let mut surplus = releases.len().saturating_sub(KEEP);
        let mut forgotten = Vec::new();
        let mut index = releases.len();
        while surplus > 0 && index > 1 {
            index -= 1;
            if Some(releases[index].id) != good {
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

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use super::*;
    use crate::release::{ConfigVars, Limits};

    fn release(version: u64) -> Release {
        Release {
            app: "shop".into(),
            version,
            config: [("DATABASE_URL", "hunter2")]
                .into_iter()
                .collect::<ConfigVars>(),
            slug: None,
            slug_checksum: None,
            stack: String::new(),
            image: None,
            limits: Limits::default(),
            log_target: None,
            processes: vec![],
        }
    }

    fn load(path: &Path) -> History {
        let (history, damage) = History::load(path.to_owned()).unwrap();
        assert_eq!(damage, None);
        history
    }

    fn take_in(history: &mut History, version: u64) -> u64 {
        let taken = history.take_in(release(version), "apply", 1);
        taken.saved.unwrap();
        taken.id
    }

    fn set(history: &mut History, id: u64, state: ReleaseState) {
        history.update(id, |record| record.state = state).unwrap();
    }

    #[test]
    fn the_history_outlives_hsup_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.json");
        let mut history = load(&path);
        let id = take_in(&mut history, 7);
        history
            .update(id, |record| {
                record.state = ReleaseState::Rejected;
                record.reason = "web.1 did not come up".into();
                record.artifact = Some(Artifact {
                    driver: "simple".into(),
                    artifact: "a-1".into(),
                });
            })
            .unwrap();
        let again = load(&path);
        assert!(again.iter().eq(history.iter()));
        assert_eq!(again.get(id).unwrap().release, release(7));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{again:?}").contains("hunter2"));
    }

    #[test]
    fn one_release_is_current() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = load(&dir.path().join("history.json"));
        let first = take_in(&mut history, 1);
        let second = take_in(&mut history, 1);
        assert_ne!(first, second);
        assert!(history.last_good().is_none());
        set(&mut history, first, ReleaseState::Current);
        set(&mut history, second, ReleaseState::RollingOut);
        assert_eq!(history.last_good().unwrap().id, first);
        set(&mut history, second, ReleaseState::Current);
        assert_eq!(history.current().unwrap().id, second);
        assert_eq!(history.get(first).unwrap().state, ReleaseState::Superseded);
        set(&mut history, second, ReleaseState::Rejected);
        assert_eq!(history.last_good().unwrap().id, first);
    }

    #[test]
    fn old_releases_are_forgotten_but_never_the_last_good_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.json");
        let mut history = load(&path);
        let good = take_in(&mut history, 1);
        set(&mut history, good, ReleaseState::Superseded);
        let mut forgotten = Vec::new();
        for version in 2..=100 {
            let taken = history.take_in(release(version), "apply", 1);
            forgotten.extend(taken.forgotten.iter().map(|record| record.id));
            set(&mut history, taken.id, ReleaseState::Rejected);
        }
        let again = load(&path);
        assert_eq!(again.iter().count(), KEEP);
        assert_eq!(again.last_good().unwrap().id, good);
        assert_eq!(again.iter().next().unwrap().id, 100);
        let expected: Vec<u64> = (2..=81).collect();
        assert_eq!(forgotten, expected);
    }

    #[test]
    fn ids_are_not_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.json");
        take_in(&mut load(&path), 1);
        assert_eq!(take_in(&mut load(&path), 1), 2);
    }

    #[test]
    fn a_damaged_history_is_set_aside_and_shows_no_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.json");
        crate::files::write_atomic(&path, b"{\"last_id\":\"hunter2\"}").unwrap();
        let (history, damage) = History::load(path.clone()).unwrap();
        assert_eq!(history.iter().count(), 0);
        let damage = damage.unwrap().to_string();
        assert!(
            damage.contains("line 1") && !damage.contains("hunter2"),
            "{damage}"
        );
        assert!(dir.path().join("history.json.damaged").exists());
        assert!(!path.exists());
    }

    #[test]
    fn a_change_that_cannot_be_saved_still_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = load(&dir.path().join("history.json"));
        let id = take_in(&mut history, 1);
        drop(dir);
        let error = history
            .update(id, |record| record.state = ReleaseState::Current)
            .unwrap_err();
        assert!(error.to_string().contains("history.json"), "{error}");
        assert_eq!(history.current().unwrap().id, id);
    }
}
