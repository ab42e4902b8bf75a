//! The end: what is given up for it, how long it may take, and what hsup ends with.

use std::time::Duration;

use hsup_proto::driver::Durability;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Outcome, RunError, actor::Actor, dynos::counted, restarts::Restarts};
use crate::{
    control::ControlError,
    driver::Link,
    lifecycle::{Kind, Stop},
};

/// What to do about dynos that run on without hsup.
pub(super) const WAY_OUT: &str = "once the driver answers again, `hsup start` takes over what \
    runs on, and `hsupctl shutdown` stops it";

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

    /// Says what becomes of the dynos that did not end in the time that a shutdown gives them.
    pub(super) fn give_dynos_up(&self) -> Outcome {
        let left = self.dynos.len();
        warn!(left, "dynos did not end in time");
        let dynos = counted(left);
        let (outcome, fate) = if self.dynos_end_with_driver() {
            (Outcome::ShutDown, "ended with the driver".to_owned())
        } else {
            let fate = format!("left to the driver; {WAY_OUT}");
            (Outcome::Left(left), fate)
        };
        self.note(format!("{dynos} did not end in time: {fate}"));
        outcome
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
        self.end_as(&Outcome::ShutDown).await;
    }

    /// Ends the driver, and tells whoever wanted the end that it is there, or what of it is not.
    pub(super) async fn end_as(&mut self, outcome: &Outcome) {
        self.save_again();
        self.link.end().await;
        let answer = match outcome {
            Outcome::Left(dynos) => Err(ControlError::Rejected(left(*dynos))),
            Outcome::ShutDown | Outcome::AllComplete(_) => Ok(()),
        };
        for reply in std::mem::take(&mut self.ending) {
            // Whoever asked may have gone.
            drop(reply.send(answer.clone()));
        }
    }
}

/// Why an end is none, for whoever wanted it.
fn left(dynos: usize) -> String {
    let dynos = counted(dynos);
    format!("hsup ends, but its driver has not stopped {dynos}, which may run on: {WAY_OUT}")
}
