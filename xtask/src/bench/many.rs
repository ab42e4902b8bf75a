//! A thousand dynos: how soon all of them run, and what hsup and its driver take up.

use std::{
    fs,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result};

use super::{
    app::{self, App},
    clock::Spread,
    payload::{Stamp, Stamps},
    report::Row,
};

pub(super) const DYNOS: usize = 1000;
const ROUNDS: usize = 5;

pub(super) fn measure() -> Result<Vec<Row>> {
    let app = App::new()?;
    let mut stamps = Stamps::new(app.path())?;
    app.procfile(&stamps.line()?)?;
    let mut bare = Vec::new();
    let mut hsup = Vec::new();
    let mut memory = Vec::new();
    for _ in 0..ROUNDS {
        bare.push(bare_loop(&mut stamps)?);
        let running = app.start(DYNOS)?;
        hsup.push(first_to_last(&stamps.take(DYNOS)?));
        running.wait_up(DYNOS)?;
        memory.push(running.processes()?.map(pss_kib));
    }
    let [bare, hsup] = [bare, hsup].map(Spread::of_nanoseconds);
    let ratio = hsup.median / bare.median;
    let mut sums = Vec::new();
    for [supervisor, driver] in memory {
        sums.push((supervisor?, driver?));
    }
    sums.sort_unstable_by_key(|(supervisor, driver)| supervisor + driver);
    let (supervisor, driver) = sums[sums.len() / 2];
    let show = |spread: Spread| format!("{:.0} ms (best {:.0})", spread.median, spread.best);
    Ok(vec![
        Row {
            what: "1,000 dynos, first to last program running; a bare `posix_spawn` loop",
            hsup: show(hsup),
            baseline: show(bare),
            ratio: Some(ratio),
            budget: "≤ 1.25 ×, stretch 1.15 ×",
            met: Some(ratio <= 1.25),
        },
        Row {
            what: "PSS of hsup and its driver with 1,000 dynos",
            hsup: format!(
                "{} MiB ({} + {})",
                mebibytes(supervisor + driver),
                mebibytes(supervisor),
                mebibytes(driver)
            ),
            baseline: "–".to_owned(),
            ratio: None,
            budget: "≤ 24 MiB, stretch 16 MiB",
            met: Some(supervisor + driver <= 24 << 10),
        },
    ])
}

/// The same commands without a supervisor. std spawns by `posix_spawn` here.
fn bare_loop(stamps: &mut Stamps) -> Result<u64> {
    let line = stamps.line()?;
    let mut children = Children(Vec::new());
    for _ in 0..DYNOS {
        let child = app::command("bash")
            .args(["-c", &line])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        children.0.push(child);
    }
    Ok(first_to_last(&stamps.take(DYNOS)?))
}

/// The processes of the bare loop, which do not end by themselves: dropped, they are gone.
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended already is as good.
            drop(child.kill());
        }
        for child in &mut self.0 {
            drop(child.wait());
        }
    }
}

/// From the first program's first instruction to the last one's.
fn first_to_last(stamps: &[Stamp]) -> u64 {
    let times = stamps.iter().map(|stamp| stamp.at);
    let (first, last) = (times.clone().min(), times.max());
    last.unwrap_or(0) - first.unwrap_or(0)
}

/// What a process takes up, shared pages by its share (`proc_pid_smaps_rollup(5)`).
pub(super) fn pss_kib(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let rollup = fs::read_to_string(&path)
        .with_context(|| format!("failed to read {path}, which only root may of hsup"))?;
    rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:")?.strip_suffix("kB"))
        .and_then(|number| number.trim().parse().ok())
        .with_context(|| format!("no Pss in {path}"))
}

pub(super) fn mebibytes(kib: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    let mebibytes = kib as f64 / 1024.0;
    format!("{mebibytes:.1}")
}
