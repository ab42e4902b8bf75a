//! What the driver has made of each release in this life of hsup.
//!
//! A dyno that was taken over runs on what was made of its release in an earlier life, maybe by
//! other options of the driver. When it is started again, it is what was made of it since.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::DynoSpec;
use crate::releases::Id;

/// The artifacts, by hsup's numbers of the releases.
#[derive(Debug, Default)]
pub struct Built(Mutex<BTreeMap<Id, Arc<str>>>);

impl Built {
    /// The driver has made this of the release.
    pub(crate) fn put(&self, release_id: Id, artifact: Arc<str>) {
        self.lock().insert(release_id, artifact);
    }

    /// Nothing of the release is started any more.
    pub(crate) fn forget(&self, release_id: Id) {
        self.lock().remove(&release_id);
    }

    /// What the dyno is to be started from now.
    pub(super) fn last(&self, spec: &DynoSpec) -> Arc<str> {
        let made = self.lock().get(&spec.release_id).cloned();
        made.unwrap_or_else(|| Arc::clone(&spec.artifact))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Id, Arc<str>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
