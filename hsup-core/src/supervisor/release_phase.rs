//! The release phase: a release's `release` command, run once before its dynos take the place of
//! others.
//!
//! ```text
//!   built ──▶ begun (written down) ──exits with 0──▶ done ──▶ rolled out
//!            ▲     └── anything else, or too late ──▶ rejected
//!            └─ stopped, for hsup was told to end
//! ```
//!
//! It is a one-off dyno, `release.N` with N hsup's number of the release, and the release counts
//! as being built meanwhile. It never runs beside another one: that of a release which overtakes
//! it waits for its end. It is never run again once it has ended by itself. One that hsup's own
//! end has stopped is no verdict on the release: the next hsup begins it anew. Which of the two it
//! was, is what its dyno saw first, the end or the order to stop: times would be those of two
//! clocks, for the driver's may be on another machine. Should hsup be killed meanwhile, the next
//! one takes the dyno over and waits on; if it cannot be known how it ended, the release is
//! rejected.
//!
//! Heroku's rules: <https://devcenter.heroku.com/articles/release-phase>.

use std::{num::NonZeroU32, time::Duration};

use tokio::time::Instant;

use super::{RunError, actor::Actor, ending::Phase};
use crate::{
    dyno::{Birth, Key},
    exit::{Ending, ExitStatus},
    lifecycle::Kind,
    logs::{Filter, Source as LogSource},
    name::{DynoName, ProcessType},
    releases::Id,
    source::Source,
    state::{ReleasePhase, ReleaseRecord},
};

/// How many of its last lines are kept of a command that failed.
const LAST_LINES: usize = 20;

/// Release commands: the one that runs, and what is remembered of others.
#[derive(Debug, Default)]
pub(super) struct ReleaseCommands {
    pub(super) running: Option<Running>,
    /// The release whose command waits until that has ended.
    next: Option<Id>,
    /// The last lines of one that failed, for the verdict.
    pub(super) last_lines: Vec<String>,
    /// A good release whose command is to be run in this life all the same.
    again: Option<Id>,
}

impl ReleaseCommands {
    /// When the one that runs has to have ended.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.running.as_ref()?.deadline
    }
}

/// The release command that runs.
#[derive(Debug)]
pub(super) struct Running {
    id: Id,
    pub(super) key: Key,
    /// When it has to have ended; `None` once it was told to.
    pub(super) deadline: Option<Instant>,
    /// It did not end in time.
    is_late: bool,
    /// hsup has stopped it with all else, for it was told to end.
    pub(super) is_stopped: bool,
}

impl Actor {
    /// The driver has built the release: its command runs, if it has one and that has not run,
    /// and then it is tried.
    pub(super) fn release_or_try(&mut self, id: Id) {
        if !self.awaits_release_phase(id) {
            let decisions = self.releases.built(id);
            return self.decide(decisions);
        }
        let record = self.history.get(id);
        let is_begun = record.is_some_and(|record| record.release_phase.is_some());
        match &self.release_commands.running {
            Some(running) if running.id == id => {}
            _ if is_begun => {
                let seen = record.and_then(|record| {
                    let why = record.release_failure.clone()?;
                    Some((why, record.last_lines.clone()))
                });
                let why = if let Some((why, lines)) = seen {
                    self.release_commands.last_lines = lines;
                    why
                } else {
                    "hsup ended while its release command ran: whether it was through is not \
                     known, and it is not run twice"
                        .to_owned()
                };
                self.release_failed(id, why);
            }
            Some(running) => {
                self.note_release(format!(
                    "Release v{} waits until the release command of v{} has ended",
                    self.version(id),
                    self.version(running.id)
                ));
                self.release_commands.next = Some(id);
            }
            None => self.begin_release_phase(id),
        }
    }

    /// Whether the release's command has to be run before it is tried.
    pub(super) fn awaits_release_phase(&self, id: Id) -> bool {
        let Some(record) = self.history.get(id) else {
            return false;
        };
        // What ran once is not released again: but a directory may hold other code by now.
        let is_good = self.releases.good() == Some(id) && self.release_commands.again != Some(id);
        self.release_timeout.is_some() && !is_good && is_due(record)
    }

