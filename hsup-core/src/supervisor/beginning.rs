//! The beginning: where the history says that an earlier life of hsup ended, the driver's first
//! answer, and the dynos that were left running.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{
    Outcome, RunError,
    actor::{Actor, Known},
    dynos::{abbreviated, counted},
    ending::WAY_OUT,
    handle::Request,
};
use crate::{
    control::ControlError,
    driver::{Link, NOT_YET, demands},
    dyno::{Adopted, Birth, DynoSpec, IoDir, STARTS_IN_FLIGHT, base_on},
    environment,
    lifecycle::Stop,
    releases::{Id, Releases, Resume},
    source::Source,
    state::{LiveDyno, ReleaseRecord},
    time::now_unix_ms,
};

/// What the driver's first answer, or its absence, leads to.
#[derive(Clone, Copy, Debug)]
enum Begin {
    Supervise,
    /// Told to end while the driver was asked for the first time: what survived is to stop.
    Stop(Stop),
    /// Told to end, and nothing can be stopped.
    Not,
}

impl Actor {
    /// Takes up what an earlier life of hsup has left: its history, and its dynos once the driver
    /// answers. Answers how hsup ends where it was told to before that.
    ///
    /// # Errors
    /// When it cannot begin.
    pub(super) async fn take_over(&mut self) -> Result<Option<Outcome>, RunError> {
        self.take_up_history();
        let begin = match self.refuse_unknown_types() {
            Ok(()) => self.await_driver().await,
            Err(error) => Err(error),
        };
        match begin {
            Ok(Begin::Supervise) => self.adopt_survivors(),
            Ok(Begin::Stop(how)) => {
                self.take_over_to_stop(how);
                // Of whose release nothing is known any more: they are nobody's, and to stop as
                // well.
                if self.dynos.is_empty() {
                    self.sweeper.sweep_all().await;
                }
            }
            Ok(Begin::Not) => {
                let outcome = match self.survivors.len() {
                    0 => Outcome::ShutDown,
                    survivors => Outcome::Left(survivors),
                };
                self.end_as(&outcome).await;
                return Ok(Some(outcome));
            }
            Err(error) => {
                // What has survived stays with its driver.
                if self.survivors.is_empty() {
                    self.end().await;
                }
                return Err(error);
            }
        }
        self.first_sweep();
        Ok(None)
    }

    /// Takes up the history. What the source has to say comes later.
    pub(super) fn take_up_history(&mut self) {
        let last_good = self.history.last_good();
        let (good, resume) = match &self.source {
            // Its directory is the app, and every release of it has the same number: which one is
            // meant is what the release is.
            Source::Directory(directory) => {
                let is_there =
                    |record: &&ReleaseRecord| directory.release() == Some(&record.release);
                // What was there before is gone, unless it still runs.
                let good = last_good.filter(|record| self.runs_since_before() || is_there(record));
                let mut records = self.history.iter();
                let newest = records.find(|record| record.state.is_undecided());
                let goes_on = !self.survivors.is_empty() && newest.as_ref().is_some_and(is_there);
                let resume = if goes_on {
                    Resume::Undecided
                } else {
                    Resume::Good
                };
                (good, resume)
            }
            Source::ControlDir(_) | Source::Heroku(_) => (last_good, Resume::Undecided),
        };
        let undecided = self
            .history
            .iter()
            .filter(|record| record.state.is_undecided())
            .map(|record| record.id);
        let (releases, decisions) =
            Releases::restarted(good.map(|record| record.id), undecided, resume);
        for id in releases.undecided().chain(releases.good()) {
            self.know(id);
        }
        self.releases = releases;
        if self.releases_at_start() {
            self.release_directory_again();
        }
        self.decide(decisions);
    }

    /// Whether a dyno of the formation may still run since an earlier life. A release command
    /// that does says nothing of the release that was good before.
    pub(super) fn runs_since_before(&self) -> bool {
        let mut survivors = self.survivors.iter();
        survivors.any(|survivor| !survivor.name.process_type.is_release())
    }

    /// `hsup start TYPE…` with a type that there is not is refused before anything is
    /// touched: dynos that have survived must not go for a slip of the finger.
    pub(super) fn refuse_unknown_types(&self) -> Result<(), RunError> {
        let release = match &self.source {
            Source::Directory(directory) => directory.release(),
            // It may well have the type.
            Source::ControlDir(directory) if directory.path().join("new").exists() => None,
            // So may what is deployed by now.
            Source::Heroku(_) => None,
            Source::ControlDir(_) => self.wanted().map(|known| &*known.release),
        };
        match release {
            Some(release) => self.check_types(release).map_err(RunError::NoRelease),
            None => Ok(()),
        }
    }

