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
const LEAST: f64 = 0.4;
/// How often the memory is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// What dynos that keep a pace may take beyond it.
const LATE_AT_MOST: f64 = 1.0;
/// What memory may grow by while nothing changes, for an allocator that has its moods.
const GROWTH_MIB: u64 = 2;

pub(super) fn measure() -> Result<Vec<Row>> {
    let paced = run(LINES, Some(PACE), Behaviour::Fast)?;
    let flood = run(LINES, None, Behaviour::Fast)?;
    let dead = run(LINES, None, Behaviour::Dead)?;
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

/// What a flood of so many minutes to a Logplex that never answers does.
pub(super) fn measure_flood(minutes: u32) -> Result<Vec<Row>> {
    let due = minutes * 60;
    let dead = run(PACE * due, Some(PACE), Behaviour::Dead)?;
    let total = u64::from(DYNOS) * u64::from(PACE) * u64::from(due);
    let late = dead.dynos_took - f64::from(due);
    let [first, second] = dead.halves_mib;
    let is_exact = dead.undelivered == total + dead.own;
    let is_flat = dead.peak_mib <= 64 && second <= first + GROWTH_MIB;
    Ok(vec![Row {
        what: "500,000 lines a second from 10 dynos to a Logplex that never answers, for minutes",
        hsup: format!(
            "{} of {total} lines and {} of hsup's own counted as not delivered, dynos {late:.2} s \
             late after {due} s, {first} MiB at most in the first half and {second} in the second",
            dead.undelivered, dead.own
        ),
        baseline: "–".to_owned(),
        ratio: None,
        budget: "each line counted, ≤ 1 s late, flat, ≤ 64 MiB",
        met: Some(is_exact && is_flat && late <= LATE_AT_MOST),
    }])
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
    /// The most while the dynos were in the first half of their work, and in the second.
    halves_mib: [u64; 2],
    /// Seconds until every dyno had ended.
    dynos_took: f64,
    /// How many lines hsup said at its end were not delivered.
    undelivered: u64,
    /// How many lines of its own hsup has sent after those of the dynos.
    own: u64,
}

impl Run {
    /// Whether what came and what was announced is all, hsup's own lines among it.
    fn all_accounted_for(&self) -> bool {
        let Seen {
            lines, own, told, ..
        } = self.seen;
        lines + own + told == TOTAL + self.own
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

fn run(lines: u32, pace: Option<u32>, behaviour: Behaviour) -> Result<Run> {
    let app = App::new()?;
    app.procfile(&payload::numbered_line(lines, pace)?)?;
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
    let Watched {
        peak_kib,
        resident,
        said,
    } = watch(child, &mut hsup)?;
    let seen = logplex.seen().clone();
    let middle = begun + (said.last_end - begun) / 2;
    let most = |half: [u64; 2]| {
        let within = resident
            .iter()
            .filter(|(at, _)| (half[0]..half[1]).contains(at));
        within.map(|(_, kib)| kib >> 10).max().unwrap_or(0)
    };
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    let dynos_took = (said.last_end - begun) as f64 / 1e9;
    Ok(Run {
        seen,
        peak_mib: peak_kib >> 10,
        halves_mib: [most([begun, middle]), most([middle, said.last_end])],
        dynos_took,
        undelivered: said.undelivered,
        own: said.own,
    })
}

/// A run of hsup as it is seen from outside.
struct Watched {
    peak_kib: u64,
    /// Its memory, in KiB, from time to time.
    resident: Vec<(u64, u64)>,
    said: Said,
}

/// What hsup said.
#[derive(Default)]
struct Said {
    /// When the last dyno had ended.
    last_end: u64,
    undelivered: u64,
    /// Lines that it wrote into its log, which a drain gets, too.
    own: u64,
}

impl Said {
    /// A line of its standard error: of its log, or of what is said beside it.
    fn hear(&mut self, line: &str, now: u64) {
        let Some(rest) = line.strip_prefix("hsup: ") else {
            self.own += 1;
            if line.contains("Process exited with status 0") {
                self.last_end = now;
            }
            return;
        };
        if rest.contains(" not delivered to ") {
            self.undelivered = undelivered(rest);
        }
    }
}

/// Waits for the end of hsup.
fn watch(mut child: Child, command: &mut Command) -> Result<Watched> {
    let stderr = child.stderr.take().context("hsup has no standard error")?;
    // Ours would keep the pipe from ending.
    command.stderr(Stdio::null());
    let listener = thread::spawn(move || {
        let mut said = Said::default();
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            said.hear(&line, clock::now());
        }
        said
    });
    let path = format!("/proc/{}/status", child.id());
    let (mut peak_kib, mut resident) = (0, Vec::new());
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let status = fs::read_to_string(&path).unwrap_or_default();
        let kib_of = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok())
        };
        peak_kib = peak_kib.max(kib_of("VmHWM:").unwrap_or(0));
        resident.extend(kib_of("VmRSS:").map(|kib: u64| (clock::now(), kib)));
        thread::sleep(LOOK);
    };
    ensure!(status.success(), "hsup ended with {status}");
    let said = listener.join().ok().context("the listener failed")?;
    Ok(Watched {
        peak_kib,
        resident,
        said,
    })
}

/// All that did not arrive, by `9 lines were not delivered to … (7 dropped and 1 lost before)`.
fn undelivered(text: &str) -> u64 {
    let number = |word: &str| word.trim_start_matches('(').parse::<u64>().ok();
    let mut words = text.split(' ').peekable();
    let mut all = words.peek().and_then(|word| number(word)).unwrap_or(0);
    while let Some(word) = words.next() {
        if let Some("dropped" | "lost") = words.peek().copied() {
            all += number(word).unwrap_or(0);
        }
    }
    all
}

/// What arrived.
#[derive(Clone, Debug, Default)]
struct Seen {
    lines: u64,
    /// Of hsup's own.
    own: u64,
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
        } else {
            seen.own += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hsup_writes_into_its_log_is_counted_and_what_it_says_beside_is_not() {
        let mut said = Said::default();
        for line in [
            "00:15:57 system   | Log drain logplex+http://127.0.0.1:1: it does not answer",
            "00:16:18 worker.1 | Process exited with status 0",
            "00:16:19 worker.1 | State changed from up to complete",
            "hsup: 33 lines were not delivered to logplex+http://127.0.0.1:1",
        ] {
            said.hear(line, 7);
        }
        assert_eq!((said.own, said.undelivered, said.last_end), (3, 33, 7));
    }

    #[test]
    fn all_that_did_not_arrive_is_what_hsup_says() {
        let target = "logplex+http://127.0.0.1:1";
        let before =
            format!("9 lines were not delivered to {target} (70 dropped and 1 lost before): it");
        assert_eq!(undelivered(&before), 80);
        assert_eq!(
            undelivered(&format!("1 line was not delivered to {target}")),
            1
        );
    }
}