    /// A start of hsup in a directory releases what is in it: the code may be other than it was.
    pub(super) fn release_directory_again(&mut self) {
        let Some(good) = self.releases.good() else {
            return;
        };
        // A command that an earlier life has begun for this goes on.
        let mut survivors = self.survivors.iter();
        if !survivors.any(|survivor| survivor.release_id == good) {
            let saved = self.history.update(good, |record| {
                record.release_phase = None;
                record.release_failure = None;
            });
            self.complain(saved);
        }
        self.release_commands.again = Some(good);
    }

    fn begin_release_phase(&mut self, id: Id) {
        let (Some(known), Some(timeout)) = (self.known.get(&id), self.release_timeout) else {
            return;
        };
        let Some(spec) = self.spec_of(&dyno_name(id), known) else {
            return;
        };
        // Before it is started, so that it is never started again.
        let saved = self.history.update(id, |record| {
            record.release_phase = Some(ReleasePhase::Begun);
        });
        self.complain(saved);
        self.tell_release(id);
        self.note_release(format!(
            "Release v{}: running its release command",
            self.version(id)
        ));
        let key = self.spawn_dyno(spec, Birth::Start);
        self.release_commands.running = Some(Running {
            id,
            key,
            deadline: Some(Instant::now() + timeout),
            is_late: false,
            is_stopped: false,
        });
    }

    /// An earlier life of hsup has started it, and it is taken over as `key`. It has its whole
    /// time again: how long it has run only the wall clock could tell, which may have been set.
    pub(super) fn adopt_release_phase(&mut self, id: Id, key: Key) {
        let left = self.release_timeout;
        self.release_commands.running = Some(Running {
            id,
            key,
            deadline: left.map(|left| Instant::now() + left),
            is_late: false,
            is_stopped: false,
        });
    }

    pub(super) fn is_release_phase(&self, key: Key) -> bool {
        let running = self.release_commands.running.as_ref();
        running.is_some_and(|running| running.key == key)
    }

    /// The command has had its time.
    pub(super) fn release_phase_is_late(&mut self) {
        let how = self.gracefully();
        if let Some(running) = &mut self.release_commands.running {
            running.deadline = None;
            running.is_late = true;
            let key = running.key;
            self.retire(key, how);
        }
    }

    /// Its dyno is over; `by_itself` if it ended before it was told to.
    pub(super) fn release_phase_ended(&mut self, exit: Option<&ExitStatus>, by_itself: bool) {
        let Some(running) = self.release_commands.running.take() else {
            return;
        };
        let (id, is_late) = (running.id, running.is_late);
        let is_building = self.releases.building() == Some(id);
        // One of an earlier life may end before its release is looked at again.
        let is_released_again = self.release_commands.again == Some(id);
        let is_wanted =
            is_building || is_released_again || self.releases.undecided().any(|it| it == id);
        match exit {
            Some(exit) if exit.success() && !is_late => {
                let saved = self
                    .history
                    .update(id, |record| record.release_phase = Some(ReleasePhase::Done));
                self.complain(saved);
                if is_building && self.phase == Phase::Running {
                    self.release_or_try(id);
                }
            }
            _ if !is_wanted => {}
            // It was cut off, so it was not through: it neither succeeded nor failed.
            exit if !is_late && running.is_stopped && was_cut_off(exit, by_itself) => {
                let saved = self
                    .history
                    .update(id, |record| record.release_phase = None);
                self.complain(saved);
                self.note_release(format!(
                    "Release v{}: its release command was stopped, and is run again when hsup is \
                     started again",
                    self.version(id)
                ));
            }
            exit => {
                let filter = Filter {
                    select: vec![dyno_name(id).to_string()],
                    source: Some(LogSource::App),
                };
                let lines = self.shared.logs.report(&filter, LAST_LINES).to_vec();
                let why = match (exit, self.release_timeout) {
                    (exit, Some(timeout)) if is_late => too_late(exit, timeout),
                    (Some(exit), _) => exit.to_string(),
                    (None, _) => "it was never started".to_owned(),
                };
                let why = format!("release command failed: {why}");
                if is_building {
                    self.release_commands.last_lines = lines;
                    self.release_failed(id, why);
                } else {
                    let saved = self.history.update(id, |record| {
                        record.release_failure = Some(why);
                        record.last_lines = lines;
                    });
                    self.complain(saved);
                }
            }
        }
        if let Some(next) = self.release_commands.next.take()
            && self.releases.building() == Some(next)
            && self.phase == Phase::Running
        {
            self.release_or_try(next);
        }
    }

