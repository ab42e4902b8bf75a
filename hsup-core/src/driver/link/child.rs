//! The driver as hsup's own child: its process from launch to what it leaves.

use std::path::Path;

use hsup_driver_kit::{
    launch::{self, Child, Launch},
    orphans,
};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::{
    END_WITHIN, LinkTask,
    connect::{BOOT, Established, Failure, LAST_TRY, Pauses},
};
use crate::driver::spec;

impl LinkTask {
    /// Starts the driver, and has it answer.
    pub(super) async fn launch(&mut self, name: &str) -> Result<Established, Failure> {
        let found = spec::find(name, &self.settings.own_program)
            .map_err(|error| Failure::hopeless(error.to_string()))?;
        let launch = Launch {
            program: found.program,
            argv0: found.argv0,
            socket: self.settings.socket.clone(),
            hand_listener: found.takes_listener,
        };
        let child = launch::launch(&launch)
            .map_err(|error| Failure::hopeless(crate::errors::chain(&error)))?;
        info!(pid = child.pid(), "driver started");
        self.note_driver(Some(child.pid()));
        let socket = child.socket().to_owned();
        self.child = Some(child);

        let deadline = Instant::now() + BOOT;
        let mut pauses = Pauses::until(deadline);
        loop {
            let within = LAST_TRY.max(deadline - Instant::now());
            let failure = match self.handshake(&socket, within).await {
                Ok(established) => return Ok(established),
                Err(failure) => failure,
            };
            self.reap();
            let is_running = self.child.as_ref().is_some_and(Child::is_running);
            if is_running
                && !failure.hopeless
                && let Some(pause) = pauses.next(Instant::now())
            {
                self.reaping(sleep(pause)).await;
                continue;
            }
            let child = self.child.as_ref().expect("it was just started");
            let why = if !child.is_running() {
                let said = child.last_output().await;
                format!(
                    "the {name} driver ended before it answered ({}){said}",
                    child.how_it_ended()
                )
            } else if failure.hopeless {
                failure.why
            } else {
                let said = child.last_output().await;
                format!(
                    "the {name} driver did not answer within {} s: {}{said}",
                    BOOT.as_secs(),
                    failure.why
                )
            };
            self.give_up_child().await;
            return Err(Failure::hopeless(why));
        }
    }

    /// Ends the child driver and removes the socket that was made for it.
    pub(super) async fn end_child(&mut self) {
        let Some(child) = &self.child else {
            self.end_previous().await;
            return;
        };
        let socket = child.socket().to_owned();
        self.terminate_child().await;
        // One that was killed before, or did not end in time, has stopped nobody.
        let cleared_up = self.child.as_ref().is_some_and(Child::has_ended_well);
        let (never_up, dynos_die) = (self.last.is_none(), self.dynos_end_with_it());
        if never_up || (dynos_die && !cleared_up) {
            // It did not stop its dynos, or never was a driver: what is left is nobody's.
            let killed = orphans::kill_all().await + orphans::kill_left_by(&socket).await;
            debug!(killed, "killed what the driver left");
        }
        self.dynos_ended = never_up || dynos_die;
        remove_socket(&socket);
    }

    /// Asks the child driver to end, and kills it when it does not.
    async fn terminate_child(&mut self) {
        let deadline = sleep(END_WITHIN);
        tokio::pin!(deadline);
        let mut is_asked = true;
        // Whoever is reaped has no pid any more that could be signalled.
        self.reap();
        if let Some(child) = self.child.as_ref().filter(|child| child.is_running()) {
            launch::terminate(child.pid());
        }
        while self.child.as_ref().is_some_and(Child::is_running) {
            tokio::select! {
                _ = self.children.recv() => self.reap(),
                () = &mut deadline => {
                    warn!(is_asked, "driver did not end in time");
                    if !std::mem::replace(&mut is_asked, false) {
                        break;
                    }
                    if let Some(child) = &self.child {
                        child.kill();
                    }
                    deadline.as_mut().reset(Instant::now() + END_WITHIN);
                }
            }
        }
    }

    /// Ends a child that never became a driver, and whatever it started: it never ran a
    /// dyno, so all of that is nobody's.
    async fn give_up_child(&mut self) {
        if self.last.is_none() || self.dynos_end_with_it() {
            orphans::kill_all().await;
        } else {
            // Dynos that outlived the driver before may be ours by now, and are to live.
            self.terminate_child().await;
        }
        if let Some(child) = self.child.take() {
            remove_socket(child.socket());
        }
    }

    /// After a child driver has ended: kills what it left, if nobody else ever will.
    pub(super) async fn clean_up_after_child(&mut self) {
        let ended = self.child.as_ref().is_some_and(|child| !child.is_running());
        if !ended {
            return;
        }
        if self.dynos_end_with_it() {
            let killed = orphans::kill_all().await;
            if killed > 0 {
                info!(killed, "killed what the dead driver left");
            }
            if let Some(child) = &self.child {
                orphans::kill_left_by(child.socket()).await;
            }
            self.dynos_ended = true;
        }
        if let Some(child) = self.child.take() {
            // There may be no next one.
            remove_socket(child.socket());
        }
    }

    /// Reaps whatever has ended: the child driver, and, for a subreaper, anybody's orphans.
    pub(super) fn reap(&mut self) {
        Self::reap_into(self.child.as_mut());
    }

    pub(super) fn reap_into(mut child: Option<&mut Child>) {
        for (pid, status) in orphans::reap() {
            if let Some(child) = child.as_deref_mut()
                && child.pid() == pid
            {
                child.ended(status);
            }
        }
    }

    /// Waits for `what` and keeps reaping meanwhile.
    pub(super) async fn reaping(&mut self, what: impl Future<Output = ()>) {
        tokio::pin!(what);
        loop {
            tokio::select! {
                () = &mut what => return,
                _ = self.children.recv() => self.reap(),
            }
        }
    }
}

/// Removes what a driver listened at. It may have done so itself.
pub(super) fn remove_socket(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        debug!(%error, "driver socket not removed");
    }
}
