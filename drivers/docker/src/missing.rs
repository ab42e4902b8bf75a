//! Artifacts that the engine did not have when it was asked for them.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// How many are remembered: whoever calls may ask for any name.
const MOST: usize = 1_000;

/// Every other artifact the engine may have: to ask would take long, and a Start does. One that
/// is forgotten here is found missing by the next Start.
#[derive(Debug, Default)]
pub(crate) struct Missing(Mutex<BTreeSet<String>>);

impl Missing {
    /// It is to be built again.
    pub(crate) fn add(&self, artifact: &str) {
        let mut known = self.known();
        if known.len() >= MOST {
            known.pop_first();
        }
        known.insert(artifact.to_owned());
    }

    /// It was built.
    pub(crate) fn remove(&self, artifact: &str) {
        self.known().remove(artifact);
    }

    pub(crate) fn has(&self, artifact: &str) -> bool {
        self.known().contains(artifact)
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_all_that_anybody_asks_for_is_remembered() {
        let missing = Missing::default();
        for number in 0..=MOST {
            let artifact = number.to_string();
            missing.add(&artifact);
            assert!(missing.has(&artifact));
        }
        assert_eq!(missing.known().len(), MOST);
        missing.remove("7");
        assert!(!missing.has("7"));
    }
}
