//! What the benchmarks found, as a table.

use std::{
    fs,
    io::{self, Write as _},
    thread,
};

use anyhow::{Context as _, Result};

/// One line of the table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) what: &'static str,
    pub(super) hsup: String,
    pub(super) baseline: String,
    /// hsup as a multiple of the baseline, where that is what counts.
    pub(super) ratio: Option<f64>,
    pub(super) budget: &'static str,
    /// `None` for a figure that has no budget.
    pub(super) met: Option<bool>,
}

/// Tells what goes on; not part of the result.
pub(super) fn say(text: &str) {
    // Nobody there to read it is no reason to stop measuring.
    drop(writeln!(io::stderr(), "{text}"));
}

pub(super) fn print(rows: &[Row]) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}\n", machine()?)?;
    writeln!(out, "| what | hsup | baseline | ratio | budget | met |")?;
    writeln!(out, "|---|---|---|---|---|---|")?;
    for row in rows {
        let ratio = row
            .ratio
            .map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
        let met = match row.met {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "–",
        };
        writeln!(
            out,
            "| {} | {} | {} | {ratio} | {} | {met} |",
            row.what, row.hsup, row.baseline, row.budget
        )?;
    }
    Ok(())
}

/// The size of the machine: figures mean little without it.
fn machine() -> Result<String> {
    let cores = thread::available_parallelism()?;
    let memory = fs::read_to_string("/proc/meminfo").context("failed to read /proc/meminfo")?;
    let kib: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.strip_suffix("kB"))
        .and_then(|number| number.trim().parse().ok())
        .context("no MemTotal in /proc/meminfo")?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!(
        "{cores} cores, {} GiB, Linux {}",
        kib.div_ceil(1 << 20),
        kernel.trim()
    ))
}
