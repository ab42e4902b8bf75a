//! The dynos: started, retired, heard, and made to be what is wanted.

use std::{collections::BTreeSet, sync::Arc};

use hsup_proto::control::{DynoState, events_response};

use super::{
    actor::{Actor, Known, LastSeen, Live},
    course::{self, Course, Seen, Step},
    ending::Phase,
    formation::Wanted,
    status,
};
use crate::{
    control::ControlError,
    dyno::{self, Birth, DynoSpec, DynoStatus, Inherited, Key, Report, What},
    exit::ExitStatus,
    lifecycle::{Kind, Stop},
    name::{DynoId, DynoName, Selector},
    release::Release,
    releases::Id,
    rollout,
};

impl Actor {
    /// Starts a dyno, or takes one over; answers its key.
    pub(super) fn spawn_dyno(&mut self, spec: DynoSpec, birth: Birth) -> Key {
        self.next_key += 1;
        let key = Key(self.next_key);
        let past = self.past.remove(&spec.name);
        self.restarts.spawned(&spec.name, key);
        // What its name went through is its task's to tell.
        let mut status = DynoStatus::down(Inherited::default());
        // Before its task has said so: what is decided meanwhile must not take one that serves
        // for one that does not.
        status.ready = matches!(&birth, Birth::Adopt(adopted) if adopted.serves(&spec.name));
        let inherited = past.map_or_else(Inherited::default, |past| Inherited {
            last_exit: past.status.last_exit,
            crash: past.status.crash,
        });
        let handle = dyno::spawn(
            key,
            spec,
            birth,
            inherited,
            Arc::clone(&self.shared),
            self.report_to.clone(),
        );
        let live = Live {
            handle,
            status,
            retiring: false,
            due: None,
        };
        self.dynos.insert(key, live);
        key
    }

    /// The specification of a dyno of `known`, if that has the process type and is built.
    pub(super) fn spec_of(&self, name: &DynoName, known: &Known) -> Option<DynoSpec> {
        let process = known.release.process(name.process_type.as_str())?;
        let command: Arc<str> = process.command.as_str().into();
        let is_release = name.process_type.is_release();
        let on_trial = self.releases.good() != Some(known.id) && !is_release;
        Some(DynoSpec {
            name: name.clone(),
            release_id: known.id,
            release: Arc::clone(&known.release),
            repeats: self.version_repeated(known.id),
            artifact: Arc::clone(known.artifact.as_ref()?),
            command,
            kind: if is_release { Kind::OneShot } else { self.kind },
            on_trial,
            proves: on_trial && self.releases.good().is_some() && self.is_proof(name, known.id),
        })
    }

    pub(super) fn retire(&mut self, key: Key, how: Stop) {
        let Some(live) = self.dynos.get_mut(key) else {
            return;
        };
        live.retiring = true;
        live.handle.retire(how);
        let name = live.handle.spec.name.clone();
        if self.is_wanted(&name) {
            // Another release's dyno takes its place, and shows by itself what comes of it.
            self.restarts.settled(key);
        } else {
            self.restarts.stopped(key, &name);
        }
    }

    /// Whether a dyno of this name is to run: of the good release, or of one on trial.
    fn is_wanted(&self, name: &DynoName) -> bool {
        let good = self.good();
        let is_goods = || good.is_some_and(|good| self.wishes.want(&good.release, name));
        let on_trial = self.releases.on_trial().and_then(|id| self.known.get(&id));
        let is_on_trials =
            || on_trial.is_some_and(|known| self.wishes_for(known).want(&known.release, name));
        !self.is_held(name) && (is_goods() || is_on_trials())
    }

