//! `cargo xtask bench`: what hsup costs, against a baseline in the same run.
//!
//! Everything is measured from outside, on the release binaries, as a person meets them.
//! Baseline and hsup take turns, so that both meet the same machine. It prints a table for
//! `docs/performance.md`; it decides nothing, and no test looks at a clock.

mod app;
mod clock;
mod crash;
mod idle;
mod lines;
mod many;
mod one_off;
mod payload;
mod report;

use anyhow::{Context as _, Result, ensure};

pub(crate) use payload::{stamp, write_lines};

use self::report::Row;

type Benchmark = fn() -> Result<Vec<Row>>;

const BENCHMARKS: [(&str, Benchmark); 5] = [
    ("one-off", one_off::measure),
    ("many", many::measure),
    ("lines", lines::measure),
    ("crash", crash::measure),
    ("idle", idle::measure),
];

/// Measures what `names` says, all of it without any.
pub(crate) fn run(names: &[&str]) -> Result<()> {
    for name in names {
        ensure!(
            BENCHMARKS.iter().any(|(known, _)| known == name),
            "no benchmark `{name}`: there is {}",
            BENCHMARKS.map(|(known, _)| known).join(", ")
        );
    }
    app::build()?;
    let mut rows = Vec::new();
    for (name, benchmark) in BENCHMARKS {
        if names.is_empty() || names.contains(&name) {
            report::say(&format!("measuring {name}"));
            rows.extend(benchmark().with_context(|| format!("the benchmark `{name}` failed"))?);
        }
    }
    report::print(&rows)
}
