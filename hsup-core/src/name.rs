//! Names: of process types, of dynos, and of what a person asks for on a command line.
//!
//! Every name that later becomes part of a path, a cgroup, a network or a map's
//! key is parsed here once, into a type that cannot hold a bad one. A process type
//! follows the Platform API's rule (`^[-\w]{1,128}$`, ASCII), so it never contains
//! `.`, `/`, `=` or `+`; that is what makes `web.1`, `web=3` and `worker+1` readable
//! without guessing.

use std::{borrow::Borrow, fmt, num::NonZeroU32, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The type of a process, such as `web`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ProcessType(Arc<str>);

/// The text is not a process type.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{0}` is not a process type: expected 1 to 128 ASCII letters, digits, `-` and `_`",
    .text.escape_debug()
)]
pub struct ParseProcessTypeError {
    text: String,
}

impl ProcessType {
    /// The type of one-off dynos.
    pub fn run() -> Self {
        Self("run".into())
    }

    /// The type whose dynos answer on their `PORT`.
    pub fn web() -> Self {
        Self("web".into())
    }

    /// The type of the command that is run once per release.
    pub fn release() -> Self {
        Self("release".into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether its dynos must listen on their `PORT` to be ready.
    pub fn is_web(&self) -> bool {
        &*self.0 == "web"
    }

    /// Whether it names the command of the release phase, which is never started as
    /// a long-running dyno.
    pub fn is_release(&self) -> bool {
        &*self.0 == "release"
    }
}

impl FromStr for ProcessType {
    type Err = ParseProcessTypeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if (1..=128).contains(&text.len()) && text.bytes().all(word) {
            Ok(Self(text.into()))
        } else {
            Err(ParseProcessTypeError {
                text: text.chars().take(160).collect(),
            })
        }
    }
}

impl TryFrom<String> for ProcessType {
    type Error = ParseProcessTypeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ProcessType> for String {
    fn from(process_type: ProcessType) -> Self {
        process_type.0.as_ref().into()
    }
}

impl Borrow<str> for ProcessType {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for ProcessType {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for ProcessType {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl PartialEq<&str> for ProcessType {
    fn eq(&self, other: &&str) -> bool {
        &*self.0 == *other
    }
}

impl fmt::Display for ProcessType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ProcessType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// The name of one dyno: a process type and a number from 1, such as `web.1`.
///
/// Sorts by type, then by number: `web.2` comes before `web.10`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DynoName {
    /// What it runs.
    pub process_type: ProcessType,
    /// Which one of its type it is.
    pub number: NonZeroU32,
}

/// The text is not the name of a dyno.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{}` is not a dyno name: expected a process type, a dot and a number from 1, such as `web.1`",
    .text.escape_debug()
)]
pub struct ParseDynoNameError {
    text: String,
}

impl DynoName {
    /// The dyno `number` of `process_type`.
    pub const fn new(process_type: ProcessType, number: NonZeroU32) -> Self {
        Self {
            process_type,
            number,
        }
    }
}

impl FromStr for DynoName {
    type Err = ParseDynoNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (process_type, digits) = text.split_once('.')?;
            let number: NonZeroU32 = digits.parse().ok()?;
            // One dyno has one name: `web.01` and `web.+1` would be others of `web.1`.
            digits
                .starts_with(|first: char| ('1'..='9').contains(&first))
                .then_some(())?;
            Some(Self::new(process_type.parse().ok()?, number))
        };
        parse().ok_or_else(|| ParseDynoNameError {
            text: text.chars().take(160).collect(),
        })
    }
}

impl TryFrom<String> for DynoName {
    type Error = ParseDynoNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DynoName> for String {
    fn from(name: DynoName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for DynoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.width().is_some() {
            return f.pad(&format!("{}.{}", self.process_type, self.number));
        }
        write!(f, "{}.{}", self.process_type, self.number)
    }
}

impl fmt::Debug for DynoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What a person points at: all dynos of a type (`web`), or one dyno (`web.1`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// Every dyno of this type.
    Type(ProcessType),
    /// This dyno.
    Dyno(DynoName),
}

/// The text selects nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{}` is neither a process type nor a dyno name, such as `web` or `web.1`",
    .text.escape_debug()
)]
pub struct ParseSelectorError {
    text: String,
}

