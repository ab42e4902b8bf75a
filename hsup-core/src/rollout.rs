//! Replacing the dynos of one release by those of the next, as a pure state machine.
//!
//! ```text
//!            stop-first                          start-first
//!   Pending ──Retire──▶ Stopping             Pending ──Start──▶ Starting
//!                          │ old gone                              │ ready
//!                        Start                                  Retire
//!                          ▼                                       ▼
//!                       Starting ──ready──▶ Done                 Done
//! ```
//!
//! Dynos go in waves: the first of every process type alone (if the release is bad,
//! that is all it ever touched), then a quarter of each type at a time. With start-first an
//! operator's [`Surge`] may say how large a wave is; then the next one also waits for the old
//! dynos to have ended, so that never more run beside the quantity. When a new
//! dyno does not become ready, or ends again before the rollout does, everything touched so far
//! goes back to the good release and the rollout ends with the reason. A dyno that somebody stops
//! before it was ready holds nothing up, but proves nothing either: when no other one of its type
//! gets ready, it counts as one that did not. One that is scaled away needs no proof: whoever wants
//! none of a release has it as it is.
//!
//! It knows no clock, driver or process: the supervisor tells it what happened and
//! carries out what it answers.

mod policy;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub use policy::{ParsePolicyError, Policy, SharedPortError, StrategyArg, Surge};

/// In which order an old dyno and its successor change places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The old dyno goes once the new one is ready. Needs an address for each.
    StartFirst,
    /// The old dyno goes first: both would want the same port, or must never run at once.
    StopFirst,
}

/// What a name runs when the rollout begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// A dyno of the good release.
    Good,
    /// A dyno of neither release, left by a rollout that this one overtakes.
    Other,
    /// A dyno of the new release, which an earlier life of hsup has started.
    New,
    /// Nothing: the name is new, or was stopped by hand.
    Nothing,
}

/// What to do for one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<N> {
    /// Start a dyno of the new release.
    Start(N),
    /// Retire what ran before.
    Retire(N),
    /// Retire the dyno of the new release.
    RetireNew(N),
    /// Retire what neither the good release nor the new one has started.
    RetireOther(N),
    /// Start a dyno of the good release again, unless one is there; of one that is ready that is
    /// said at once: [`Event::GoodReady`].
    StartGood(N),
    /// It was stopped before it was ready, and none is left to prove anything in its place: the reason of the [`Action::GivenUp`] that follows.
    Unproven(N),
    /// The release will not do: what follows undoes it.
    GivenUp,
    /// Every dyno is of the new release, and of every type that was tried one was ready.
    Succeeded,
    /// The good release runs again. Where it does not yet, what served in its place may still be
    /// there.
    RolledBack,
}

/// Something that happened to a dyno that the rollout acted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<N> {
    /// The new dyno is ready.
    Ready(N),
    /// The new dyno ended, or was not ready in time.
    Failed(N),
    /// A new dyno that was ready has ended by itself since.
    Crashed(N),
    /// What ran before has ended.
    OldGone(N),
    /// The dyno of the new release has ended, as it was told to.
    NewGone(N),
    /// The dyno of the good release that was started again is ready.
    GoodReady(N),
    /// It is not, for now: what serves in its place stays, and nothing waits for it.
    GoodFailed(N),
    /// Somebody stopped it.
    Stopped(N),
    /// The name is no longer wanted: it was scaled away.
    Unwanted(N),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Pending,
    Stopping,
    Starting,
    Done,
    /// Going back: the new dyno is ending.
    Undoing {
        then_start: bool,
    },
    /// Going back: the good dyno comes up beside the new one.
    Restoring,
}

#[derive(Clone, Debug)]
struct Slot {
    strategy: Strategy,
    before: Before,
    step: Step,
    /// Which of the types that the rollout began with.
    process_type: usize,
    /// The wave is not through before what ran here has ended.
    waits_for_old: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Forward,
    Back,
    Over,
}

/// One rollout. `N` names a dyno.
#[derive(Clone, Debug)]
pub struct Rollout<N> {
    slots: BTreeMap<N, Slot>,
    waves: VecDeque<Vec<N>>,
    wave: BTreeSet<N>,
    direction: Direction,
    /// The types of which a dyno was ready.
    proven: BTreeSet<usize>,
    /// Of each type, a dyno that was stopped while the new release was tried on it.
    unproven: BTreeMap<usize, N>,
}

/// A name to replace: see [`Rollout::begin`].
#[derive(Clone, Debug)]
pub struct Replacement<N> {
    /// The dyno's name.
    pub name: N,
    /// How to replace it.
    pub strategy: Strategy,
    /// What it runs now.
    pub before: Before,
}

