//! One case of the suite: what it is called, the rule it checks, and how it can end.

use std::{error::Error, fmt, io, pin::Pin};

use hsup_proto::driver::Capability;

use super::context::Context;

/// A case's future; boxed because the table of cases holds many kinds.
pub type Outcome<'a> = Pin<Box<dyn Future<Output = Result<(), NotPassed>> + 'a>>;

/// What a case cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The driver declares this capability.
    Has(Capability),
    /// The driver does not declare this capability.
    Lacks(Capability),
    /// A dyno's output can be read, through FIFOs or Logs.
    Output,
    /// The suite builds the artifact itself (no `--artifact`).
    Build,
    /// The suite builds a slug of its own (neither `--artifact` nor `--slug-url`).
    OwnSlug,
    /// The suite starts dynos without a launcher (no `--argv-prefix`).
    BareArgv,
    /// The suite starts the driver itself (`--exec`).
    Exec,
    /// Dynos outlive the driver: its durability is SURVIVES or EXACT.
    Outlives,
    /// It knows how dynos ended while it was down: its durability is EXACT.
    Exact,
    /// The suite acts as another user, too (`--as-peer`).
    Peer,
}

/// One case of the suite.
pub struct Case {
    /// The chapter, such as `stop`.
    pub chapter: &'static str,
    /// What a driver that passes does, such as `an unknown dyno is stopped already`.
    pub name: &'static str,
    /// The rule, with its section of `docs/driver-rules.md`.
    pub rule: &'static str,
    /// What must be there, or the case is skipped.
    pub needs: &'static [Need],
    /// It waits most of its time, and so is run beside the cases before it.
    pub beside: bool,
    /// Runs it.
    pub run: for<'a> fn(&'a Context) -> Outcome<'a>,
}

impl Case {
    /// `chapter: name`, which `--focus` and `--skip` are matched with.
    pub fn title(&self) -> String {
        format!("{}: {}", self.chapter, self.name)
    }

    /// Whether it is about what a driver that declares these capabilities offers, or does not.
    pub fn is_about(&self, offered: &[Capability]) -> bool {
        self.needs.iter().all(|need| match need {
            Need::Has(capability) => offered.contains(capability),
            Need::Lacks(capability) => !offered.contains(capability),
            _ => true,
        })
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("chapter", &self.chapter)
            .field("name", &self.name)
            .field("rule", &self.rule)
            .field("needs", &self.needs)
            .field("beside", &self.beside)
            .finish_non_exhaustive()
    }
}

/// Makes a [`Case`] of an async function.
macro_rules! case {
    ($chapter:expr, $name:literal, $rule:literal, $run:path) => {
        $crate::conformance::case::case!($chapter, $name, $rule, $run, &[])
    };
    ($chapter:expr, $name:literal, $rule:literal, $run:path, $needs:expr) => {
        $crate::conformance::case::Case {
            chapter: $chapter,
            name: $name,
            rule: $rule,
            needs: $needs,
            beside: false,
            run: |cx| Box::pin($run(cx)),
        }
    };
}
pub(crate) use case;

/// What the driver did, against what the rule asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The call, such as `Stop of c1f2-3`, or what was looked at.
    pub on: String,
    /// What the rule asks for.
    pub expected: String,
    /// What came.
    pub observed: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: expected {}, observed {}",
            self.on, self.expected, self.observed
        )
    }
}

/// Why a case did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotPassed {
    /// The driver broke the rule.
    Failed(Failure),
    /// The case does not fit this driver or this run; says why.
    Skipped(String),
    /// The suite's own surroundings failed it, which is no fault of the driver's; says how.
    Hindered(String),
}

impl NotPassed {
    /// `what` is something of the suite's own that failed.
    pub(crate) fn hindered(what: &str, error: &io::Error) -> Self {
        Self::Hindered(format!("{what}: {error}"))
    }

    /// `error` came between the suite and a driver: the driver's, unless this process has no
    /// descriptors left.
    pub(crate) fn unreached(on: &str, expected: &str, error: &(dyn Error + 'static)) -> Self {
        let observed = chain(error);
        if out_of_descriptors(error) {
            return Self::Hindered(format!("{on}: {observed}"));
        }
        Self::Failed(Failure {
            on: on.to_owned(),
            expected: expected.to_owned(),
            observed,
        })
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn out_of_descriptors(error: &(dyn Error + 'static)) -> bool {
    let code = error.downcast_ref().and_then(io::Error::raw_os_error);
    matches!(code, Some(libc::EMFILE | libc::ENFILE))
        || error.source().is_some_and(out_of_descriptors)
}

impl From<Failure> for NotPassed {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Fails unless `holds`.
pub(crate) fn check(
    holds: bool,
    on: impl fmt::Display,
    expected: impl fmt::Display,
    observed: impl fmt::Display,
) -> Result<(), Failure> {
    if holds {
        return Ok(());
    }
    Err(Failure {
        on: on.to_string(),
        expected: expected.to_string(),
        observed: observed.to_string(),
    })
}

/// Fails unless the two are equal.
pub(crate) fn check_eq<T: PartialEq + fmt::Debug>(
    on: impl fmt::Display,
    observed: &T,
    expected: &T,
) -> Result<(), Failure> {
    check(
        observed == expected,
        on,
        format_args!("{expected:?}"),
        format_args!("{observed:?}"),
    )
}
