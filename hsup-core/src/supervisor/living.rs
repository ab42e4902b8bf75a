//! The dynos that there are, found by their key and by their name.

use std::collections::{BTreeMap, BTreeSet, btree_map};

use super::actor::Live;
use crate::{dyno::Key, name::DynoName};

/// A dyno's name may stand for several: one that ends, and its successor.
#[derive(Debug, Default)]
pub(super) struct Living {
    by_key: BTreeMap<Key, Live>,
    /// Ten thousand of a type are asked for name by name. No name is without a key.
    by_name: BTreeMap<DynoName, BTreeSet<Key>>,
}

impl Living {
    pub(super) fn insert(&mut self, key: Key, live: Live) {
        let name = live.handle.spec.name.clone();
        self.by_name.entry(name).or_default().insert(key);
        self.by_key.insert(key, live);
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Live> {
        let live = self.by_key.remove(&key)?;
        if let btree_map::Entry::Occupied(mut keys) =
            self.by_name.entry(live.handle.spec.name.clone())
        {
            keys.get_mut().remove(&key);
            if keys.get().is_empty() {
                keys.remove();
            }
        }
        Some(live)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Live> {
        self.by_key.get_mut(&key)
    }

    pub(super) fn contains(&self, key: Key) -> bool {
        self.by_key.contains_key(&key)
    }

    /// All of them, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &Live)> {
        self.by_key.iter().map(|(key, live)| (*key, live))
    }

    /// The same, to be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut Live)> {
        self.by_key.iter_mut().map(|(key, live)| (*key, live))
    }

    /// Those of that name, oldest first.
    pub(super) fn of_name(&self, name: &DynoName) -> impl Iterator<Item = (Key, &Live)> {
        let keys = self.by_name.get(name).into_iter().flatten();
        keys.filter_map(|key| Some((*key, self.by_key.get(key)?)))
    }

    /// The names that they have.
    pub(super) fn names(&self) -> impl Iterator<Item = &DynoName> {
        self.by_name.keys()
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}
