//! Names and versions of stacks, as they may stand in a path, and which version is the newest.
//!
//! A stack's file is `NAME-VERSION.img`, its directory `NAME-VERSION`. A name may hold dashes
//! (`heroku-24`), so a version may not: the last dash parts them, and a `cedar-14-v1.img` is
//! never taken for version `14-v1` of `cedar`.

use std::{cmp::Ordering, fmt, str::FromStr};

use thiserror::Error;

/// Longer than any that there are, shorter than what a file system takes.
const LONGEST: usize = 64;

/// A stack's name, as the Platform API has it: `heroku-24`, `cedar-14`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StackName(String);

/// The version of a stack: `v123`, `1.10.2`, the beginning of a digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(String);

/// A text is no name or no version of a stack.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NameError {
    #[error(
        "`{}` is no name of a stack: it must be lower case letters, digits, `-`, `_` and `.`, \
         begin with a letter or digit, and have at most {LONGEST} of them",
        .0.escape_debug()
    )]
    Name(String),
    #[error(
        "`{}` is no version of a stack: it must be letters, digits, `.`, `_`, `+` and `~`, begin \
         with a letter or digit, not end in `.img`, and have at most {LONGEST} of them",
        .0.escape_debug()
    )]
    Version(String),
}

impl StackName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Version {
    /// The version as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_wellformed(text: &str, may_hold: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= LONGEST
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| may_hold(*byte))
}

impl FromStr for StackName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let may_hold =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
        if is_wellformed(text, may_hold) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Name(text.to_owned()))
        }
    }
}

impl FromStr for Version {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let may_hold = |byte: u8| byte.is_ascii_alphanumeric() || b"._+~".contains(&byte);
        if is_wellformed(text, may_hold) && !has_image_suffix(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Version(text.to_owned()))
        }
    }
}

/// A directory must not look like an image.
fn has_image_suffix(text: &str) -> bool {
    text.to_ascii_lowercase().ends_with(".img")
}

impl fmt::Display for StackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Natural order: numbers by value, `v9` as `9`, and `~` before everything, even the end, so
/// that `2.0~rc1` comes before `2.0`.
impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        natural(unprefixed(&self.0), unprefixed(&other.0)).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn unprefixed(text: &str) -> &[u8] {
    match text.as_bytes() {
        [b'v', rest @ ..] if rest.first().is_some_and(u8::is_ascii_digit) => rest,
        bytes => bytes,
    }
}

fn natural(mut a: &[u8], mut b: &[u8]) -> Ordering {
    loop {
        let order = match (a.first(), b.first()) {
            (None, None) => return Ordering::Equal,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let (x, y) = (take_number(&mut a), take_number(&mut b));
                x.len().cmp(&y.len()).then_with(|| x.cmp(y))
            }
            (x, y) => {
                a = a.get(1..).unwrap_or_default();
                b = b.get(1..).unwrap_or_default();
                weight(x).cmp(&weight(y))
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// The digits that a text begins with, without leading zeros.
fn take_number<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().position(|byte| !byte.is_ascii_digit());
    let (number, rest) = text.split_at(end.unwrap_or(text.len()));
    *text = rest;
    let zeros = number.iter().take_while(|byte| **byte == b'0').count();
    &number[zeros..]
}

fn weight(byte: Option<&u8>) -> u16 {
    match byte {
        Some(b'~') => 0,
        None => 1,
        Some(byte) => 2 + u16::from(*byte),
    }
}

/// What stands before `.img`, or is the name of a directory: `NAME-VERSION`.
pub(super) fn joined(name: &StackName, version: &Version) -> String {
    format!("{name}-{version}")
}

/// The name and version that a `NAME-VERSION` is made of.
pub(super) fn parted(text: &str) -> Option<(StackName, Version)> {
    let (name, version) = text.rsplit_once('-')?;
    Some((name.parse().ok()?, version.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    #[test_case("heroku-24", true)]
    #[test_case("cedar-14", true)]
    #[test_case("my_stack.2", true)]
    #[test_case("", false; "empty")]
    #[test_case("..", false; "the parent")]
    #[test_case(".fetch", false; "hidden")]
    #[test_case("a/b", false; "a path")]
    #[test_case("Heroku", false; "upper case")]
    #[test_case("a\0", false; "nul")]
    #[test_case("a b", false; "a space")]
    #[test_case("-a", false; "an option")]
    fn names(text: &str, is_one: bool) {
        assert_eq!(text.parse::<StackName>().is_ok(), is_one);
    }

    #[test_case("v123", true)]
    #[test_case("1.10.2", true)]
    #[test_case("5f3a0c9d1e2b", true)]
    #[test_case("2.0~rc1+b2", true)]
    #[test_case("1-2", false; "a dash")]
    #[test_case("1.img", false; "an image's suffix")]
    #[test_case("../1", false; "a path")]
    #[test_case("", false; "empty")]
    fn versions(text: &str, is_one: bool) {
        assert_eq!(text.parse::<Version>().is_ok(), is_one);
    }

    #[test]
    fn a_long_name_is_refused_as_a_whole() {
        let error = "x".repeat(65).parse::<StackName>().unwrap_err();
        assert!(error.to_string().contains("at most 64"));
    }

    #[test_case("v9", "v10")]
    #[test_case("v9", "10"; "with and without the letter")]
    #[test_case("1.2.9", "1.2.10")]
    #[test_case("1.2", "1.2.0")]
    #[test_case("2.0~rc1", "2.0")]
    #[test_case("2.0~rc1", "2.0~rc2")]
    #[test_case("2.0", "2.0.1")]
    #[test_case("99999999999999999999999998", "99999999999999999999999999"; "longer than a word")]
    #[test_case("20240101", "20240102")]
    fn newer_is_greater(older: &str, newer: &str) {
        let (older, newer): (Version, Version) = (older.parse().unwrap(), newer.parse().unwrap());
        assert!(older < newer);
        assert!(newer > older);
    }

    #[test]
    fn the_last_dash_parts_name_and_version() {
        let (name, version) = parted("heroku-24-v5").unwrap();
        assert_eq!((name.as_str(), version.as_str()), ("heroku-24", "v5"));
        assert_eq!(joined(&name, &version), "heroku-24-v5");
        assert_eq!(parted("heroku"), None);
        assert_eq!(parted("lost+found"), None);
    }

    proptest! {
        #[test]
        fn the_order_is_one(texts in prop::collection::vec("[a-z0-9][a-z0-9.~v]{0,6}", 3)) {
            let versions: Vec<Version> = texts.iter().map(|text| text.parse().unwrap()).collect();
            let (a, b, c) = (&versions[0], &versions[1], &versions[2]);
            prop_assert_eq!(a.cmp(b), b.cmp(a).reverse());
            prop_assert_eq!(a.cmp(b) == Ordering::Equal, a == b);
            if a <= b && b <= c {
                prop_assert!(a <= c);
            }
        }
    }
}
