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
    /// Writes to `journal`. The dynos that live in it are ours until they are disowned.
    pub fn new(journal: Journal) -> Self {
        let known = journal.live().map(|dyno| dyno.dyno_id.clone()).collect();
        Self {
            journal: Mutex::new(journal),
            known: Mutex::new(known),
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

    /// Strikes out a dyno of an earlier life whose release nobody remembers: the sweep stops it.
    pub(crate) fn disown(&self, id: &DynoId) {
        self.end(
            id,
            &ExitStatus::lost("its release is not known any more", 0),
        );
        self.forget(id);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateDir;

    fn id(text: &str) -> DynoId {
        text.parse().unwrap()
    }

    fn dyno(text: &str) -> LiveDyno {
        LiveDyno {
            dyno_id: id(text),
            name: "web.1".parse().unwrap(),
            release: 1,
            at_unix_ms: 1,
            port: None,
            io_dir: None,
        }
    }

    #[test]
    fn what_the_journal_has_is_ours_from_the_first_look_until_it_is_disowned() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let ledger = Ledger::new(state.journal().unwrap().0);
        for name in ["web-1-a", "web-1-b", "web-1-c"] {
            ledger.begin(dyno(name)).unwrap();
        }
        ledger.end(&id("web-1-c"), &ExitStatus::code(0, 1));
        assert!(ledger.knows("web-1-c"), "the driver has yet to forget it");
        drop(ledger);

        let ledger = Ledger::new(state.journal().unwrap().0);
        assert!(ledger.knows("web-1-a") && ledger.knows("web-1-b"));
        assert!(!ledger.knows("web-1-c"));
        ledger.disown(&id("web-1-b"));
        assert!(ledger.knows("web-1-a") && !ledger.knows("web-1-b"));
        drop(ledger);
        let ledger = Ledger::new(state.journal().unwrap().0);
        assert!(ledger.knows("web-1-a") && !ledger.knows("web-1-b"));
    }
}
