//! How many dynos of each process type are wanted, as a person changes it.

use std::fmt;

use thiserror::Error;

use crate::name::{ParseProcessTypeError, ProcessType};

/// The most dynos that one process type may have.
///
/// A limit of ours: it is far above what one machine runs, and it turns a slip of
/// the finger into a message instead of a machine that swaps.
pub const MAX_QUANTITY: u32 = 10_000;

/// The largest number that the first dyno of a process type may have: those after it have
/// numbers, too.
pub const MAX_START_NUMBER: u32 = u32::MAX - MAX_QUANTITY;

/// A change of how many dynos a process type has, as `hsupctl scale` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormationChange {
    /// Whose quantity changes.
    pub process_type: ProcessType,
    /// How it changes.
    pub quantity: QuantityChange,
}

/// How a quantity changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantityChange {
    /// To this many, at most [`MAX_QUANTITY`].
    To(u32),
    /// By this many, more or fewer; at most [`MAX_QUANTITY`] either way.
    By(i32),
}

/// The text is no change of a formation.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FormationChangeError {
    /// There is no process type in it.
    #[error("`{}` is not a change of the formation: expected `web=3`, `web+1` or `web-1`", .text.escape_debug())]
    Shape {
        /// The whole text.
        text: String,
        /// What is wrong with the process type.
        source: ParseProcessTypeError,
    },
    /// There is a process type and nothing else. It could mean one dyno, and take down the
    /// others: whoever types it is asked.
    #[error("`{0}` says no quantity: `{0}=1` makes it one dyno, `{0}+1` one more")]
    Bare(ProcessType),
    /// What follows the process type is not a number.
    #[error("`{}` in `{}` is not a quantity: expected a number from 0 to {MAX_QUANTITY}", .quantity.escape_debug(), .text.escape_debug())]
    Quantity {
        /// The whole text.
        text: String,
        /// The part that is not a quantity.
        quantity: String,
    },
    /// The quantity is above the limit.
    #[error("{quantity} dynos of `{process_type}` are too many: the limit is {MAX_QUANTITY}")]
    TooMany {
        /// Whose quantity it is.
        process_type: ProcessType,
        /// The quantity that was asked for.
        quantity: String,
    },
}

impl FormationChange {
    /// Reads `web=3`, `worker+1` or `worker-1`.
    ///
    /// `=` and `+` are never part of a process type, but `-` and digits may be. So
    /// `TYPE-N` takes N away from TYPE, unless the whole text is one of the `known` types.
    ///
    /// # Errors
    /// When the text has another shape, or the quantity is above [`MAX_QUANTITY`].
    pub fn parse(text: &str, known: &[ProcessType]) -> Result<Self, FormationChangeError> {
        let is_known = |name: &str| known.iter().any(|process_type| *process_type == name);
        let shape = |source| FormationChangeError::Shape {
            text: text.chars().take(160).collect(),
            source,
        };
        let change = |name: &str, digits: &str, how: fn(i32) -> QuantityChange| {
            let process_type: ProcessType = name.parse().map_err(shape)?;
            let quantity = Self::parse_quantity(text, &process_type, digits)?;
            Ok(Self {
                process_type,
                quantity: how(quantity),
            })
        };
        if let Some((name, digits)) = text.split_once('=') {
            return change(name, digits, |n| QuantityChange::To(n.unsigned_abs()));
        }
        if let Some((name, digits)) = text.split_once('+') {
            return change(name, digits, QuantityChange::By);
        }
        if let Some((name, digits)) = text.rsplit_once('-')
            && !digits.is_empty()
            && !name.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && !is_known(text)
        {
            return change(name, digits, |n| QuantityChange::By(-n));
        }
        Err(FormationChangeError::Bare(text.parse().map_err(shape)?))
    }

