//! How many dynos may be missing, and how many are.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{Happening, TYPES, place, world::World};
use crate::{dyno::Key, name::DynoName, releases::Id, rollout::Strategy, state::ReleaseState};

/// What no rollout has to answer for.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// What was wanted of the good release when it was looked at last.
    wanted: BTreeSet<DynoName>,
    /// Names that the good release did not run yet, or not again since a dyno of theirs crashed,
    /// somebody took it away, or a rollout that is undone took its place.
    excused: BTreeSet<DynoName>,
    /// How many dynos of each type stop-first has let go since nothing was missing.
    let_go: [usize; 2],
}

/// What there was before something happened.
#[derive(Debug)]
pub(super) struct Before {
    on_trial: Option<Id>,
    rolling: BTreeSet<DynoName>,
    /// The part of it that the rollout had touched: the good release does not serve there.
    touched: BTreeSet<DynoName>,
    serving: BTreeSet<DynoName>,
    going: BTreeSet<Key>,
}

impl Before {
    pub(super) fn of(world: &World) -> Self {
        let trial = world.actor.trial.as_ref();
        let going = world.actor.dynos.iter().filter(|(_, live)| live.retiring);
        let rolling = trial.map_or_else(BTreeSet::new, |trial| trial.names.clone());
        let (serving, good) = (world.serving(), world.actor.releases.good());
        let is_untouched =
            |name: &DynoName| good.is_some_and(|good| serving.contains(&(name.clone(), good)));
        let touched = rolling.iter().filter(|name| !is_untouched(name));
        Self {
            on_trial: trial.map(|trial| trial.id),
            touched: touched.cloned().collect(),
            rolling,
            serving: names(serving),
            going: going.map(|(key, _)| key).collect(),
        }
    }
}

fn names(dynos: BTreeSet<(DynoName, Id)>) -> BTreeSet<DynoName> {
    dynos.into_iter().map(|(name, _)| name).collect()
}

impl Books {
    /// Enters what has happened: what the strategy lets go for it, and what is nobody's fault.
    pub(super) fn enter(
        &mut self,
        world: &World,
        happening: Happening,
        before: &Before,
        gone: BTreeSet<DynoName>,
    ) {
        self.excused.extend(gone);
        let actor = &world.actor;
        let trial = actor.trial.as_ref();
        // The next life of hsup begins it anew, with other keys.
        let is_another_life = matches!(happening, Happening::Killed);
        let begins = |id| before.on_trial != Some(id) || is_another_life;
        if let Some(trial) = trial.filter(|trial| begins(trial.id)) {
            // Of each type a quarter may go at a time, and what an overtaken one let go besides.
            let known = &actor.known[&trial.id];
            for of_type in actor.wishes_for(known).names_by_type(&known.release) {
                let of_type: Vec<_> = of_type.collect();
                if let Some(first) = of_type.first()
                    && world.strategy(first) == Strategy::StopFirst
                {
                    self.let_go[place(first)] += of_type.len().div_ceil(4);
                }
            }
        }
        let record = before.on_trial.and_then(|id| actor.history.get(id));
        let is_undone = record.is_some_and(|record| {
            record.state == ReleaseState::Rejected && !record.reason.starts_with("overtaken")
        });
        if is_undone {
            // All that a rollout has touched goes back at once; what it has not goes on.
            let touched = before.touched.iter();
            let goes = touched.filter(|name| world.strategy(name) == Strategy::StopFirst);
            self.excused.extend(goes.cloned());
        }
        let rolling = trial.map(|trial| &trial.names);
        for (key, live) in actor.dynos.iter() {
            let spec = &live.handle.spec;
            let is_left = actor.releases.good() != Some(spec.release_id)
                && !rolling.is_some_and(|rolling| rolling.contains(&spec.name));
            // What is no release's on trial any more changes places as it can.
            let went_before = before.going.contains(&key) && !is_another_life;
            if live.retiring && !went_before && is_left && !spec.name.process_type.is_release() {
                self.let_go[place(&spec.name)] += 1;
            }
        }
        let serving = names(world.serving());
        let lost = || before.serving.difference(&serving);
        match happening {
            Happening::Cycle(_) => {
                let mut of_type = BTreeMap::<usize, usize>::new();
                for name in lost() {
                    assert_eq!(
                        world.strategy(name),
                        Strategy::StopFirst,
                        "{name}: {world:?}"
                    );
                    *of_type.entry(place(name)).or_default() += 1;
                    self.let_go[place(name)] += 1;
                }
                assert!(
                    of_type.values().all(|dynos| *dynos == 1),
                    "{of_type:?}: {world:?}"
                );
            }
            // What the release on trial had taken, whoever handed that in takes away.
            Happening::Scaled(..) | Happening::ScaledByHand(..) | Happening::Rewritten(..) => {
                let after = actor.wanted_after_rollout();
                let taken = lost().filter(|name| before.rolling.contains(*name));
                self.excused
                    .extend(taken.filter(|name| !after.contains(*name)).cloned());
            }
            _ => {}
        }
    }

    /// Counts the dynos that serve.
    pub(super) fn look(&mut self, world: &World) -> Result<(), TestCaseError> {
        let Some(good) = world.actor.releases.good() else {
            return Ok(());
        };
        let wanted = world.wanted();
        self.excused
            .extend(wanted.difference(&self.wanted).cloned());
        self.wanted = wanted;
        let all = world.serving();
        let serving = names(all.clone());
        let missing: BTreeSet<_> = self.wanted.difference(&serving).collect();
        for at in 0..TYPES.len() {
            let lost = missing.iter().filter(|name| place(name) == at);
            let lost: Vec<_> = lost.filter(|name| !self.excused.contains(**name)).collect();
            let allowed = match lost.first().map(|name| world.strategy(name)) {
                None | Some(Strategy::StartFirst) => 0,
                Some(Strategy::StopFirst) => self.let_go[at],
            };
            prop_assert!(
                lost.len() <= allowed,
                "{lost:?} are missing, and {allowed} may be: {self:?}"
            );
        }
        let is_whole = missing.is_empty() && world.actor.trial.is_none();
        self.excused
            .retain(|name| !all.contains(&(name.clone(), good)));
        if is_whole {
            self.let_go = [0; 2];
        }
        Ok(())
    }
}
