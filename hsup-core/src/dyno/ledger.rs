//! Which dyno ids are ours: on disk, for hsup's next life, and in memory, for the sweep that
//! compares them with what the driver has: it stops what is nobody's, and casts doubt on what
//! is ours and does not run.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hsup_proto::driver::{self, State};
use tokio::sync::Notify;
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
    /// Those that somebody waits for, with what makes that look for itself.
    known: Mutex<HashMap<DynoId, Option<Arc<Notify>>>>,
}

impl Ledger {
    /// Writes to `journal`. The dynos that live in it are ours until they are disowned.
    pub fn new(journal: Journal) -> Self {
        let live = journal.live().map(|dyno| (dyno.dyno_id.clone(), None));
        let known = live.collect();
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
        lock(&self.known).insert(id, None);
        Ok(())
    }

    /// The dyno runs, and whoever is told by `doubt` waits for its end.
    pub(super) fn await_end(&self, id: &DynoId, doubt: &Arc<Notify>) {
        lock(&self.known).insert(id.clone(), Some(Arc::clone(doubt)));
    }

    /// Tells whoever waits for a dyno that does not run, as far as `dynos` go: all that the
    /// driver had of us a moment ago. They look for themselves, for what has been started since
    /// is not among them.
    pub(crate) fn doubt(&self, dynos: &[driver::Dyno]) {
        let mut running: Vec<&str> = dynos
            .iter()
            .filter(|dyno| dyno.state() != State::Exited)
            .map(|dyno| dyno.dyno_id.as_str())
            .collect();
        running.sort_unstable();
        for (id, doubt) in &*lock(&self.known) {
            if let Some(doubt) = doubt
                && running.binary_search(&id.as_str()).is_err()
            {
                doubt.notify_one();
            }
        }
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

    /// Writes down that it accepts connections.
    pub(super) fn ready(&self, id: &DynoId) {
        let record = Record::Ready {
            dyno_id: id.clone(),
        };
        if let Err(error) = lock(&self.journal).append(&[record]) {
            // The next life will try whether it does.
            warn!(%id, error = crate::errors::chain(&error), "readiness not journalled");
        }
    }

    /// Writes down how it ended.
    pub(super) fn end(&self, id: &DynoId, status: &ExitStatus) {
        if let Some(doubt) = lock(&self.known).get_mut(id) {
            *doubt = None;
        }
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
            .is_ok_and(|id: DynoId| lock(&self.known).contains_key(&id))
    }
}

/// A panic elsewhere leaves both in order: they are changed by single calls.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
            ready: false,
        }
    }

    fn listed(text: &str, state: State) -> driver::Dyno {
        let mut dyno = driver::Dyno {
            dyno_id: text.to_owned(),
            ..driver::Dyno::default()
        };
        dyno.set_state(state);
        dyno
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_what_does_not_run_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let ledger = Ledger::new(state.journal().unwrap().0);
        let names = ["web-1-a", "web-1-b", "web-1-c", "web-1-d", "web-1-e"];
        let doubts = names.map(|name| {
            ledger.begin(dyno(name)).unwrap();
            Arc::new(Notify::new())
        });
        // The last is just being started.
        for (name, doubt) in names.iter().zip(&doubts).take(4) {
            ledger.await_end(&id(name), doubt);
        }
        ledger.end(&id("web-1-d"), &ExitStatus::code(0, 1));
        ledger.doubt(&[
            listed("web-1-a", State::Running),
            listed("web-1-b", State::Exited),
        ]);
        let mut told = Vec::new();
        for (name, doubt) in names.iter().zip(&doubts) {
            let waited = tokio::time::timeout(Duration::from_secs(1), doubt.notified());
            if waited.await.is_ok() {
                told.push(*name);
            }
        }
        assert_eq!(told, ["web-1-b", "web-1-c"], "exited, and missing");
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