    fn parse_quantity(
        text: &str,
        process_type: &ProcessType,
        digits: &str,
    ) -> Result<i32, FormationChangeError> {
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(FormationChangeError::Quantity {
                text: text.chars().take(160).collect(),
                quantity: digits.chars().take(32).collect(),
            });
        }
        match digits.parse::<i32>() {
            Ok(quantity) if quantity.unsigned_abs() <= MAX_QUANTITY => Ok(quantity),
            _ => Err(FormationChangeError::TooMany {
                process_type: process_type.clone(),
                quantity: digits.chars().take(32).collect(),
            }),
        }
    }
}

impl fmt::Display for FormationChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.quantity {
            QuantityChange::To(quantity) => write!(f, "{}={quantity}", self.process_type),
            QuantityChange::By(by) => write!(f, "{}{by:+}", self.process_type),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    #[test_case("web=3", "web", QuantityChange::To(3))]
    #[test_case("web=0", "web", QuantityChange::To(0))]
    #[test_case("web=10000", "web", QuantityChange::To(10_000); "the limit itself")]
    #[test_case("worker+1", "worker", QuantityChange::By(1))]
    #[test_case("worker-1", "worker", QuantityChange::By(-1); "takes away")]
    #[test_case("worker-2-1", "worker-2", QuantityChange::By(-1); "takes away from a type with a number")]
    #[test_case("cron-1", "cron", QuantityChange::By(-1); "whether a type is known is for hsup to say")]
    #[test_case("web--1", "web-", QuantityChange::By(-1); "a type may end so")]
    fn a_change_of_the_formation(text: &str, process_type: &str, quantity: QuantityChange) {
        let known = ["web", "worker", "worker-2"].map(|text| text.parse().unwrap());
        let change = FormationChange::parse(text, &known).unwrap();
        assert_eq!(change.process_type, process_type);
        assert_eq!(change.quantity, quantity);
    }

    #[test_case("web=10001", "10001 dynos of `web` are too many: the limit is 10000")]
    #[test_case(
        "web+99999999999999999999",
        "99999999999999999999 dynos of `web` are too many: the limit is 10000"
    )]
    #[test_case(
        "web=-1",
        "`-1` in `web=-1` is not a quantity: expected a number from 0 to 10000"
    )]
    #[test_case(
        "web=",
        "`` in `web=` is not a quantity: expected a number from 0 to 10000"
    )]
    #[test_case(
        "web=2:Standard-2X",
        "`2:Standard-2X` in `web=2:Standard-2X` is not a quantity: expected a number from 0 to 10000"
    )]
    #[test_case(
        "=3",
        "`=3` is not a change of the formation: expected `web=3`, `web+1` or `web-1`"
    )]
    #[test_case(
        "a/b=3",
        "`a/b=3` is not a change of the formation: expected `web=3`, `web+1` or `web-1`"
    )]
    #[test_case(
        "web",
        "`web` says no quantity: `web=1` makes it one dyno, `web+1` one more"
    )]
    #[test_case("web-", "`web-` says no quantity: `web-=1` makes it one dyno, `web-+1` one more"; "a name that ends so")]
    #[test_case("-1", "`-1` says no quantity: `-1=1` makes it one dyno, `-1+1` one more"; "a name, though an odd one")]
    #[test_case("", "`` is not a change of the formation: expected `web=3`, `web+1` or `web-1`"; "nothing")]
    fn a_bad_change_of_the_formation(text: &str, message: &str) {
        let error = FormationChange::parse(text, &[]).unwrap_err();
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn a_known_type_that_looks_like_a_subtraction_is_a_type() {
        let known = ["worker".parse().unwrap(), "worker-2".parse().unwrap()];
        let error = FormationChange::parse("worker-2", &known).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`worker-2` says no quantity: `worker-2=1` makes it one dyno, `worker-2+1` one more"
        );
    }

    proptest! {
        #[test]
        fn a_change_never_panics_and_round_trips(text in "(web|[-a-z0-9]{1,5})[-+=]{0,2}[0-9]{0,5}|.{0,20}") {
            let known = ["web".parse().unwrap()];
            if let Ok(change) = FormationChange::parse(&text, &known) {
                prop_assert_eq!(FormationChange::parse(&change.to_string(), &known), Ok(change));
            }
        }
    }
}
