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
/// The last one has a next, who unpacks slugs, and is not the value that means "no user" to the
/// kernel.
const LAST_ALLOWED: u32 = u32::MAX - 2;
/// The user that the kernel shows for those it can't map: no dyno may own their files.
const NOBODY: u32 = 65534;

/// The uids that dynos may have, the first and the last among them. The one after the last is
/// taken too: it is the user who unpacks slugs, who must be nobody else.
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
        "{UID_MIN_VARIABLE} to {UID_MAX_VARIABLE} ({min} to {max}), with the one after it, who unpacks slugs, holds {NOBODY}, which is nobody: end the range at {}, or begin it at 65536",
        NOBODY - 2
    )]
    Nobody {
        /// The first.
        min: u32,
        /// The last.
        max: u32,
    },
    /// Somebody who may call the driver is among them.
    #[error(
        "uid {uid} may call this driver, and is one of those that dynos may be or, as the one after the last, who unpacks slugs ({min} to {max}): what it owned would be a dyno's; set {UID_MIN_VARIABLE} and {UID_MAX_VARIABLE} so that nobody's uid is among them"
    )]
    Caller {
        /// Whom the driver serves.
        uid: u32,
        /// The first.
        min: u32,
        /// The last, and one.
        max: u32,
    },
    /// Who unpacks slugs is somebody else.
    #[error(
        "uid {uid}, the one after {UID_MAX_VARIABLE}, is `{name}`'s, and is to unpack slugs as a user who owns nothing else: set {UID_MAX_VARIABLE} to another"
    )]
    Unpacker {
        /// The one after the last.
        uid: u32,
        /// Whose it is.
        name: String,
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
        if (min..=max + 1).contains(&NOBODY) {
            return Err(UidError::Nobody { min, max });
        }
        Ok(Self { min, max })
    }

    /// Who unpacks slugs: the one after the last.
    pub fn unpacker(self) -> u32 {
        self.max + 1
    }

    /// Refuses callers who would own what dynos own, and a user who unpacks slugs and is somebody.
    ///
    /// `named` are the users of this host, by uid.
    pub fn check(
        self,
        callers: impl IntoIterator<Item = u32>,
        named: &[(u32, String)],
    ) -> Result<(), UidError> {
        let mut callers = callers.into_iter();
        if let Some(uid) = callers.find(|uid| (self.min..=self.unpacker()).contains(uid)) {
            return Err(UidError::Caller {
                uid,
                min: self.min,
                max: self.unpacker(),
            });
        }
        match named.iter().find(|(uid, _)| *uid == self.unpacker()) {
            Some((uid, name)) => Err(UidError::Unpacker {
                uid: *uid,
                name: name.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Whether a dyno may be this user.
    pub(super) fn contains(self, uid: u32) -> bool {
        (self.min..=self.max).contains(&uid)
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

/// The users of a host, by the text of its `/etc/passwd` (passwd(5)).
pub fn named(passwd: &str) -> Vec<(u32, String)> {
    let user = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        Some((fields.nth(1)?.trim().parse().ok()?, name.to_owned()))
    };
    passwd.lines().filter_map(user).collect()
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
    #[test_case("3000", "4294967294", "LIBCONTAINER_DYNO_UID_MAX is `4294967294`"; "without a next one")]
    #[test_case("60000", "70000", "holds 65534, which is nobody"; "nobody")]
    #[test_case("60000", "65533", "end the range at 65532"; "nobody unpacks")]
    fn a_bad_range_is_refused_with_what_to_write(min: &str, max: &str, says: &str) {
        let error = UidRange::parse(Some(min), Some(max))
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{error}");
    }

    #[test_case(&[0, 1000, 11002] => None; "others")]
    #[test_case(&[1000, 3000] => Some(3000); "the first dyno")]
    #[test_case(&[11000] => Some(11000); "the last one")]
    #[test_case(&[11001] => Some(11001); "who unpacks slugs")]
    fn a_caller_is_no_dyno(callers: &[u32]) -> Option<u32> {
        match UidRange::default().check(callers.iter().copied(), &[]) {
            Ok(()) => None,
            Err(UidError::Caller { uid, .. }) => Some(uid),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn who_unpacks_slugs_is_nobody_of_the_host() {
        let named = named("root:x:0:0::/root:/bin/sh\n\nalice:x:1000:1000::/home/alice:\nbad:x\n");
        let range = UidRange::parse(Some("900"), Some("999")).unwrap();
        let error = range.check([0], &named).unwrap_err().to_string();
        assert!(
            error.contains("uid 1000") && error.contains("`alice`"),
            "{error}"
        );
        assert_eq!(UidRange::default().check([0], &named), Ok(()));
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
