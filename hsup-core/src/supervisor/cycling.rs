//! When a dyno has run long enough and is replaced by a fresh one, as Heroku's are once a day.
//!
//! Heroku's rule: a day, and at random up to 216 minutes more, for each dyno from its own last
//! start on: <https://devcenter.heroku.com/articles/dyno-restarts>. What leaks slowly is so
//! never noticed, and what was only ever started once is started daily.
//!
//! [`life`] and [`choose`] decide that over moments and numbers that are handed in.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;
use tracing::info;

use super::{actor::Actor, ending::Phase};
use crate::{
    dyno::{Birth, Key},
    name::{DynoId, DynoName, ProcessType},
    random,
    rollout::Strategy,
};

/// The most that is added to the period at random: Heroku's to its day.
const SPREAD: Duration = Duration::from_mins(216);
/// How long it takes at most until one that had to wait for others of its type is looked at
/// again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// When a dyno's present process is to be replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// Of which process this is.
    pub(super) of: DynoId,
    pub(super) at: Instant,
}

/// A dyno, as far as cycling goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cyclable<'a> {
    key: Key,
    process_type: &'a ProcessType,
    /// It is ready, and nothing is about to happen to it.
    is_settled: bool,
    due: Option<Instant>,
}

/// How long a process may run: `every`, and at random up to 15 % more, but never more than
/// Heroku's 216 minutes.
fn life(every: Duration, random: u64) -> Duration {
    let spread = (every * 15 / 100).min(SPREAD);
    #[expect(
        clippy::cast_precision_loss,
        reason = "a moment more or less does not matter"
    )]
    let share = random as f64 / u64::MAX as f64;
    every + spread.mul_f64(share)
}

