//! Which dyno ids are ours: on disk, for hsup's next life, and in memory, for the sweep that
//! stops what is nobody's.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tracing::warn;

use crate::{
    exit::ExitStatus,
    name::DynoId,
    state::{Journal, JournalError, LiveDyno, Record},
};

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    journal: Mutex<Journal>,
    known: Mutex<HashSet<DynoId>>,
}

impl Ledger {
    /// Writes to `journal`.
    pub fn new(journal: Journal) -> Self {
        Self {
            journal: Mutex::new(journal),
            known: Mutex::default(),
        }
    }

    /// Enters a dyno before the driver hears of it.
    ///
    /// # Errors
    /// When the journal cannot be written: then the dyno must not be started, for after a
    /// crash of hsup nobody would know whose it is.
    pub(super) fn begin(&self, dyno: LiveDyno) -> Result<(), JournalError> {
        let id = dyno.dyno_id.clone();
        lock(&self.journal).append(&[Record::Start(dyno)])?;
        lock(&self.known).insert(id);
        Ok(())
    }

    /// Enters a dyno that the journal has since an earlier life.
    pub(super) fn adopt(&self, id: &DynoId) {
        lock(&self.known).insert(id.clone());
    }

    /// Makes sure that so many dynos can be replaced without the journal running full.
    ///
    /// # Errors
    /// When it cannot be.
    pub(crate) fn reserve(&self, dynos: usize) -> Result<(), JournalError> {
        lock(&self.journal).reserve(dynos)
    }

    /// Gives back what was reserved.
    pub(crate) fn unreserve(&self) {
        lock(&self.journal).unreserve();
    }

    /// Writes down how it ended.
    pub(super) fn end(&self, id: &DynoId, status: &ExitStatus) {
        let record = Record::End {
            dyno_id: id.clone(),
            status: status.clone(),
        };
        if let Err(error) = lock(&self.journal).append(&[record]) {
            // The next life will ask the driver about it, and hear that it is not there.
            warn!(%id, error = crate::errors::chain(&error), "end not journalled");
        }
    }

    /// Strikes a dyno out that the driver has no record of any more.
    pub(super) fn forget(&self, id: &DynoId) {
        lock(&self.known).remove(id);
    }

    /// Strikes out a dyno of an earlier life whose release nobody remembers.
    pub(crate) fn disown(&self, id: &DynoId) {
        self.end(
            id,
            &ExitStatus::lost("its release is not known any more", 0),
        );
    }

    /// Whether the dyno is ours, or is just being started or removed.
    pub(crate) fn knows(&self, id: &str) -> bool {
        id.parse()
            .is_ok_and(|id: DynoId| lock(&self.known).contains(&id))
    }
}

/// A panic elsewhere leaves both in order: they are changed by single calls.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
