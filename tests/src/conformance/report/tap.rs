//! The report in TAP, version 14 (<https://testanything.org/tap-version-14-specification.html>).

use std::fmt::Write as _;

use super::{CaseResult, DriverFacts, Render, Report, Verdict};

/// One `ok` or `not ok` line for each case.
#[derive(Debug, Default)]
pub struct Tap {
    number: usize,
}

impl Render for Tap {
    fn begin(&mut self, driver: &DriverFacts, cases: usize) -> String {
        let mut out = format!("TAP version 14\n1..{cases}\n# driver {}\n", driver.name);
        for warning in &driver.warnings {
            _ = writeln!(out, "# warning: {warning}");
        }
        out
    }

    fn case(&mut self, result: &CaseResult) -> String {
        self.number += 1;
        let (number, chapter, name) = (self.number, result.chapter, result.name);
        // `#` would begin a directive.
        let title = format!("{number} - {chapter}: {name}").replace('#', "\\#");
        match &result.verdict {
            Verdict::Passed => format!("ok {title}\n"),
            Verdict::Skipped(reason) => format!("ok {title} # SKIP {reason}\n"),
            Verdict::Hindered(reason) => format!("not ok {title} # SKIP hindered: {reason}\n"),
            Verdict::Failed(failure) => format!(
                "not ok {title}\n  ---\n  rule: {:?}\n  on: {:?}\n  expected: {:?}\n  observed: {:?}\n  ...\n",
                result.rule, failure.on, failure.expected, failure.observed
            ),
        }
    }

    fn end(&mut self, report: &Report) -> String {
        format!("# {}\n", report.summary())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::sample, *};

    #[test]
    fn verdicts_are_numbered() {
        let report = sample();
        let mut tap = Tap::default();
        let lines: Vec<_> = report.results.iter().map(|r| tap.case(r)).collect();
        assert_eq!(lines[0], "ok 1 - stop: an exited dyno\n");
        assert!(lines[1].starts_with("not ok 2 - stop: an unknown dyno\n  ---\n"));
        assert_eq!(lines[2], "ok 3 - stop: a third # SKIP needs --exec\n");
        let hindered = "not ok 4 - stop: a fourth # SKIP hindered: a FIFO: no space\n";
        assert_eq!(lines[3], hindered);
    }
}
