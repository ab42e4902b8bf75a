//! Which dyno ids are ours: on disk, for hsup's next life, and in memory, for the sweep that
//! compares them with what the driver has: it stops what is nobody's, and casts doubt on what
//! is ours and does not run.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hsup_proto::driver::{self, State};
use tokio::sync::{Notify, watch};
use tracing::{debug, warn};

use crate::{
    exit::ExitStatus,
    name::DynoId,
    state::{Journal, JournalError, LiveDyno, Record},
};

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    journal: Mutex<Journal>,
    /// Whether something that has happened is not in it yet.
    is_behind: watch::Sender<bool>,
    /// Those that somebody waits for, with what makes that look for itself.
    known: Mutex<HashMap<DynoId, Option<Arc<Notify>>>>,
}

/// A dyno whose end is in the journal, so that it may be forgotten elsewhere. Whatever the next
/// life of hsup would miss if the end were not there asks for this; only the ledger makes it.
#[derive(Debug)]
pub(super) struct Ended(DynoId);

impl Ended {
    pub(super) const fn dyno_id(&self) -> &DynoId {
        &self.0
    }
}

/// An end that the journal has no room for. If hsup dies now, the next life has to hear of it from
/// the driver.
#[derive(Debug)]
#[must_use]
pub(super) struct Owed {
    ended: Ended,
    is_behind: watch::Receiver<bool>,
}

impl Owed {
    /// Waits until it is written.
    pub(super) async fn written(mut self) -> Ended {
        // What is owed is written all at once.
        let written = self.is_behind.wait_for(|is_behind| !is_behind);
        if written.await.is_err() {
            // The ledger is gone, and will never write it.
            std::future::pending::<()>().await;
        }
        self.ended
    }
}

impl Ledger {
    /// Writes to `journal`. The dynos that live in it are ours until they are disowned.
    pub fn new(journal: Journal) -> Self {
        let live = journal.live().map(|dyno| (dyno.dyno_id.clone(), None));
        let known = live.collect();
        Self {
            is_behind: watch::Sender::new(journal.is_behind()),
            journal: Mutex::new(journal),
            known: Mutex::new(known),
        }
    }

    /// Writes to the journal, and tells whoever waits for what could not be written before.
    fn write<T>(&self, write: impl FnOnce(&mut Journal) -> T) -> T {
        let mut journal = lock(&self.journal);
        let written = write(&mut journal);
        self.is_behind.send_if_modified(|is_behind| {
            let before = std::mem::replace(is_behind, journal.is_behind());
            before != *is_behind
        });
        written
    }

    /// Enters a dyno before the driver hears of it.
    ///
    /// # Errors
    /// When the journal cannot be written: then the dyno must not be started, for after a
    /// crash of hsup nobody would know whose it is.
    pub(super) fn begin(&self, dyno: LiveDyno) -> Result<(), JournalError> {
        let id = dyno.dyno_id.clone();
        self.write(|journal| journal.append(&[Record::Start(dyno)]))?;
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
        if let Err(error) = self.write(|journal| journal.note(record)) {
            // Until then the next life would try whether it does.
            warn!(%id, error = crate::errors::chain(&error), "readiness not journalled");
        }
    }

    /// Writes down how it ended; `Err` while that cannot be written.
    pub(super) fn end(&self, id: &DynoId, status: &ExitStatus) -> Result<Ended, Owed> {
        if let Some(doubt) = lock(&self.known).get_mut(id) {
            *doubt = None;
        }
        let record = Record::End {
            dyno_id: id.clone(),
            status: status.clone(),
        };
        let ended = Ended(id.clone());
        match self.write(|journal| journal.note(record)) {
            Ok(()) => Ok(ended),
            Err(error) => {
                warn!(%id, error = crate::errors::chain(&error), "end not journalled");
                let is_behind = self.is_behind.subscribe();
                Err(Owed { ended, is_behind })
            }
        }
    }

    /// Writes down what could not be written when it happened: the disk may have room again.
    pub(crate) fn catch_up(&self) {
        if let Err(error) = self.write(Journal::catch_up) {
            debug!(error = crate::errors::chain(&error), "journal still behind");
        }
    }

    /// Strikes a dyno out that the driver has no record of any more.
    pub(super) fn forget(&self, ended: Ended) {
        let Ended(id) = ended;
        lock(&self.known).remove(&id);
    }

    /// Strikes out a dyno of an earlier life whose release nobody remembers: the sweep stops it.
    pub(crate) fn disown(&self, id: &DynoId) {
        let lost = ExitStatus::lost("its release is not known any more", 0);
        // Written or not: the next life would disown it, too.
        drop(self.end(id, &lost));
        lock(&self.known).remove(id);
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

    use futures_util::FutureExt as _;

    use super::*;
    use crate::state::StateDir;

    fn id(text: &str) -> DynoId {
        text.parse().unwrap()
    }

    fn dyno(text: &str) -> LiveDyno {
        LiveDyno {
            dyno_id: id(text),
            name: "web.1".parse().unwrap(),
            release_id: 1,
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
        ledger.end(&id("web-1-d"), &ExitStatus::code(0, 1)).unwrap();
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

    #[tokio::test]
    async fn an_end_counts_once_it_is_written_whatever_has_it_written() {
        type Act = fn(&Ledger);
        let acts: [Act; 4] = [
            |ledger| ledger.begin(dyno("web-1-c")).unwrap(),
            |ledger| ledger.ready(&id("web-1-b")),
            |ledger| drop(ledger.end(&id("web-1-b"), &ExitStatus::code(0, 1)).unwrap()),
            Ledger::catch_up,
        ];
        for act in acts {
            let dir = tempfile::tempdir().unwrap();
            let state = StateDir::open(dir.path()).unwrap();
            let ledger = Ledger::new(state.journal().unwrap().0);
            ledger.begin(dyno("web-1-a")).unwrap();
            ledger.begin(dyno("web-1-b")).unwrap();
            let file = lock(&ledger.journal).fill_disk();
            let owed = ledger.end(&id("web-1-a"), &ExitStatus::code(7, 1));
            let written = owed.unwrap_err().written();
            let mut written = std::pin::pin!(written);
            ledger.catch_up();
            assert!(
                written.as_mut().now_or_never().is_none(),
                "nothing is written"
            );
            lock(&ledger.journal).free_disk(file);
            act(&ledger);
            let ended = written.now_or_never().unwrap();
            assert_eq!(ended.dyno_id(), &id("web-1-a"));
            let live = lock(&ledger.journal);
            assert!(live.live().all(|dyno| dyno.dyno_id != *ended.dyno_id()));
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
        ledger.end(&id("web-1-c"), &ExitStatus::code(0, 1)).unwrap();
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
