//! The driver of an earlier life of hsup: met again, replaced, or found gone.

use std::sync::Arc;

use hsup_driver_kit::{launch, orphans};
use tokio::time::timeout;
use tracing::{info, warn};

use super::{
    END_WITHIN, HEALTH_WITHIN, LinkTask,
    child::remove_socket,
    connect::{Established, Failure},
};
use crate::driver::{DriverSpec, Link, Previous, Up, said, stop_and_remove};

impl LinkTask {
    /// Ends the driver of an earlier life. It is nobody's child here: its connection's end
    /// tells of its own.
    pub(super) async fn end_previous(&mut self) {
        let Some(previous) = self.previous.clone() else {
            return;
        };
        let up = match &*self.publish.borrow() {
            Link::Up(up) => Arc::clone(up),
            Link::Down { .. } => return,
        };
        self.terminate_previous(&previous, &up).await;
        self.previous = None;
        self.dynos_ended = previous.pid.is_some() && self.dynos_end_with_it();
    }

    async fn terminate_previous(&self, previous: &Previous, up: &Up) {
        let Some(pid) = previous.pid else {
            // Nobody's child; or its process is not known, and it ends by itself.
            if previous.driver.is_none() {
                remove_socket(&previous.socket);
            }
            return;
        };
        launch::terminate(pid);
        if timeout(END_WITHIN, up.control.closed()).await.is_err() {
            warn!(pid, "driver did not end in time");
            launch::kill(pid);
        }
        orphans::kill_left_by(&previous.socket).await;
        remove_socket(&previous.socket);
    }

    /// Finds the driver of an earlier life. One that is not the driver wanted now is ended,
    /// with the dynos that it has of ours.
    pub(super) async fn meet_previous(&mut self) -> Result<Option<Established>, Failure> {
        let Some(previous) = self.previous.clone() else {
            return Ok(None);
        };
        let is_child = matches!(previous.driver, None | Some(DriverSpec::Child(_)));
        let is_wanted = previous.may_be(&self.settings.spec);
        match self.handshake(&previous.socket, HEALTH_WITHIN).await {
            Ok(established) if is_wanted => return Ok(Some(established)),
            Ok(established) => self.replace(&previous, established).await?,
            Err(failure) if (is_child || !is_wanted) && !failure.nobody => {
                let why = failure.why;
                let what = if failure.hopeless {
                    "what serves now where an earlier hsup had its driver is of no use"
                } else {
                    "the driver of an earlier hsup runs but does not answer"
                };
                return Err(still_has_dynos(&previous, &format!("{what}: {why}")));
            }
            // It serves no more, or is asked again as the one that is wanted.
            Err(_) => {
                self.note_end_unseen();
                if is_child {
                    orphans::kill_left_by(&previous.socket).await;
                }
            }
        }
        self.previous = None;
        Ok(None)
    }

    /// Ends the driver of an earlier life, once none of our dynos runs there.
    async fn replace(&self, previous: &Previous, established: Established) -> Result<(), Failure> {
        let Some(lives) = &self.settings.lives else {
            return Ok(());
        };
        let up = self.up(established);
        info!(name = up.info.name, "ending the driver of an earlier life");
        let cleared = match up.list(&lives.supervisor_id).await {
            Ok(dynos) => stop_and_remove(&up, &dynos, lives.grace).await,
            Err(status) => Err(status),
        };
        if let Err(status) = cleared {
            let (name, why) = (&up.info.name, said(&status));
            let what =
                format!("the {name} driver of an earlier hsup did not stop its dynos: {why}");
            return Err(still_has_dynos(previous, &what));
        }
        self.terminate_previous(previous, &up).await;
        Ok(())
    }

    /// After a driver that is not our child has ended: nobody listens where it did.
    pub(super) fn note_end_unseen(&mut self) {
        self.dynos_ended |= self.dynos_end_with_it();
    }
}

/// What a driver of an earlier life still runs must not run twice.
fn still_has_dynos(previous: &Previous, what: &str) -> Failure {
    let socket = previous.socket.display();
    Failure::passing(format!(
        "{what}; once it has ended, or `{socket}` is removed, its dynos count as gone"
    ))
}
