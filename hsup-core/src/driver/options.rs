//! Options that only the driver understands: hsup hands them on with every Build and Start,
//! and knows none of them. A driver refuses a key that it does not know.

use std::{collections::BTreeMap, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One of them, as an operator writes it: `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverOption {
    key: String,
    value: String,
}

/// The text is no option.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseDriverOptionError {
    /// It has no `=`.
    #[error("`{text}` is no option of a driver: use KEY=VALUE")]
    NoValue {
        /// What was written.
        text: String,
    },
    /// What is before the `=` is no key.
    #[error(
        "`{key}` is no key of a driver's option: a key has letters, digits, `_`, `.` and `-`, and \
         begins with a letter or a digit"
    )]
    Key {
        /// What was written.
        key: String,
    },
}

impl DriverOption {
    /// An option of two parts.
    ///
    /// # Errors
    /// When the first is no key.
    pub fn new(key: &str, value: &str) -> Result<Self, ParseDriverOptionError> {
        let goes_on_well = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let begins_well = key.starts_with(|c: char| c.is_ascii_alphanumeric());
        let (key, value) = (key.to_owned(), value.to_owned());
        if begins_well && key.chars().all(goes_on_well) {
            Ok(Self { key, value })
        } else {
            Err(ParseDriverOptionError::Key { key })
        }
    }
}

impl FromStr for DriverOption {
    type Err = ParseDriverOptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((key, value)) = text.split_once('=') else {
            let text = text.to_owned();
            return Err(ParseDriverOptionError::NoValue { text });
        };
        Self::new(key, value)
    }
}

/// All of them. Of two with one key the later counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DriverOptions(BTreeMap<String, String>);

impl DriverOptions {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As a request has them.
    pub fn to_wire(&self) -> BTreeMap<String, String> {
        self.0.clone()
    }
}

impl FromIterator<DriverOption> for DriverOptions {
    fn from_iter<I: IntoIterator<Item = DriverOption>>(options: I) -> Self {
        let pairs = options.into_iter();
        Self(pairs.map(|option| (option.key, option.value)).collect())
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn all(texts: &[&str]) -> DriverOptions {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_sign_parts_key_and_value() {
        let wire = all(&["swarm=true", "constraint=node.role==worker", "Empty_1="]).to_wire();
        let pairs: Vec<_> = wire.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            pairs,
            [
                ("Empty_1", ""),
                ("constraint", "node.role==worker"),
                ("swarm", "true"),
            ]
        );
    }

    #[test]
    fn the_later_of_two_counts() {
        assert_eq!(all(&["a=1", "b=2", "a=3"]), all(&["b=2", "a=3"]));
        assert!(all(&[]).is_empty());
    }

    #[test_case("swarm", "`swarm` is no option of a driver: use KEY=VALUE")]
    #[test_case("", "`` is no option of a driver: use KEY=VALUE")]
    #[test_case("=true", "`` is no key")]
    #[test_case("-x=1", "`-x` is no key")]
    #[test_case("a b=1", "`a b` is no key")]
    #[test_case("größe=1", "`größe` is no key")]
    fn what_is_none_is_refused(text: &str, why: &str) {
        let error = text.parse::<DriverOption>().unwrap_err().to_string();
        assert!(error.starts_with(why), "{error}");
    }
}
