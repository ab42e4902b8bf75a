//! How an operator wants dynos to be replaced, as it stands on a command line.

use std::{collections::BTreeMap, num::NonZeroU32, str::FromStr};

use thiserror::Error;

use super::Strategy;
use crate::{formation::MAX_QUANTITY, name::ProcessType, release::Release};

/// The operator's choices that concern every rollout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// For every type that has none of its own; `None`: as the driver allows.
    strategy: Option<Strategy>,
    of_type: BTreeMap<ProcessType, Strategy>,
    /// With start-first; `None`: a quarter of each type.
    pub surge: Option<Surge>,
}

/// `start-first`, or `web=start-first`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StrategyArg {
    /// `None`: all of them.
    pub process_type: Option<ProcessType>,
    /// How its dynos are replaced.
    pub strategy: Strategy,
}

/// How many dynos of a type may run beside its quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surge {
    /// So many.
    Dynos(NonZeroU32),
    /// So many in a hundred, and at least one.
    Percent(NonZeroU32),
}

/// The text says nothing about rollouts.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParsePolicyError {
    /// It is no strategy.
    #[error("`{text}` is no strategy: use start-first or stop-first, alone or as TYPE=STRATEGY")]
    Strategy {
        /// What was written.
        text: String,
    },
    /// It is neither a number nor a percentage.
    #[error("`{text}` is no number of dynos: use 1 to {MAX_QUANTITY}, or 1% to 100%")]
    Surge {
        /// What was written.
        text: String,
    },
}

/// A `web` cannot be replaced start-first where its successor would want the same port.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "web dynos cannot be replaced start-first with the {driver} driver: they share this machine's \
     ports, and the new one would need the port that the old one listens on; use \
     `--strategy web=stop-first`, or a driver that gives each dyno an address of its own"
)]
pub struct SharedPortError {
    /// The driver's name.
    pub driver: String,
}

impl Policy {
    /// The strategies in the order in which they were given; of two for one type the later
    /// counts.
    pub fn new(strategies: impl IntoIterator<Item = StrategyArg>, surge: Option<Surge>) -> Self {
        let mut policy = Self {
            surge,
            ..Self::default()
        };
        for arg in strategies {
            match arg.process_type {
                Some(process_type) => drop(policy.of_type.insert(process_type, arg.strategy)),
                None => policy.strategy = Some(arg.strategy),
            }
        }
        policy
    }

    /// How dynos of this type are replaced. Without an address of its own a web always goes
    /// before its successor comes; every other type has a port that nobody needs to know.
    pub fn strategy(&self, process_type: &ProcessType, has_own_network: bool) -> Strategy {
        let default = if has_own_network {
            Strategy::StartFirst
        } else {
            Strategy::StopFirst
        };
        match self.wish(process_type) {
            Some(Strategy::StartFirst) if !has_own_network && process_type.is_web() => default,
            Some(strategy) => strategy,
            None => default,
        }
    }

    /// Whether a driver can do what was asked for.
    ///
    /// # Errors
    /// When old and new web dynos would want the same port.
    pub fn check(&self, driver: &str, has_own_network: bool) -> Result<(), SharedPortError> {
        let web = ProcessType::web();
        if !has_own_network && self.wish(&web) == Some(Strategy::StartFirst) {
            let driver = driver.to_owned();
            return Err(SharedPortError { driver });
        }
        Ok(())
    }

    /// What of it has no effect on a release with these process types, for people.
    pub fn idle(&self, release: &Release) -> Option<String> {
        let types = || {
            release
                .processes
                .iter()
                .map(|process| &process.process_type)
        };
        let idle: Vec<_> = self
            .of_type
            .keys()
            .filter(|named| types().all(|there| there != *named))
            .map(ToString::to_string)
            .collect();
        let there: Vec<_> = types().map(ToString::to_string).collect();
        (!idle.is_empty()).then(|| {
            format!(
                "--strategy has no effect on {}: v{} has the process types {}",
                idle.join(", "),
                release.version,
                there.join(", ")
            )
        })
    }

    fn wish(&self, process_type: &ProcessType) -> Option<Strategy> {
        self.of_type.get(process_type).copied().or(self.strategy)
    }
}

impl Surge {
    /// The same for a type of so many dynos.
    pub fn of(self, dynos: usize) -> usize {
        match self {
            Self::Dynos(number) => number.get() as usize,
            Self::Percent(percent) => (dynos * percent.get() as usize / 100).max(1),
        }
    }
}

