//! A release that replaces the good one: its rollout, carried out.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;
use tracing::info;

use super::{
    actor::{Actor, Known, Live},
    formation::Wishes,
    gap::Gap,
};
use crate::{
    dyno::Birth,
    errors::chain,
    lifecycle::Kind,
    name::{DynoId, DynoName, ProcessType},
    release::Release,
    releases::Id,
    rollout::{self, Action, Before, Replacement, Rollout, Strategy},
    state::ReleaseState,
};

/// The release that replaces the good one.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) id: Id,
    pub(super) names: BTreeSet<DynoName>,
    rollout: Rollout<DynoName>,
    reason: Option<String>,
    last_lines: Vec<String>,
}

/// Whether the dyno is one of this release, and was not told to go.
fn is_staying(live: &Live, release: Id) -> bool {
    !live.retiring && live.handle.spec.release_id == release
}

/// What a name runs before the release `new` is tried: `staying` are the releases of its dynos
/// that were not told to go.
pub(super) fn before(staying: impl Iterator<Item = Id>, good: Option<Id>, new: Id) -> Before {
    staying.fold(Before::Nothing, |before, id| match before {
        Before::New => Before::New,
        _ if id == new => Before::New,
        Before::Good => Before::Good,
        _ if Some(id) == good => Before::Good,
        Before::Nothing | Before::Other => Before::Other,
    })
}

impl Actor {
    pub(super) fn begin_rollout(&mut self, id: Id) {
        let Some(known) = self.known.get(&id).cloned() else {
            return;
        };
        if self.kind == Kind::OneShot && self.dynos.is_empty() {
            // What runs once is not tried: its end is what was asked for, and running the
            // release before it as well is not.
            return self.succeeded();
        }
        let formation = self.wishes_for(&known).formation(&known.release);
        let dynos = formation.iter().map(|process| process.quantity as usize);
        if let Err(error) = self.shared.ledger.reserve(dynos.sum()) {
            // Half-way it would be too late: neither release could start a dyno then.
            return self.refuse_to_try(chain(&error));
        }
        let record = self.history.get(id);
        // What was said in a rollout that an earlier life began holds in this one.
        if record.is_some_and(|record| record.state != ReleaseState::RollingOut) {
            self.release_holds();
        }
        self.mark(id, ReleaseState::RollingOut);
        self.see_types(&known.release);
        let (mut names, mut types) = (BTreeSet::new(), Vec::new());
        for of_type in self.wishes_for(&known).names_by_type(&known.release) {
            let wanted: Vec<_> = of_type.filter(|name| !self.is_held(name)).collect();
            names.extend(wanted.iter().cloned());
            let replacement = |name: DynoName| Replacement {
                before: self.before(&name, id),
                strategy: self.strategy(&name.process_type),
                name,
            };
            types.push(wanted.into_iter().map(replacement).collect());
        }
        if let Some(good) = self.releases.good() {
            // Where the good one serves, nobody waits for what an overtaken release began.
            for name in &names {
                if self.serves_of(name, good) == Some(true) {
                    self.retire_where(name, |release| release != id && release != good);
                }
            }
        }
        self.write_gap();
        let overtaken = self.gap.take();
        self.gap = Some(Gap::new(id, overtaken, Instant::now()));
        let (rollout, actions) = Rollout::begin(types, self.rollouts.surge);
        info!(release = id, dynos = names.len(), "rollout begins");
        self.trial = Some(Trial {
            id,
            names,
            rollout,
            reason: None,
            last_lines: Vec::new(),
        });
        self.act(actions);
        // Names that neither release has, left by a rollout that this one overtook.
        self.converge();
    }

    fn refuse_to_try(&mut self, why: String) {
        let decisions = self.releases.given_up(why);
        self.decide(decisions);
        let decisions = self.releases.undone();
        self.decide(decisions);
        self.converge();
    }

    fn before(&self, name: &DynoName, new: Id) -> Before {
        let of_name = self.dynos.of_name(name);
        let staying = of_name.filter(|(_, live)| !live.retiring);
        before(
            staying.map(|(_, live)| live.handle.spec.release_id),
            self.releases.good(),
            new,
        )
    }

    /// What people asked for, as it would be with this release instead of the good one.
    pub(super) fn wishes_for(&self, known: &Known) -> Wishes {
        match (self.good(), self.history.get(known.id)) {
            (Some(good), Some(record)) => {
                let since = &record.scaled_since;
                self.wishes.after(&good.release, &known.release, since)
            }
            _ => self.wishes.clone(),
        }
    }