impl Selector {
    /// Whether it means the dyno `name`.
    pub fn matches(&self, name: &DynoName) -> bool {
        match self {
            Self::Type(process_type) => *process_type == name.process_type,
            Self::Dyno(dyno) => dyno == name,
        }
    }

    /// The process type that it speaks of.
    pub const fn process_type(&self) -> &ProcessType {
        match self {
            Self::Type(process_type) => process_type,
            Self::Dyno(dyno) => &dyno.process_type,
        }
    }
}

impl FromStr for Selector {
    type Err = ParseSelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseSelectorError {
            text: text.chars().take(160).collect(),
        };
        if text.contains('.') {
            text.parse().map(Self::Dyno).map_err(|_| error())
        } else {
            text.parse().map(Self::Type).map_err(|_| error())
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(process_type) => process_type.fmt(f),
            Self::Dyno(dyno) => dyno.fmt(f),
        }
    }
}

/// The text is not the name of an app.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{}` is not a name for an app: expected 1 to 63 ASCII letters, digits, `-`, `_` and `.`, starting with a letter or digit",
    .text.escape_debug()
)]
pub struct AppNameError {
    text: String,
}

/// Checks the name of an app, which becomes part of paths: of its socket, of its state.
///
/// # Errors
/// When it could be another path.
pub fn check_app_name(text: &str) -> Result<(), AppNameError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if (1..=63).contains(&text.len())
        && text.bytes().all(allowed)
        && text.as_bytes()[0].is_ascii_alphanumeric()
    {
        Ok(())
    } else {
        Err(AppNameError {
            text: text.chars().take(160).collect(),
        })
    }
}

/// The key under which a driver knows a dyno; never used twice.
///
/// `[a-z0-9][a-z0-9-]{0,62}`, so that it can be part of a path, a host name, a
/// cgroup and a container's name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DynoId(Arc<str>);

/// The text is not a dyno id.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{}` is not a dyno id: expected 1 to 63 lower-case letters, digits and `-`, not starting with `-`",
    .text.escape_debug()
)]
pub struct ParseDynoIdError {
    text: String,
}

impl DynoId {
    const MAX: usize = 63;

    /// Makes the id of a new run of `name`: what it runs, for people, and 64 random
    /// bits, for uniqueness.
    pub fn mint(name: &DynoName, random: u64) -> Self {
        const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let tail: String = (0..13)
            .rev()
            .map(|place| char::from(DIGITS[((random >> (5 * place)) & 31) as usize]))
            .collect();
        let tail = format!("-{}-{tail}", name.number);
        let mut id: String = name
            .process_type
            .as_str()
            .chars()
            .map(|c| {
                if c == '_' {
                    '-'
                } else {
                    c.to_ascii_lowercase()
                }
            })
            .skip_while(|&c| c == '-')
            .take(Self::MAX - tail.len())
            .collect();
        if id.is_empty() {
            id.push('x');
        }
        id.push_str(&tail);
        Self(id.into())
    }

    /// The text that goes over the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DynoId {
    type Err = ParseDynoIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if (1..=Self::MAX).contains(&text.len())
            && text.bytes().all(allowed)
            && !text.starts_with('-')
        {
            Ok(Self(text.into()))
        } else {
            Err(ParseDynoIdError {
                text: text.chars().take(160).collect(),
            })
        }
    }
}

impl TryFrom<String> for DynoId {
    type Error = ParseDynoIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DynoId> for String {
    fn from(id: DynoId) -> Self {
        id.0.as_ref().into()
    }
}

impl Borrow<str> for DynoId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DynoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for DynoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    fn name(text: &str) -> DynoName {
        text.parse().unwrap()
    }

    #[test_case("web")]
    #[test_case("my-worker_2")]
    #[test_case("Web"; "upper case is kept")]
    #[test_case("-"; "the API allows it")]
    #[test_case(&"a".repeat(128); "the longest")]
    fn a_process_type_is_taken_as_it_is(text: &str) {
        assert_eq!(text.parse::<ProcessType>().unwrap().as_str(), text);
    }

