//! Lines a second from ten dynos through to a Logplex, and what a dead one costs.
//!
//! The Logplex is as fast as one can be: it reads requests, looks that each dyno's lines come in
//! order, counts them and answers 204. A dyno numbers its lines.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{app::App, clock, payload, report::Row};

const DYNOS: u32 = 10;
const LINES: u32 = 100_000;
const TOTAL: u64 = DYNOS as u64 * LINES as u64;
/// What each dyno writes a second when they keep a measured pace: together half a million.
const PACE: u32 = 50_000;
/// More than hsup says of its own.
const OWN_LINES: u64 = 100;
const LEAST: f64 = 0.4;
/// How often the memory is looked at.
const LOOK: Duration = Duration::from_millis(20);

pub(super) fn measure() -> Result<Vec<Row>> {
    let paced = run(Some(PACE), Behaviour::Fast)?;
    let flood = run(None, Behaviour::Fast)?;
    let dead = run(None, Behaviour::Dead)?;
    ensure!(
        paced.seen.misordered + flood.seen.misordered == 0,
        "lines out of order"
    );
    Ok(vec![
        row(
            "1,000,000 lines of 100 bytes from 10 dynos to a Logplex, 500,000 a second",
            &paced,
            Some(paced.rate() >= LEAST && paced.seen.lines == TOTAL),
        ),
        row(
            "the same, as fast as they can write",
            &flood,
            Some(flood.rate() >= LEAST && flood.all_accounted_for()),
        ),
        Row {
            what: "the same to a Logplex that never answers",
            hsup: format!(
                "dynos done after {:.2} s, {} MiB at most",
                dead.dynos_took, dead.peak_mib
            ),
            baseline: format!("{:.2} s with one that answers", flood.dynos_took),
            ratio: Some(dead.dynos_took / flood.dynos_took),
            budget: "no slower, ≤ 64 MiB",
            met: Some(dead.peak_mib <= 64),
        },
    ])
}

fn row(what: &'static str, run: &Run, met: Option<bool>) -> Row {
    let Seen { lines, told, .. } = run.seen;
    Row {
        what,
        hsup: format!(
            "{:.2} M/s, {lines} delivered, {told} announced as missing, {} MiB at most",
            run.rate(),
            run.peak_mib
        ),
        baseline: "–".to_owned(),
        ratio: None,
        budget: "≥ 0.4 M/s",
        met,
    }
}

struct Run {
    seen: Seen,
    peak_mib: u64,
    /// Seconds until every dyno had ended.
    dynos_took: f64,
}

impl Run {
    /// Whether what came and what was announced is all; hsup's own lines may be missing, too.
    fn all_accounted_for(&self) -> bool {
        (TOTAL..TOTAL + OWN_LINES).contains(&(self.seen.lines + self.seen.told))
    }

    /// Millions of lines a second, from the first request to the last.
    #[expect(clippy::cast_precision_loss, reason = "millions")]
    fn rate(&self) -> f64 {
        self.seen.lines as f64 * 1e3 / (self.seen.last - self.seen.first).max(1) as f64
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Fast,
    Dead,
}

fn run(pace: Option<u32>, behaviour: Behaviour) -> Result<Run> {
    let app = App::new()?;
    app.procfile(&payload::numbered_line(LINES, pace)?)?;
    let logplex = Logplex::start(behaviour)?;
    let mut hsup = app.program("hsup");
    let begun = clock::now();
    let child = hsup
        .args(["start", "--oneshot", &format!("worker={DYNOS}")])
        .env("LOGPLEX_URL", &logplex.url)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("failed to start hsup")?;
    let (peak_mib, dynos_ended) = watch(child, &mut hsup)?;
    let seen = logplex.seen().clone();
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    let dynos_took = (dynos_ended - begun) as f64 / 1e9;
    Ok(Run {
        seen,
        peak_mib,
        dynos_took,
    })
}

/// Waits for the end of hsup; answers the most memory that it had, in MiB, and when its last
/// dyno had ended.
fn watch(mut child: Child, command: &mut Command) -> Result<(u64, u64)> {
    let said = child.stderr.take().context("hsup has no standard error")?;
    // Ours would keep the pipe from ending.
    command.stderr(Stdio::null());
    let listener = thread::spawn(move || {
        let mut last_end = 0;
        for line in BufReader::new(said).lines().map_while(Result::ok) {
            if line.contains("Process exited with status 0") {
                last_end = clock::now();
            }
        }
        last_end
    });
    let path = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let status = fs::read_to_string(&path).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
        peak_kib = peak_kib.max(peak.unwrap_or(0));
        thread::sleep(LOOK);
    };
    ensure!(status.success(), "hsup ended with {status}");
    let last_end = listener.join().ok().context("the listener failed")?;
    Ok((peak_kib >> 10, last_end))
}

/// What arrived.
#[derive(Clone, Debug, Default)]
struct Seen {
    lines: u64,
    /// How many lines L12 and L13 say are missing.
    told: u64,
    misordered: u64,
    last_of: HashMap<Vec<u8>, u32>,
    first: u64,
    last: u64,
}

struct Logplex {
    url: String,
    seen: Arc<Mutex<Seen>>,
}

impl Logplex {
    /// Its threads end with the process.
    fn start(behaviour: Behaviour) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let url = format!("http://token:t@{}/logs", listener.local_addr()?);
        let books = Arc::clone(&seen);
        thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming().flatten() {
                if behaviour == Behaviour::Dead {
                    kept.push(stream);
                    continue;
                }
                let books = Arc::clone(&books);
                thread::spawn(move || drop(serve(&stream, &books)));
            }
        });
        Ok(Self { url, seen })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve(mut stream: &TcpStream, books: &Mutex<Seen>) -> Result<()> {
    let mut reader = BufReader::with_capacity(256 * 1024, stream);
    let mut body = Vec::new();
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(text) = line.strip_prefix("content-length:") {
                length = text.trim().parse()?;
            }
        }
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
        let mut seen = books.lock().unwrap_or_else(PoisonError::into_inner);
        count(&body, &mut seen)?;
        drop(seen);
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
    }
}

/// Counts the messages of a body.
fn count(mut body: &[u8], seen: &mut Seen) -> Result<()> {
    let now = clock::now();
    if seen.first == 0 {
        seen.first = now;
    }
    seen.last = now;
    while !body.is_empty() {
        let blank = memchr::memchr(b' ', body).context("no count")?;
        let length: usize = str::from_utf8(&body[..blank])?.parse()?;
        let message = body.get(blank + 1..blank + 1 + length).context("cut")?;
        body = &body[blank + 1 + length..];
        let mut fields = message.splitn(8, |byte| *byte == b' ');
        let priority = fields.next().unwrap_or_default();
        let dyno = fields.nth(3).unwrap_or_default();
        let text = str::from_utf8(fields.nth(2).unwrap_or_default())?;
        if priority == b"<190>1" {
            let number: u32 = text.trim_end().trim_start_matches('x').parse()?;
            seen.lines += 1;
            let last = seen.last_of.entry(dyno.to_vec()).or_insert(0);
            if number <= *last {
                seen.misordered += 1;
            }
            *last = number;
        } else if priority == b"<172>1" {
            let rest = text.split_once(": ").map_or("", |(_, rest)| rest);
            let missing = rest.split(' ').next().unwrap_or_default();
            seen.told += missing.parse::<u64>()?;
        }
    }
    Ok(())
}
