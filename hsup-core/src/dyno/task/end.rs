//! How an attempt ends: told to, or by itself.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::{Asked, Running, Task};
use crate::{
    dyno::{
        Crash, What,
        attempt::{self, Run},
    },
    exit::{Ending, ExitStatus},
    lifecycle::{Attempt, Event, State, Stop},
    memory::vastly_exceeded,
    time::now_unix_ms,
};

/// How long a dyno's last lines may hold up its restart: its output may be stuck behind a
/// terminal that nobody reads.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(1);

/// How long a Stop may take beyond its grace before people are told.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The pause before a Stop that failed is made again.
const STOP_AGAIN_AFTER: Duration = Duration::from_secs(1);

impl Task {
    /// Has the attempt end; answers its end when there is nothing to be stopped.
    pub(super) fn stop(&mut self, attempt: Attempt, how: Stop) -> Option<Event> {
        self.probe = None;
        let Some(running) = &self.running else {
            // It waits for descriptors.
            self.process = None;
            return Some(Event::Ended {
                attempt,
                status: ExitStatus::not_started("it was stopped before it ran", now_unix_ms()),
                uptime: Duration::ZERO,
            });
        };
        if running.started.is_none() {
            // Nothing is known to run that could be told anything, or have a grace.
            running.unwanted.send_replace(Some(how));
            return None;
        }
        if running.killed_at_boot {
            // It is being killed already; a gentler word must not come in between.
            return None;
        }
        if running.asked.as_ref().is_none_or(|asked| asked.how != how) {
            self.note(match how {
                Stop::Gracefully { .. } => "Stopping all processes with SIGTERM",
                Stop::Immediately => "Stopping process with SIGKILL",
            });
        }
        self.send_stop(how);
        None
    }

    pub(super) fn send_stop(&mut self, how: Stop) {
        let Some(running) = &mut self.running else {
            return;
        };
        running.asked = Some(Asked {
            how,
            at: Instant::now(),
            took: None,
        });
        if running.complaint.is_none() {
            self.unanswered = Some(Box::pin(sleep(grace_of(how) + ANSWER_WITHIN)));
        }
        let shared = Arc::clone(&self.shared);
        let dyno_id = running.run.dyno_id.clone();
        self.stopping = Some(Box::pin(async move {
            let result = attempt::stop(shared, dyno_id, how).await;
            if result.is_err() {
                sleep(STOP_AGAIN_AFTER).await;
            }
            result
        }));
    }

    pub(super) fn stopped(&mut self, result: Result<(), String>) {
        let Some(running) = &mut self.running else {
            return;
        };
        self.unanswered = None;
        let (attempt, killed_at_boot) = (running.attempt, running.killed_at_boot);
        let Err(why) = result else {
            // The end itself is the Wait's to tell, if it does.
            running.doubt.notify_one();
            if let Some(asked) = &mut running.asked {
                asked.took = Some(asked.at.elapsed());
            }
            return;
        };
        if running.complaint.as_ref() != Some(&why) {
            running.complaint = Some(why.clone());
            self.note(format!("It could not be stopped, trying again: {why}"));
        }
        if killed_at_boot {
            self.send_stop(Stop::Immediately);
        }
        self.apply(Event::StopFailed(attempt));
    }

    /// Says that the driver is silent: of what it does nothing is known.
    pub(super) fn not_answered(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        let Some(asked) = &running.asked else {
            return;
        };
        let waited = (grace_of(asked.how) + ANSWER_WITHIN).as_secs_f64();
        self.note(format!(
            "The driver has not answered the Stop for {waited} seconds"
        ));
    }

    fn say_exit_timeout(&self, grace: Duration) {
        let error = format!(
            "Error R12 (Exit timeout) -> At least one process failed to exit within {} seconds of SIGTERM",
            grace.as_secs_f64()
        );
        self.note(error);
        self.note("Stopping remaining processes with SIGKILL");
    }

