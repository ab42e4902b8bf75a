//! A release's way from the source to the dynos: build while the old one runs, replace, and
//! keep the old one when that fails.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use hsup_proto::{
    control::{self, events_response},
    driver::{RemoveRequest, remove_request},
};
use tokio::{task::JoinHandle, time::Instant};
use tracing::info;

use super::{
    RunError,
    actor::{Actor, Past},
    formation::{self, Wanted},
    status,
};
use crate::{
    build,
    control::ControlError,
    driver::{demands, up},
    dyno::Birth,
    lifecycle::Kind,
    logs::API,
    name::{DynoId, DynoName},
    release::{Release, ReleaseChange},
    rollout::{self, Action, Before, Replacement, Rollout, Strategy},
    source::{Source, Update},
    state::{Artifact, ReleaseRecord, ReleaseState},
    time::now_unix_ms,
};

/// How many last lines of a dyno that did not come up are kept with its release.
const LAST_LINES: usize = 20;

/// A release that can be started.
#[derive(Clone, Debug)]
pub(super) struct Good {
    pub(super) id: u64,
    pub(super) release: Arc<Release>,
    pub(super) artifact: Arc<str>,
}

/// A release that replaces the good one.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) release: Good,
    pub(super) names: BTreeSet<DynoName>,
    rollout: Rollout<DynoName>,
    /// When the first dyno of the good release was stopped for it.
    gap_since: Option<Instant>,
    reason: Option<String>,
    last_lines: Vec<String>,
}

/// A release that the driver works on.
#[derive(Debug)]
pub(super) struct Building {
    pub(super) id: u64,
    pub(super) release: Arc<Release>,
    pub(super) task: JoinHandle<()>,
}

/// What came of a build.
#[derive(Debug)]
pub(super) struct Built {
    id: u64,
    release: Arc<Release>,
    result: Result<Artifact, String>,
}

/// What became of a release that was handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is the same as what runs.
    Unchanged,
    /// Only quantities differed; they are as wanted now.
    Scaled,
    /// It is being built.
    In(u64),
}

impl Actor {
    pub(super) fn update(&mut self, update: Update) {
        match update {
            Update::Release(loaded) => {
                for warning in &loaded.warnings {
                    self.note_release(format!("Warning: {warning}"));
                }
                let (id, warnings) = (loaded.id, loaded.warnings.clone());
                let taken = self.take_in(loaded.release, &loaded.origin.to_string());
                match &taken {
                    Ok(Taken::Unchanged | Taken::Scaled) => self.source.accept(id),
                    Ok(Taken::In(release)) => {
                        self.source_ids.insert(*release, id);
                    }
                    Err(why) => self.refuse(id, why),
                }
                if let Some((reply, no_wait)) = self.applied.take() {
                    let answer = taken.map_err(ControlError::Rejected);
                    let answer = answer.map(|taken| self.answer_apply(taken, warnings, no_wait));
                    drop(reply.send(answer));
                }
            }
            Update::Rejected { reason, .. } => {
                if let Some((reply, _)) = self.applied.take() {
                    drop(reply.send(Err(ControlError::Rejected(reason.clone()))));
                }
                self.tell_refused(&reason);
            }
            Update::Warning(text) => self.note(text),
        }
    }

    /// A release that never was one that could be built.
    fn refuse(&mut self, source_id: u64, why: &str) {
        self.verdicts.push((source_id, why.to_owned()));
        self.tell_refused(why);
    }

    fn tell_refused(&mut self, why: &str) {
        if !self.give_up_without_release(why) {
            let keeps = self.what_keeps_running();
            self.note_release(format!("Release rejected, {keeps}: {why}"));
        }
    }

    /// With no release and none to come, there is nothing to supervise; whether that is so.
    fn give_up_without_release(&mut self, why: &str) -> bool {
        let nothing_runs = self.good.is_none() && self.building.is_none();
        let can_change = matches!(self.source, Source::ControlDir(_));
        let gives_up = nothing_runs && (!can_change || self.kind == Kind::OneShot);
        if gives_up {
            self.fail(RunError::NoRelease(why.to_owned()));
        }
        gives_up
    }

