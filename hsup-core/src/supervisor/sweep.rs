//! The sweep: what the driver has in our name is compared with what we know. A dyno of ours that
//! does not run, by the driver's word, looks for itself; what we do not know is stopped and
//! removed.

use std::{collections::BTreeSet, sync::Arc};

use hsup_proto::driver::Dyno;
use tokio::sync::watch;
use tracing::debug;

use crate::{
    driver::{Link, stop_and_remove},
    dyno::Shared,
    logs::SYSTEM,
};

/// What compares the driver's list with what we know, as often as it is asked to.
#[derive(Debug)]
pub(super) struct Sweeper {
    shared: Arc<Shared>,
    clearing: Clearing,
}

impl Sweeper {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            clearing: Clearing::default(),
        }
    }

    /// Compares it now. A dyno that another sweep still clears away, for as long as its grace
    /// lasts, is left to that one.
    pub(super) async fn sweep(&self) {
        let shared = &self.shared;
        let link = shared.link.borrow().clone();
        let Link::Up(up) = link else {
            return;
        };
        let mut dynos = match up.list(shared.supervisor_id.as_str()).await {
            Ok(dynos) => dynos,
            Err(status) => {
                debug!(code = ?status.code(), "list failed");
                return;
            }
        };
        shared.ledger.doubt(&dynos);
        dynos.retain(|dyno| !shared.ledger.knows(&dyno.dyno_id));
        let claim = self.clearing.claim(dynos);
        let orphans = match claim.dynos.len() {
            0 => return,
            1 => "a dyno".to_owned(),
            many => format!("{many} dynos"),
        };
        shared.logs.note(
            SYSTEM,
            format!("Stopping {orphans} that the driver has and hsup does not know"),
        );
        // What is left is told in the diagnostics, and found again by the next sweep.
        drop(stop_and_remove(&up, &claim.dynos, shared.policy.grace).await);
    }

    /// The same, and waits for what other sweeps clear away, too.
    pub(super) async fn sweep_all(&self) {
        self.sweep().await;
        self.clearing.is_over().await;
    }
}

/// The ids of dynos that are being cleared away.
#[derive(Debug, Default)]
struct Clearing(watch::Sender<BTreeSet<String>>);

impl Clearing {
    /// Takes those of `dynos` that nobody has, until the claim is dropped.
    fn claim(&self, mut dynos: Vec<Dyno>) -> Claim<'_> {
        self.0
            .send_modify(|ids| dynos.retain(|dyno| ids.insert(dyno.dyno_id.clone())));
        Claim {
            clearing: self,
            dynos,
        }
    }

    /// Waits until none is.
    async fn is_over(&self) {
        // Its sender is here.
        drop(self.0.subscribe().wait_for(BTreeSet::is_empty).await);
    }
}

/// See [`Clearing::claim`].
struct Claim<'a> {
    clearing: &'a Clearing,
    dynos: Vec<Dyno>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.clearing.0.send_modify(|ids| {
            for dyno in &self.dynos {
                ids.remove(&dyno.dyno_id);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Poll};

    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn a_dyno_is_cleared_away_by_one_sweep_at_a_time() {
        let dynos = |ids: &[&str]| {
            let dyno = |id: &&str| Dyno {
                dyno_id: (*id).to_owned(),
                ..Dyno::default()
            };
            ids.iter().map(dyno).collect::<Vec<_>>()
        };
        let clearing = Clearing::default();
        let first = clearing.claim(dynos(&["a", "b"]));
        let second = clearing.claim(dynos(&["b", "c"]));
        assert_eq!(first.dynos, dynos(&["a", "b"]));
        assert_eq!(second.dynos, dynos(&["c"]));
        drop(first);
        assert_eq!(clearing.claim(dynos(&["b", "c"])).dynos, dynos(&["b"]));
        drop(second);
        assert_eq!(clearing.claim(dynos(&["b", "c"])).dynos, dynos(&["b", "c"]));
        clearing.is_over().await;
        let last = clearing.claim(dynos(&["a"]));
        assert_eq!(poll!(pin!(clearing.is_over())), Poll::Pending);
        drop(last);
        clearing.is_over().await;
    }
}
