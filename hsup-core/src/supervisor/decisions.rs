//! What is decided about releases, carried out: passed on, written to the history, told.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use hsup_proto::control::events_response;
use tracing::info;

use super::{
    actor::{Actor, Known},
    status,
};
use crate::{
    lifecycle::Kind,
    releases::{Decision, Id, Why},
    source::{News, Source},
    state::ReleaseState,
};

impl Actor {
    /// Carries out what was decided.
    pub(super) fn decide(&mut self, decisions: Vec<Decision>) {
        for decision in decisions {
            info!(?decision, "release");
            match decision {
                Decision::Build(id) => self.start_build(id, Duration::ZERO),
                Decision::BuildAgain(id) => {
                    let pause = self.builds.backoff.crashed(Duration::ZERO);
                    self.start_build(id, pause);
                }
                Decision::Try(id) => self.begin_rollout(id),
                Decision::Run(id) => self.run_release(id),
                Decision::Reject(id, why) => self.reject(id, why),
            }
        }
        let releases = &self.releases;
        let needed: BTreeSet<_> = releases
            .undecided()
            .chain(releases.good())
            .chain(releases.on_trial())
            .collect();
        self.known.retain(|id, _| needed.contains(id));
        self.builds.said.retain(|id, _| needed.contains(id));
        self.follow_log_target();
    }

    /// Lines go to where the release that is wanted says.
    pub(super) fn follow_log_target(&self) {
        let target = self
            .wanted()
            .and_then(|known| known.release.log_target.as_ref());
        self.shared.logs.drain_to(target);
    }

    /// Makes sure that the release of this id is at hand.
    pub(super) fn know(&mut self, id: Id) {
        if !self.known.contains_key(&id)
            && let Some(known) = self.remembered(id)
        {
            // The driver has not been asked in this life.
            let artifact = None;
            self.known.insert(id, Known { artifact, ..known });
        }
    }

    /// The release of this id, and what this driver made of it some time.
    pub(super) fn remembered(&self, id: Id) -> Option<Known> {
        let record = self.history.get(id)?;
        let artifact = record.artifact.as_ref();
        let artifact = artifact.filter(|artifact| self.is_of_this_driver(artifact));
        Some(Known {
            id,
            release: Arc::new(record.release.clone()),
            artifact: artifact.map(|artifact| artifact.artifact.as_str().into()),
        })
    }

    /// The release that runs, or is gone back to.
    pub(super) fn good(&self) -> Option<&Known> {
        self.known.get(&self.releases.good()?)
    }

    /// The newest release that is not rejected: what another is compared with.
    pub(super) fn wanted(&self) -> Option<&Known> {
        self.known.get(&self.releases.wanted()?)
    }

    pub(super) fn version(&self, id: Id) -> u64 {
        self.history
            .get(id)
            .map_or(0, |record| record.release.version)
    }

    /// Writes down what can be, when nothing is begun any more.
    pub(super) fn decide_last(&mut self, mut decisions: Vec<Decision>) {
        decisions.retain(|decision| matches!(decision, Decision::Reject(..)));
        self.decide(decisions);
    }

    /// Whether there is nobody from whom a better release could come.
    pub(super) fn cannot_change(&self) -> bool {
        matches!(self.source, Source::Directory(_)) || self.kind == Kind::OneShot
    }

    // ---- verdicts

    /// The release is the good one now.
    fn run_release(&mut self, id: Id) {
        let Some(record) = self.history.get(id) else {
            return;
        };
        let is_news = record.state != ReleaseState::Current;
        let was_tried = record.state == ReleaseState::RollingOut;
        let (release, scaled_since) = (record.release.clone(), record.scaled_since.clone());
        let before = self.history.last_good().filter(|before| before.id != id);
        if let Some(before) = before {
            self.wishes.follow(&before.release, &release, &scaled_since);
            // A kill before the release is marked has this decided again; after that nobody
            // would know what it was compared with.
            self.remember_scaling();
        }
        if is_news && !was_tried {
            self.release_holds();
        }
        self.see_types(&release);
        self.mark(id, ReleaseState::Current);
        if is_news {
            self.note_release(format!("Release v{} is current", release.version));
        }
        self.say_wishes();
        self.converge();
        self.tell_formation();
    }

    fn reject(&mut self, id: Id, why: Why) {
        let Some(record) = self.history.get(id) else {
            return;
        };
        let version = record.release.version;
        let text = record.text.clone();
        let is_newest = self
            .history
            .iter()
            .next()
            .is_some_and(|newest| newest.id == id);
        let (reason, keeps) = match why {
            Why::Failed(why) => {
                // Where the old dyno had to end first, there is something to go back to.
                let went =
                    record.state == ReleaseState::RollingOut && self.stops_first(&record.release);
                let keeps = match self.good() {
                    Some(good) if went => format!("going back to v{}", good.release.version),
                    _ => self.what_keeps_running(),
                };
                (why, format!(", {keeps}"))
            }
            Why::LeftBehind => ("hsup ended before it was decided".to_owned(), String::new()),
            Why::Overtaken { by } => {
                let aim = match record.state {
                    ReleaseState::RollingOut => "up",
                    _ if record.release_phase.is_some() => "released",
                    _ => "built",
                };
                let by = self.version(by);
                let reason = format!("overtaken by v{by} before it was {aim}");
                (reason, String::new())
            }
        };
        let (gap, mut last_lines) = self.end_trial(id);
        if last_lines.is_empty() {
            last_lines = std::mem::take(&mut self.release_commands.last_lines);
        }
        let saved = self.history.update(id, |record| {
            record.state = ReleaseState::Rejected;
            record.reason.clone_from(&reason);
            record.gap_ms = i64::try_from(gap.as_millis()).unwrap_or(i64::MAX);
            record.last_lines = last_lines;
        });
        self.complain(saved);
        self.tell_release(id);
        self.note_release(format!("Release v{version} rejected{keeps}: {reason}"));
        // The files of a control directory speak of the newest release only.
        if let Some(text) = text.filter(|_| is_newest) {
            self.news = Some(News::Rejected { text, reason });
        }
    }

    pub(super) fn what_keeps_running(&self) -> String {
        let on_trial = self.releases.on_trial();
        if let Some(on_trial) = on_trial.filter(|_| !self.releases.is_going_back()) {
            return format!("the rollout of v{} goes on", self.version(on_trial));
        }
        match self.good() {
            Some(good) if good.artifact.is_some() => {
                format!("v{} keeps running", good.release.version)
            }
            Some(good) => format!("going back to v{}", good.release.version),
            None => "nothing runs yet".to_owned(),
        }
    }

    // ---- the history

    pub(super) fn mark(&mut self, id: Id, state: ReleaseState) {
        let saved = self.history.update(id, |record| {
            record.state = state;
            record.reason.clear();
        });
        self.complain(saved);
        self.tell_release(id);
    }

    pub(super) fn tell_release(&self, id: Id) {
        if let Some(record) = self.history.get(id) {
            self.event(events_response::Event::Release(status::release(record)));
        }
    }
}
