//! How what runs becomes what is wanted: decided name by name, for [`super::actor::Actor`] to
//! carry out.

use std::collections::BTreeSet;

use crate::{dyno::Key, name::DynoName, releases::Id, rollout::Strategy};

/// What is to become of the names that there are.
#[derive(Debug)]
pub(super) struct Course {
    /// Those that stay. Every other one goes.
    pub(super) keep: BTreeSet<DynoName>,
    /// Those that the release on trial will not have: it lets go of them.
    pub(super) forget: BTreeSet<DynoName>,
    /// Those that are to run the good release.
    pub(super) have: BTreeSet<DynoName>,
}

impl Course {
    /// `wanted` of the good release; `rolling` are at work in a rollout, of which `wanted_after`
    /// are still wanted.
    pub(super) fn of(
        wanted: &BTreeSet<DynoName>,
        rolling: &BTreeSet<DynoName>,
        wanted_after: &BTreeSet<DynoName>,
    ) -> Self {
        Self {
            keep: wanted | rolling,
            forget: rolling - wanted_after,
            have: wanted - &(rolling & wanted_after),
        }
    }
}

/// A dyno of a name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) key: Key,
    pub(super) release: Id,
    /// It was told to go.
    pub(super) retiring: bool,
    pub(super) ready: bool,
}

/// What to do so that a name runs the good release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Start,
    Retire(Key),
    /// Start one that takes the place of this one once it is ready.
    StartBeside(Key),
    /// The second is to take the place of the first once it is ready.
    Succeed(Key, Key),
}

/// The steps for a name outside of any rollout. A dyno of another release there was left by an
/// overtaken or rejected one, or came while a rollout was under way: with start-first it serves
/// until the good one does.
pub(super) fn steps(there: &[Seen], good: Id, strategy: Strategy) -> Vec<Step> {
    let staying = || there.iter().filter(|dyno| !dyno.retiring);
    let own = staying().find(|dyno| dyno.release == good);
    let mut others: Vec<_> = staying().filter(|dyno| dyno.release != good).collect();
    let waits = strategy == Strategy::StartFirst && own.is_none_or(|own| !own.ready);
    // One is enough to serve meanwhile: one that does, if there is any.
    others.sort_by_key(|dyno| dyno.ready);
    let meanwhile = others.pop_if(|_| waits);
    let mut steps: Vec<_> = others.iter().map(|dyno| Step::Retire(dyno.key)).collect();
    match (meanwhile, own) {
        (Some(old), Some(own)) => steps.push(Step::Succeed(old.key, own.key)),
        (Some(old), None) => steps.push(Step::StartBeside(old.key)),
        (None, None) if there.is_empty() => steps.push(Step::Start),
        (None, _) => {}
    }
    steps
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    /// `good` or `bad` dynos, `!` where one is ready and `-` where it goes.
    fn of(there: &str, strategy: Strategy) -> Vec<Step> {
        let dynos = (1..).zip(there.split_whitespace());
        let seen: Vec<_> = dynos
            .map(|(key, text)| Seen {
                key: Key(key),
                release: if text.starts_with("good") { 7 } else { 8 },
                retiring: text.ends_with('-'),
                ready: text.ends_with('!'),
            })
            .collect();
        steps(&seen, 7, strategy)
    }

    #[test_case("", &[Step::Start], &[Step::Start]; "nothing")]
    #[test_case("good", &[], &[]; "it")]
    #[test_case("bad-", &[], &[]; "one on its way out")]
    #[test_case("bad!", &[Step::StartBeside(Key(1))], &[Step::Retire(Key(1))]; "another")]
    #[test_case("bad! good", &[Step::Succeed(Key(1), Key(2))], &[Step::Retire(Key(1))]; "both")]
    #[test_case("bad! good!", &[Step::Retire(Key(1))], &[Step::Retire(Key(1))]; "both ready")]
    #[test_case(
        "bad! bad",
        &[Step::Retire(Key(2)), Step::StartBeside(Key(1))],
        &[Step::Retire(Key(2)), Step::Retire(Key(1))];
        "two others"
    )]
    fn what_is_there(there: &str, start_first: &[Step], stop_first: &[Step]) {
        assert_eq!(of(there, Strategy::StartFirst), start_first);
        assert_eq!(of(there, Strategy::StopFirst), stop_first);
    }
}
