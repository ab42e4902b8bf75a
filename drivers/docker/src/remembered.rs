//! What the driver has found out about artifacts, so that it need not ask the engine again.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// How much is remembered: whoever calls may ask for any name.
const MOST: usize = 1_000;

/// What was found out. What is forgotten here the next Start finds out again.
#[derive(Debug)]
pub(crate) struct Remembered<T>(Mutex<BTreeSet<T>>);

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Ord> Remembered<T> {
    pub(crate) fn add(&self, found: T) {
        let mut known = self.known();
        if known.len() >= MOST {
            known.pop_first();
        }
        known.insert(found);
    }

    pub(crate) fn remove(&self, found: &T) {
        self.known().remove(found);
    }

    pub(crate) fn has(&self, found: &T) -> bool {
        self.known().contains(found)
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_all_that_anybody_asks_for_is_remembered() {
        let missing = Remembered::default();
        for number in 0..=MOST {
            let artifact = number.to_string();
            missing.add(artifact.clone());
            assert!(missing.has(&artifact));
        }
        assert_eq!(missing.known().len(), MOST);
        missing.remove(&"7".to_owned());
        assert!(!missing.has(&"7".to_owned()));
    }
}
