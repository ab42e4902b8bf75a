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
mod procfs;
mod report;

use std::os::unix::process::CommandExt as _;

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
const SWARM: &str = "swarm";
/// Only by name, for it takes its time.
const FLOOD: &str = "flood";

/// What is measured, and how much of it.
#[derive(Debug)]
struct Choice<'a> {
    /// Benchmarks, by name; none are all that need nothing special.
    names: Vec<&'a str>,
    /// How often containers measure each row.
    rounds: usize,
    /// How long the flood is.
    minutes: u32,
}

impl<'a> Choice<'a> {
    fn read(words: &[&'a str]) -> Result<Self> {
        let mut choice = Self {
            names: Vec::new(),
            rounds: 50,
            minutes: 10,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut number = || {
                words
                    .next()
                    .with_context(|| format!("{word} needs a number"))
            };
            match *word {
                "--rounds" => choice.rounds = number()?.parse()?,
                "--minutes" => choice.minutes = number()?.parse()?,
                name => choice.names.push(name),
            }
        }
        for name in &choice.names {
            ensure!(
                [CONTAINERS, DOCKER, SWARM, FLOOD].contains(name)
                    || BENCHMARKS.iter().any(|(known, _)| known == name),
                "no benchmark `{name}`: there is {}, {FLOOD}, {CONTAINERS}, {DOCKER}, {SWARM}",
                BENCHMARKS.map(|(known, _)| known).join(", ")
            );
        }
        ensure!(
            choice.rounds > 0 && choice.minutes > 0,
            "nothing done, no figures"
        );
        Ok(choice)
    }
}

/// Builds what the words name, and has it measured by the release build of this program: it is
/// hsup's dynos and its Logplex, and would be slower than what it measures.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let Choice { names, .. } = Choice::read(words)?;
    let drivers = [
        (CONTAINERS, "hsup-driver-libcontainer"),
        (DOCKER, "hsup-driver-docker"),
        (SWARM, "hsup-driver-docker"),
    ];
    app::build(
        drivers
            .iter()
            .filter(|(name, _)| names.contains(name))
            .map(|(_, package)| *package),
    )?;
    let program = app::binary("xtask");
    let error = app::command(&program).arg("measure").args(words).exec();
    Err(error).with_context(|| format!("failed to execute {}", program.display()))
}

/// Measures what the words name, with programs that are built.
pub(crate) fn measure(words: &[&str]) -> Result<()> {
    let Choice {
        names,
        rounds,
        minutes,
    } = Choice::read(words)?;
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
    if names.contains(&SWARM) {
        report::say("measuring the docker driver on a Swarm");
        let measured = containers::swarm::measure(rounds);
        rows.extend(measured.context("the benchmark `swarm` failed")?);
    }
    report::print(&rows)
}