    fn tell_refused_version(&self, version: u64, why: &str) {
        let keeps = self.what_keeps_running();
        self.note_release(format!("Release v{version} rejected, {keeps}: {why}"));
    }

    fn what_keeps_running(&self) -> String {
        match &self.good {
            Some(good) => format!("v{} keeps running", good.release.version),
            None => "nothing runs yet".to_owned(),
        }
    }

    /// Tells the source what became of a release of its own.
    fn tell_source(&mut self, id: u64, rejected: Option<&str>) {
        let Some(source_id) = self.source_ids.remove(&id) else {
            return;
        };
        match rejected {
            None => self.source.accept(source_id),
            Some(why) => self.verdicts.push((source_id, why.to_owned())),
        }
    }

    /// Takes in a release: nothing to do, quantities to change, or a build to begin.
    pub(super) fn take_in(&mut self, mut release: Release, origin: &str) -> Result<Taken, String> {
        if release.app.is_empty() {
            release.app.clone_from(&self.app);
        }
        self.check_explicit(&release)?;
        self.expect_names(&self.wishes.formation(&release));
        if let Some(newest) = self.newest() {
            match release.change_from(&newest) {
                ReleaseChange::Nothing => return Ok(Taken::Unchanged),
                ReleaseChange::QuantitiesOnly
                    if self.candidate.is_none() && self.building.is_none() =>
                {
                    self.change_quantities(release);
                    return Ok(Taken::Scaled);
                }
                _ => {}
            }
        }
        let known = self
            .history
            .iter()
            .find(|record| release.change_from(&record.release) == ReleaseChange::Nothing)
            .cloned();
        let id = match known {
            // A cold start with a release that is known to be bad, and another known to be good.
            Some(bad)
                if self.good.is_none()
                    && bad.state == ReleaseState::Rejected
                    && self.history.last_good().is_some() =>
            {
                let good = self.history.last_good().expect("it was just there").clone();
                self.note_release(format!(
                    "Release v{} was rejected ({}): running v{}, the last good one",
                    release.version, bad.reason, good.release.version
                ));
                release = good.release;
                good.id
            }
            // A restart of hsup is no new release.
            Some(same) if self.good.is_none() && same.state != ReleaseState::Rejected => same.id,
            _ => {
                let taken = self.history.take_in(release.clone(), origin, now_unix_ms());
                self.complain(taken.saved);
                self.forget_artifacts(&taken.forgotten);
                self.note_release(format!("Release v{} created by {origin}", release.version));
                taken.id
            }
        };
        self.build(id, Arc::new(release));
        Ok(Taken::In(id))
    }

