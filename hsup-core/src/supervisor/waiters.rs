//! Whoever waits for the end of dynos or for the verdict on a release.

use std::collections::BTreeSet;

use tokio::sync::oneshot;

use super::actor::Actor;
use crate::{dyno::Key, releases::Id};

/// An answer that waits for something.
#[derive(Debug)]
pub(super) struct Waiter {
    until: Until,
    reply: oneshot::Sender<()>,
}

/// See [`Waiter`].
#[derive(Debug)]
pub(super) enum Until {
    /// None of these tasks lives.
    Gone(BTreeSet<Key>),
    /// The release is current or rejected.
    Decided(Id),
}

impl Actor {
    /// Tells when it is over.
    pub(super) fn wait_until(&mut self, until: Until) -> oneshot::Receiver<()> {
        let (reply, over) = oneshot::channel();
        self.waiters.push(Waiter { until, reply });
        over
    }

    pub(super) fn answer_waiters(&mut self) {
        let waiters = std::mem::take(&mut self.waiters);
        for waiter in waiters {
            if self.is_over(&waiter.until) {
                // Whoever asked may have gone.
                let _ = waiter.reply.send(());
            } else {
                self.waiters.push(waiter);
            }
        }
    }

    /// Whether the release is good or rejected, and nothing of a rejected one is left.
    pub(super) fn is_decided(&self, id: Id) -> bool {
        self.releases.undecided().all(|undecided| undecided != id)
            && self.releases.on_trial() != Some(id)
    }

    fn is_over(&self, until: &Until) -> bool {
        match until {
            Until::Gone(keys) => !keys.iter().any(|key| self.dynos.contains(*key)),
            Until::Decided(id) => self.is_decided(*id),
        }
    }
}