/// Which dynos are replaced now: of each type at most one, the one that has been due longest,
/// and none while another of its type is not settled. And when to look again.
fn choose(dynos: &[Cyclable<'_>], every: Duration, now: Instant) -> (Vec<Key>, Option<Instant>) {
    let unsettled: BTreeSet<_> = dynos
        .iter()
        .filter(|dyno| !dyno.is_settled)
        .map(|dyno| dyno.process_type)
        .collect();
    let mut chosen: BTreeMap<&ProcessType, (Instant, Key)> = BTreeMap::new();
    let mut next: Option<Instant> = None;
    let mut look = |at| next = Some(next.map_or(at, |next: Instant| next.min(at)));
    for dyno in dynos {
        let Some(due) = dyno.due else {
            continue;
        };
        if due > now {
            look(due);
            continue;
        }
        if !unsettled.contains(dyno.process_type) {
            let oldest = chosen.entry(dyno.process_type).or_insert((due, dyno.key));
            *oldest = (*oldest).min((due, dyno.key));
        }
        // Others of its type are looked at when this one is through, or was not allowed.
        look(now + (every / 10).clamp(Duration::from_millis(10), LOOK_AGAIN));
    }
    (chosen.into_values().map(|(_, key)| key).collect(), next)
}

impl Actor {
    /// The dyno's process may be another one than when this was last looked at: its time begins.
    pub(super) fn wind_up(&mut self, key: Key) {
        let Some(live) = self.dynos.get_mut(key) else {
            return;
        };
        let Some(of) = live.status.dyno_id.clone() else {
            live.due = None;
            return;
        };
        if live.due.as_ref().is_some_and(|due| due.of == of) {
            return;
        }
        self.set_due(key, of, Duration::ZERO);
    }

    /// Has the dyno's process `of` replaced when its time is up, which began `ran` ago.
    pub(super) fn set_due(&mut self, key: Key, of: DynoId, ran: Duration) {
        let (Some(every), Some(live)) = (self.cycle_every, self.dynos.get_mut(key)) else {
            return;
        };
        let at = Instant::now() + life(every, random::u64()).saturating_sub(ran);
        live.due = Some(Due { of, at });
        self.cycle_at = Some(self.cycle_at.map_or(at, |before| before.min(at)));
    }

    /// Replaces the dynos whose time is up, unless a release is about to anyway.
    pub(super) fn cycle(&mut self) {
        let Some(every) = self.cycle_every else {
            return;
        };
        let now = Instant::now();
        if self.phase != Phase::Running || self.trial.is_some() {
            self.cycle_at = Some(now + LOOK_AGAIN.min(every));
            return;
        }
        let cyclable: Vec<_> = self
            .dynos
            .iter()
            .filter(|(key, _)| !self.is_release_phase(*key))
            .map(|(key, live)| Cyclable {
                key,
                process_type: &live.handle.spec.name.process_type,
                is_settled: live.status.ready
                    && !live.retiring
                    && !self.successors.contains_key(&key),
                due: live.due.as_ref().map(|due| due.at),
            })
            .collect();
        let (chosen, next) = choose(&cyclable, every, now);
        self.cycle_at = next;
        for key in chosen {
            self.replace(key);
        }
    }

    fn replace(&mut self, key: Key) {
        let how = self.gracefully();
        let Some(live) = self.dynos.get_mut(key) else {
            return;
        };
        let name = live.handle.spec.name.clone();
        self.shared.logs.note(&name.to_string(), "Cycling");
        info!(%name, "cycling");
        if self.strategy(&name.process_type) == Strategy::StartFirst
            && let Some(good) = self.good()
            && let Some(spec) = self.spec_of(&name, good)
        {
            let successor = self.spawn_dyno(spec, Birth::Start);
            self.successors.insert(successor, key);
            return;
        }
        if let Some(live) = self.dynos.get_mut(key) {
            live.restart(how);
        }
    }

    /// The successor of a dyno that was to be replaced is ready: that one goes.
    pub(super) fn successor_ready(&mut self, key: Key) {
        if let Some(old) = self.successors.remove(&key) {
            self.retire(old, self.gracefully());
        }
    }

    /// It did not get ready. A cycled dyno stays for another period. One that an earlier release
    /// has left serves on until the successor, which is started again, is ready; one that does
    /// not serve either goes.
    pub(super) fn successor_failed(&mut self, key: Key, name: &DynoName, why: &str) {
        let Some(&old) = self.successors.get(&key) else {
            return;
        };
        let Some(live) = self.dynos.get_mut(old) else {
            return;
        };
        if self.releases.good() != Some(live.handle.spec.release_id) {
            if !live.status.ready {
                self.successors.remove(&key);
                self.retire(old, self.gracefully());
            }
            return;
        }
        self.successors.remove(&key);
        let text = format!("Cycling given up, the one that runs stays: {why}");
        self.shared.logs.note(&name.to_string(), text);
        self.retire(key, self.gracefully());
        if let Some(live) = self.dynos.get_mut(old) {
            live.due = None;
        }
        self.wind_up(old);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn a_life_is_the_period_and_up_to_heroku_s_spread_more() {
        assert_eq!(life(DAY, 0), DAY);
        assert_eq!(life(DAY, u64::MAX), DAY + SPREAD);
        assert_eq!(life(DAY * 7, u64::MAX), DAY * 7 + SPREAD);
        let minute = Duration::from_mins(1);
        assert_eq!(life(minute, u64::MAX), minute + Duration::from_secs(9));
    }

    proptest! {
        #[test]
        fn never_two_of_a_type_and_never_one_beside_another_that_is_not_settled(
            dynos in prop::collection::vec((0usize..3, any::<bool>(), prop::option::of(0u64..200)), 0..20),
        ) {
            let types = ["web", "worker", "clock"].map(|name| name.parse::<ProcessType>().unwrap());
            let begin = Instant::now();
            let now = begin + Duration::from_secs(100);
            let cyclable: Vec<_> = (0..).map(Key).zip(&dynos).map(|(key, (kind, is_settled, due))| Cyclable {
                key,
                process_type: &types[*kind],
                is_settled: *is_settled,
                due: due.map(|seconds| begin + Duration::from_secs(seconds)),
            }).collect();
            let (chosen, next) = choose(&cyclable, DAY, now);
            for process_type in &types {
                let of_type: Vec<_> = cyclable.iter().filter(|dyno| dyno.process_type == process_type).collect();
                let is_due = |dyno: &&&Cyclable<'_>| dyno.due.is_some_and(|due| due <= now);
                let due = of_type.iter().filter(is_due).min_by_key(|dyno| (dyno.due, dyno.key));
                let expected = due.filter(|_| of_type.iter().all(|dyno| dyno.is_settled));
                let got: Vec<_> = of_type.iter().filter(|dyno| chosen.contains(&dyno.key)).collect();
                prop_assert_eq!(got, expected.into_iter().collect::<Vec<_>>());
            }
            prop_assert_eq!(next.is_some(), cyclable.iter().any(|dyno| dyno.due.is_some()));
            prop_assert!(next.is_none_or(|next| next > now));
        }
    }
}
