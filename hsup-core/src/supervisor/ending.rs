//! The end: what is given up for it, how long it may take, and what hsup ends with.

use std::time::Duration;

use hsup_proto::driver::Durability;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Outcome, RunError, actor::Actor, dynos::counted, restarts::Restarts};
use crate::{
    driver::Link,
    lifecycle::{Kind, Stop},
};

/// How far a shutdown is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    ShuttingDown { until: Instant },
}

impl Phase {
    /// Until when dynos may end.
    pub(super) const fn deadline(self) -> Option<Instant> {
        match self {
            Self::Running => None,
            Self::ShuttingDown { until } => Some(until),
        }
    }
}

impl Actor {
    /// Has all dynos end, and begins nothing any more.
    pub(super) fn shut_down(&mut self, how: Stop) {
        // A driver that has not answered by then goes on stopping what it was told to stop.
        let patience = match how {
            Stop::Gracefully { grace } => grace + Duration::from_secs(15),
            Stop::Immediately => Duration::from_secs(5),
        };
        let until = Instant::now() + patience;
        self.stop_building();
        self.trial = None;
        self.gap = None;
        self.cycle_at = None;
        self.deferred.clear();
        // Whoever waits for one is told that hsup ends.
        self.restarts = Restarts::default();
        self.phase = Phase::ShuttingDown { until };
        if let Some(running) = &mut self.release_commands.running {
            running.is_stopped = true;
            // It has no more time than all else, and that is no verdict.
            running.deadline = None;
        }
        info!(dynos = self.dynos.len(), "shutting down");
        self.retire_all(how);
    }

    /// What hsup ends with, once there is nothing left to do.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        if !self.dynos.is_empty() {
            return None;
        }
        if self.phase != Phase::Running {
            return Some(Outcome::ShutDown);
        }
        let all_complete = self.kind == Kind::OneShot
            && self.has_begun
            && self.releases.is_settled()
            && self.deferred.is_empty();
        all_complete.then_some(Outcome::AllComplete(self.largest_code))
    }

    /// It cannot go on.
    pub(super) fn fail(&mut self, error: RunError) {
        self.fatal = Some(error);
    }

    /// The dynos did not end in the time that a shutdown gives them.
    pub(super) fn give_dynos_up(&self) {
        warn!(left = self.dynos.len(), "dynos did not end in time");
        let dynos = counted(self.dynos.len());
        let fate = if self.dynos_end_with_driver() {
            "ended with the driver"
        } else {
            "left to the driver"
        };
        self.note(format!("{dynos} did not end in time: {fate}"));
    }

    /// Whether what the driver has not stopped ends when hsup ends the driver.
    fn dynos_end_with_driver(&self) -> bool {
        let dies = match &*self.link_state.borrow() {
            Link::Up(up) => up.info.durability() == Durability::None,
            Link::Down { .. } => false,
        };
        dies && self.link.is_child()
    }

    /// Ends the driver, and tells whoever wanted the end that it is there.
    pub(super) async fn end(&mut self) {
        self.save_again();
        self.link.end().await;
        for reply in std::mem::take(&mut self.ending) {
            // Whoever asked may have gone.
            drop(reply.send(Ok(())));
        }
    }
}