    pub(super) fn is_on_trial(&self, release_id: Id) -> bool {
        self.trial
            .as_ref()
            .is_some_and(|trial| trial.id == release_id)
    }

    /// Whether the rollout of this release has seen no dyno of this one's type do well yet.
    pub(super) fn is_proof(&self, name: &DynoName, release_id: Id) -> bool {
        let mut trial = self.trial.iter();
        trial.any(|trial| trial.id == release_id && trial.rollout.proves(name))
    }

    /// Remembers which dyno spoiled the release, and what it wrote last.
    pub(super) fn blame(&mut self, name: &DynoName, why: &str, dyno_id: Option<&DynoId>) {
        let Some(trial) = &mut self.trial else {
            return;
        };
        if trial.reason.is_none() {
            trial.reason = Some(format!("{name}: {why}"));
            let lines = dyno_id.map(|id| self.shared.logs.report_of(id));
            trial.last_lines = lines.map_or_else(Vec::new, |lines| lines.to_vec());
        }
    }

    pub(super) fn roll(&mut self, event: rollout::Event<DynoName>) {
        let Some(trial) = &mut self.trial else {
            return;
        };
        let actions = trial.rollout.step(event);
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action<DynoName>>) {
        let mut events = Vec::new();
        for action in actions {
            let Some(trial) = &mut self.trial else {
                return;
            };
            let new = trial.id;
            match action {
                Action::Start(name) => self.start_or_defer(name, new),
                Action::Retire(name) => {
                    let good = self.releases.good();
                    let was_good = good.is_some_and(|good| self.runs(&name, good));
                    let count = self.retire_where(&name, |id| id != new);
                    if was_good
                        && !self.serves(&name)
                        && let Some(gap) = &mut self.gap
                    {
                        gap.lost(&name, Instant::now());
                    }
                    if count == 0 {
                        events.push(rollout::Event::OldGone(name));
                    }
                }
                Action::RetireNew(name) => {
                    self.deferred.remove(&name);
                    let count = self.retire_where(&name, |id| id == new);
                    if !self.serves(&name)
                        && let Some(gap) = &mut self.gap
                    {
                        gap.lost_again(&name, Instant::now());
                    }
                    if count == 0 {
                        events.push(rollout::Event::NewGone(name));
                    }
                }
                Action::RetireOther(name) => {
                    let good = self.releases.good();
                    self.retire_where(&name, |id| id != new && Some(id) != good);
                }
                Action::StartGood(name) => {
                    let Some(good) = self.releases.good() else {
                        continue;
                    };
                    match self.serves_of(&name, good) {
                        // hsup has not had it built in this life, or it has no such type.
                        None if !self.can_start(&name, good) => {
                            events.push(rollout::Event::GoodFailed(name));
                        }
                        None => self.start_or_defer(name, good),
                        Some(true) => events.push(rollout::Event::GoodReady(name)),
                        // Its own report follows.
                        Some(false) => {}
                    }
                }
                Action::Unproven(name) => {
                    self.blame(&name, "stopped before it was ready", None);
                }
                Action::GivenUp => {
                    let why = trial.reason.clone();
                    let why = why.unwrap_or_else(|| "given up".to_owned());
                    let decisions = self.releases.given_up(why);
                    self.decide(decisions);
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
    fn retire_where(&mut self, name: &DynoName, meant: impl Fn(Id) -> bool) -> usize {
        let keys: Vec<_> = self
            .dynos
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

    /// Whether a dyno of that name and release runs, and is to.
    fn runs(&self, name: &DynoName, release: Id) -> bool {
        self.dynos
            .of_name(name)
            .any(|(_, live)| is_staying(live, release))
    }

    /// Whether the dyno of that name and release is ready, if there is one that is to stay.
    fn serves_of(&self, name: &DynoName, release: Id) -> Option<bool> {
        let mut of_name = self.dynos.of_name(name);
        let there = of_name.find(|(_, live)| is_staying(live, release));
        there.map(|(_, live)| live.status.ready)
    }

    /// Whether a dyno of that name is ready, and is to stay.
    fn serves(&self, name: &DynoName) -> bool {
        self.dynos
            .of_name(name)
            .any(|(_, live)| !live.retiring && live.status.ready)
    }

    /// The name has a dyno that is ready, or is wanted no more.
    pub(super) fn end_gap(&mut self, name: &DynoName) {
        let gap = self.gap.as_mut();
        if gap.is_some_and(|gap| gap.back(name, Instant::now())) {
            self.write_gap();
        }
    }

    /// Writes down how long the gap was, if it was a rejected release's.
    fn write_gap(&mut self) {
        let Some(gap) = &self.gap else {
            return;
        };
        let (id, gap_ms) = (gap.release_id, gap.so_far(Instant::now()).as_millis());
        let gap_ms = i64::try_from(gap_ms).unwrap_or(i64::MAX);
        let is_news = self.history.get(id).is_some_and(|record| {
            record.state == ReleaseState::Rejected && record.gap_ms != gap_ms
        });
        if is_news {
            let saved = self.history.update(id, |record| record.gap_ms = gap_ms);
            self.complain(saved);
            self.tell_release(id);
        }
    }

    /// Starts a dyno; with stop-first once no other of its name is on its way out.
    fn start_or_defer(&mut self, name: DynoName, release: Id) {
        let alone = self.strategy(&name.process_type) == Strategy::StopFirst;
        if alone && self.dynos.of_name(&name).next().is_some() {
            self.deferred.insert(name, release);
            return;
        }
        let known = self.known.get(&release);
        if let Some(spec) = known.and_then(|known| self.spec_of(&name, known)) {
            self.spawn_dyno(spec, Birth::Start);
        }
    }

    fn can_start(&self, name: &DynoName, release: Id) -> bool {
        let known = self.known.get(&release);
        known.is_some_and(|known| self.spec_of(name, known).is_some())
    }

    /// How dynos of this type are replaced.
    pub(super) fn strategy(&self, process_type: &ProcessType) -> Strategy {
        self.rollouts.strategy(process_type, self.has_own_network())
    }

    /// Whether a rollout of this release stops dynos before their successors are ready.
    pub(super) fn stops_first(&self, release: &Release) -> bool {
        let types = release
            .processes
            .iter()
            .map(|process| &process.process_type);
        let mut of_formation = types.filter(|process_type| !process_type.is_release());
        of_formation.any(|process_type| self.strategy(process_type) == Strategy::StopFirst)
    }

    pub(super) fn has_own_network(&self) -> bool {
        self.link_state.borrow().has_own_network()
    }

    pub(super) fn start_deferred(&mut self, name: &DynoName) {
        if self.dynos.of_name(name).next().is_none()
            && let Some(id) = self.deferred.remove(name)
        {
            self.start_or_defer(name.clone(), id);
        }
    }

    /// The names that the release which is rolled out will have.
    pub(super) fn wanted_after_rollout(&self) -> BTreeSet<DynoName> {
        let trial = self.trial.as_ref();
        let Some(known) = trial.and_then(|trial| self.known.get(&trial.id)) else {
            return BTreeSet::new();
        };
        let mut names = self.wishes_for(known).all_names(&known.release);
        names.retain(|name| !self.is_held(name));
        names
    }

    /// Takes a name out of the rollout, by an event that says why. A dyno of the release that
    /// `keeps` it goes on.
    pub(super) fn forget_in_rollout(
        &mut self,
        name: &DynoName,
        keeps: Option<Id>,
        event: fn(DynoName) -> rollout::Event<DynoName>,
    ) {
        if let Some(trial) = &mut self.trial {
            trial.names.remove(name);
        }
        self.deferred.remove(name);
        self.retire_where(name, |id| Some(id) != keeps);
        if keeps.is_none() {
            self.end_gap(name);
        }
        self.roll(event(name.clone()));
    }

    fn succeeded(&mut self) {
        self.trial = None;
        self.shared.ledger.unreserve();
        self.gap = None;
        let decisions = self.releases.up();
        self.decide(decisions);
    }

    fn rolled_back(&mut self) {
        self.trial = None;
        self.shared.ledger.unreserve();
        let decisions = self.releases.undone();
        self.decide(decisions);
        self.converge();
    }

    /// What a rejected release leaves behind: for how long dynos were missing until now, and
    /// the last lines of the one that spoiled it.
    pub(super) fn end_trial(&mut self, id: Id) -> (Duration, Vec<String>) {
        let Some(trial) = self.trial.as_mut().filter(|trial| trial.id == id) else {
            return (Duration::ZERO, Vec::new());
        };
        let gap = self.gap.as_ref().filter(|gap| gap.release_id == id);
        let gap = gap.map_or(Duration::ZERO, |gap| gap.so_far(Instant::now()));
        let last_lines = std::mem::take(&mut trial.last_lines);
        if self.releases.on_trial() != Some(id) {
            // Another one has taken its place.
            self.trial = None;
            self.deferred.clear();
        }
        (gap, last_lines)
    }
}