impl<N: Ord + Clone> Rollout<N> {
    /// Begins to replace the dynos of each process type, given in the order of their numbers.
    pub fn begin(types: Vec<Vec<Replacement<N>>>, surge: Option<Surge>) -> (Self, Vec<Action<N>>) {
        let mut waves: VecDeque<Vec<N>> = VecDeque::new();
        let mut slots = BTreeMap::new();
        for (process_type, replacements) in types.into_iter().enumerate() {
            let dynos = replacements.len();
            for (position, replacement) in replacements.into_iter().enumerate() {
                let surge = surge.filter(|_| replacement.strategy == Strategy::StartFirst);
                let at_once = surge.map_or(dynos.div_ceil(4), |surge| surge.of(dynos));
                // The first is a wave of its own; then come larger ones. What runs already is
                // waited for from the beginning.
                let wave = match replacement.before {
                    Before::New => 0,
                    _ => position.div_ceil(at_once),
                };
                if waves.len() <= wave {
                    waves.resize_with(wave + 1, Vec::new);
                }
                waves[wave].push(replacement.name.clone());
                let slot = Slot {
                    strategy: replacement.strategy,
                    before: replacement.before,
                    step: Step::Pending,
                    process_type,
                    waits_for_old: surge.is_some(),
                };
                slots.insert(replacement.name, slot);
            }
        }
        let mut rollout = Self {
            slots,
            waves,
            wave: BTreeSet::new(),
            direction: Direction::Forward,
            proven: BTreeSet::new(),
            unproven: BTreeMap::new(),
        };
        let mut actions = Vec::new();
        rollout.next_wave(&mut actions);
        (rollout, actions)
    }

    /// Whether it is undoing what it did.
    #[cfg(test)]
    pub fn is_going_back(&self) -> bool {
        self.direction == Direction::Back
    }

    /// Whether `name` is to show that the new release will do for its process type.
    pub fn proves(&self, name: &N) -> bool {
        self.slots
            .get(name)
            .is_some_and(|slot| !self.proven.contains(&slot.process_type))
    }

    /// Applies `event` and returns what to do about it.
    ///
    /// An event that makes no sense at this point is stale, not wrong, and changes nothing.
    pub fn step(&mut self, event: Event<N>) -> Vec<Action<N>> {
        let mut actions = Vec::new();
        match self.direction {
            Direction::Forward => self.forward(event, &mut actions),
            Direction::Back => self.back(event, &mut actions),
            Direction::Over => {}
        }
        actions
    }

    fn forward(&mut self, event: Event<N>, actions: &mut Vec<Action<N>>) {
        match event {
            Event::OldGone(name) => {
                if let Some(slot) = self.at(&name, Step::Stopping) {
                    slot.step = Step::Starting;
                    actions.push(Action::Start(name));
                } else if self.at(&name, Step::Done).is_some() && self.wave.remove(&name) {
                    self.next_wave(actions);
                }
            }
            Event::Ready(name) => {
                let Some(slot) = self.at(&name, Step::Starting) else {
                    return;
                };
                slot.step = Step::Done;
                let process_type = slot.process_type;
                let replaces =
                    slot.strategy == Strategy::StartFirst && slot.before != Before::Nothing;
                let is_through = !(replaces && slot.waits_for_old);
                if replaces {
                    actions.push(Action::Retire(name.clone()));
                }
                self.proven.insert(process_type);
                if is_through {
                    self.wave.remove(&name);
                    self.next_wave(actions);
                }
            }
            Event::Failed(name) => {
                if self.at(&name, Step::Starting).is_some() {
                    self.turn_back(actions);
                }
            }
            Event::Crashed(name) => {
                if self.at(&name, Step::Done).is_some() {
                    self.turn_back(actions);
                }
            }
            Event::Stopped(name) => {
                if let Some(process_type) = self.forget(&name) {
                    self.unproven.entry(process_type).or_insert(name);
                }
                self.next_wave(actions);
            }
            Event::Unwanted(name) => {
                self.forget(&name);
                self.next_wave(actions);
            }
            Event::NewGone(_) | Event::GoodReady(_) | Event::GoodFailed(_) => {}
        }
    }

