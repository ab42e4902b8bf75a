//! The words of the verdict: what a driver says of itself, and what its cases say of that.

use std::collections::BTreeSet;

use hsup_proto::driver::Capability;

use super::{
    super::{
        case::Need,
        chapters::{self, DURABILITY, PRIVILEGE},
    },
    CaseResult, DriverFacts, Report, Verdict, short_name,
};

/// The words of a report, such as `core` or `durability EXACT (not kept)`.
pub(super) fn of(report: &Report) -> Vec<String> {
    let mut words = words(&report.driver);
    let at_boundary = |result: &&CaseResult| result.chapter == PRIVILEGE;
    let mut boundary = report.results.iter().filter(at_boundary);
    // It is the run's to ask about, not the driver's to claim.
    if boundary.any(|result| !matches!(result.verdict, Verdict::Skipped(_))) {
        words.push((PRIVILEGE.to_owned(), Chapters::Of(PRIVILEGE.to_owned())));
    }
    words
        .into_iter()
        .map(|(word, chapters)| format!("{word}{}", proof(report, &chapters)))
        .collect()
}

/// The chapters that prove one word of the verdict.
enum Chapters {
    /// What every driver must keep: the chapters of no other word.
    Core,
    Of(String),
}

impl Chapters {
    fn contain(&self, chapter: &str) -> bool {
        match self {
            Self::Of(own) => own == chapter,
            Self::Core => {
                let capability = |number| Capability::try_from(number).ok();
                let mut optional = (1..).map_while(capability).map(short_name);
                !matches!(chapter, DURABILITY | PRIVILEGE)
                    && !optional.any(|name| chapter_of(&name) == chapter)
            }
        }
    }
}

/// What the driver says of itself, and where that is tested.
fn words(driver: &DriverFacts) -> Vec<(String, Chapters)> {
    let durability = format!("durability {}", driver.durability);
    let mut words = vec![
        ("core".to_owned(), Chapters::Core),
        (durability, Chapters::Of(DURABILITY.to_owned())),
    ];
    let optional = driver.capabilities.iter();
    words.extend(optional.map(|name| (name.clone(), Chapters::Of(chapter_of(name)))));
    words
}

/// The chapter that tests a capability of this short name.
fn chapter_of(capability: &str) -> String {
    match capability {
        "stdio_fifo" => "stdio".to_owned(),
        other => other.replace('_', " "),
    }
}

/// What the cases of `chapters` say of their word.
fn proof(report: &Report, chapters: &Chapters) -> &'static str {
    let of = |wanted: fn(&Verdict) -> bool| {
        let results = report
            .results
            .iter()
            .filter(move |result| chapters.contain(result.chapter) && wanted(&result.verdict));
        results
            .map(|result| (result.chapter, result.name))
            .collect::<BTreeSet<_>>()
    };
    if !of(|verdict| matches!(verdict, Verdict::Failed(_))).is_empty() {
        return " (not kept)";
    }
    let passed = of(|verdict| *verdict == Verdict::Passed);
    if passed.is_empty() {
        return " (not tested)";
    }
    let missed = chapters::all().into_iter().any(|case| {
        chapters.contain(case.chapter)
            && is_meant(&report.driver, case.needs)
            && !passed.contains(&(case.chapter, case.name))
    });
    if missed { " (in part)" } else { "" }
}

/// Whether a case with these needs is about this driver.
fn is_meant(driver: &DriverFacts, needs: &[Need]) -> bool {
    let declares = |capability| driver.capabilities.contains(&short_name(capability));
    needs.iter().all(|need| match *need {
        Need::Has(capability) => declares(capability),
        Need::Lacks(capability) => !declares(capability),
        Need::Outlives => matches!(driver.durability.as_str(), "SURVIVES" | "EXACT"),
        Need::Exact => driver.durability == "EXACT",
        Need::Output | Need::Build | Need::OwnSlug | Need::BareArgv | Need::Exec | Need::Peer => {
            true
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{
            super::case::{Case, Failure},
            tests::sample,
        },
        *,
    };

    /// A report of a driver with `CAPABILITY_SIGNAL` in which every case got `verdict(case)`, but
    /// for those that need another user.
    fn report(verdict: impl Fn(&Case) -> Verdict) -> Report {
        let mut report = sample();
        let cases = chapters::all().into_iter();
        let result = |case: &'static Case| CaseResult {
            chapter: case.chapter,
            name: case.name,
            rule: case.rule,
            round: 1,
            verdict: match case.chapter {
                PRIVILEGE => Verdict::Skipped("needs --as-peer".to_owned()),
                _ => verdict(case),
            },
            took: Duration::ZERO,
        };
        report.results = cases.map(result).collect();
        report
    }

    fn words_of(report: &Report) -> String {
        let summary = report.summary();
        summary.split(" — ").next().unwrap().to_owned()
    }

    #[test]
    fn a_word_stands_alone_when_all_its_cases_passed() {
        let skipped = || Verdict::Skipped("not declared".to_owned());
        let all = report(|case| match case.needs {
            [
                Need::Has(Capability::Logs) | Need::Lacks(Capability::Signal),
                ..,
            ] => skipped(),
            _ => Verdict::Passed,
        });
        assert_eq!(words_of(&all), "core · durability NONE · signal");
        let no_core = report(|case| match case.chapter {
            "stop" => skipped(),
            _ => Verdict::Passed,
        });
        assert_eq!(
            words_of(&no_core),
            "core (in part) · durability NONE · signal"
        );
    }

    #[test]
    fn a_word_whose_case_failed_is_not_kept() {
        let lied = report(|case| match case.chapter {
            DURABILITY => Verdict::Failed(Failure {
                on: "Wait".to_owned(),
                expected: "42".to_owned(),
                observed: "lost".to_owned(),
            }),
            _ => Verdict::Passed,
        });
        assert_eq!(
            words_of(&lied),
            "core · durability NONE (not kept) · signal"
        );
    }

    #[test]
    fn a_run_with_another_user_has_a_word_for_that() {
        let mut report = report(|_| Verdict::Passed);
        assert!(!words_of(&report).contains(PRIVILEGE));
        for result in &mut report.results {
            if result.chapter == PRIVILEGE {
                result.verdict = Verdict::Passed;
            }
        }
        assert!(words_of(&report).ends_with(" · privilege boundary"));
    }

    #[test]
    fn every_optional_chapter_is_one_of_the_suite() {
        let chapters: BTreeSet<_> = chapters::all().iter().map(|case| case.chapter).collect();
        let capabilities = (1..).map_while(|number| Capability::try_from(number).ok());
        for capability in capabilities {
            let chapter = chapter_of(&short_name(capability));
            assert!(
                chapters.contains(chapter.as_str()),
                "no chapter `{chapter}`"
            );
        }
    }
}
