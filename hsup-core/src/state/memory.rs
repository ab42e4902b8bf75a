//! What hsup must not forget between two runs, besides its releases and dynos: what
//! people asked of it, and what keeps ports the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{Damage, LoadError, SaveError, load_json, save_json};
use crate::name::{DynoName, ProcessType};

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    /// Quantities that somebody set, which outlive releases: `web=2`.
    pub quantities: BTreeMap<ProcessType, u32>,
    /// Dynos that somebody stopped, until a start, a scaling or a new release.
    pub stopped: BTreeSet<DynoName>,
    /// Process types in the order in which they were first seen: their ports depend on it.
    pub types_seen: Vec<ProcessType>,
}

/// What is remembered, and the file it is in.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    remembered: Remembered,
}

impl Memory {
    pub(super) fn load(path: PathBuf) -> Result<(Self, Option<Damage>), LoadError> {
        let (remembered, damage) = load_json(&path)?;
        Ok((Self { path, remembered }, damage))
    }

    /// What is remembered.
    pub const fn get(&self) -> &Remembered {
        &self.remembered
    }

    /// Changes what is remembered, and saves it when that changed anything.
    ///
    /// # Errors
    /// When it could not be saved; the change counts nevertheless, and the next one
    /// saves it too.
    pub fn update(&mut self, change: impl FnOnce(&mut Remembered)) -> Result<(), SaveError> {
        let before = self.remembered.clone();
        change(&mut self.remembered);
        if self.remembered == before {
            return Ok(());
        }
        save_json(&self.path, &self.remembered)
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
    fn nothing_is_written_when_nothing_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.json");
        let mut memory = load(&path);
        memory.update(|_| ()).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_file_of_an_older_or_newer_hsup_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.json");
        crate::files::write_atomic(&path, br#"{"quantities":{"web":3},"new":true}"#).unwrap();
        assert_eq!(load(&path).get().quantities["web"], 3);
    }
}