    pub(super) fn retire_all(&mut self, how: Stop) {
        let keys: Vec<_> = self.dynos.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.retire(key, how);
        }
    }

    pub(super) fn gracefully(&self) -> Stop {
        Stop::Gracefully {
            grace: self.shared.policy.grace,
        }
    }

    pub(super) fn report(&mut self, report: Report) {
        let Some(live) = self.dynos.get_mut(report.key) else {
            return;
        };
        let name = live.handle.spec.name.clone();
        let release_id = live.handle.spec.release_id;
        match report.what {
            What::Status(status) => {
                live.status = *status;
                let is_back = live.status.ready && !live.retiring;
                let dyno = status::dyno(live);
                self.event(events_response::Event::Dyno(dyno));
                if is_back {
                    self.end_gap(&name);
                }
                self.wind_up(report.key);
            }
            What::Ready => {
                self.restarts.settled(report.key);
                self.successor_ready(report.key);
                if self.is_on_trial(release_id) {
                    self.roll(rollout::Event::Ready(name));
                } else {
                    self.roll_good(release_id, rollout::Event::GoodReady(name));
                }
            }
            What::Failed(why) => {
                let dyno_id = ended(&live.status);
                self.restarts.failed(report.key, &name, &why);
                if self.is_on_trial(release_id) {
                    self.blame(&name, &why, dyno_id.as_ref());
                    self.roll(rollout::Event::Failed(name.clone()));
                    // Of one that was through, and was lost or restarted since.
                    if self.is_on_trial(release_id) && self.releases.good().is_some() {
                        self.roll(rollout::Event::Crashed(name));
                    }
                } else {
                    self.successor_failed(report.key, &name, &why);
                    self.roll_good(release_id, rollout::Event::GoodFailed(name));
                }
            }
            What::Crashed(why) => {
                let dyno_id = ended(&live.status);
                // Where there is nothing better it is started again for as long as it takes.
                if self.is_on_trial(release_id) && self.releases.good().is_some() {
                    self.blame(&name, &why, dyno_id.as_ref());
                    self.roll(rollout::Event::Crashed(name));
                }
            }
            // It is started again, and what comes of that counts.
            What::Lost(_) if self.is_on_trial(release_id) => {}
            What::Lost(_) => self.roll_good(release_id, rollout::Event::GoodFailed(name)),
            What::Complete(exit) => self.complete(report.key, exit.as_ref()),
        }
    }

    /// What an overtaken release left says nothing of the good one.
    fn roll_good(&mut self, release_id: Id, event: rollout::Event<DynoName>) {
        if self.releases.good() == Some(release_id) {
            self.roll(event);
        }
    }

    fn complete(&mut self, key: Key, exit: Option<&ExitStatus>) {
        let Some(live) = self.dynos.remove(key) else {
            return;
        };
        self.restarts.settled(key);
        self.successors.remove(&key);
        let spec = &live.handle.spec;
        let name = spec.name.clone();
        let release_id = spec.release_id;
        let is_release = self.is_release_phase(key);
        if self.kind == Kind::OneShot
            && !is_release
            && let Some(exit) = exit
        {
            self.largest_code = self.largest_code.max(exit.exit_code());
        }
        let is_complete = self.kind == Kind::OneShot && !live.retiring;
        let past = LastSeen {
            version: spec.release.version,
            command: Arc::clone(&spec.command),
            status: DynoStatus {
                ready: false,
                state: if is_complete {
                    DynoState::Complete
                } else {
                    DynoState::Down
                },
                ..live.status.clone()
            },
        };
        if self.dynos.of_name(&name).next().is_none() && !is_release {
            self.past.insert(name.clone(), past);
        }
        self.event(events_response::Event::Gone(events_response::Gone {
            name: name.to_string(),
            dyno_id: String::new(),
            status: exit.map(Into::into),
        }));
        if is_release {
            // What ends by itself is a crash until somebody knows better.
            let by_itself = live.status.crash.is_some();
            return self.release_phase_ended(exit, by_itself);
        }
        let event = if self.is_on_trial(release_id) {
            rollout::Event::NewGone(name.clone())
        } else {
            rollout::Event::OldGone(name.clone())
        };
        self.roll(event);
        self.start_deferred(&name);
        self.converge_name(&name);
        if self.dynos.of_name(&name).next().is_none() {
            self.restarts.gone(&name);
        }
    }

    /// As [`Actor::converge`], for one name alone.
    fn converge_name(&mut self, name: &DynoName) {
        if self.phase != Phase::Running {
            return;
        }
        let Some(good) = self.good().cloned() else {
            return;
        };
        let trial = self.trial.as_ref();
        if trial.is_some_and(|trial| trial.names.contains(name)) {
            return;
        }
        if self.wishes.want(&good.release, name) {
            self.have(name, &good);
        } else {
            self.past.remove(name);
        }
    }

    /// Sees to a name that is wanted.
    fn have(&mut self, name: &DynoName, good: &Known) {
        if self.is_held(name) {
            return;
        }
        let there: Vec<_> = self.dynos.of_name(name).map(seen).collect();
        for step in course::steps(&there, good.id, self.strategy(&name.process_type)) {
            match step {
                Step::Retire(key) => self.retire(key, self.gracefully()),
                Step::Succeed(old, new) => drop(self.successors.insert(new, old)),
                Step::Start | Step::StartBeside(_) => {
                    let complete = self.past.get(name).is_some_and(LastSeen::is_complete);
                    let Some(spec) = self.spec_of(name, good).filter(|_| !complete) else {
                        continue;
                    };
                    let key = self.spawn_dyno(spec, Birth::Start);
                    if let Step::StartBeside(old) = step {
                        self.successors.insert(key, old);
                    }
                }
            }
        }
    }

    /// Makes what runs be what is wanted, but for what a rollout is at.
    pub(super) fn converge(&mut self) {
        if self.phase != Phase::Running {
            return;
        }
        let Some(good) = self.good().cloned() else {
            return;
        };
        if self.may_be_a_slip(&good) {
            return;
        }
        let wanted = self.wishes.all_names(&good.release);
        let rolling: BTreeSet<DynoName> = match &self.trial {
            Some(trial) => trial.names.clone(),
            None => BTreeSet::new(),
        };
        let course = Course::of(&wanted, &rolling, &self.wanted_after_rollout());
        // What is wanted no more goes, whoever was at it.
        let surplus: Vec<(Key, DynoName)> = self
            .dynos
            .iter()
            .filter(|(key, live)| !live.retiring && !self.is_release_phase(*key))
            .map(|(key, live)| (key, live.handle.spec.name.clone()))
            .filter(|(_, name)| !course.keep.contains(name))
            .collect();
        for (key, name) in surplus {
            self.retire(key, self.gracefully());
            self.end_gap(&name);
        }
        let on_trial = self.trial.as_ref().map(|trial| trial.id);
        for name in &course.forget {
            let keeps = wanted.contains(name).then_some(good.id);
            self.forget_in_rollout(name, keeps, rollout::Event::Unwanted);
            let now_on_trial = self.trial.as_ref().map(|trial| trial.id);
            if self.releases.good() != Some(good.id) || now_on_trial != on_trial {
                // The rollout was through without it. What came of that has a course of its own,
                // which was taken already.
                return;
            }
        }
        self.past.retain(|name, _| course.keep.contains(name));
        for name in &course.have {
            self.have(name, &good);
        }
    }

    /// The formation as wanted now: of the good release.
    pub(super) fn formation(&self) -> Vec<Wanted> {
        match self.good() {
            Some(good) => self.wishes.formation(&good.release),
            None => Vec::new(),
        }
    }

    /// Makes room for the names in the terminal's first column.
    pub(super) fn expect_names(&self, formation: &[Wanted]) {
        for process in formation {
            if let Some(name) = self.wishes.names(process).last() {
                self.shared.logs.expect_name(&name.to_string());
            }
        }
    }

    pub(super) fn see_types(&mut self, release: &Release) {
        let types = release
            .processes
            .iter()
            .map(|process| &process.process_type);
        let saved = self.memory.see_types(types.clone());
        self.complain(saved);
        self.shared.ports().learn(types);
    }

    pub(super) fn is_held(&self, name: &DynoName) -> bool {
        self.memory.get().stopped.contains(name)
    }

    /// Every name that is or was there, and that `select` means; all when it is empty.
    pub(super) fn selected(&self, select: &[String]) -> Result<BTreeSet<DynoName>, ControlError> {
        let mut all: BTreeSet<DynoName> = self.dynos.names().cloned().collect();
        if let Some(good) = self.good() {
            all.extend(self.wishes.all_names(&good.release));
        }
        if select.is_empty() {
            return Ok(all);
        }
        let mut selected = BTreeSet::new();
        for text in select {
            let selector: Selector = text
                .parse()
                .map_err(|error| ControlError::Invalid(format!("{error}")))?;
            // Of which each may be meant by another word, too.
            let meant = || all.iter().filter(|name| selector.matches(name));
            selected.extend(meant().cloned());
            let known_type = self
                .good()
                .is_some_and(|good| good.release.process(text).is_some());
            if meant().next().is_none() && !known_type {
                let names: Vec<_> = all.iter().map(ToString::to_string).collect();
                return Err(ControlError::NotFound(if names.is_empty() {
                    format!("no dyno or process type `{text}`: none runs")
                } else {
                    format!(
                        "no dyno or process type `{text}`: there is {}",
                        abbreviated(&names)
                    )
                }));
            }
        }
        Ok(selected)
    }
}

fn seen((key, live): (Key, &Live)) -> Seen {
    Seen {
        key,
        release: live.handle.spec.release_id,
        retiring: live.retiring,
        ready: live.status.ready,
    }
}

/// Whose end is reported: the attempt that ran as far as is known here, or the last that crashed.
fn ended(status: &DynoStatus) -> Option<DynoId> {
    let crash = status.crash.as_ref();
    let running = status.dyno_id.as_ref();
    running.or(crash.map(|crash| &crash.dyno_id)).cloned()
}

/// How many dynos, in words.
pub(super) fn counted(dynos: usize) -> String {
    match dynos {
        1 => "1 dyno".to_owned(),
        many => format!("{many} dynos"),
    }
}

/// The first names, and how many more there are.
pub(super) fn abbreviated(names: &[String]) -> String {
    const SHOWN: usize = 10;
    if names.len() <= SHOWN {
        names.join(", ")
    } else {
        format!(
            "{} and {} more",
            names[..SHOWN].join(", "),
            names.len() - SHOWN
        )
    }
}
