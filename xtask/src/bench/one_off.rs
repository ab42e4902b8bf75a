//! `hsup run true`, the whole process, against `bash -c true`.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::{
    app::{self, App},
    clock::{self, Spread},
    report::Row,
};

const ROUNDS: usize = 300;

pub(super) fn measure() -> Result<Vec<Row>> {
    let app = App::new()?;
    app.procfile("true")?;
    let mut bash = Vec::new();
    let mut hsup = Vec::new();
    for _ in 0..ROUNDS {
        bash.push(time(
            app::command("bash")
                .args(["-c", "true"])
                .current_dir(app.path())
                .stdin(Stdio::null()),
        )?);
        hsup.push(time(
            app.program("hsup").args(["run", "-d", "simple", "true"]),
        )?);
    }
    let [bash, hsup] = [bash, hsup].map(Spread::of_nanoseconds);
    let ratio = hsup.median / bash.median;
    let show = |spread: Spread| format!("{:.2} ms (best {:.2})", spread.median, spread.best);
    Ok(vec![Row {
        what: "`hsup run -d simple true`, whole process; `bash -c true`",
        hsup: show(hsup),
        baseline: show(bash),
        ratio: Some(ratio),
        budget: "≤ 4.5 ×, stretch 3 ×",
        met: Some(ratio <= 4.5),
    }])
}

fn time(command: &mut Command) -> Result<u64> {
    let begun = clock::now();
    let status = command.status()?;
    let taken = clock::now() - begun;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(taken)
}
