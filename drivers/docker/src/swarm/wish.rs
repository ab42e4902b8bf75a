//! What is wished for of a Swarm: on the driver's command line, or with a request.

use std::{collections::BTreeMap, time::Duration};

use hsup_driver_kit::Status;
use thiserror::Error;

use crate::images;

/// The keys of a request's options.
pub(crate) const KEYS: &[&str] = &[SWARM, REGISTRY, CONSTRAINTS, SPREAD, STOP_GRACE];

const SWARM: &str = "swarm";
const REGISTRY: &str = "registry";
const CONSTRAINTS: &str = "constraints";
const SPREAD: &str = "spread";
const STOP_GRACE: &str = "stop-grace";

/// What a constraint may be about besides labels. Of any other key the Swarm says nothing, and finds
/// no node that fits.
/// <https://docs.docker.com/reference/cli/docker/service/create/#constraint>
const NODE_KEYS: [&str; 6] = [
    "node.id",
    "node.hostname",
    "node.ip",
    "node.role",
    "node.platform.os",
    "node.platform.arch",
];

/// How long a dyno has to end, as hsup gives it if nobody says otherwise.
const GRACE: Duration = Duration::from_secs(30);
/// Longer than anybody waits for a dyno to end.
const LONGEST_GRACE: u64 = 24 * 60 * 60;

/// Where dynos run, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    /// On the Swarm, and not on the engine alone.
    pub(crate) swarm: bool,
    /// Through which images come to the nodes: `HOST:PORT`, with a path or without.
    pub(crate) registry: Option<String>,
    /// What a node must be: `node.labels.zone==a`.
    pub(crate) constraints: Vec<String>,
    /// What tells the places apart over which dynos are spread: `node.labels.rack`.
    pub(crate) spread: Vec<String>,
    /// How long a dyno has to end. A Swarm takes that only when the dyno starts.
    pub(crate) grace: Duration,
}

/// It cannot be wished for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum WishError {
    #[error("option `{SWARM}` is `{0}`: it must be `true` or `false`")]
    Swarm(String),
    #[error("option `{0}` is for a Swarm: give `{SWARM}=true` with it, or the driver `--swarm`")]
    NoSwarm(String),
    #[error(
        "the registry `{0}` is none: it must be HOST:PORT, or HOST.DOMAIN, with a path behind it \
         (in small letters) or without"
    )]
    Registry(String),
    #[error(
        "option `{CONSTRAINTS}` has `{0}`: a constraint is `KEY==VALUE` or `KEY!=VALUE`, with commas \
         between several; keys are node.id, node.hostname, node.ip, node.role, node.platform.os, \
         node.platform.arch, node.labels.NAME and engine.labels.NAME; a NAME has letters, digits \
         and `-_.`, a VALUE also spaces and `:*()?+[]\\^$|/`"
    )]
    Constraint(String),
    #[error(
        "option `{SPREAD}` has `{0}`: it must be `node.labels.NAME` or `engine.labels.NAME`, with \
         commas between several"
    )]
    Spread(String),
    #[error("option `{STOP_GRACE}` is `{0}`: it must be a number of seconds, at least 1")]
    Grace(String),
}

impl From<WishError> for Status {
    fn from(error: WishError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            swarm: false,
            registry: None,
            constraints: Vec::new(),
            spread: Vec::new(),
            grace: GRACE,
        }
    }
}

impl Wish {
    /// What the driver's command line says, for requests that say nothing else.
    pub(crate) fn of_driver(swarm: bool, registry: Option<&str>) -> Result<Self, WishError> {
        let registry = registry.map(checked_registry).transpose()?;
        if registry.is_some() && !swarm {
            return Err(WishError::NoSwarm(REGISTRY.to_owned()));
        }
        Ok(Self {
            swarm,
            registry,
            ..Self::default()
        })
    }

    /// The same, with what a request says besides.
    pub(crate) fn with(&self, options: &BTreeMap<String, String>) -> Result<Self, WishError> {
        let mut wish = self.clone();
        for (key, value) in options {
            match key.as_str() {
                SWARM => {
                    wish.swarm = match value.as_str() {
                        "true" => true,
                        "false" => false,
                        _ => return Err(WishError::Swarm(value.clone())),
                    }
                }
                REGISTRY => wish.registry = Some(checked_registry(value)?),
                CONSTRAINTS => {
                    wish.constraints = list(value, is_constraint, WishError::Constraint)?;
                }
                SPREAD => wish.spread = list(value, is_label, WishError::Spread)?,
                STOP_GRACE => {
                    wish.grace = match value.parse() {
                        Ok(seconds @ 1..=LONGEST_GRACE) => Duration::from_secs(seconds),
                        _ => return Err(WishError::Grace(value.clone())),
                    }
                }
                // The service refuses what is not in `KEYS`.
                _ => {}
            }
        }
        let other = options.keys().find(|key| *key != SWARM);
        match other {
            Some(key) if !wish.swarm => Err(WishError::NoSwarm(key.clone())),
            _ => Ok(wish),
        }
    }
}

