//! The driver that a command's dyno is on: another one, when that has gone and come back.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hsup_proto::driver::Durability;
use tokio::{sync::watch, time::timeout};

use crate::driver::{Link, Up, up_again};

/// How long a driver whose dynos go on without it is waited for. Whoever replaces one takes a
/// moment; one that never comes back must not keep a script for ever.
const RETURNS_WITHIN: Duration = Duration::from_mins(1);

/// The driver as it is now. Clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Current {
    up: Arc<Mutex<Arc<Up>>>,
    link: watch::Receiver<Link>,
    /// Whoever waits for the command.
    tell: fn(&str),
}

impl Current {
    pub(super) fn new(up: Arc<Up>, link: watch::Receiver<Link>, tell: fn(&str)) -> Self {
        let up = Arc::new(Mutex::new(up));
        Self { up, link, tell }
    }

    pub(super) fn get(&self) -> Arc<Up> {
        Arc::clone(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Up>> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a driver that has gone to be there again, if it keeps how its dynos end;
    /// `None` if it does not, or does not come back.
    pub(super) async fn returned(&self) -> Option<Arc<Up>> {
        let gone = self.get();
        if gone.info.durability() != Durability::Exact {
            return None;
        }
        (self.tell)(&format!(
            "The driver went away; the dyno goes on, and its driver is waited for, up to {} s",
            RETURNS_WITHIN.as_secs()
        ));
        let mut link = self.link.clone();
        let back = timeout(RETURNS_WITHIN, up_again(&mut link))
            .await
            .ok()?
            .ok()?;
        *self.lock() = Arc::clone(&back);
        Some(back)
    }
}
