//! What a slug is known by.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The SHA-256 of a slug as it was fetched, or of the archive that a directory makes.
///
/// Reads both `SHA256:<hex>`, as Heroku writes a checksum, and the bare digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SlugId([u8; 32]);

/// A text that is no [`SlugId`].
#[derive(Debug, thiserror::Error)]
#[error("a slug's checksum is `SHA256:` and 64 hexadecimal digits")]
pub struct BadId;

impl SlugId {
    pub(crate) fn new(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

impl FromStr for SlugId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let digits = match text.split_once(':') {
            Some((algorithm, digits)) if algorithm.eq_ignore_ascii_case("sha256") => digits,
            Some(_) => return Err(BadId),
            None => text,
        };
        if digits.len() != 64 {
            return Err(BadId);
        }
        let mut id = [0; 32];
        for (byte, pair) in id.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or(BadId);
            *byte = u8::try_from(digit(0)? * 16 + digit(1)?).map_err(|_| BadId)?;
        }
        Ok(Self(id))
    }
}

impl fmt::Display for SlugId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SlugId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlugId({self})")
    }
}

impl TryFrom<String> for SlugId {
    type Error = BadId;

    fn try_from(text: String) -> Result<Self, BadId> {
        text.parse()
    }
}

impl From<SlugId> for String {
    fn from(id: SlugId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test]
    fn both_spellings_are_one() {
        let digits = "0123456789abcdef".repeat(4);
        let id: SlugId = digits.parse().unwrap();
        assert_eq!(
            id,
            format!("sha256:{}", digits.to_uppercase()).parse().unwrap()
        );
        assert_eq!(id.to_string(), digits);
    }

    #[test_case(""; "nothing")]
    #[test_case("SHA256:"; "no digits")]
    #[test_case("MD5:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"; "another algorithm")]
    #[test_case("g123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"; "no digit")]
    #[test_case("é23456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"; "no ascii")]
    #[test_case("+123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"; "a sign")]
    fn nonsense_is_refused(text: &str) {
        assert!(text.parse::<SlugId>().is_err());
    }
}