    /// Waits for the driver's first answer, without which it is no use to begin.
    async fn await_driver(&mut self) -> Result<Begin, RunError> {
        let mut told = NOT_YET.to_owned();
        let mut stop = None;
        loop {
            let link = self.link_state.borrow_and_update().clone();
            let why = match link {
                Link::Up(up) => {
                    // Else every dyno would fail for it.
                    demands::check_binds(&up.info, &self.shared.binds)
                        .map_err(|error| RunError::Driver(error.to_string()))?;
                    self.rollouts
                        .check(&up.info.name, up.has_own_network())
                        .map_err(|error| RunError::Driver(error.to_string()))?;
                    if let Err(why) = up.fitness() {
                        self.note(format!("The {} driver is not ready: {why}", up.info.name));
                    }
                    let base = base_on(&up, self.shared.host_base);
                    let host = self.shared.host_vars.iter().cloned();
                    if let Some(left_out) = environment::left_out(base, host) {
                        self.note(format!("Warning: {left_out}"));
                    }
                    return Ok(stop.map_or(Begin::Supervise, Begin::Stop));
                }
                Link::Down {
                    why,
                    hopeless: true,
                    ..
                } => return Err(RunError::Driver(why)),
                Link::Down { why, .. } => why,
            };
            if why != told {
                if stop.is_some() {
                    return Ok(self.leave_survivors(&why));
                }
                self.note(format!("Waiting for the driver: {why}"));
                told.clone_from(&why);
            }
            tokio::select! {
                changed = self.link_state.changed() => if changed.is_err() {
                    return Err(RunError::Driver("the link to the driver ended".to_owned()));
                },
                Some(request) = self.inbox.recv() => match request {
                    Request::Shutdown(request, reply) => {
                        self.ending.push(reply);
                        // The driver is being asked: what survived is stopped once it answers.
                        if stop.is_none() && why == NOT_YET && !self.survivors.is_empty() {
                            stop = Some(self.how(request));
                            continue;
                        }
                        return Ok(self.leave_survivors(&why));
                    }
                    // What can be told without one.
                    Request::Status(..) | Request::Releases(..) | Request::Leave(_) => {
                        self.request(request);
                    }
                    request => {
                        let error = ControlError::Driver(format!("hsup waits for it: {why}"));
                        request.refuse(&error);
                    }
                }
            }
        }
    }

    /// Says what becomes of survivors that nobody can stop now.
    fn leave_survivors(&self, why: &str) -> Begin {
        if !self.survivors.is_empty() {
            let dynos = counted(self.survivors.len());
            let why = format!("{why}; {WAY_OUT}");
            self.note(format!(
                "{dynos} of an earlier hsup may run on, for the driver was not reached: {why}"
            ));
        }
        Begin::Not
    }

    /// Whether the good release lacks a type of the command line. None of its dynos would be
    /// wanted then, but before the source has said its first word that decides nothing: it may
    /// have a release with the type, or the type is a slip of the finger.
    pub(super) fn may_be_a_slip(&self, good: &Known) -> bool {
        !self.has_begun && self.check_types(&good.release).is_err()
    }

    /// Takes over the dynos that an earlier life of hsup left running, and goes on with the
    /// rollout that it was at.
    pub(super) fn adopt_survivors(&mut self) {
        let survivors = std::mem::take(&mut self.survivors);
        if survivors.is_empty() {
            return;
        }
        // They ran on what the driver made of it then.
        let ids = self.known.keys();
        let known: Vec<_> = ids.filter_map(|id| self.remembered(*id)).collect();
        self.known = known.into_iter().map(|known| (known.id, known)).collect();
        self.expect_names(&self.formation());
        self.adopt_each(survivors);
        self.unlearn_other_options();
        self.unlearn_unreleased();
        if self.good().is_some_and(|good| self.may_be_a_slip(good)) {
            return;
        }
        let is_built = |id| {
            self.known
                .get(&id)
                .is_some_and(|known| known.artifact.is_some())
        };
        if self.releases.good().is_some_and(is_built) {
            let wanted = self.releases.wanted();
            let left_is_built =
                wanted.is_some_and(|id| is_built(id) && !self.awaits_release_phase(id));
            self.say_wishes();
            let decisions = self.releases.survived(left_is_built);
            self.decide(decisions);
        }
        self.converge();
    }

    /// What the driver made by other options than it is told now is good for the dynos that run
    /// on it, and for no others: such a release is built again.
    fn unlearn_other_options(&mut self) {
        let is_other = |id: Id| {
            let artifact = self.history.get(id)?.artifact.as_ref()?;
            Some(!self.is_as_built_now(artifact))
        };
        let ids = self.known.keys().copied();
        let others: BTreeSet<Id> = ids.filter(|id| is_other(*id) == Some(true)).collect();
        for (id, known) in &mut self.known {
            if others.contains(id) {
                known.artifact = None;
            }
        }
    }

