//! Which users dynos may be.

use std::ops::RangeInclusive;

use thiserror::Error;

/// The variable with the lowest uid of a dyno.
pub const UID_MIN_VARIABLE: &str = "LIBCONTAINER_DYNO_UID_MIN";
/// The variable with the highest uid of a dyno.
pub const UID_MAX_VARIABLE: &str = "LIBCONTAINER_DYNO_UID_MAX";

const DEFAULT_MIN: u32 = 3000;
const DEFAULT_MAX: u32 = 11000;
/// Below are the system's own users, whose files a dyno must never own.
const FIRST_ALLOWED: u32 = 100;
/// One below the value that means "no user" to the kernel.
const LAST_ALLOWED: u32 = u32::MAX - 1;
/// The user that the kernel shows for those it can't map: no dyno may own their files.
const NOBODY: u32 = 65534;

/// The uids that dynos may have, the first and the last among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UidRange {
    min: u32,
    max: u32,
}

/// Why a range of uids is not one that dynos can have.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UidError {
    /// The value is no uid.
    #[error(
        "{variable} is `{value}`: write a uid, a whole number from {FIRST_ALLOWED} to {LAST_ALLOWED}"
    )]
    Malformed {
        /// Which of the two.
        variable: &'static str,
        /// What it holds.
        value: String,
    },
    /// A uid of the system.
    #[error(
        "{variable} is {value}: uids below {FIRST_ALLOWED} are the system's own, write one from {FIRST_ALLOWED} on"
    )]
    System {
        /// Which of the two.
        variable: &'static str,
        /// What it holds.
        value: u32,
    },
    /// The first is above the last.
    #[error(
        "{UID_MIN_VARIABLE} ({min}) is above {UID_MAX_VARIABLE} ({max}): set both, the lower one first"
    )]
    Empty {
        /// The first, given or by default.
        min: u32,
        /// The last, given or by default.
        max: u32,
    },
    /// The user `nobody` is among them.
    #[error(
        "{UID_MIN_VARIABLE} to {UID_MAX_VARIABLE} ({min} to {max}) holds {NOBODY}, which is nobody: end the range at 65533, or begin it at 65536"
    )]
    Nobody {
        /// The first.
        min: u32,
        /// The last.
        max: u32,
    },
}

impl UidRange {
    /// Reads the two variables; one that is not set, or empty, has its default.
    pub fn parse(min: Option<&str>, max: Option<&str>) -> Result<Self, UidError> {
        let min = uid(UID_MIN_VARIABLE, min, DEFAULT_MIN)?;
        let max = uid(UID_MAX_VARIABLE, max, DEFAULT_MAX)?;
        if min > max {
            return Err(UidError::Empty { min, max });
        }
        if (min..=max).contains(&NOBODY) {
            return Err(UidError::Nobody { min, max });
        }
        Ok(Self { min, max })
    }

    /// The lowest uid.
    pub fn min(self) -> u32 {
        self.min
    }

    /// The highest uid.
    pub fn max(self) -> u32 {
        self.max
    }

    /// How many there are; at least one.
    pub fn count(self) -> u32 {
        self.max - self.min + 1
    }

    /// Every uid once, those after `last` first.
    pub(super) fn after(self, last: Option<u32>) -> impl Iterator<Item = u32> {
        let first = last
            .filter(|last| (self.min..self.max).contains(last))
            .map_or(self.min, |last| last + 1);
        let rest: RangeInclusive<u32> = first..=self.max;
        rest.chain(self.min..first)
    }
}

impl Default for UidRange {
    fn default() -> Self {
        Self {
            min: DEFAULT_MIN,
            max: DEFAULT_MAX,
        }
    }
}

fn uid(variable: &'static str, value: Option<&str>, default: u32) -> Result<u32, UidError> {
    let Some(value) = value.map(str::trim).filter(|value| !value.is_empty()) else {
        return Ok(default);
    };
    let number = value
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| value.parse().ok())
        .flatten()
        .filter(|number| *number <= LAST_ALLOWED);
    let Some(number) = number else {
        let value = value.to_owned();
        return Err(UidError::Malformed { variable, value });
    };
    if number < FIRST_ALLOWED {
        return Err(UidError::System {
            variable,
            value: number,
        });
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    #[test]
    fn without_variables_it_is_3000_to_11000() {
        let range = UidRange::parse(None, Some(" ")).unwrap();
        assert_eq!(range, UidRange::default());
        assert_eq!(
            (range.min(), range.max(), range.count()),
            (3000, 11000, 8001)
        );
    }

    #[test_case("-1", "5000", "LIBCONTAINER_DYNO_UID_MIN is `-1`"; "negative")]
    #[test_case("+200", "5000", "LIBCONTAINER_DYNO_UID_MIN is `+200`"; "with a sign")]
    #[test_case("3000", "4294967296", "LIBCONTAINER_DYNO_UID_MAX is `4294967296`"; "beyond 32 bits")]
    #[test_case("3000", "4294967295", "LIBCONTAINER_DYNO_UID_MAX is `4294967295`"; "no user at all")]
    #[test_case("0", "5000", "LIBCONTAINER_DYNO_UID_MIN is 0: uids below 100"; "root")]
    #[test_case("99", "5000", "LIBCONTAINER_DYNO_UID_MIN is 99: uids below 100"; "of the system")]
    #[test_case("5000", "4999", "LIBCONTAINER_DYNO_UID_MIN (5000) is above"; "the wrong way round")]
    #[test_case("20000", "", "(20000) is above LIBCONTAINER_DYNO_UID_MAX (11000): set both"; "above the default")]
    #[test_case("60000", "70000", "holds 65534, which is nobody"; "nobody")]
    fn a_bad_range_is_refused_with_what_to_write(min: &str, max: &str, says: &str) {
        let error = UidRange::parse(Some(min), Some(max))
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{error}");
    }

    proptest! {
        #[test]
        fn every_uid_comes_once_and_the_next_one_first(min in 100u32..5000, more in 0u32..300, last in proptest::option::of(0u32..6000)) {
            let range = UidRange { min, max: min + more };
            let all: Vec<u32> = range.after(last).collect();
            let mut sorted = all.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (range.min..=range.max).collect::<Vec<_>>());
            if let Some(last) = last.filter(|last| (range.min..range.max).contains(last)) {
                prop_assert_eq!(all[0], last + 1);
            } else {
                prop_assert_eq!(all[0], range.min);
            }
        }
    }
}
