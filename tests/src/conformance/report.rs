//! What a run found, and the forms it is shown in.

mod json;
mod junit;
mod tap;
mod text;
mod words;

use std::{fmt::Write as _, time::Duration};

use hsup_proto::driver::{Capability, Durability, GetInfoResponse};

use super::{
    case::{Case, Failure},
    cases,
};

pub use self::{json::Json, junit::Junit, tap::Tap, text::Text};

/// How one case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The driver keeps the rule.
    Passed,
    /// It does not.
    Failed(Failure),
    /// Not run; says why. Never counted as passed.
    Skipped(String),
    /// Not run, or not to its end, through no fault of the driver's; says how. Whoever counts
    /// on this run must run it again.
    Hindered(String),
}

/// One case that was run or skipped.
#[derive(Clone, Debug)]
pub struct CaseResult {
    /// Its chapter.
    pub chapter: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The rule it checks.
    pub rule: &'static str,
    /// Which repetition this was, from 1.
    pub round: u32,
    /// How it ended.
    pub verdict: Verdict,
    /// How long it took, clean-up included.
    pub took: Duration,
}

/// What the driver says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriverFacts {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// `NONE`, `SURVIVES` or `EXACT`.
    pub durability: String,
    /// The capabilities this suite knows, such as `stdio_fifo`.
    pub capabilities: Vec<String>,
    /// What is odd, but breaks no rule.
    pub warnings: Vec<String>,
}

impl DriverFacts {
    /// Reads them from a driver's answer.
    pub fn of(info: &GetInfoResponse) -> Self {
        let durability = info.durability().as_str_name();
        let mut facts = Self {
            name: info.name.clone(),
            version: info.version.clone(),
            durability: durability.trim_start_matches("DURABILITY_").to_owned(),
            ..Self::default()
        };
        if Durability::try_from(info.durability).is_err() {
            let number = info.durability;
            let warning = format!("durability {number} is not known to this suite");
            facts.warnings.push(warning);
        }
        for number in &info.capabilities {
            match Capability::try_from(*number) {
                Ok(Capability::Unspecified) | Err(_) => {
                    let warning = format!("capability {number} is not known to this suite");
                    facts.warnings.push(warning);
                }
                Ok(capability) => facts.capabilities.push(short_name(capability)),
            }
        }
        facts
    }
}

/// A capability's name as the verdict has it, such as `stdio_fifo`.
fn short_name(capability: Capability) -> String {
    let name = capability.as_str_name();
    name.trim_start_matches("CAPABILITY_").to_lowercase()
}

/// What a run found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Who was tested.
    pub driver: DriverFacts,
    /// Every case, in the order it was run.
    pub results: Vec<CaseResult>,
}

/// How many cases ended in which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Kept rules.
    pub passed: usize,
    /// Broken rules.
    pub failed: usize,
    /// Cases not run.
    pub skipped: usize,
    /// Cases that the suite's own surroundings kept from running.
    pub hindered: usize,
}

impl Report {
    /// The cases that failed.
    pub fn failures(&self) -> impl Iterator<Item = (&CaseResult, &Failure)> {
        self.results.iter().filter_map(|result| {
            if let Verdict::Failed(failure) = &result.verdict {
                Some((result, failure))
            } else {
                None
            }
        })
    }

    /// Panics unless no case failed, and all passed that are meant; for a driver's own test.
    pub fn assert_passed(&self, is_meant: impl Fn(&Case) -> bool) {
        let failures: Vec<_> = self
            .failures()
            .map(|(result, failure)| {
                let (chapter, name, rule) = (result.chapter, result.name, result.rule);
                format!("{chapter}: {name}\n  {rule}\n  {failure}\n")
            })
            .collect();
        assert!(failures.is_empty(), "{}", failures.concat());
        let all = cases();
        let case_of = |result: &CaseResult| {
            all.iter()
                .find(|case| (case.chapter, case.name) == (result.chapter, result.name))
                .expect("a result is one of a case")
        };
        let not_run: Vec<_> = self
            .results
            .iter()
            .filter(|result| is_meant(case_of(result)) && result.verdict != Verdict::Passed)
            .collect();
        assert!(not_run.is_empty(), "{not_run:?}");
    }

    /// Whether no case failed.
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The sums.
    pub fn counts(&self) -> Counts {
        let count = |wanted: fn(&Verdict) -> bool| {
            let results = self.results.iter();
            results.filter(|result| wanted(&result.verdict)).count()
        };
        Counts {
            passed: count(|verdict| matches!(verdict, Verdict::Passed)),
            failed: count(|verdict| matches!(verdict, Verdict::Failed(_))),
            skipped: count(|verdict| matches!(verdict, Verdict::Skipped(_))),
            hindered: count(|verdict| matches!(verdict, Verdict::Hindered(_))),
        }
    }

    /// One line such as
    /// `core · durability EXACT (not kept) · signal — 71 passed, 2 failed, 2 skipped`.
    ///
    /// A word stands for what the driver says of itself; what its cases say of that stands
    /// behind it, unless all of them passed.
    pub fn summary(&self) -> String {
        let Counts {
            passed,
            failed,
            skipped,
            hindered,
        } = self.counts();
        let words = words::of(self).join(" · ");
        let mut line = format!("{words} — {passed} passed, {failed} failed, {skipped} skipped");
        if hindered > 0 {
            _ = write!(line, ", {hindered} hindered");
        }
        line
    }
}

/// A form of the report. What it returns is printed at once, so that a person sees progress.
pub trait Render {
    /// At the start.
    fn begin(&mut self, driver: &DriverFacts, cases: usize) -> String;
    /// After each case.
    fn case(&mut self, result: &CaseResult) -> String;
    /// At the end.
    fn end(&mut self, report: &Report) -> String;
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Report {
        let result = |name, verdict| CaseResult {
            chapter: "stop",
            name,
            rule: "§8 Stop: unknown or exited → OK",
            round: 1,
            verdict,
            took: Duration::from_millis(12),
        };
        Report {
            driver: DriverFacts {
                name: "simple".to_owned(),
                version: "0.2.0".to_owned(),
                durability: "NONE".to_owned(),
                capabilities: vec!["signal".to_owned()],
                warnings: vec!["capability 99 is not known to this suite".to_owned()],
            },
            results: vec![
                result("an exited dyno", Verdict::Passed),
                result(
                    "an unknown dyno",
                    Verdict::Failed(Failure {
                        on: "Stop of x".to_owned(),
                        expected: "OK".to_owned(),
                        observed: "NOT_FOUND \"<no such & dyno>\"".to_owned(),
                    }),
                ),
                result("a third", Verdict::Skipped("needs --exec".to_owned())),
                result("a fourth", Verdict::Hindered("a FIFO: no space".to_owned())),
            ],
        }
    }

    #[test]
    fn the_summary_counts() {
        let expected = "core (not kept) · durability NONE (not tested) · signal (not tested) \
                        — 1 passed, 1 failed, 1 skipped, 1 hindered";
        assert_eq!(sample().summary(), expected);
    }

    #[test]
    fn unknown_numbers_are_warnings() {
        let facts = DriverFacts::of(&GetInfoResponse {
            capabilities: vec![1, 99],
            durability: 77,
            ..GetInfoResponse::default()
        });
        assert_eq!(facts.capabilities, ["stdio_fifo"]);
        assert_eq!(facts.warnings.len(), 2, "{:?}", facts.warnings);
    }
}