    /// A good release whose command runs since an earlier life is as one that is not built yet:
    /// its dynos wait for the end of that.
    fn unlearn_unreleased(&mut self) {
        if let Some(good) = self.releases.good()
            && self.awaits_release_phase(good)
            && let Some(known) = self.known.get_mut(&good)
        {
            known.artifact = None;
        }
    }

    /// Takes over the dynos that an earlier life of hsup left running, for no more than their
    /// stop: hsup was told to end before it had them.
    pub(super) fn take_over_to_stop(&mut self, how: Stop) {
        let survivors = std::mem::take(&mut self.survivors);
        self.adopt_each(survivors);
        self.shut_down(how);
    }

    /// Has the driver's list compared with what we took over, and only then dynos started:
    /// what is nobody's may hold the port of one, or be its twin.
    fn first_sweep(&self) {
        let (shared, sweeper) = (Arc::clone(&self.shared), Arc::clone(&self.sweeper));
        tokio::spawn(async move {
            sweeper.sweep_all().await;
            shared.starts.add_permits(STARTS_IN_FLIGHT);
        });
    }

    fn adopt_each(&mut self, survivors: Vec<LiveDyno>) {
        let (mut ours, mut forgotten) = (Vec::new(), Vec::new());
        for survivor in survivors {
            match self.spec_of_survivor(&survivor) {
                Some(spec) => ours.push((survivor, spec)),
                None => forgotten.push(survivor),
            }
        }
        if !forgotten.is_empty() {
            self.note(format!(
                "Not taking over {} of an earlier hsup, whose release is not remembered",
                counted(forgotten.len())
            ));
        }
        for survivor in forgotten {
            self.disown(&survivor);
        }
        if !ours.is_empty() {
            self.note(format!(
                "Taking over {} of an earlier hsup",
                counted(ours.len())
            ));
        }
        for (survivor, spec) in ours {
            self.adopt(survivor, spec);
        }
    }

    /// Says once what people asked for in an earlier life and what therefore is not as the
    /// release has it.
    pub(super) fn say_wishes(&mut self) {
        if std::mem::replace(&mut self.has_said_wishes, true) {
            return;
        }
        let formation = self.formation();
        let scaled: Vec<_> = formation
            .iter()
            .filter(|process| self.wishes.scaled.contains_key(&process.process_type))
            .map(|process| format!("{}={}", process.process_type, process.quantity))
            .collect();
        if !scaled.is_empty() {
            self.note_release(format!("Scaled before: {}", scaled.join(" ")));
        }
        let names = formation
            .iter()
            .flat_map(|process| self.wishes.names(process));
        let (held, wanted): (Vec<_>, Vec<_>) = names.partition(|name| self.is_held(name));
        if !held.is_empty() {
            let held: Vec<_> = held.iter().map(ToString::to_string).collect();
            self.note_release(format!(
                "Stopped before, and so until `hsupctl start`: {}",
                abbreviated(&held)
            ));
        }
        if wanted.is_empty() {
            self.note_release("There is nothing to run: no dyno is wanted");
        }
    }

    /// What a survivor runs, as far as that is remembered.
    fn spec_of_survivor(&self, survivor: &LiveDyno) -> Option<DynoSpec> {
        let known = self.known.get(&survivor.release_id);
        let known = known.filter(|known| known.artifact.is_some()).cloned();
        let known = known.or_else(|| self.remembered(survivor.release_id))?;
        self.spec_of(&survivor.name, &known)
    }

    /// The sweep stops what nobody owns, and nobody will read what it writes.
    fn disown(&self, survivor: &LiveDyno) {
        IoDir::at(self.shared.io_root.join(survivor.dyno_id.as_str())).remove();
        self.shared.ledger.disown(&survivor.dyno_id);
    }

    fn adopt(&mut self, survivor: LiveDyno, spec: DynoSpec) {
        let ran = now_unix_ms() - survivor.at_unix_ms;
        let ran = Duration::from_millis(u64::try_from(ran).unwrap_or(0));
        let dyno_id = survivor.dyno_id.clone();
        let is_release = survivor.name.process_type.is_release();
        // One of the two was to take the other's place when hsup was killed.
        let twin = self
            .dynos
            .of_name(&survivor.name)
            .find(|(_, live)| live.handle.spec.release_id == survivor.release_id)
            .map(|(key, _)| key);
        let adopted = Adopted {
            dyno_id: survivor.dyno_id,
            port: survivor.port.unwrap_or(0),
            started_at_unix_ms: survivor.at_unix_ms,
            was_ready: survivor.ready,
        };
        let key = self.spawn_dyno(spec, Birth::Adopt(adopted));
        if is_release {
            self.adopt_release_phase(survivor.release_id, key);
        }
        self.set_due(key, dyno_id, ran);
        if let Some(old) = twin {
            self.successors.insert(key, old);
        }
    }
}