    fn back(&mut self, event: Event<N>, actions: &mut Vec<Action<N>>) {
        match event {
            Event::OldGone(name) => {
                if self.at(&name, Step::Stopping).is_some() {
                    self.slots.remove(&name);
                    actions.push(Action::StartGood(name));
                }
            }
            Event::NewGone(name) => {
                let step = self.slots.get(&name).map(|slot| slot.step);
                if let Some(Step::Undoing { then_start }) = step {
                    self.slots.remove(&name);
                    if then_start {
                        actions.push(Action::StartGood(name));
                    }
                }
            }
            Event::GoodReady(name) => {
                if let Some(slot) = self.at(&name, Step::Restoring) {
                    slot.step = Step::Undoing { then_start: false };
                    actions.push(Action::RetireOther(name.clone()));
                    actions.push(Action::RetireNew(name));
                }
            }
            Event::GoodFailed(name) => {
                if self.at(&name, Step::Restoring).is_some() {
                    self.slots.remove(&name);
                }
            }
            Event::Stopped(name) | Event::Unwanted(name) => {
                self.slots.remove(&name);
            }
            Event::Ready(_) | Event::Failed(_) | Event::Crashed(_) => {}
        }
        self.end_if_restored(actions);
    }

    fn at(&mut self, name: &N, step: Step) -> Option<&mut Slot> {
        self.slots.get_mut(name).filter(|slot| slot.step == step)
    }

    /// Takes a name out; answers its type if the new release was being tried on it.
    fn forget(&mut self, name: &N) -> Option<usize> {
        self.wave.remove(name);
        let slot = self.slots.remove(name)?;
        let is_on_trial = matches!(slot.step, Step::Stopping | Step::Starting);
        is_on_trial.then_some(slot.process_type)
    }

    /// Begins the next wave when the present one is through.
    fn next_wave(&mut self, actions: &mut Vec<Action<N>>) {
        while self.wave.is_empty() {
            let Some(wave) = self.waves.pop_front() else {
                return self.conclude(actions);
            };
            for name in wave {
                let Some(slot) = self.slots.get_mut(&name) else {
                    continue;
                };
                slot.step = match (slot.before, slot.strategy) {
                    (Before::New, _) => Step::Starting,
                    (Before::Good | Before::Other, Strategy::StopFirst) => {
                        actions.push(Action::Retire(name.clone()));
                        Step::Stopping
                    }
                    (Before::Nothing, _) | (_, Strategy::StartFirst) => {
                        actions.push(Action::Start(name.clone()));
                        Step::Starting
                    }
                };
                self.wave.insert(name);
            }
        }
    }

    /// Every name that is still wanted has its dyno.
    fn conclude(&mut self, actions: &mut Vec<Action<N>>) {
        let mut unproven = self.unproven.iter();
        let in_vain = unproven.find(|(process_type, _)| !self.proven.contains(process_type));
        match in_vain {
            None => {
                self.direction = Direction::Over;
                actions.push(Action::Succeeded);
            }
            Some((_, name)) => {
                actions.push(Action::Unproven(name.clone()));
                self.turn_back(actions);
            }
        }
    }

    fn turn_back(&mut self, actions: &mut Vec<Action<N>>) {
        self.direction = Direction::Back;
        actions.push(Action::GivenUp);
        self.waves.clear();
        self.wave.clear();
        self.slots.retain(|name, slot| {
            let undo = |then_start| Step::Undoing { then_start };
            slot.step = match (slot.step, slot.before, slot.strategy) {
                // What an overtaken rollout left there serves until the good one does.
                (Step::Pending, Before::Other, Strategy::StartFirst) => {
                    actions.push(Action::StartGood(name.clone()));
                    Step::Restoring
                }
                (Step::Pending, Before::Other, Strategy::StopFirst) => {
                    actions.push(Action::Retire(name.clone()));
                    Step::Stopping
                }
                (Step::Pending, _, _) => return false,
                (Step::Stopping, _, _) => Step::Stopping,
                (_, Before::Nothing, _) => {
                    actions.push(Action::RetireNew(name.clone()));
                    undo(false)
                }
                (Step::Starting, Before::Good, Strategy::StartFirst) => {
                    actions.push(Action::RetireNew(name.clone()));
                    undo(false)
                }
                // One that an earlier life has started may serve, and be the only one.
                (Step::Done, _, Strategy::StartFirst)
                | (Step::Starting, Before::New, Strategy::StartFirst) => {
                    actions.push(Action::StartGood(name.clone()));
                    Step::Restoring
                }
                (Step::Starting, Before::Other, Strategy::StartFirst) => {
                    actions.push(Action::RetireNew(name.clone()));
                    actions.push(Action::StartGood(name.clone()));
                    Step::Restoring
                }
                _ => {
                    actions.push(Action::RetireNew(name.clone()));
                    undo(true)
                }
            };
            true
        });
        self.end_if_restored(actions);
    }

    fn end_if_restored(&mut self, actions: &mut Vec<Action<N>>) {
        if self.slots.is_empty() && self.direction == Direction::Back {
            self.direction = Direction::Over;
            actions.push(Action::RolledBack);
        }
    }
}

#[cfg(test)]
mod tests;
