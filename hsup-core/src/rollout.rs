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
//! that is all it ever touched), then a quarter of each type at a time. When a new
//! dyno does not become ready, everything touched so far goes back to the good
//! release and the rollout ends with the reason. A dyno that somebody stops before it was
//! ready holds nothing up, but proves nothing either: when no other one of its type gets
//! ready, it counts as one that did not. One that is scaled away needs no proof, unless there
//! is no other.
//!
//! It knows no clock, driver or process: the supervisor tells it what happened and
//! carries out what it answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
    /// Start a dyno of the good release again, unless one is there.
    StartGood(N),
    /// It was stopped or scaled away before it was ready, and none is left to prove anything
    /// in its place: the reason of the [`Action::GivenUp`] that follows.
    Unproven(N),
    /// The release will not do: what follows undoes it.
    GivenUp,
    /// Every dyno is of the new release, and of every type that was tried one was ready.
    Succeeded,
    /// The good release runs again.
    RolledBack,
}

/// Something that happened to a dyno that the rollout acted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<N> {
    /// The new dyno is ready.
    Ready(N),
    /// The new dyno ended, or was not ready in time.
    Failed(N),
    /// What ran before has ended.
    OldGone(N),
    /// The dyno of the new release has ended, as it was told to.
    NewGone(N),
    /// The restarted dyno of the good release is ready, or will not be for now.
    GoodSettled(N),
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
    /// A dyno that was scaled away then.
    unwanted: Option<N>,
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
    pub fn begin(types: Vec<Vec<Replacement<N>>>) -> (Self, Vec<Action<N>>) {
        let mut waves: VecDeque<Vec<N>> = VecDeque::new();
        let mut slots = BTreeMap::new();
        for (process_type, replacements) in types.into_iter().enumerate() {
            let quarter = replacements.len().div_ceil(4);
            for (position, replacement) in replacements.into_iter().enumerate() {
                // The first is a wave of its own; then come quarters. What runs already is
                // waited for from the beginning.
                let wave = match replacement.before {
                    Before::New => 0,
                    _ => position.div_ceil(quarter),
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
            unwanted: None,
        };
        let mut actions = Vec::new();
        rollout.next_wave(&mut actions);
        (rollout, actions)
    }

    /// Whether it is undoing what it did.
    pub fn is_going_back(&self) -> bool {
        self.direction == Direction::Back
    }

    /// Whether the new release has not reached `name` yet, or has left it again.
    pub fn awaits(&self, name: &N) -> bool {
        self.slots
            .get(name)
            .is_some_and(|slot| slot.step == Step::Pending)
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
                }
            }
            Event::Ready(name) => {
                let Some(slot) = self.at(&name, Step::Starting) else {
                    return;
                };
                slot.step = Step::Done;
                let process_type = slot.process_type;
                if slot.strategy == Strategy::StartFirst && slot.before != Before::Nothing {
                    actions.push(Action::Retire(name.clone()));
                }
                self.proven.insert(process_type);
                self.wave.remove(&name);
                self.next_wave(actions);
            }
            Event::Failed(name) => {
                if self.at(&name, Step::Starting).is_some() {
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
                if self.forget(&name).is_some() {
                    self.unwanted.get_or_insert(name);
                }
                self.next_wave(actions);
            }
            Event::NewGone(_) | Event::GoodSettled(_) => {}
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
            Event::GoodSettled(name) => {
                if let Some(slot) = self.at(&name, Step::Restoring) {
                    slot.step = Step::Undoing { then_start: false };
                    actions.push(Action::RetireNew(name));
                }
            }
            Event::Stopped(name) | Event::Unwanted(name) => {
                self.slots.remove(&name);
            }
            Event::Ready(_) | Event::Failed(_) => {}
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
        let alone = self.unwanted.as_ref().filter(|_| self.proven.is_empty());
        match in_vain.map(|(_, name)| name).or(alone) {
            None => {
                self.direction = Direction::Over;
                actions.push(Action::Succeeded);
            }
            Some(name) => {
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
                // What an overtaken rollout left there must go, too.
                (Step::Pending, Before::Other, _) => {
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
                (Step::Done, _, Strategy::StartFirst) => {
                    actions.push(Action::StartGood(name.clone()));
                    Step::Restoring
                }
                (Step::Starting, Before::Other, Strategy::StartFirst) => {
                    // Both the new dyno and the other one go; the good one follows the other.
                    actions.push(Action::RetireNew(name.clone()));
                    actions.push(Action::Retire(name.clone()));
                    Step::Stopping
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
mod tests {
    use proptest::prelude::{Just, TestCaseError, any, prop, prop_assert, prop_oneof, proptest};

    use super::*;

    fn replace(name: &'static str, strategy: Strategy) -> Replacement<&'static str> {
        Replacement {
            name,
            strategy,
            before: Before::Good,
        }
    }

    #[test]
    fn stop_first_stops_then_starts_one_before_the_others() {
        let web = ["web.1", "web.2"].map(|name| replace(name, Strategy::StopFirst));
        let (mut rollout, actions) = Rollout::begin(vec![web.to_vec()]);
        assert_eq!(actions, [Action::Retire("web.1")]);
        assert_eq!(
            rollout.step(Event::OldGone("web.1")),
            [Action::Start("web.1")]
        );
        assert_eq!(
            rollout.step(Event::Ready("web.1")),
            [Action::Retire("web.2")]
        );
        assert_eq!(
            rollout.step(Event::OldGone("web.2")),
            [Action::Start("web.2")]
        );
        assert_eq!(rollout.step(Event::Ready("web.2")), [Action::Succeeded]);
    }

    #[test]
    fn start_first_keeps_the_old_one_until_the_new_one_is_ready() {
        let (mut rollout, actions) =
            Rollout::begin(vec![vec![replace("web.1", Strategy::StartFirst)]]);
        assert_eq!(actions, [Action::Start("web.1")]);
        assert_eq!(
            rollout.step(Event::Ready("web.1")),
            [Action::Retire("web.1"), Action::Succeeded]
        );
    }

    #[test]
    fn a_release_that_never_gets_ready_is_rolled_back() {
        let web = ["web.1", "web.2"].map(|name| replace(name, Strategy::StopFirst));
        let (mut rollout, _) = Rollout::begin(vec![web.to_vec()]);
        rollout.step(Event::OldGone("web.1"));
        assert_eq!(
            rollout.step(Event::Failed("web.1")),
            [Action::GivenUp, Action::RetireNew("web.1")]
        );
        assert!(rollout.is_going_back());
        assert_eq!(
            rollout.step(Event::NewGone("web.1")),
            [Action::StartGood("web.1"), Action::RolledBack]
        );
    }

    #[test]
    fn a_name_the_good_release_did_not_have_only_goes() {
        let added = Replacement {
            name: "cron.1",
            strategy: Strategy::StopFirst,
            before: Before::Nothing,
        };
        let (mut rollout, actions) = Rollout::begin(vec![vec![added]]);
        assert_eq!(actions, [Action::Start("cron.1")]);
        assert_eq!(
            rollout.step(Event::Failed("cron.1")),
            [Action::GivenUp, Action::RetireNew("cron.1")]
        );
        assert_eq!(rollout.step(Event::NewGone("cron.1")), [Action::RolledBack]);
    }

    #[test]
    fn what_runs_already_is_waited_for_and_not_started_again() {
        let with = |name, before| Replacement {
            before,
            ..replace(name, Strategy::StopFirst)
        };
        let web = [
            with("web.1", Before::New),
            with("web.2", Before::New),
            with("web.3", Before::Good),
        ];
        let (mut rollout, actions) = Rollout::begin(vec![web.to_vec()]);
        assert_eq!(actions, []);
        assert_eq!(rollout.step(Event::Ready("web.2")), []);
        let mut bad = rollout.clone();
        assert_eq!(
            rollout.step(Event::Ready("web.1")),
            [Action::Retire("web.3")]
        );
        let (new_1, new_2) = (Action::RetireNew("web.1"), Action::RetireNew("web.2"));
        assert_eq!(
            bad.step(Event::Failed("web.1")),
            [Action::GivenUp, new_1, new_2]
        );
        assert_eq!(
            bad.step(Event::NewGone("web.2")),
            [Action::StartGood("web.2")]
        );
        assert_eq!(
            bad.step(Event::NewGone("web.1")),
            [Action::StartGood("web.1"), Action::RolledBack]
        );
    }

    #[test]
    fn a_forgotten_name_does_not_hold_the_rollout_up() {
        let web = ["web.1", "web.2", "web.3"].map(|name| replace(name, Strategy::StopFirst));
        let (mut rollout, _) = Rollout::begin(vec![web.to_vec()]);
        // Not tried yet; then in the midst of it; and the last one is ready.
        assert_eq!(rollout.step(Event::Stopped("web.3")), []);
        assert_eq!(
            rollout.step(Event::Stopped("web.1")),
            [Action::Retire("web.2")]
        );
        rollout.step(Event::OldGone("web.2"));
        assert_eq!(rollout.step(Event::Ready("web.2")), [Action::Succeeded]);
    }

    #[test]
    fn a_type_whose_dynos_were_all_forgotten_proves_nothing() {
        let types = ["web.1", "worker.1"].map(|name| vec![replace(name, Strategy::StopFirst)]);
        let (mut rollout, _) = Rollout::begin(types.to_vec());
        for name in ["web.1", "worker.1"] {
            rollout.step(Event::OldGone(name));
        }
        assert_eq!(rollout.step(Event::Ready("worker.1")), []);
        assert_eq!(
            rollout.clone().step(Event::Unwanted("web.1")),
            [Action::Succeeded]
        );
        assert_eq!(
            rollout.step(Event::Stopped("web.1")),
            [
                Action::Unproven("web.1"),
                Action::GivenUp,
                Action::RetireNew("worker.1")
            ]
        );
        assert_eq!(
            rollout.step(Event::NewGone("worker.1")),
            [Action::StartGood("worker.1"), Action::RolledBack]
        );
    }

    #[test]
    fn with_nothing_left_to_undo_the_rollout_of_what_was_forgotten_is_over() {
        for forget in [Event::Stopped, Event::Unwanted] {
            let web = vec![replace("web.1", Strategy::StartFirst)];
            let (mut rollout, _) = Rollout::begin(vec![web]);
            assert_eq!(
                rollout.step(forget("web.1")),
                [
                    Action::Unproven("web.1"),
                    Action::GivenUp,
                    Action::RolledBack
                ]
            );
        }
    }

    #[test]
    fn with_nothing_to_replace_it_succeeds_at_once() {
        let (_, actions) = Rollout::<&str>::begin(vec![]);
        assert_eq!(actions, [Action::Succeeded]);
    }

    /// What a model world runs under one name.
    #[derive(Clone, Debug, Default)]
    #[expect(
        clippy::struct_excessive_bools,
        reason = "each is one process that may run"
    )]
    struct World {
        good: bool,
        other: bool,
        new: bool,
        new_ready: bool,
        old_ending: bool,
        new_ending: bool,
        restored: bool,
    }

    impl World {
        fn serves_good(&self) -> bool {
            self.good && !self.old_ending
        }

        fn new_stays(&self) -> bool {
            self.new && !self.new_ending
        }
    }

    fn before() -> impl proptest::strategy::Strategy<Value = Before> {
        prop_oneof![
            4 => Just(Before::Good),
            1 => Just(Before::Other),
            1 => Just(Before::New),
            1 => Just(Before::Nothing)
        ]
    }

    proptest! {
        /// In any order of readiness, failures and exits the rollout ends, with every name on
        /// the new release or every name that ran the good one on the good one; on the way a
        /// good dyno is missing only in the wave at work, and with start-first never.
        #[test]
        fn it_ends_whole(
            befores in prop::collection::vec(before(), 1..12),
            start_first in any::<bool>(),
            choices in prop::collection::vec((any::<prop::sample::Index>(), 0u8..10), 400),
        ) {
            let strategy = if start_first { Strategy::StartFirst } else { Strategy::StopFirst };
            let replacements: Vec<_> = befores.iter().enumerate()
                .map(|(name, before)| Replacement { name, strategy, before: *before })
                .collect();
            let mut world: Vec<World> = befores.iter().map(|before| World {
                good: *before == Before::Good,
                other: *before == Before::Other,
                new: *before == Before::New,
                ..World::default()
            }).collect();
            let limit = befores.len().div_ceil(4).max(1);
            let (mut rollout, mut actions) = Rollout::begin(vec![replacements]);
            let mut outcome = None;
            for (which, luck) in choices {
                for action in actions.drain(..) {
                    match action {
                        Action::Start(n) => {
                            prop_assert!(!world[n].new, "two new dynos of one name");
                            if strategy == Strategy::StopFirst {
                                prop_assert!(!world[n].good && !world[n].other, "old and new together");
                            }
                            world[n].new = true;
                        }
                        Action::Retire(n) => world[n].old_ending = true,
                        Action::RetireNew(n) => world[n].new_ending = true,
                        Action::StartGood(n) => {
                            prop_assert!(!world[n].good || world[n].old_ending, "two good dynos of one name");
                            world[n].good = true;
                            world[n].old_ending = false;
                            world[n].restored = true;
                        }
                        Action::Unproven(_) => prop_assert!(false, "nothing was forgotten"),
                        Action::GivenUp => prop_assert!(outcome.is_none()),
                        Action::Succeeded => outcome = Some(true),
                        Action::RolledBack => outcome = Some(false),
                    }
                }
                let missing = world.iter().zip(&befores).filter(|(w, before)| {
                    **before == Before::Good && !w.serves_good() && !w.new_ready
                }).count();
                if !rollout.is_going_back() {
                    let allowed = if start_first { 0 } else { limit };
                    prop_assert!(missing <= allowed, "{missing} missing, {allowed} allowed");
                }
                if outcome.is_some() { break; }
                // Something that can happen now happens.
                let mut possible = Vec::new();
                for (n, w) in world.iter().enumerate() {
                    if w.old_ending { possible.push(Event::OldGone(n)); }
                    if w.new_ending { possible.push(Event::NewGone(n)); }
                    if w.new && !w.new_ready && !w.new_ending {
                        possible.push(if luck == 0 { Event::Failed(n) } else { Event::Ready(n) });
                    }
                    if w.restored { possible.push(Event::GoodSettled(n)); }
                }
                prop_assert!(!possible.is_empty(), "stuck: {rollout:?}");
                let event = possible[which.index(possible.len())].clone();
                match &event {
                    Event::OldGone(n) => {
                        world[*n].good = false;
                        world[*n].other = false;
                        world[*n].old_ending = false;
                    }
                    Event::NewGone(n) => {
                        world[*n].new = false;
                        world[*n].new_ready = false;
                        world[*n].new_ending = false;
                    }
                    Event::Ready(n) => world[*n].new_ready = true,
                    Event::GoodSettled(n) => world[*n].restored = false,
                    _ => {}
                }
                actions = rollout.step(event);
            }
            let Some(succeeded) = outcome else { return Err(TestCaseError::fail("never ended")); };
            for (w, before) in world.iter().zip(&befores) {
                if succeeded {
                    prop_assert!(w.new_stays());
                } else {
                    prop_assert!(!w.new_stays(), "a dyno of a rejected release stays");
                    if *before != Before::Nothing { prop_assert!(w.serves_good()); }
                }
            }
        }
    }
}
