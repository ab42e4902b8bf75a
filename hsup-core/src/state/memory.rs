//! What hsup must not forget between two runs, besides its releases and dynos: what
//! people asked of it, and what keeps ports the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{
    Damage,
    json::{JsonFile, LoadError, SaveError},
};
use crate::name::{DynoName, ProcessType};

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    /// Quantities that somebody set, which outlive releases: `web=2`.
    pub quantities: BTreeMap<ProcessType, u32>,
    /// Dynos that somebody stopped, until a start, a scaling or a new release.
    pub stopped: BTreeSet<DynoName>,
    /// What the command line named last, `hsup start web=2 worker`.
    pub explicit: Option<BTreeMap<ProcessType, u32>>,
    /// Process types in the order in which they were first seen: their ports depend on it.
    pub types_seen: Vec<ProcessType>,
}

impl Remembered {
    /// Takes in what the command line names. When it is something new, that is the later word:
    /// no scaling holds any more, and no stop of what it names. The same as before, as when a
    /// manager starts hsup again, changes nothing; but what runs `once` is asked for each time.
    pub fn heed(&mut self, explicit: Option<&BTreeMap<ProcessType, u32>>, once: bool) {
        if self.explicit.as_ref() == explicit && !once {
            return;
        }
        self.explicit = explicit.cloned();
        if let Some(named) = explicit {
            self.quantities.clear();
            self.stopped
                .retain(|dyno| !named.contains_key(&dyno.process_type));
        }
    }
}

/// What is remembered, and the file it is in.
#[derive(Debug)]
pub struct Memory {
    file: JsonFile,
    remembered: Remembered,
    /// It was changed, and that is not to be saved yet.
    is_ahead: bool,
}

impl Memory {
    pub(super) fn load(path: PathBuf) -> Result<(Self, Option<Damage>), LoadError> {
        let (file, remembered, damage) = JsonFile::load(path)?;
        let memory = Self {
            file,
            remembered,
            is_ahead: false,
        };
        Ok((memory, damage))
    }

    /// What is remembered.
    pub const fn get(&self) -> &Remembered {
        &self.remembered
    }

    /// Changes what is remembered, and saves it when that changed anything, or when an
    /// earlier change could not be saved.
    ///
    /// # Errors
    /// When it could not be saved; the change counts nevertheless, and the next call tries
    /// again.
    pub fn update(&mut self, change: impl FnOnce(&mut Remembered)) -> Result<(), SaveError> {
        let before = self.remembered.clone();
        change(&mut self.remembered);
        let is_ahead = std::mem::take(&mut self.is_ahead);
        if self.remembered == before && !is_ahead && !self.file.is_behind() {
            return Ok(());
        }
        self.file.save(&self.remembered)
    }

    /// Changes what is remembered, for the next [`Memory::update`] to save.
    pub fn change(&mut self, change: impl FnOnce(&mut Remembered)) {
        change(&mut self.remembered);
        self.is_ahead = true;
    }

    /// Whether there is something that could not be saved.
    pub const fn is_behind(&self) -> bool {
        self.file.is_behind()
    }

    /// Adds those of `types` that were never seen before, in their order.
    ///
    /// # Errors
    /// As [`Memory::update`].
    pub fn see_types<'a>(
        &mut self,
        types: impl IntoIterator<Item = &'a ProcessType>,
    ) -> Result<(), SaveError> {
        self.update(|remembered| {
            for process_type in types {
                if !remembered.types_seen.contains(process_type) {
                    remembered.types_seen.push(process_type.clone());
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn load(path: &Path) -> Memory {
        let (memory, damage) = Memory::load(path.to_owned()).unwrap();
        assert_eq!(damage, None);
        memory
    }

    #[test]
    fn what_people_asked_for_outlives_hsup() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.json");
        let mut memory = load(&path);
        memory
            .update(|remembered| {
                remembered.quantities.insert("web".parse().unwrap(), 2);
                remembered.stopped.insert("worker.1".parse().unwrap());
            })
            .unwrap();
        assert_eq!(load(&path).get(), memory.get());
    }

    #[test]
    fn the_order_in_which_types_were_first_seen_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.json");
        let types = |names: &[&str]| -> Vec<ProcessType> {
            names.iter().map(|name| name.parse().unwrap()).collect()
        };
        let mut memory = load(&path);
        memory.see_types(&types(&["worker", "clock"])).unwrap();
        memory
            .see_types(&types(&["clock", "api", "worker"]))
            .unwrap();
        memory.see_types(&types(&["api"])).unwrap();
        assert_eq!(
            load(&path).get().types_seen,
            types(&["worker", "clock", "api"])
        );
    }

    #[test]
    fn a_command_line_is_the_later_word_once() {
        let named = |text: &str| -> BTreeMap<ProcessType, u32> {
            let pairs = text.split(' ').map(|pair| pair.split_once('=').unwrap());
            pairs
                .map(|(name, quantity)| (name.parse().unwrap(), quantity.parse().unwrap()))
                .collect()
        };
        let stopped = ["web.1".parse().unwrap(), "clock.1".parse().unwrap()];
        let asked = Remembered {
            quantities: named("web=3"),
            stopped: stopped.into(),
            explicit: Some(named("web=1")),
            types_seen: Vec::new(),
        };
        for same in [Some(named("web=1")), None] {
            let mut remembered = asked.clone();
            remembered.heed(same.as_ref(), false);
            assert_eq!(
                remembered,
                Remembered {
                    explicit: same,
                    ..asked.clone()
                }
            );
        }
        for (later, once) in [("web=2", false), ("web=1", true)] {
            let mut remembered = asked.clone();
            remembered.heed(Some(&named(later)), once);
            assert_eq!(remembered.quantities, BTreeMap::new());
            assert_eq!(remembered.stopped, ["clock.1".parse().unwrap()].into());
        }
    }

    #[test]
    fn what_is_changed_ahead_is_saved_by_the_next_update() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.json");
        let mut memory = load(&path);
        memory.change(|remembered| {
            remembered.quantities.insert("web".parse().unwrap(), 2);
        });
        assert!(!path.exists());
        memory.update(|_| ()).unwrap();
        assert_eq!(load(&path).get(), memory.get());
    }

    #[test]
    fn nothing_is_written_when_nothing_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.json");
        let mut memory = load(&path);
        memory.update(|_| ()).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_could_not_be_saved_is_saved_later_though_nothing_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/memory.json");
        let mut memory = load(&path);
        let change = |remembered: &mut Remembered| {
            remembered.quantities.insert("web".parse().unwrap(), 3);
        };
        assert!(!memory.update(change).unwrap_err().is_repeated());
        assert!(memory.update(change).unwrap_err().is_repeated());
        assert!(memory.is_behind());
        std::fs::create_dir(dir.path().join("state")).unwrap();
        memory.update(change).unwrap();
        assert!(!memory.is_behind());
        assert_eq!(load(&path).get(), memory.get());
    }

    #[test]
    fn a_file_of_an_older_or_newer_hsup_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.json");
        crate::files::write_atomic(&path, br#"{"quantities":{"web":3},"new":true}"#).unwrap();
        assert_eq!(load(&path).get().quantities["web"], 3);
    }
}
