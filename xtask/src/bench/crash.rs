//! From the death of a dyno to its successor's first instruction, the first time it dies.

use std::process::Stdio;

use anyhow::Result;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    app::{self, App},
    clock::{self, Spread},
    payload::Stamps,
    report::Row,
};

/// Each is killed once: a second crash waits.
const DYNOS: usize = 100;

pub(super) fn measure() -> Result<Vec<Row>> {
    let app = App::new()?;
    let mut stamps = Stamps::new(app.path())?;
    app.procfile(&stamps.line()?)?;
    let bare = Spread::of_nanoseconds(bare_loop(&mut stamps)?);
    let hsup = Spread::of_nanoseconds(hsup(&app, &mut stamps)?);
    let show = |spread: Spread| {
        format!(
            "{:.2} ms (best {:.2}, worst {:.2})",
            spread.median, spread.best, spread.worst
        )
    };
    Ok(vec![Row {
        what: "crash to new process, first time; a loop of kill, wait and `posix_spawn`",
        hsup: show(hsup),
        baseline: show(bare),
        ratio: Some(hsup.median / bare.median),
        budget: "≤ 5 ms, stretch 2 ms",
        met: Some(hsup.median <= 5.0),
    }])
}

fn hsup(app: &App, stamps: &mut Stamps) -> Result<Vec<u64>> {
    let running = app.start(DYNOS)?;
    let dynos = stamps.take(DYNOS)?;
    running.wait_up(DYNOS)?;
    let mut taken = Vec::new();
    for dyno in dynos {
        let begun = clock::now();
        kill(Pid::from_raw(dyno.pid), Signal::SIGKILL)?;
        taken.push(stamps.next()?.at - begun);
    }
    Ok(taken)
}

fn bare_loop(stamps: &mut Stamps) -> Result<Vec<u64>> {
    let line = stamps.line()?;
    let spawn = || {
        app::command("bash")
            .args(["-c", &line])
            .stdin(Stdio::null())
            .spawn()
    };
    let mut child = spawn()?;
    stamps.next()?;
    let mut taken = Vec::new();
    for _ in 0..DYNOS {
        let begun = clock::now();
        child.kill()?;
        child.wait()?;
        child = spawn()?;
        taken.push(stamps.next()?.at - begun);
    }
    child.kill()?;
    child.wait()?;
    Ok(taken)
}
