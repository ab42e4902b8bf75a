//! What is remembered of a run's calls: every refusal, and that a Stop has hung.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tonic::Status;

/// How long a Stop may take beyond its grace.
const BEYOND_GRACE: Duration = Duration::from_secs(10);
/// The same once a Stop has hung: what the protocol gives it (docs/driver-rules.md §13), so that a
/// driver that answers none does not cost ten seconds in every case.
const BEYOND_GRACE_AFTER_A_HANG: Duration = Duration::from_secs(2);

/// A refusal that is remembered until the end of the run.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// The case that made the call.
    pub(crate) case: String,
    /// The call.
    pub(crate) call: String,
    /// What it answered.
    pub(crate) status: Status,
}

/// What the calls of a case came to, and, shared by all cases, those of the run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    case: Arc<Mutex<String>>,
    run: Arc<OfTheRun>,
}

#[derive(Debug, Default)]
struct OfTheRun {
    refusals: Mutex<Vec<Refusal>>,
    a_stop_has_hung: AtomicBool,
}

impl Record {
    /// The record of a case that is run beside the others.
    pub(crate) fn beside(&self, title: String) -> Self {
        Self {
            case: Arc::new(Mutex::new(title)),
            run: Arc::clone(&self.run),
        }
    }

    /// Notes which case makes the calls from now on.
    pub(crate) fn enter(&self, title: String) {
        *self.case() = title;
    }

    /// Everything that was refused so far, to any case.
    pub(crate) fn refusals(&self) -> Vec<Refusal> {
        self.of_the_run().clone()
    }

    /// Notes a refusal.
    pub(crate) fn note(&self, call: &str, status: &Status) {
        let refusal = Refusal {
            case: self.case().clone(),
            call: call.to_owned(),
            status: status.clone(),
        };
        self.of_the_run().push(refusal);
    }

    /// How long a Stop may take beyond its grace.
    pub(crate) fn beyond_grace(&self) -> Duration {
        if self.run.a_stop_has_hung.load(Ordering::Relaxed) {
            BEYOND_GRACE_AFTER_A_HANG
        } else {
            BEYOND_GRACE
        }
    }

    /// Notes that a Stop was not answered.
    pub(crate) fn a_stop_has_hung(&self) {
        self.run.a_stop_has_hung.store(true, Ordering::Relaxed);
    }

    fn case(&self) -> MutexGuard<'_, String> {
        self.case.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of_the_run(&self) -> MutexGuard<'_, Vec<Refusal>> {
        let refusals = self.run.refusals.lock();
        refusals.unwrap_or_else(PoisonError::into_inner)
    }
}
