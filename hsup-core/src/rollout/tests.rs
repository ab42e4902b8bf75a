use proptest::prelude::{TestCaseError, any, prop, prop_assert, prop_assert_eq, proptest};

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
    let (mut rollout, actions) = Rollout::begin(vec![web.to_vec()], None);
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
        Rollout::begin(vec![vec![replace("web.1", Strategy::StartFirst)]], None);
    assert_eq!(actions, [Action::Start("web.1")]);
    assert_eq!(
        rollout.step(Event::Ready("web.1")),
        [Action::Retire("web.1"), Action::Succeeded]
    );
}

#[test]
fn a_release_that_never_gets_ready_is_rolled_back() {
    let web = ["web.1", "web.2"].map(|name| replace(name, Strategy::StopFirst));
    let (mut rollout, _) = Rollout::begin(vec![web.to_vec()], None);
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
fn a_dyno_that_was_ready_and_ends_again_turns_the_rollout_back() {
    let web = ["web.1", "web.2"].map(|name| replace(name, Strategy::StopFirst));
    let (mut rollout, _) = Rollout::begin(vec![web.to_vec()], None);
    rollout.step(Event::OldGone("web.1"));
    assert_eq!(
        rollout.step(Event::Crashed("web.1")),
        [],
        "of what ran before"
    );
    rollout.step(Event::Ready("web.1"));
    assert_eq!(
        rollout.step(Event::Crashed("web.1")),
        [Action::GivenUp, Action::RetireNew("web.1")]
    );
    assert_eq!(
        rollout.step(Event::NewGone("web.1")),
        [Action::StartGood("web.1")]
    );
    assert_eq!(
        rollout.step(Event::OldGone("web.2")),
        [Action::StartGood("web.2"), Action::RolledBack]
    );
}

#[test]
fn a_name_the_good_release_did_not_have_only_goes() {
    let added = Replacement {
        name: "cron.1",
        strategy: Strategy::StopFirst,
        before: Before::Nothing,
    };
    let (mut rollout, actions) = Rollout::begin(vec![vec![added]], None);
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
    let (mut rollout, actions) = Rollout::begin(vec![web.to_vec()], None);
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
fn with_start_first_what_an_earlier_life_began_serves_until_the_good_one_does() {
    let with = |name, before| Replacement {
        before,
        ..replace(name, Strategy::StartFirst)
    };
    let web = [with("web.1", Before::New), with("web.2", Before::Good)];
    let (mut rollout, _) = Rollout::begin(vec![web.to_vec()], None);
    let given_up = rollout.step(Event::Failed("web.1"));
    assert_eq!(given_up, [Action::GivenUp, Action::StartGood("web.1")]);
    let (other, new) = (Action::RetireOther("web.1"), Action::RetireNew("web.1"));
    assert_eq!(rollout.step(Event::GoodReady("web.1")), [other, new]);
    let gone = rollout.step(Event::NewGone("web.1"));
    assert_eq!(gone, [Action::RolledBack]);
}

#[test]
fn with_start_first_what_serves_stays_where_the_good_one_does_not_come_up() {
    let web = ["web.1", "web.2"].map(|name| replace(name, Strategy::StartFirst));
    let (mut rollout, _) = Rollout::begin(vec![web.to_vec()], None);
    rollout.step(Event::Ready("web.1"));
    let given_up = rollout.step(Event::Failed("web.2"));
    assert!(
        given_up.contains(&Action::StartGood("web.1")),
        "{given_up:?}"
    );
    assert_eq!(rollout.step(Event::GoodFailed("web.1")), []);
    assert_eq!(rollout.step(Event::NewGone("web.2")), [Action::RolledBack]);
}

#[test]
fn a_forgotten_name_does_not_hold_the_rollout_up() {
    let web = ["web.1", "web.2", "web.3"].map(|name| replace(name, Strategy::StopFirst));
    let (mut rollout, _) = Rollout::begin(vec![web.to_vec()], None);
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
    let (mut rollout, _) = Rollout::begin(types.to_vec(), None);
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
fn with_nothing_left_to_undo_the_rollout_of_what_was_stopped_is_over() {
    let web = vec![replace("web.1", Strategy::StartFirst)];
    let (mut rollout, _) = Rollout::begin(vec![web], None);
    assert_eq!(
        rollout.clone().step(Event::Stopped("web.1")),
        [
            Action::Unproven("web.1"),
            Action::GivenUp,
            Action::RolledBack
        ]
    );
    // Nobody wants anything of the release, which is no fault of its own.
    assert_eq!(rollout.step(Event::Unwanted("web.1")), [Action::Succeeded]);
}

#[test]
fn with_nothing_to_replace_it_succeeds_at_once() {
    let (_, actions) = Rollout::<&str>::begin(vec![], None);
    assert_eq!(actions, [Action::Succeeded]);
}

#[test]
fn a_surge_says_how_many_come_at_once_and_waits_for_the_old_ones() {
    let web = ["web.1", "web.2", "web.3"].map(|name| replace(name, Strategy::StartFirst));
    let surge = Some("2".parse().unwrap());
    let (mut rollout, actions) = Rollout::begin(vec![web.to_vec()], surge);
    assert_eq!(actions, [Action::Start("web.1")]);
    assert_eq!(
        rollout.step(Event::Ready("web.1")),
        [Action::Retire("web.1")]
    );
    assert_eq!(
        rollout.step(Event::OldGone("web.1")),
        ["web.2", "web.3"].map(Action::Start)
    );
    for name in ["web.2", "web.3"] {
        assert_eq!(rollout.step(Event::Ready(name)), [Action::Retire(name)]);
    }
    assert_eq!(rollout.step(Event::OldGone("web.3")), []);
    assert_eq!(rollout.step(Event::OldGone("web.2")), [Action::Succeeded]);
}

/// A dyno of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dyno {
    /// 0 is the good release.
    release: usize,
    ready: bool,
    ending: bool,
    /// It failed on trial, and is not started again.
    failed: bool,
}

/// A supervisor and its dynos, as far as a rollout can tell; names are numbers.
#[derive(Debug)]
struct Model {
    strategy: Strategy,
    surge: Option<Surge>,
    rollout: Rollout<usize>,
    release: usize,
    dynos: Vec<Vec<Dyno>>,
    wanted: Vec<bool>,
    deferred: BTreeMap<usize, usize>,
    /// A dyno of the good release failed of itself, for which no rollout can stand.
    is_good_sound: bool,
    outcome: Option<bool>,
}

impl Model {
    fn new(names: usize, strategy: Strategy, surge: Option<Surge>) -> Self {
        let good = Dyno {
            release: 0,
            ready: true,
            ending: false,
            failed: false,
        };
        let mut model = Self {
            strategy,
            surge,
            rollout: Rollout::begin(vec![], None).0,
            release: 0,
            dynos: vec![vec![good]; names],
            wanted: vec![true; names],
            deferred: BTreeMap::new(),
            is_good_sound: true,
            outcome: None,
        };
        model.try_out();
        model
    }

    /// A newer release overtakes whatever is on trial.
    fn try_out(&mut self) {
        self.release += 1;
        self.deferred.clear();
        let mut replacements = Vec::new();
        for (name, dynos) in self.dynos.iter_mut().enumerate() {
            let mut live: Vec<_> = dynos.iter_mut().filter(|dyno| !dyno.ending).collect();
            let before = if live.iter().any(|dyno| dyno.release == 0) {
                for dyno in &mut live {
                    dyno.ending = dyno.release != 0;
                }
                Before::Good
            } else if live.is_empty() {
                Before::Nothing
            } else {
                Before::Other
            };
            replacements.push(Replacement {
                name,
                strategy: self.strategy,
                before,
            });
        }
        replacements.retain(|replacement| self.wanted[replacement.name]);
        let (rollout, actions) = Rollout::begin(vec![replacements], self.surge);
        self.rollout = rollout;
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action<usize>>) {
        let release = self.release;
        for action in actions {
            match action {
                Action::Start(name) => self.start(name, release),
                Action::StartGood(name) if self.runs(name, 0) => {}
                Action::StartGood(name) => self.start(name, 0),
                Action::Retire(name) => {
                    if self.retire(name, |id| id != release) == 0 {
                        self.step(Event::OldGone(name));
                    }
                }
                Action::RetireNew(name) => {
                    self.deferred.remove(&name);
                    if self.retire(name, |id| id == release) == 0 {
                        self.step(Event::NewGone(name));
                    }
                }
                Action::RetireOther(name) => {
                    self.retire(name, |id| id != release && id != 0);
                }
                Action::Unproven(name) => assert!(!self.wanted[name], "{name} is wanted"),
                Action::GivenUp => assert_eq!(self.outcome, None),
                Action::Succeeded => self.outcome = Some(true),
                Action::RolledBack => {
                    self.outcome = Some(false);
                    self.converge();
                }
            }
        }
    }

    /// What a supervisor does when no rollout is at work: names that an overtaken one had left
    /// without a dyno get theirs.
    fn converge(&mut self) {
        for name in 0..self.wanted.len() {
            if self.wanted[name] && self.dynos[name].iter().all(|dyno| dyno.ending) {
                self.deferred.remove(&name);
                self.start(name, 0);
            }
        }
    }

    fn step(&mut self, event: Event<usize>) {
        let actions = self.rollout.step(event);
        self.act(actions);
    }

    fn start(&mut self, name: usize, release: usize) {
        if self.strategy == Strategy::StopFirst && !self.dynos[name].is_empty() {
            self.deferred.insert(name, release);
            return;
        }
        assert!(!self.runs(name, release), "a twin of {name}");
        self.dynos[name].push(Dyno {
            release,
            ready: false,
            ending: false,
            failed: false,
        });
    }

    fn retire(&mut self, name: usize, meant: impl Fn(usize) -> bool) -> usize {
        let meant = self.dynos[name]
            .iter_mut()
            .filter(|dyno| meant(dyno.release));
        meant.map(|dyno| dyno.ending = true).count()
    }

    fn runs(&self, name: usize, release: usize) -> bool {
        let mut dynos = self.dynos[name].iter();
        dynos.any(|dyno| dyno.release == release && !dyno.ending)
    }

    fn ends(&mut self, name: usize, index: usize) {
        let dyno = self.dynos[name].remove(index);
        self.step(if dyno.release == self.release {
            Event::NewGone(name)
        } else {
            Event::OldGone(name)
        });
        if self.dynos[name].is_empty()
            && let Some(release) = self.deferred.remove(&name)
        {
            self.start(name, release);
        }
    }

    fn settles(&mut self, name: usize, index: usize, is_ready: bool) {
        let dyno = &mut self.dynos[name][index];
        dyno.ready = is_ready;
        if dyno.release == self.release {
            dyno.failed = !is_ready;
            self.step(if is_ready {
                Event::Ready(name)
            } else {
                Event::Failed(name)
            });
        } else if dyno.release == 0 {
            self.is_good_sound &= is_ready;
            self.step(if is_ready {
                Event::GoodReady(name)
            } else {
                Event::GoodFailed(name)
            });
        }
    }

    fn forget(&mut self, name: usize, event: Event<usize>) {
        self.wanted[name] = false;
        self.deferred.remove(&name);
        self.retire(name, |_| true);
        self.step(event);
    }

    /// How many dynos run more than are wanted, beside those that somebody has stopped.
    fn beside(&self) -> usize {
        let names = self.dynos.iter().zip(&self.wanted);
        let wanted = names.filter(|(_, wanted)| **wanted);
        wanted.map(|(dynos, _)| dynos.len().saturating_sub(1)).sum()
    }

    /// Names that are wanted and have no dyno that serves.
    fn missing(&self) -> usize {
        let serves = |dynos: &[Dyno]| dynos.iter().any(|dyno| dyno.ready && !dyno.ending);
        let names = self.dynos.iter().zip(&self.wanted);
        names
            .filter(|(dynos, wanted)| **wanted && !serves(dynos))
            .count()
    }
}

proptest! {
    /// In any order of releases, failures, crashes, scalings and stops every rollout ends, with
    /// all that is wanted on one release. On the way as many serve as before, but for the waves
    /// at work with stop-first; and never more run beside them than the surge allows.
    #[test]
    fn it_ends_whole(
        names in 1usize..12,
        start_first in any::<bool>(),
        surge in prop::option::of(1u32..6),
        overtakes in 0usize..4,
        choices in prop::collection::vec((any::<prop::sample::Index>(), 0u8..40), 600),
    ) {
        let strategy = if start_first { Strategy::StartFirst } else { Strategy::StopFirst };
        let surge = surge.map(|dynos| dynos.to_string().parse::<Surge>().unwrap());
        let mut model = Model::new(names, strategy, surge);
        let wave = names.div_ceil(4);
        for (which, luck) in choices {
            if model.outcome.is_some() { break; }
            if model.is_good_sound || start_first {
                let allowed = match strategy {
                    Strategy::StartFirst => 0,
                    Strategy::StopFirst if model.rollout.is_going_back() => names,
                    Strategy::StopFirst => wave * model.release,
                };
                prop_assert!(model.missing() <= allowed, "{} of {allowed} missing: {model:?}", model.missing());
            }
            if let Some(surge) = surge && start_first && model.release == 1 {
                let beside = model.beside();
                prop_assert!(model.rollout.is_going_back() || beside <= surge.of(names), "{model:?}");
            }
            match luck {
                0 | 1 => {
                    let name = which.index(names);
                    if model.wanted[name] {
                        let event = if luck == 0 { Event::Stopped(name) } else { Event::Unwanted(name) };
                        model.forget(name, event);
                    }
                    continue;
                }
                2 if model.release <= overtakes && !model.rollout.is_going_back() => {
                    model.try_out();
                    continue;
                }
                // One that was ready crashes and is started again by itself: nothing to a rollout.
                3 => {
                    let name = which.index(names);
                    let mut dynos = model.dynos[name].iter();
                    if dynos.any(|dyno| dyno.release == model.release && dyno.ready) {
                        prop_assert_eq!(model.rollout.step(Event::Failed(name)), []);
                    }
                    continue;
                }
                _ => {}
            }
            let all = model.dynos.iter().enumerate();
            let possible: Vec<_> = all
                .flat_map(|(name, dynos)| dynos.iter().enumerate().map(move |(index, dyno)| (name, index, *dyno)))
                .filter(|(_, _, dyno)| dyno.ending || !dyno.ready && !dyno.failed)
                .collect();
            prop_assert!(!possible.is_empty(), "stuck: {model:?}");
            let (name, index, dyno) = possible[which.index(possible.len())];
            if dyno.ending {
                model.ends(name, index);
            } else {
                model.settles(name, index, luck > 5);
            }
        }
        let Some(succeeded) = model.outcome else {
            return Err(TestCaseError::fail(format!("never ended: {model:?}")));
        };
        let (is, is_not) = if succeeded { (model.release, 0) } else { (0, model.release) };
        for name in 0..names {
            // It serves on where the good one did not come up, for what comes then to end.
            let serves_on = !succeeded && !model.is_good_sound;
            prop_assert!(!model.runs(name, is_not) || serves_on, "{name} runs what is over: {model:?}");
            let comes = model.deferred.get(&name) == Some(&is);
            prop_assert!(!model.wanted[name] || model.runs(name, is) || comes, "{name} runs nothing: {model:?}");
        }
    }
}