    fn release_failed(&mut self, id: Id, why: String) {
        let is_good = self.releases.good() == Some(id);
        let decisions = self.releases.release_failed(id, why.clone());
        if self.phase != Phase::Running {
            return self.decide_last(decisions);
        }
        if is_good {
            // A directory's, which has no other one.
            return self.fail(RunError::NoRelease(why));
        }
        let is_stuck =
            self.releases.is_empty() || self.kind == Kind::OneShot && self.dynos.is_empty();
        if is_stuck && self.cannot_change() {
            self.decide_last(decisions);
            return self.fail(RunError::NoRelease(why));
        }
        self.decide(decisions);
    }

    /// Whether what is in the directory is to be released at every start of hsup.
    pub(super) fn releases_at_start(&self) -> bool {
        matches!(self.source, Source::Directory(_)) && !self.runs_since_before()
    }
}

/// Whether a command that did not end well, and that hsup has stopped, was ended by that, as far
/// as anybody knows, and not by itself before.
fn was_cut_off(exit: Option<&ExitStatus>, by_itself: bool) -> bool {
    !by_itself || exit.is_none_or(|exit| !exit.is_known())
}

/// What is said of a command that has had its time; of one that never ran, what it waited for.
fn too_late(exit: Option<&ExitStatus>, timeout: Duration) -> String {
    let within = format!("within {} seconds", timeout.as_secs_f64());
    match exit.map(|exit| &exit.how) {
        Some(Ending::NotStarted(why)) => format!("it did not begin {within}: {why}"),
        _ => format!("it did not end {within}"),
    }
}

/// Whether a release has a command that has not ended well. What comes from Heroku was released
/// there, which says nothing of what it needs here.
fn is_due(record: &ReleaseRecord) -> bool {
    let command = record.release.process(ProcessType::release().as_str());
    command.is_some() && record.release_phase != Some(ReleasePhase::Done)
}

/// The name of a release's one-off dyno.
pub(super) fn dyno_name(id: Id) -> DynoName {
    let number = u32::try_from(id).ok().and_then(NonZeroU32::new);
    DynoName::new(ProcessType::release(), number.unwrap_or(NonZeroU32::MAX))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;
    use crate::release::{AppMetadata, Process, Release};

    fn record() -> ReleaseRecord {
        let process = |name: &str| Process::new(name.parse().unwrap(), "true", 1);
        let release = Release {
            processes: ["web", "release"].map(process).into(),
            ..Release::default()
        };
        ReleaseRecord::new(1, release, "", 0)
    }

    #[test_case(|_| {} => true; "a command")]
    #[test_case(|record| drop(record.release.processes.pop()) => false; "none")]
    #[test_case(|record| record.release_phase = Some(ReleasePhase::Begun) => true; "begun")]
    #[test_case(|record| record.release_phase = Some(ReleasePhase::Done) => false; "done")]
    #[test_case(|record| record.release.metadata = Some(Box::new(AppMetadata::default())) => true; "of Heroku, too")]
    fn a_release_phase_is_due(change: fn(&mut ReleaseRecord)) -> bool {
        let mut record = record();
        change(&mut record);
        is_due(&record)
    }

    #[test_case(true, &ExitStatus::code(1, 5) => false; "it had failed before")]
    #[test_case(false, &ExitStatus::code(1, 5) => true; "it ended when it was told to")]
    #[test_case(true, &ExitStatus::lost("the driver died", 5) => true; "nobody knows")]
    #[test_case(false, &ExitStatus::not_started("it was stopped before it ran", 5) => true; "it never ran")]
    fn a_command_was_cut_off(by_itself: bool, exit: &ExitStatus) -> bool {
        was_cut_off(Some(exit), by_itself)
    }

    #[test]
    fn a_release_commands_dyno_has_the_releases_number() {
        assert_eq!(dyno_name(12).to_string(), "release.12");
        assert_eq!(dyno_name(u64::MAX).to_string(), "release.4294967295");
    }
}
