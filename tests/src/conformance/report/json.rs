//! The report as one JSON object.

use serde_json::json;

use super::{CaseResult, DriverFacts, Render, Report, Verdict};

/// Nothing until the end, then the whole report.
#[derive(Debug)]
pub struct Json;

impl Render for Json {
    fn begin(&mut self, _driver: &DriverFacts, _cases: usize) -> String {
        String::new()
    }

    fn case(&mut self, _result: &CaseResult) -> String {
        String::new()
    }

    fn end(&mut self, report: &Report) -> String {
        let case = |result: &CaseResult| {
            let mut value = json!({
                "chapter": result.chapter,
                "name": result.name,
                "rule": result.rule,
                "round": result.round,
                "seconds": result.took.as_secs_f64(),
            });
            match &result.verdict {
                Verdict::Passed => value["verdict"] = json!("passed"),
                Verdict::Skipped(reason) => {
                    value["verdict"] = json!("skipped");
                    value["reason"] = json!(reason);
                }
                Verdict::Hindered(reason) => {
                    value["verdict"] = json!("hindered");
                    value["reason"] = json!(reason);
                }
                Verdict::Failed(failure) => {
                    value["verdict"] = json!("failed");
                    value["on"] = json!(failure.on);
                    value["expected"] = json!(failure.expected);
                    value["observed"] = json!(failure.observed);
                }
            }
            value
        };
        let counts = report.counts();
        let driver = &report.driver;
        let whole = json!({
            "driver": {
                "name": driver.name,
                "version": driver.version,
                "durability": driver.durability,
                "capabilities": driver.capabilities,
                "warnings": driver.warnings,
            },
            "summary": report.summary(),
            "passed": counts.passed,
            "failed": counts.failed,
            "skipped": counts.skipped,
            "hindered": counts.hindered,
            "cases": report.results.iter().map(case).collect::<Vec<_>>(),
        });
        format!("{whole:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::sample, *};

    #[test]
    fn every_case_is_there_with_its_verdict() {
        let text = Json.end(&sample());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["failed"], 1);
        assert_eq!(
            value["cases"][1]["observed"],
            "NOT_FOUND \"<no such & dyno>\""
        );
        assert_eq!(value["cases"][2]["reason"], "needs --exec");
        assert_eq!(value["cases"][3]["verdict"], "hindered");
    }
}
