//! The report for people.

use std::fmt::Write as _;

use super::{CaseResult, DriverFacts, Render, Report, Verdict};

/// Chapters, one line for each case, and what a failure needs to be understood.
#[derive(Debug)]
pub struct Text {
    /// Whether to colour the verdicts.
    pub colour: bool,
    chapter: &'static str,
}

impl Text {
    /// Coloured or not.
    pub const fn new(colour: bool) -> Self {
        Self {
            colour,
            chapter: "",
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

impl Render for Text {
    fn begin(&mut self, driver: &DriverFacts, _cases: usize) -> String {
        let mut out = format!("driver {} {}\n", driver.name, driver.version);
        for warning in &driver.warnings {
            let word = self.paint("33", "warning");
            _ = writeln!(out, "{word}: {warning}");
        }
        out
    }

    fn case(&mut self, result: &CaseResult) -> String {
        let mut out = String::new();
        if self.chapter != result.chapter {
            self.chapter = result.chapter;
            _ = writeln!(out, "\n{}", self.paint("1", result.chapter));
        }
        let name = result.name;
        match &result.verdict {
            Verdict::Passed => _ = writeln!(out, "  {}   {name}", self.paint("32", "ok")),
            Verdict::Skipped(reason) => {
                let word = self.paint("33", "skip");
                _ = writeln!(out, "  {word} {name} ({reason})");
            }
            Verdict::Hindered(reason) => {
                let word = self.paint("31", "????");
                _ = writeln!(out, "  {word} {name} (hindered: {reason})");
            }
            Verdict::Failed(failure) => {
                let word = self.paint("31", "FAIL");
                _ = writeln!(out, "  {word} {name}");
                _ = writeln!(out, "       rule     {}", result.rule);
                _ = writeln!(out, "       on       {}", failure.on);
                _ = writeln!(out, "       expected {}", failure.expected);
                _ = writeln!(out, "       observed {}", failure.observed);
            }
        }
        out
    }

    fn end(&mut self, report: &Report) -> String {
        let mut out = String::from("\n");
        // Where it is told what they did may be a long way up.
        let mut failed: Vec<_> = report
            .failures()
            .map(|(result, _)| format!("{}: {}", result.chapter, result.name))
            .collect();
        failed.sort_unstable();
        failed.dedup();
        for title in &failed {
            _ = writeln!(out, "{} {title}", self.paint("31", "failed"));
        }
        let colour = if report.passed() { "32" } else { "31" };
        _ = writeln!(out, "{}", self.paint(colour, &report.summary()));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::sample, *};

    #[test]
    fn a_failure_says_rule_expectation_and_observation() {
        let report = sample();
        let mut text = Text::new(false);
        let mut out = text.begin(&report.driver, 4);
        for result in &report.results {
            out += &text.case(result);
        }
        out += &text.end(&report);
        let expected = "\
driver simple 0.2.0
warning: capability 99 is not known to this suite

stop
  ok   an exited dyno
  FAIL an unknown dyno
       rule     §8 Stop: unknown or exited → OK
       on       Stop of x
       expected OK
       observed NOT_FOUND \"<no such & dyno>\"
  skip a third (needs --exec)
  ???? a fourth (hindered: a FIFO: no space)

failed stop: an unknown dyno
core (not kept) · durability NONE (not tested) · signal (not tested) — 1 passed, 1 failed, 1 skipped, 1 hindered
";
        assert_eq!(out, expected);
    }
}
