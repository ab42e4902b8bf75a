//! The report as `JUnit` XML, which CI systems show.

use std::fmt::Write as _;

use super::{CaseResult, DriverFacts, Render, Report, Verdict};

/// Nothing until the end, then the whole report.
#[derive(Debug)]
pub struct Junit;

impl Render for Junit {
    fn begin(&mut self, _driver: &DriverFacts, _cases: usize) -> String {
        String::new()
    }

    fn case(&mut self, _result: &CaseResult) -> String {
        String::new()
    }

    fn end(&mut self, report: &Report) -> String {
        let counts = report.counts();
        let mut out = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <testsuite name=\"hsup-driver-check\" tests=\"{}\" failures=\"{}\" errors=\"{}\" \
             skipped=\"{}\">\n",
            report.results.len(),
            counts.failed,
            counts.hindered,
            counts.skipped
        );
        for result in &report.results {
            out += &testcase(result);
        }
        out += "</testsuite>\n";
        out
    }
}

fn testcase(result: &CaseResult) -> String {
    let mut out = format!(
        "  <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
        escape(result.chapter),
        escape(result.name),
        result.took.as_secs_f64()
    );
    match &result.verdict {
        Verdict::Passed => out += "/>\n",
        Verdict::Skipped(reason) => {
            let reason = escape(reason);
            _ = writeln!(out, "><skipped message=\"{reason}\"/></testcase>");
        }
        Verdict::Hindered(reason) => {
            let reason = escape(reason);
            _ = writeln!(out, "><error message=\"{reason}\"/></testcase>");
        }
        Verdict::Failed(failure) => {
            let message = escape(&failure.to_string());
            let rule = escape(result.rule);
            _ = writeln!(
                out,
                "><failure message=\"{message}\">{rule}</failure></testcase>"
            );
        }
    }
    out
}

/// Makes `text` fit for XML: its five special characters, and the control characters it forbids.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&apos;",
            '\n' | '\t' => out.push(' '),
            other if other.is_control() => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{super::tests::sample, *};

    #[test]
    fn special_characters_are_escaped() {
        let text = Junit.end(&sample());
        assert!(
            text.contains("NOT_FOUND &quot;&lt;no such &amp; dyno&gt;&quot;"),
            "{text}"
        );
        assert!(
            text.contains("tests=\"4\" failures=\"1\" errors=\"1\" skipped=\"1\""),
            "{text}"
        );
    }
}