    #[test_case("")]
    #[test_case("a/b")]
    #[test_case("..")]
    #[test_case(".")]
    #[test_case("web.1")]
    #[test_case("web 1")]
    #[test_case("wéb"; "not ascii")]
    #[test_case("web\n"; "newline")]
    #[test_case("web\0"; "nul")]
    #[test_case(&"a".repeat(129); "too long")]
    fn a_bad_process_type_is_refused(text: &str) {
        assert!(text.parse::<ProcessType>().is_err());
        let json = serde_json::to_string(text).unwrap();
        assert!(serde_json::from_str::<ProcessType>(&json).is_err());
    }

    #[test]
    fn the_error_names_the_value_and_the_rule() {
        assert_eq!(
            "a/b\n".parse::<ProcessType>().unwrap_err().to_string(),
            "`a/b\\n` is not a process type: expected 1 to 128 ASCII letters, digits, `-` and `_`"
        );
    }

    #[test_case("web")]
    #[test_case("web.0")]
    #[test_case("web.01")]
    #[test_case("web.+1")]
    #[test_case("web.1.2")]
    #[test_case("web.-1")]
    #[test_case(".1")]
    #[test_case("web.")]
    #[test_case("web.4294967296"; "beyond 32 bits")]
    fn a_bad_dyno_name_is_refused(text: &str) {
        assert!(text.parse::<DynoName>().is_err());
    }

    #[test]
    fn dynos_sort_by_type_then_by_number() {
        let mut names = ["web.10", "worker.1", "web.2", "clock.3"].map(name);
        names.sort();
        assert_eq!(
            names.map(|name| name.to_string()),
            ["clock.3", "web.2", "web.10", "worker.1"]
        );
    }

    #[test]
    fn names_pad_in_columns() {
        assert_eq!(format!("{:<8}|", name("web.1")), "web.1   |");
        assert_eq!(format!("{:<4}|", name("web.1").process_type), "web |");
    }

    #[test]
    fn a_selector_matches_a_type_or_one_dyno() {
        let all: Selector = "web".parse().unwrap();
        let one: Selector = "web.2".parse().unwrap();
        assert!(all.matches(&name("web.1")) && all.matches(&name("web.2")));
        assert!(!all.matches(&name("website.1")));
        assert!(one.matches(&name("web.2")) && !one.matches(&name("web.20")));
        for bad in ["", "web.0", "web.", "web=2", "../x", "a/b"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_name_of_an_app_is_no_path() {
        for good in ["shop", "Shop_2.test", "0", &"a".repeat(63)] {
            assert_eq!(check_app_name(good), Ok(()));
        }
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "-a",
            ".a",
            "a b",
            "\0",
            &"a".repeat(64),
        ] {
            assert!(check_app_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_id_says_what_it_runs() {
        assert_eq!(
            DynoId::mint(&name("web.1"), 0).as_str(),
            "web-1-0000000000000"
        );
        assert_eq!(
            DynoId::mint(&name("My_Worker.12"), u64::MAX).as_str(),
            "my-worker-12-fzzzzzzzzzzzz"
        );
        assert_eq!(
            DynoId::mint(&name("-_-.1"), 31).as_str(),
            "x-1-000000000000z"
        );
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_round_trips(text in ".{0,200}") {
            if let Ok(process_type) = text.parse::<ProcessType>() {
                prop_assert_eq!(process_type.as_str(), &text);
            }
            if let Ok(dyno) = text.parse::<DynoName>() {
                prop_assert_eq!(dyno.to_string(), text.clone());
            }
            if let Ok(selector) = text.parse::<Selector>() {
                prop_assert_eq!(selector.to_string(), text.clone());
            }
        }

        #[test]
        fn every_dyno_name_round_trips(text in "[-_a-zA-Z0-9]{1,128}\\.[1-9][0-9]{0,8}") {
            let dyno = name(&text);
            prop_assert_eq!(dyno.to_string(), text);
            let json = serde_json::to_string(&dyno).unwrap();
            prop_assert_eq!(serde_json::from_str::<DynoName>(&json).unwrap(), dyno);
        }

        #[test]
        fn a_minted_id_is_valid_and_its_bits_count(
            text in "[-_a-zA-Z0-9]{1,128}\\.[1-9][0-9]{0,8}",
            one: u64,
            other: u64,
        ) {
            let dyno = name(&text);
            let id = DynoId::mint(&dyno, one);
            prop_assert_eq!(id.as_str().parse::<DynoId>(), Ok(id.clone()));
            prop_assert_eq!(one == other, id == DynoId::mint(&dyno, other));
        }
    }
}