    /// `hsup start TYPE…` must name types that there are.
    fn check_explicit(&self, release: &Release) -> Result<(), String> {
        let explicit = match &self.wishes.explicit {
            // A later release may do without a type that the command line named.
            Some(explicit) if self.good.is_none() => explicit,
            _ => return Ok(()),
        };
        for process_type in explicit.keys() {
            formation::known(release, process_type.as_str()).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// The newest release that is not rejected: what another is compared with.
    pub(super) fn newest(&self) -> Option<Arc<Release>> {
        if let Some(building) = &self.building {
            return Some(Arc::clone(&building.release));
        }
        let next = self.next.as_ref();
        let rolling = self.candidate.as_ref().map(|candidate| &candidate.release);
        let rolling = rolling.filter(|_| !self.is_going_back());
        next.or(rolling)
            .or(self.good.as_ref())
            .map(|good| Arc::clone(&good.release))
    }

    fn change_quantities(&mut self, release: Release) {
        let Some(good) = &mut self.good else {
            return;
        };
        self.wishes.follow(&good.release, &release);
        good.release = Arc::new(release.clone());
        let id = good.id;
        let saved = self.history.update(id, |record| record.release = release);
        self.complain(saved);
        self.remember_scaling();
        self.converge();
        self.tell_formation();
    }

    pub(super) fn remember_scaling(&mut self) {
        let scaled = self.wishes.scaled.clone();
        let saved = self.memory.update(|memory| memory.quantities = scaled);
        self.complain(saved);
    }

    pub(super) fn tell_formation(&self) {
        let processes = formation::to_wire(&self.formation());
        self.event(events_response::Event::Formation(
            events_response::Formation { processes },
        ));
    }

    // ---- building

    fn build(&mut self, id: u64, release: Arc<Release>) {
        if let Some(overtaken) = self.building.take() {
            overtaken.task.abort();
            self.reject(
                overtaken.id,
                &format!("overtaken by v{} before it was built", release.version),
                None,
            );
        }
        self.mark(id, ReleaseState::Building);
        let kept = self.good.as_ref().filter(|good| {
            matches!(
                release.change_from(&good.release),
                ReleaseChange::Replace { builds: false }
            )
        });
        let kept = kept.map(|good| good.artifact.to_string());
        let mut link = self.shared.link.clone();
        let base = self.base.clone();
        let built = self.built_to.clone();
        let logs = self.shared.logs.clone();
        let work = Arc::clone(&release);
        let task = tokio::spawn(async move {
            let up = up(&mut link).await;
            let driver = up.info.name.clone();
            if let Some(unmet) = demands::unmet(&up.info, &work) {
                logs.note(API, format!("Warning: {unmet}"));
            }
            let result = match kept {
                Some(artifact) => Ok(artifact),
                None => match build::request(&work, &base) {
                    Err(error) => Err(crate::errors::chain(&error)),
                    Ok(request) => build::build(&up, request, |saying| {
                        if let build::Saying::Log(bytes) = saying
                            && !bytes.is_empty()
                        {
                            logs.note("build", String::from_utf8_lossy(&bytes));
                        }
                    })
                    .await
                    .map_err(|error| crate::errors::chain(&error)),
                },
            };
            // No receiver means that hsup ends.
            drop(built.send(Built {
                id,
                release: work,
                result: result.map(|artifact| Artifact { driver, artifact }),
            }));
        });
        self.building = Some(Building { id, release, task });
    }

    pub(super) fn built(&mut self, built: Built) {
        let is_ours = self.building.as_ref().is_some_and(|b| b.id == built.id);
        if !is_ours {
            return;
        }
        self.building = None;
        let artifact = match built.result {
            Ok(artifact) => artifact,
            Err(why) => {
                self.reject(built.id, &why, None);
                let version = built.release.version;
                self.tell_refused_version(version, &why);
                self.tell_source(built.id, Some(&why));
                if self.good.is_none() {
                    self.fall_back(built.id, &why);
                }
                return;
            }
        };
        let good = Good {
            id: built.id,
            release: built.release,
            artifact: artifact.artifact.as_str().into(),
        };
        let saved = self
            .history
            .update(good.id, |record| record.artifact = Some(artifact));
        self.complain(saved);
        if self.good.is_none() {
            self.become_good(good);
        } else if self.is_going_back() {
            self.next = Some(good);
        } else {
            self.begin_rollout(good);
        }
    }

    /// A cold start whose release cannot be built runs the last good one.
    fn fall_back(&mut self, bad: u64, why: &str) {
        let last_good = self.history.last_good().filter(|record| record.id != bad);
        let Some(record) = last_good.cloned() else {
            if !self.give_up_without_release(why) {
                self.note("Waiting for a release that can be built");
            }
            return;
        };
        self.note_release(format!(
            "Running v{}, the last good release",
            record.release.version
        ));
        self.build(record.id, Arc::new(record.release));
    }

    // ---- replacing

    fn begin_rollout(&mut self, release: Good) {
        if let Some(overtaken) = self.candidate.take() {
            let why = format!("overtaken by v{} before it was up", release.release.version);
            self.reject(overtaken.release.id, &why, None);
            self.deferred.clear();
        }
        self.mark(release.id, ReleaseState::RollingOut);
        self.release_holds();
        self.see_types(&release.release);
        let strategy = match &*self.link_state.borrow() {
            crate::driver::Link::Up(up) if up.has_own_network() => Strategy::StartFirst,
            _ => Strategy::StopFirst,
        };
        let mut names = BTreeSet::new();
        let mut types = Vec::new();
        let mut wishes = self.wishes.clone();
        if let Some(good) = &self.good {
            wishes.follow(&good.release, &release.release);
        }
        for process in wishes.formation(&release.release) {
            let mut replacements = Vec::new();
            for name in wishes.names(&process) {
                names.insert(name.clone());
                let before = self.before(&name);
                replacements.push(Replacement {
                    name,
                    strategy,
                    before,
                });
            }
            if !replacements.is_empty() {
                types.push(replacements);
            }
        }
        let (rollout, actions) = Rollout::begin(types);
        info!(release = release.id, dynos = names.len(), "rollout begins");
        self.candidate = Some(Candidate {
            release,
            names,
            rollout,
            gap_since: None,
            reason: None,
            last_lines: Vec::new(),
        });
        self.act(actions);
        // Names that neither release has, left by a rollout that this one overtook.
        self.converge();
    }

    fn before(&self, name: &DynoName) -> Before {
        let good = self.good.as_ref().map(|good| good.id);
        let running = self.of_name(name).find(|(_, live)| !live.retiring);
        match running {
            Some((_, live)) if Some(live.handle.spec.release_id) == good => Before::Good,
            Some(_) => Before::Other,
            None => Before::Nothing,
        }
    }

    pub(super) fn is_candidate(&self, release_id: u64) -> bool {
        self.candidate
            .as_ref()
            .is_some_and(|candidate| candidate.release.id == release_id)
    }

    fn is_going_back(&self) -> bool {
        self.candidate
            .as_ref()
            .is_some_and(|candidate| candidate.rollout.is_going_back())
    }

    /// Remembers which dyno spoiled the release, and what it wrote last.
    pub(super) fn blame(&mut self, name: &DynoName, why: &str, dyno_id: Option<&DynoId>) {
        let lines = dyno_id.map(|id| self.shared.logs.tail_of(id, LAST_LINES));
        let Some(candidate) = &mut self.candidate else {
            return;
        };
        if candidate.reason.is_none() {
            candidate.reason = Some(format!("{name}: {why}"));
            candidate.last_lines = lines
                .unwrap_or_default()
                .iter()
                .map(|line| String::from_utf8_lossy(&line.text).into_owned())
                .collect();
        }
    }

    pub(super) fn roll(&mut self, event: rollout::Event<DynoName>) {
        let Some(candidate) = &mut self.candidate else {
            return;
        };
        let actions = candidate.rollout.step(event);
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action<DynoName>>) {
        let mut events = Vec::new();
        for action in actions {
            let Some(candidate) = &mut self.candidate else {
                return;
            };
            let new = candidate.release.clone();
            match action {
                Action::Start(name) => self.start_or_defer(name, &new),
                Action::Retire(name) => {
                    candidate.gap_since.get_or_insert_with(Instant::now);
                    if self.retire_where(&name, |id| id != new.id) == 0 {
                        events.push(rollout::Event::OldGone(name));
                    }
                }
                Action::RetireNew(name) => {
                    self.deferred.remove(&name);
                    if self.retire_where(&name, |id| id == new.id) == 0 {
                        events.push(rollout::Event::NewGone(name));
                    }
                }
                Action::StartGood(name) => {
                    if let Some(good) = self.good.clone() {
                        self.start_or_defer(name, &good);
                    }
                }
                Action::Succeeded => self.succeeded(),
                Action::RolledBack => self.rolled_back(),
            }
        }
        for event in events {
            self.roll(event);
        }
    }

    /// Tells the dynos of that name whose release is meant to retire; how many there are.
    fn retire_where(&mut self, name: &DynoName, meant: impl Fn(u64) -> bool) -> usize {
        let keys: Vec<_> = self
            .of_name(name)
            .filter(|(_, live)| meant(live.handle.spec.release_id))
            .map(|(key, live)| (key, live.retiring))
            .collect();
        for (key, retiring) in &keys {
            if !retiring {
                self.retire(*key, self.gracefully());
            }
        }
        keys.len()
    }

    /// Starts a dyno, once no other of its name is on its way out: they would share a port.
    fn start_or_defer(&mut self, name: DynoName, release: &Good) {
        let shares_port = !matches!(
            &*self.link_state.borrow(),
            crate::driver::Link::Up(up) if up.has_own_network()
        );
        if shares_port && self.of_name(&name).next().is_some() {
            self.deferred.insert(name, release.id);
            return;
        }
        if let Some(spec) = self.spec_of(&name, release) {
            self.spawn_dyno(spec, Birth::Start);
        }
    }

    pub(super) fn start_deferred(&mut self, name: &DynoName) {
        if self.of_name(name).next().is_some() {
            return;
        }
        let Some(id) = self.deferred.remove(name) else {
            return;
        };
        let candidate = self.candidate.as_ref().map(|candidate| &candidate.release);
        let release = candidate
            .into_iter()
            .chain(self.good.as_ref())
            .find(|good| good.id == id)
            .cloned();
        if let Some(release) = release
            && let Some(spec) = self.spec_of(name, &release)
        {
            self.spawn_dyno(spec, Birth::Start);
        }
    }

    /// Whether `name` is wanted by the release that is rolled out.
    pub(super) fn wanted_after_rollout(&self, name: &DynoName) -> bool {
        let Some(candidate) = &self.candidate else {
            return false;
        };
        let mut wishes = self.wishes.clone();
        if let Some(good) = &self.good {
            wishes.follow(&good.release, &candidate.release.release);
        }
        wishes
            .formation(&candidate.release.release)
            .iter()
            .any(|process| {
                process.process_type == name.process_type && wishes.names(process).contains(name)
            })
            && !self.is_held(name)
    }

    /// Takes a name out of the rollout: somebody scaled it away or stopped it.
    pub(super) fn forget_in_rollout(&mut self, name: &DynoName) {
        if let Some(candidate) = &mut self.candidate {
            candidate.names.remove(name);
        }
        self.deferred.remove(name);
        self.retire_where(name, |_| true);
        self.roll(rollout::Event::Forget(name.clone()));
    }

    fn succeeded(&mut self) {
        if let Some(candidate) = self.candidate.take() {
            self.become_good(candidate.release);
        }
    }

    fn rolled_back(&mut self) {
        let Some(candidate) = self.candidate.take() else {
            return;
        };
        let why = candidate
            .reason
            .clone()
            .unwrap_or_else(|| "given up".to_owned());
        self.reject(candidate.release.id, &why, Some(&candidate));
        self.tell_refused_version(candidate.release.release.version, &why);
        self.tell_source(candidate.release.id, Some(&why));
        match self.next.take() {
            Some(next) => self.begin_rollout(next),
            None => self.converge(),
        }
    }

    fn become_good(&mut self, new: Good) {
        if let Some(old) = &self.good {
            self.wishes.follow(&old.release, &new.release);
        }
        let (id, version) = (new.id, new.release.version);
        self.see_types(&new.release);
        let is_news = self
            .history
            .current()
            .is_none_or(|record| record.id != new.id);
        self.mark(new.id, ReleaseState::Current);
        self.good = Some(new);
        if is_news {
            self.note_release(format!("Release v{version} is current"));
        }
        self.tell_source(id, None);
        self.remember_scaling();
        self.converge();
        self.tell_formation();
    }

    /// Makes room for the names in the terminal's first column.
    pub(super) fn expect_names(&self, formation: &[Wanted]) {
        for process in formation {
            if let Some(name) = self.wishes.names(process).last() {
                self.shared.logs.expect_name(&name.to_string());
            }
        }
    }

    fn see_types(&mut self, release: &Release) {
        let types = release
            .processes
            .iter()
            .map(|process| &process.process_type);
        let saved = self.memory.see_types(types);
        self.complain(saved);
    }

    /// A stop by hand holds until a new release.
    fn release_holds(&mut self) {
        let saved = self.memory.update(|memory| memory.stopped.clear());
        self.complain(saved);
    }

    // ---- the history

    fn mark(&mut self, id: u64, state: ReleaseState) {
        let saved = self.history.update(id, |record| {
            record.state = state;
            record.reason.clear();
        });
        self.complain(saved);
        self.tell_release(id);
    }

    fn reject(&mut self, id: u64, why: &str, candidate: Option<&Candidate>) {
        let gap = candidate
            .and_then(|candidate| candidate.gap_since)
            .map_or(Duration::ZERO, |since| since.elapsed());
        let lines = candidate.map(|candidate| candidate.last_lines.clone());
        let saved = self.history.update(id, |record| {
            // What was good once stays so: a cold start may need it again.
            if record.state != ReleaseState::Superseded {
                record.state = ReleaseState::Rejected;
            }
            why.clone_into(&mut record.reason);
            record.gap_ms = i64::try_from(gap.as_millis()).unwrap_or(i64::MAX);
            record.last_lines = lines.unwrap_or_default();
        });
        self.complain(saved);
        self.tell_release(id);
    }

    fn tell_release(&self, id: u64) {
        if let Some(record) = self.history.get(id) {
            self.event(events_response::Event::Release(status::release(record)));
        }
    }

    /// Has the driver remove what nobody will start again.
    fn forget_artifacts(&self, forgotten: &[ReleaseRecord]) {
        let kept: BTreeSet<_> = self
            .history
            .iter()
            .filter_map(|record| record.artifact.as_ref())
            .map(|artifact| &artifact.artifact)
            .collect();
        let gone: BTreeSet<_> = forgotten
            .iter()
            .filter_map(|record| record.artifact.as_ref())
            .map(|artifact| &artifact.artifact)
            .filter(|artifact| !kept.contains(artifact))
            .cloned()
            .collect();
        if gone.is_empty() {
            return;
        }
        let mut link = self.shared.link.clone();
        tokio::spawn(async move {
            let up = up(&mut link).await;
            for artifact in gone {
                let request = RemoveRequest {
                    what: Some(remove_request::What::Artifact(artifact)),
                };
                if let Err(status) = up.client().remove(request).await {
                    tracing::warn!(code = ?status.code(), "artifact not removed");
                }
            }
        });
    }

    // ---- the beginning

    /// Takes over the dynos that an earlier life of hsup left running.
    pub(super) fn adopt_survivors(&mut self) {
        let survivors = std::mem::take(&mut self.survivors);
        if survivors.is_empty() {
            return;
        }
        let last_good = self.history.last_good().cloned();
        if let Some(record) = &last_good
            && let Some(artifact) = &record.artifact
        {
            self.good = Some(Good {
                id: record.id,
                release: Arc::new(record.release.clone()),
                artifact: artifact.artifact.as_str().into(),
            });
            self.expect_names(&self.formation());
        }
        self.note(format!(
            "Taking over {} dynos of an earlier hsup",
            survivors.len()
        ));
        for survivor in survivors {
            let record = self.history.get(survivor.release).cloned();
            let release = record.and_then(|record| {
                let artifact = record.artifact?;
                Some(Good {
                    id: record.id,
                    release: Arc::new(record.release),
                    artifact: artifact.artifact.as_str().into(),
                })
            });
            // The good release is shared by its dynos.
            let release = match (&self.good, release) {
                (Some(good), Some(release)) if good.id == release.id => Some(good.clone()),
                (_, release) => release,
            };
            let spec = release.and_then(|release| self.spec_of(&survivor.name, &release));
            let Some(spec) = spec else {
                // The sweep stops what nobody owns.
                self.shared.ledger.disown(&survivor.dyno_id);
                continue;
            };
            let adopted = crate::dyno::Adopted {
                dyno_id: survivor.dyno_id,
                port: survivor.port.unwrap_or(0),
                started_at_unix_ms: survivor.at_unix_ms,
            };
            self.spawn_dyno(spec, Birth::Adopt(adopted));
        }
        self.converge();
    }

    /// What `status` shows of a name that has no dyno.
    pub(super) fn past_of(&self, name: &DynoName) -> Option<&Past> {
        self.past.get(name)
    }

    /// The current release for the wire.
    pub(super) fn current_release(&self) -> Option<control::Release> {
        let good = self.good.as_ref()?;
        self.history.get(good.id).map(status::release)
    }
}
