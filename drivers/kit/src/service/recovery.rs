//! What becomes of dynos that outlive the driver (durability SURVIVES and EXACT): left alone when
//! it ends, and found again when it begins.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{self, Instant};

use super::{Live, RecoverError, Recovered, Runtime, Service, State, guard::guarded};

impl<R: Runtime> Service<R> {
    /// Takes over the dynos of an earlier process. Their supervisors are away until they call.
    ///
    /// # Errors
    ///
    /// When the runtime cannot find them again: nothing may be answered then, or a supervisor
    /// would take dynos that run for lost, and start them twice.
    pub(crate) async fn recover(&self) -> Result<(), RecoverError> {
        self.0.looking.store(true, Ordering::Release);
        let recovered = guarded("find its dynos again", self.0.runtime.recover()).await??;
        self.take_over(recovered);
        self.0.looking.store(false, Ordering::Release);
        Ok(())
    }

    /// Whether that is under way, and why it takes so long: nothing is known of any dyno.
    pub(crate) fn is_looking(&self) -> Option<String> {
        let is_looking = self.0.looking.load(Ordering::Acquire);
        is_looking.then(|| match self.0.runtime.ready() {
            Ok(()) => "it is looking for dynos that run already".to_owned(),
            Err(reason) => reason,
        })
    }

    fn take_over(&self, recovered: Vec<Recovered<R::Dyno>>) {
        if recovered.is_empty() {
            return;
        }
        tracing::info!(dynos = recovered.len(), "found dynos again");
        let now = Instant::now();
        let mut state = self.state();
        let mut supervisors = BTreeSet::new();
        for Recovered { record, dyno } in recovered {
            let (key, live, spec) = (record.key(), Live::new(), record.spec());
            // It is new.
            drop(live.dyno.set(dyno));
            let supervisor = (key.uid, spec.supervisor_id.clone());
            let started_at = record.started_at_unix_ms();
            let is_new = state
                .table
                .recovered(key.clone(), spec, started_at, Arc::clone(&live));
            if is_new {
                supervisors.insert(supervisor);
                tokio::spawn(self.clone().watch(key, live));
            } else {
                tracing::error!(uid = key.uid, dyno_id = %key.id, "found a dyno twice: this is a bug in the driver");
            }
        }
        let State { links, table, .. } = &mut *state;
        for (uid, supervisor) in supervisors {
            links.expected(uid, &supervisor, now);
            self.begin_to_linger(table, uid, &supervisor, now);
        }
    }

    /// Leaves the dynos running, once those that are being started have been, or `grace` is over:
    /// the runtime knows what to make of a start that did not come to its end.
    pub(super) async fn leave(&self, grace: Duration) {
        let started = self.until_stirred(|state| state.starting.is_empty());
        if time::timeout(grace, started).await.is_err() {
            tracing::warn!("ending in the middle of a start");
        }
        let running = self.state().table.alive();
        if running > 0 {
            tracing::info!(dynos = running, "ending, and leaving the dynos running");
        }
    }
}
