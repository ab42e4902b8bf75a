//! `cargo xtask bench`: what hsup costs, against a baseline in the same run.
//!
//! Everything is measured from outside, on the release binaries, as a person meets them.
//! Baseline and hsup take turns, so that both meet the same machine. It prints a table for
//! `docs/performance.md`; it decides nothing, and no test looks at a clock.

mod app;
mod clock;
mod containers;
mod crash;
mod idle;
mod lines;
mod logs;
mod many;
mod one_off;
mod payload;
mod report;

use anyhow::{Context as _, Result, ensure};

pub(crate) use payload::{stamp, write_lines, write_numbered};

use self::report::Row;

type Benchmark = fn() -> Result<Vec<Row>>;

const BENCHMARKS: [(&str, Benchmark); 6] = [
    ("one-off", one_off::measure),
    ("many", many::measure),
    ("lines", lines::measure),
    ("logs", logs::measure),
    ("crash", crash::measure),
    ("idle", idle::measure),
];

/// Only by name, for they need what not every machine has.
const CONTAINERS: &str = "containers";
const DOCKER: &str = "docker";
/// Only by name, for it takes its time.
const FLOOD: &str = "flood";

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// How often containers measure each row.
    rounds: usize,
    /// How long the flood is.
    minutes: u32,
}

/// Measures what the words name, all that needs nothing special without any.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let mut extent = Extent {
        rounds: 50,
        minutes: 10,
    };
    let mut names = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut number = || {
            words
                .next()
                .with_context(|| format!("{word} needs a number"))
        };
        match *word {
            "--rounds" => extent.rounds = number()?.parse()?,
            "--minutes" => extent.minutes = number()?.parse()?,
            name => names.push(name),
        }
    }
    measure(&names, extent)
}

fn measure(names: &[&str], Extent { rounds, minutes }: Extent) -> Result<()> {
    for name in names {
        ensure!(
            [CONTAINERS, DOCKER, FLOOD].contains(name)
                || BENCHMARKS.iter().any(|(known, _)| known == name),
            "no benchmark `{name}`: there is {}, {FLOOD}, {CONTAINERS}, {DOCKER}",
            BENCHMARKS.map(|(known, _)| known).join(", ")
        );
    }
    ensure!(rounds > 0 && minutes > 0, "nothing done, no figures");
    let drivers = [
        (CONTAINERS, "hsup-driver-libcontainer"),
        (DOCKER, "hsup-driver-docker"),
    ];
    app::build(
        drivers
            .iter()
            .filter(|(name, _)| names.contains(name))
            .map(|(_, package)| *package),
    )?;
    let mut rows = Vec::new();
    for (name, benchmark) in BENCHMARKS {
        if names.is_empty() || names.contains(&name) {
            report::say(&format!("measuring {name}"));
            rows.extend(benchmark().with_context(|| format!("the benchmark `{name}` failed"))?);
        }
    }
    if names.contains(&FLOOD) {
        report::say("measuring flood");
        let measured = logs::measure_flood(minutes);
        rows.extend(measured.context("the benchmark `flood` failed")?);
    }
    if names.contains(&CONTAINERS) {
        report::say("measuring containers");
        let measured = containers::measure(rounds);
        rows.extend(measured.context("the benchmark `containers` failed")?);
    }
    if names.contains(&DOCKER) {
        report::say("measuring the docker driver");
        let measured = containers::docker::measure(rounds);
        rows.extend(measured.context("the benchmark `docker` failed")?);
    }
    report::print(&rows)
}
