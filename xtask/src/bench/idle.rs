//! How often hsup and its driver wake up when nothing happens.

use std::{fs, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};

use super::{app::App, many, payload::Stamps, report::Row};

/// A period that holds several of whatever recurs.
const PERIOD: Duration = Duration::from_secs(30);
/// The formation's last state has reached every reader by then.
const CALM: Duration = Duration::from_secs(2);

pub(super) fn measure() -> Result<Vec<Row>> {
    Ok(vec![
        row("wake-ups a second of hsup and its driver, idle, 1 dyno", 1)?,
        row("the same, 1,000 dynos", many::DYNOS)?,
    ])
}

fn row(what: &'static str, dynos: usize) -> Result<Row> {
    let app = App::new()?;
    let mut stamps = Stamps::new(app.path())?;
    app.procfile(&stamps.line()?)?;
    let running = app.start(dynos)?;
    stamps.take(dynos)?;
    running.wait_up(dynos)?;
    sleep(CALM);
    let processes = running.processes()?;
    let before = wake_ups(&processes)?;
    sleep(PERIOD);
    let after = wake_ups(&processes)?;
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let rate = (after - before) as f64 / PERIOD.as_secs_f64();
    Ok(Row {
        what,
        hsup: format!("{rate:.2}"),
        baseline: "–".to_owned(),
        ratio: None,
        budget: "≤ 1, stretch none",
        met: Some(rate <= 1.0),
    })
}

/// How often any thread of these processes was given up and taken up again.
fn wake_ups(processes: &[i32]) -> Result<u64> {
    let mut sum = 0;
    for pid in processes {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = task?.path().join("status");
            let status = fs::read_to_string(&path)
                .with_context(|| format!("failed to read {}", path.display()))?;
            sum += status
                .lines()
                .filter_map(|line| line.split_once("ctxt_switches:"))
                .filter_map(|(_, number)| number.trim().parse::<u64>().ok())
                .sum::<u64>();
        }
    }
    Ok(sum)
}