impl FromStr for StrategyArg {
    type Err = ParsePolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let explain = || ParsePolicyError::Strategy {
            text: text.to_owned(),
        };
        let (process_type, word) = match text.split_once('=') {
            Some((name, word)) => (Some(name.parse().map_err(|_| explain())?), word),
            None => (None, text),
        };
        let strategy = match word {
            "start-first" => Strategy::StartFirst,
            "stop-first" => Strategy::StopFirst,
            _ => return Err(explain()),
        };
        Ok(Self {
            process_type,
            strategy,
        })
    }
}

impl FromStr for Surge {
    type Err = ParsePolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let within = |digits: &str, max| {
            let number = digits.parse::<NonZeroU32>().ok();
            number.filter(|number| number.get() <= max)
        };
        match text.strip_suffix('%') {
            Some(digits) => within(digits, 100).map(Self::Percent),
            None => within(text, MAX_QUANTITY).map(Self::Dynos),
        }
        .ok_or_else(|| ParsePolicyError::Surge {
            text: text.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;
    use crate::release::Process;

    #[test]
    fn a_strategy_of_a_type_that_there_is_not_is_idle() {
        let process = |name: &str| Process::new(name.parse().unwrap(), "true", 1);
        let release = Release {
            version: 3,
            processes: vec![process("web"), process("worker")],
            ..Release::default()
        };
        let idle = |texts: &[&str]| {
            let strategies = texts.iter().map(|text| text.parse().unwrap());
            Policy::new(strategies, None).idle(&release)
        };
        assert_eq!(idle(&["stop-first", "worker=start-first"]), None);
        let expected =
            "--strategy has no effect on jobs, wroker: v3 has the process types web, worker";
        assert_eq!(
            idle(&["wroker=stop-first", "web=stop-first", "jobs=stop-first"]).as_deref(),
            Some(expected)
        );
    }

    fn policy(strategies: &[&str]) -> Policy {
        Policy::new(strategies.iter().map(|text| text.parse().unwrap()), None)
    }

    #[test_case(&[], "web", true => Strategy::StartFirst; "an address of its own")]
    #[test_case(&[], "web", false => Strategy::StopFirst; "a port of the machine")]
    #[test_case(&["stop-first"], "web", true => Strategy::StopFirst; "all of them")]
    #[test_case(&["web=stop-first"], "worker", true => Strategy::StartFirst; "another type")]
    #[test_case(&["stop-first", "worker=start-first"], "worker", false => Strategy::StartFirst; "one of them")]
    #[test_case(&["worker=start-first", "worker=stop-first"], "worker", true => Strategy::StopFirst; "the later")]
    #[test_case(&["start-first"], "web", false => Strategy::StopFirst; "what cannot be")]
    fn a_strategy(strategies: &[&str], process_type: &str, has_own_network: bool) -> Strategy {
        policy(strategies).strategy(&process_type.parse().unwrap(), has_own_network)
    }

    #[test]
    fn two_webs_on_one_port_are_refused_and_nothing_else_is() {
        let fits = |strategies: &[&str], own| policy(strategies).check("simple", own).is_ok();
        for strategies in [["start-first"], ["web=start-first"]] {
            assert!(!fits(&strategies, false));
            assert!(fits(&strategies, true));
        }
        assert!(fits(&["start-first", "web=stop-first"], false));
        assert!(fits(&["worker=start-first"], false));
        let error = policy(&["start-first"]).check("simple", false).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("`--strategy web=stop-first`"), "{text}");
    }

    #[test]
    fn a_bad_strategy_says_which_there_are() {
        for bad in ["", "rolling", "web=", "web=blue-green", "a/b=stop-first"] {
            let error = bad.parse::<StrategyArg>().unwrap_err().to_string();
            assert!(error.contains("use start-first or stop-first"), "{error}");
        }
    }

    #[test_case("1", 10 => 1)]
    #[test_case("3", 2 => 3)]
    #[test_case("25%", 10 => 2)]
    #[test_case("1%", 10 => 1; "at least one")]
    #[test_case("100%", 10 => 10)]
    fn a_surge(text: &str, dynos: usize) -> usize {
        text.parse::<Surge>().unwrap().of(dynos)
    }

    #[test]
    fn a_surge_of_none_is_none() {
        for bad in ["0", "0%", "101%", "-1", "x", "", "%", "10001"] {
            assert!(bad.parse::<Surge>().is_err(), "{bad}");
        }
    }
}