    pub(super) async fn ended(&mut self, status: ExitStatus) {
        let Some(running) = self.running.take() else {
            return;
        };
        let Running {
            attempt,
            run,
            started,
            asked,
            killed_at_boot,
            ..
        } = running;
        let was_ready = self.trusted && !killed_at_boot;
        self.stopping = None;
        self.unanswered = None;
        self.probe = None;
        self.locating = None;
        if let Some(asked) = asked
            // Most often the end is seen before the Stop is answered.
            && let took = asked.took.unwrap_or_else(|| asked.at.elapsed())
            && let Some(grace) = exit_timeout(asked.how, took, &status)
        {
            self.say_exit_timeout(grace);
        }

        let finish = self.shared.logs.finish(&run.dyno_id);
        if timeout(LAST_LINES_WITHIN, finish).await.is_err() {
            tracing::warn!(dyno = %self.spec.name, "last lines are still being written");
        }
        if status.oom_killed {
            for line in vastly_exceeded(self.spec.release.limits.memory_bytes) {
                self.note(line);
            }
        }
        let by_itself = matches!(
            self.lifecycle.state(),
            State::Starting { .. } | State::Started { .. }
        );
        if by_itself || started.is_some() {
            self.note(status.to_string());
            self.status.last_exit = Some(status.clone());
        }
        self.shared.ports().free(&self.spec.name, run.port);

        if by_itself {
            self.status.crash = Some(Crash {
                status: status.clone(),
                dyno_id: run.dyno_id.clone(),
                // Now: the next one may write as much as is kept of both.
                last_lines: self.shared.logs.report_of(&run.dyno_id),
            });
            // A process that has done its work and left with 0 was no failure of its release.
            if status.success() && !self.spec.name.process_type.is_web() {
                self.trust();
            } else if status.is_lost() && !self.lifecycle.spoils_trial(&status) {
                self.fail(What::Lost(status.to_string()));
            } else if was_ready {
                self.tell(What::Crashed(status.to_string()));
            } else {
                self.fail(What::Failed(status.to_string()));
            }
        }
        self.ready = false;
        self.status.dyno_id = None;
        self.status.ip.clear();
        self.status.port = 0;
        self.status.node.clear();
        self.clean_up(run, &status);
        self.apply(Event::Ended {
            attempt,
            status,
            uptime: started.map(|at| at.elapsed()).unwrap_or_default(),
        });
    }

    /// Has journal, file system and driver forget the attempt, beside whatever comes next. The
    /// journal is first: until it has the end, a next life of hsup asks the others for it.
    fn clean_up(&self, run: Run, status: &ExitStatus) {
        let shared = Arc::clone(&self.shared);
        match shared.ledger.end(&run.dyno_id, status) {
            Ok(ended) => attempt::forget(&shared, &run.io, ended),
            Err(owed) => self.shared.tasks.spawn(async move {
                attempt::forget(&shared, &run.io, owed.written().await);
            }),
        }
    }
}

/// The grace that something of the dyno outlived, if it did: said when the end is known, for a
/// driver that does not answer may have killed nothing, and one that answers far too late may
/// have heard of the Stop too late.
fn exit_timeout(how: Stop, took: Duration, status: &ExitStatus) -> Option<Duration> {
    let Stop::Gracefully { grace } = how else {
        return None;
    };
    let is_killed = matches!(&status.how, Ending::Signal(name) if name == "SIGKILL");
    let in_time = took < grace + ANSWER_WITHIN;
    (took >= grace && !status.is_lost() && (in_time || is_killed)).then_some(grace)
}

/// What a dyno has between SIGTERM and SIGKILL.
const fn grace_of(how: Stop) -> Duration {
    match how {
        Stop::Gracefully { grace } => grace,
        Stop::Immediately => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_timeout_is_what_the_driver_is_known_to_have_ended() {
        let gracefully = Stop::Gracefully {
            grace: Duration::from_secs(3),
        };
        let signal = |name: &str| ExitStatus {
            how: Ending::Signal(name.to_owned()),
            ..ExitStatus::code(0, 1)
        };
        let (ended, killed) = (signal("SIGTERM"), signal("SIGKILL"));
        for (how, took, status, expected) in [
            (gracefully, 2, &ended, false),
            // Something else of the dyno was still there.
            (gracefully, 3, &ended, true),
            (gracefully, 3, &killed, true),
            // The driver may have had its mind elsewhere when the Stop came.
            (gracefully, 9, &ended, false),
            (gracefully, 9, &killed, true),
            (gracefully, 3, &ExitStatus::lost("gone", 1), false),
            (Stop::Immediately, 3, &killed, false),
        ] {
            let timeout = exit_timeout(how, Duration::from_secs(took), status);
            assert_eq!(timeout.is_some(), expected, "{how:?} {took} {status:?}");
        }
    }
}
