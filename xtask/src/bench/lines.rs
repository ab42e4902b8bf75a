//! Lines a second from a dyno to the prefixed output, against `cat` between the same ends.

use std::{
    io::{PipeReader, Read as _, pipe},
    process::{Command, Stdio},
};

use anyhow::{Result, ensure};
use memchr::memchr_iter;

use super::{
    app::{self, App},
    clock,
    payload::{LINE_BYTES, lines_line},
    report::Row,
};

const ROUNDS: usize = 5;
/// What programs write when their output is no terminal.
const BLOCK: usize = 4096;

pub(super) fn measure() -> Result<Vec<Row>> {
    Ok(vec![
        measure_with(&Writes {
            what: "lines of 100 bytes to the prefixed output, a dyno that writes blocks; `cat`",
            block: BLOCK,
            lines: 8_000_000,
            budget: "≥ 4 M/s, stretch 8 M/s",
            least: 4.0,
        })?,
        measure_with(&Writes {
            what: "the same, a dyno that writes line by line",
            block: LINE_BYTES,
            lines: 3_000_000,
            budget: "≥ 1.5 M/s",
            least: 1.5,
        })?,
    ])
}

struct Writes {
    what: &'static str,
    block: usize,
    lines: usize,
    budget: &'static str,
    /// Millions of lines a second.
    least: f64,
}

fn measure_with(writes: &Writes) -> Result<Row> {
    let app = App::new()?;
    let line = lines_line(writes.block, writes.lines)?;
    app.procfile(&line)?;
    let mut cat = Vec::new();
    let mut hsup = Vec::new();
    for _ in 0..ROUNDS {
        let mut piped = app::command("bash");
        // The shell holds no end of the pipe itself.
        piped.args(["-c", &format!("({line}) | exec cat")]);
        cat.push(rate(&mut piped, writes.lines)?);
        let mut prefixed = app.program("hsup");
        prefixed.args(["start", "--oneshot", "worker"]);
        hsup.push(rate(prefixed.stderr(Stdio::null()), writes.lines)?);
    }
    let [cat, hsup] = [cat, hsup].map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        (rates[rates.len() / 2], rates[rates.len() - 1])
    });
    let show = |(median, best): (f64, f64)| format!("{median:.1} M/s (best {best:.1})");
    Ok(Row {
        what: writes.what,
        hsup: show(hsup),
        baseline: show(cat),
        ratio: Some(hsup.0 / cat.0),
        budget: writes.budget,
        met: Some(hsup.0 >= writes.least),
    })
}

/// Millions of lines a second that come out of `command`, from its first byte to its last.
fn rate(command: &mut Command, lines: usize) -> Result<f64> {
    let (mut end, out) = pipe()?;
    let mut child = command.stdin(Stdio::null()).stdout(out).spawn()?;
    // Ours would keep the pipe from ending.
    command.stdout(Stdio::null());
    let (seen, taken) = drain(&mut end)?;
    let status = child.wait()?;
    ensure!(status.success(), "{command:?} ended with {status}");
    ensure!(seen == lines, "{seen} of {lines} lines arrived");
    #[expect(clippy::cast_precision_loss, reason = "millions")]
    let rate = lines as f64 * 1e3 / taken as f64;
    Ok(rate)
}

/// Empties a pipe as a terminal would; answers the lines and the nanoseconds.
fn drain(pipe: &mut PipeReader) -> Result<(usize, u64)> {
    let mut buffer = vec![0; 64 * 1024];
    let mut lines = 0;
    let mut begun = None;
    let mut last = 0;
    loop {
        let count = pipe.read(&mut buffer)?;
        if count == 0 {
            return Ok((lines, last - begun.unwrap_or(last)));
        }
        last = clock::now();
        begun.get_or_insert(last);
        lines += memchr_iter(b'\n', &buffer[..count]).count();
    }
}
