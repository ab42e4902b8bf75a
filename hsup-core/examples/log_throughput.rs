//! How many lines a second one dyno gets to hsup's terminal.
//!
//! ```text
//! cargo run --release --example log_throughput -p hsup-core
//! ```
//!
//! A child process writes lines of 100 bytes into a FIFO, in blocks of 4 KiB or line
//! by line; the router prefixes them and writes them into a pipe that this process
//! only empties, as a terminal would.  The yardstick is `cat` between the same ends.

#![expect(clippy::print_stdout, reason = "it is a report for a terminal")]

use std::{
    env,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use hsup_core::logs::{Filter, Format, LogSettings, Logs, TerminalSettings};
use nix::{
    sys::resource::{UsageWho, getrusage},
    unistd::mkfifo,
};
use tokio::time::Instant;

const LINES: usize = 4_000_000;
const LINE_BYTES: usize = 100;
const BLOCK_BYTES: usize = 4096;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let rounds: usize = match &arguments[..] {
        [word, block] if word == "write" => return write_lines(block.parse()?),
        [rounds] => rounds.parse().context("usage: log_throughput [ROUNDS]")?,
        _ => 3,
    };
    for (mode, block, lines) in [
        ("blocks of 4 KiB", BLOCK_BYTES, LINES),
        ("line by line", LINE_BYTES, LINES / 2),
    ] {
        println!("{mode}, millions of lines a second:");
        println!("        cat  prefixed  with a subscriber     raw");
        let mut best = [0.0_f64; 4];
        for _ in 0..rounds {
            let rates = [
                cat(block, lines)?,
                router(block, lines, Format::Prefixed, false).await?,
                router(block, lines, Format::Prefixed, true).await?,
                router(block, lines, Format::Raw, false).await?,
            ];
            print("    ", rates);
            best = std::array::from_fn(|index| best[index].max(rates[index]));
        }
        print("best", best);
    }
    Ok(())
}

fn print(label: &str, [cat, prefixed, followed, raw]: [f64; 4]) {
    println!("{label} {cat:6.2} {prefixed:9.2} {followed:18.2} {raw:7.2}");
}

/// The dyno: lines of 100 bytes, `block` bytes at a time, until its standard input says how many.
fn write_lines(block: usize) -> Result<()> {
    let lines: usize = io::read_to_string(io::stdin())?.trim().parse()?;
    let line = [&[b'x'; LINE_BYTES - 1][..], b"\n"].concat();
    let text = line.repeat(block.div_ceil(LINE_BYTES) * 8);
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut left = lines * LINE_BYTES;
    let mut at = 0;
    while left > 0 {
        let count = block.min(left);
        // Blocks need not end where lines do.
        if at + count > text.len() {
            at %= LINE_BYTES;
        }
        stdout.write_all(&text[at..at + count])?;
        at += count;
        left -= count;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a benchmark's child, not a dyno")]
fn dyno(block: usize, lines: usize, stdout: OwnedFd) -> Result<std::process::Child> {
    let mut child = Command::new(env::current_exe()?)
        .args(["write".to_owned(), block.to_string()])
        .stdin(Stdio::piped())
        .stdout(stdout)
        .spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    write!(stdin, "{lines}")?;
    Ok(child)
}

/// Empties a pipe; answers how many bytes came.
fn empty(mut pipe: io::PipeReader) -> thread::JoinHandle<io::Result<usize>> {
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        let mut total = 0;
        loop {
            match pipe.read(&mut buffer)? {
                0 => return Ok(total),
                count => total += count,
            }
        }
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark's yardstick, not a dyno"
)]
fn cat(block: usize, lines: usize) -> Result<f64> {
    let (between, stdout) = io::pipe()?;
    let (end, out) = io::pipe()?;
    let start = Instant::now();
    let mut child = dyno(block, lines, stdout.into())?;
    let mut cat = Command::new("cat").stdin(between).stdout(out).spawn()?;
    let total = empty(end)
        .join()
        .map_err(|_| anyhow::anyhow!("reader panicked"))??;
    let taken = start.elapsed();
    ensure!(
        child.wait()?.success() && cat.wait()?.success(),
        "a child failed"
    );
    ensure!(total == lines * LINE_BYTES, "bytes are missing");
    Ok(rate(lines, taken))
}

async fn router(block: usize, lines: usize, format: Format, follow: bool) -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("stdout");
    mkfifo(&path, nix::sys::stat::Mode::S_IRWXU)?;
    let open = || File::options().read(true).write(true).open(&path);
    let ours = open()?;
    let (nothing, _silent) = io::pipe()?;

    let (end, out) = io::pipe()?;
    let logs = Logs::start(LogSettings {
        terminal: Some(TerminalSettings {
            stdout: out.into(),
            stderr: File::options().write(true).open("/dev/null")?.into(),
            format,
            timestamps: true,
            colour: false,
        }),
        ..LogSettings::default()
    })?;
    let mut subscription = logs.subscribe(Filter::default(), 0, follow);
    let reading = tokio::spawn(async move {
        let mut seen = 0;
        while let Some(batch) = subscription.next().await {
            seen += batch.lines.len() as u64 + batch.dropped;
        }
        seen
    });
    let reader = empty(end);
    let id = "web-1".parse()?;
    logs.add(&id, &"web.1".parse()?, ours.into(), nothing.into());

    let before = cpu()?;
    let start = Instant::now();
    let mut child = dyno(block, lines, open()?.into())?;
    let status = tokio::task::spawn_blocking(move || child.wait()).await??;
    ensure!(status.success(), "the dyno failed");
    logs.finish(&id).await;
    logs.shutdown(Duration::from_secs(10)).await;
    let total = reader
        .join()
        .map_err(|_| anyhow::anyhow!("reader panicked"))??;
    let taken = start.elapsed();
    if env::var_os("CPU").is_some() {
        println!(
            "    {:?} of processor time in {taken:?}",
            cpu()?.saturating_sub(before)
        );
    }

    let prefix = match format {
        Format::Raw => 0,
        _ => "14:20:50 web.1  | ".len(),
    };
    if total != lines * (LINE_BYTES + prefix) {
        bail!("bytes are missing: {total}");
    }
    if follow {
        ensure!(
            reading.await? == lines as u64,
            "a subscriber's lines are neither sent nor counted"
        );
    }
    Ok(rate(lines, taken))
}

/// What this process used, its children apart.
fn cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let [user, system] = [usage.user_time(), usage.system_time()].map(|time| {
        Duration::from_micros(
            u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0),
        )
    });
    Ok(user + system)
}

/// Millions of lines a second.
fn rate(lines: usize, taken: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "millions")]
    let millions = lines as f64 / 1e6;
    millions / taken.as_secs_f64()
}