fn checked_registry(text: &str) -> Result<String, WishError> {
    let host = text.split('/').next().unwrap_or_default();
    // Without one of these it would be the name of a user of Docker Hub.
    let is_host = host == "localhost" || host.contains(['.', ':']);
    let path = text.strip_prefix(host).unwrap_or_default();
    let fits = !text.contains('@')
        && !path.contains(|one: char| one.is_ascii_uppercase())
        && images::is_reference(&format!("{text}/app"));
    if is_host && fits {
        Ok(text.to_owned())
    } else {
        Err(WishError::Registry(text.to_owned()))
    }
}

fn list(
    text: &str,
    fits: fn(&str) -> bool,
    error: fn(String) -> WishError,
) -> Result<Vec<String>, WishError> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let part = part.to_owned();
            if fits(&part) {
                Ok(part)
            } else {
                Err(error(part))
            }
        })
        .collect()
}

fn is_constraint(text: &str) -> bool {
    let sides = text.split_once("==").or_else(|| text.split_once("!="));
    sides.is_some_and(|(key, value)| {
        let (key, value) = (key.trim(), value.trim());
        (NODE_KEYS.contains(&key) || is_label(key)) && is_key(key) && is_value(value)
    })
}

/// Whether the Swarm takes it for the key of a constraint, or answers as if it had failed itself.
/// <https://github.com/moby/swarmkit/blob/master/manager/constraint/constraint.go>, `Parse`
fn is_key(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// The same of a value.
fn is_value(text: &str) -> bool {
    let fits = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || byte.is_ascii_whitespace()
            || br":-_.*()?+[]\^$|/".contains(&byte)
    };
    !text.is_empty() && text.bytes().all(fits)
}

fn is_label(text: &str) -> bool {
    let name = text
        .strip_prefix("node.labels.")
        .or_else(|| text.strip_prefix("engine.labels."));
    name.is_some_and(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn with(wish: &Wish, options: &[(&str, &str)]) -> Result<Wish, WishError> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        wish.with(&options.iter().map(owned).collect())
    }

    #[test]
    fn a_request_says_more_than_the_command_line() {
        let driver = Wish::of_driver(true, Some("10.0.0.1:5000")).unwrap();
        assert_eq!(with(&driver, &[]).unwrap(), driver);
        let other = with(
            &driver,
            &[
                ("registry", "registry.example/team"),
                ("constraints", "node.role==worker, node.labels.zone!=b"),
                ("spread", "node.labels.rack"),
                ("stop-grace", "5"),
            ],
        )
        .unwrap();
        assert_eq!(other.registry.as_deref(), Some("registry.example/team"));
        assert_eq!(
            other.constraints,
            ["node.role==worker", "node.labels.zone!=b"]
        );
        assert_eq!(other.spread, ["node.labels.rack"]);
        assert_eq!(other.grace, Duration::from_secs(5));
        assert!(!with(&Wish::default(), &[]).unwrap().swarm);
        assert!(with(&Wish::default(), &[("swarm", "true")]).unwrap().swarm);
    }

    #[test_case("swarm", "yes", "`true` or `false`")]
    #[test_case("registry", "team", "HOST:PORT")]
    #[test_case("registry", "host:5000/../x", "HOST:PORT"; "a path that leads away")]
    #[test_case("registry", "", "HOST:PORT"; "no registry")]
    #[test_case("registry", "host:5000/Team", "small letters")]
    #[test_case("constraints", "zone=a", "KEY==VALUE")]
    #[test_case("constraints", "zone==a", "node.labels.NAME"; "a key that no node has")]
    #[test_case("constraints", "node.labels.zone==a==b", "KEY==VALUE"; "two values")]
    #[test_case("constraints", "node.labels.my zone==a", "a NAME has"; "a label with a space")]
    #[test_case("constraints", "node.labels.zöne==a", "a NAME has"; "a label with another letter")]
    #[test_case("constraints", "node.labels.zone==~a", "a VALUE also"; "a value with another sign")]
    #[test_case("constraints", "node.labels.zone==", "KEY==VALUE"; "no value")]
    #[test_case("spread", "rack", "node.labels.NAME")]
    #[test_case("stop-grace", "0", "seconds")]
    #[test_case("stop-grace", "soon", "seconds"; "a word for a time")]
    fn anything_else_is_refused_with_the_way_out(key: &str, value: &str, way: &str) {
        let swarm = Wish::of_driver(true, None).unwrap();
        let error = with(&swarm, &[(key, value)]).unwrap_err().to_string();
        assert!(error.contains(way), "{error}");
    }

    #[test]
    fn a_value_may_have_what_the_swarm_takes() {
        let swarm = Wish::of_driver(true, None).unwrap();
        let constraint = r"node.labels.My-zone_2.a==a:b-c_d e.*()?+[]\^$|/";
        let found = with(&swarm, &[("constraints", constraint)]).unwrap();
        assert_eq!(found.constraints, [constraint]);
    }

    #[test]
    fn what_is_for_a_swarm_is_not_passed_over_in_silence() {
        let error = with(&Wish::default(), &[("constraints", "node.id==b")]).unwrap_err();
        assert_eq!(error, WishError::NoSwarm("constraints".to_owned()));
        assert!(Wish::of_driver(false, Some("host:5000")).is_err());
    }
}
