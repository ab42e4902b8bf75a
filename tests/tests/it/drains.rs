//! Lines on their way out of hsup: to a strict Logplex and to the other drains.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
};

use hsup_tests::fake::{
    logplex::{CREDENTIALS, Dialect, FakeLogplex, Fault},
    syslog::FakeSyslog,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::app::{App, Running, binaries, http, process};

/// An app whose dynos write so many numbered lines of 100 bytes and end.
pub(crate) fn writes(lines: u32) -> App {
    let dyno = binaries().join("test-dyno");
    App::procfile(&format!("worker: exec {} lines {lines}\n", dyno.display()))
}

/// `hsup start` with this Logplex in its environment.
fn start<'a>(app: &'a App, url: &str, arguments: &[&str]) -> Running<'a> {
    app.start_as(arguments, |command| {
        command.env("LOGPLEX_URL", url);
    })
}

fn logplex() -> FakeLogplex {
    FakeLogplex::start(Dialect::Logplex).unwrap()
}

/// What `test-dyno lines` writes.
fn expected(lines: u32) -> Vec<String> {
    (0..lines).map(|number| format!("{number:<99}")).collect()
}

/// The objects of a file of JSON lines.
pub(crate) fn objects(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The samples of `/metrics`, by name and labels.
fn metrics(socket: &Path) -> BTreeMap<String, u64> {
    let page = http(socket, "GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n");
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    samples
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

/// What became of the lines of the drain with this number: read, sent, dropped, lost, waiting. With
/// those on their way it is all of them, whenever one looks.
pub(crate) fn books(socket: &Path, drain: u32) -> [u64; 5] {
    let all = metrics(socket);
    let of = |name: &str| {
        let start = format!("hsup_drain_{name}{{drain=\"{drain}\"");
        let found = all.iter().find(|(name, _)| name.starts_with(&start));
        *found.unwrap_or_else(|| panic!("{start}: {all:?}")).1
    };
    let books = [
        "lines_read_total",
        "lines_sent_total",
        "lines_dropped_total",
        "lines_lost_total",
        "queue_lines",
    ]
    .map(of);
    let became: u64 = books[1..].iter().sum();
    assert_eq!(books[0], became + of("sending_lines"), "{all:?}");
    books
}

#[test]
fn every_line_arrives_once_and_in_the_order_of_its_dyno() {
    const LINES: u32 = 5000;
    let (app, logplex) = (writes(LINES), logplex());
    let mut hsup = start(&app, &logplex.url(), &["--oneshot", "worker=3"]);
    assert_eq!(hsup.end().code(), Some(0), "{}", hsup.log());
    for dyno in ["worker.1", "worker.2", "worker.3"] {
        assert!(logplex.texts(dyno) == expected(LINES), "{dyno}");
    }
    let messages = logplex.messages();
    let heroku: Vec<&str> = messages
        .iter()
        .filter(|message| message.source == "heroku" && message.dyno == "worker.2")
        .map(|message| &*message.text)
        .collect();
    let command = heroku[1];
    assert!(
        command.starts_with("Starting process with command `exec "),
        "{command}"
    );
    assert_eq!(heroku[0], "State changed from down to starting");
    assert_eq!(heroku[2], "State changed from starting to up");
    assert_eq!(heroku[3], "Process exited with status 0");
    for message in &messages {
        let priority = match (&*message.source, &*message.dyno) {
            ("app", "api") => 134,
            ("app", _) => 190,
            _ => 45,
        };
        assert_eq!(message.priority, priority, "{message:?}");
    }
    assert!(logplex.seen().iter().all(|seen| seen.status == 204));
}

#[test]
fn a_logplex_that_was_down_gets_every_line_once_it_is_back() {
    let (app, logplex) = (writes(2000), logplex());
    logplex.down();
    let hsup = start(&app, &logplex.url(), &["--restart-backoff", "1h..1h"]);
    hsup.wait_for_line("Log drain logplex+http://127.0.0.1:");
    logplex.back().unwrap();
    hsup.wait_for_line("takes lines again; 0 were dropped and 0 lost until now");
    // It has run twice by now, for the first restart has no wait.
    let twice = [expected(2000), expected(2000)].concat();
    hsup.wait_for("every line", || {
        (logplex.texts("worker.1") == twice).then_some(())
    });
    hsup.interrupt();
    assert_eq!(logplex.told_missing(), (0, 0));
}

#[test]
fn what_is_refused_for_good_is_told_though_the_telling_fails_too() {
    const LINES: u32 = 4000;
    let (app, logplex) = (writes(LINES), logplex());
    logplex.fail([
        Fault::Status(400, None),
        Fault::Reset,
        Fault::Status(500, None),
        Fault::Status(429, Some(0)),
        Fault::Status(413, None),
        Fault::Status(400, None),
        Fault::Status(503, None),
        Fault::CutBody,
        Fault::Reset,
        Fault::Status(401, None),
    ]);
    let all = app.path("all.json");
    let json = format!("json://{}", all.display());
    let mut hsup = start(&app, &logplex.url(), &["--oneshot", "--log-to", &json]);
    assert_eq!(hsup.end().code(), Some(0), "{}", hsup.log());
    let written = objects(&all).len();
    let (dropped, lost) = logplex.told_missing();
    let taken = logplex.messages();
    let taken = taken
        .iter()
        .filter(|message| message.priority != 172)
        .count();
    assert_eq!(dropped, 0);
    assert!(lost > 0, "{:?}", logplex.seen());
    assert_eq!(taken as u64 + lost, written as u64, "{:?}", logplex.seen());

    // A batch keeps its id for as long as it is tried, and no two have one.
    let mut answers: BTreeMap<String, Vec<u16>> = BTreeMap::new();
    for seen in logplex.seen() {
        answers.entry(seen.frame_id).or_default().push(seen.status);
    }
    for (id, answers) in &answers {
        let (last, before) = answers.split_last().unwrap();
        let is_final = |status: &u16| !matches!(status, 0 | 429 | 500..);
        assert!(
            is_final(last) && !before.iter().any(is_final),
            "{id}: {answers:?}"
        );
    }
    let again = answers.values().filter(|answers| answers.len() > 1).count();
    assert!(again >= 3, "{answers:?}");
}

#[test]
fn wrong_credentials_are_told_and_the_lines_counted() {
    let (app, logplex) = (writes(10), logplex());
    let url = logplex.url_with("token:wrong");
    let socket = app.path("s");
    let hsup = start(&app, &url, &["-s", socket.to_str().unwrap()]);
    hsup.wait_for_line("it answers 401 Unauthorized");
    hsup.wait_for("lines that are counted as lost", || {
        let [read, sent, dropped, lost, _] = books(&socket, 1);
        (lost > 0 && lost <= read && sent == 0 && dropped == 0).then_some(())
    });
    hsup.interrupt();
    assert!(logplex.messages().is_empty());
}

#[test]
fn a_drain_that_never_answers_does_not_keep_hsup_from_ending() {
    let (app, logplex) = (writes(10), logplex());
    logplex.always(Some(Fault::Hang));
    let mut hsup = start(&app, &logplex.url(), &["--oneshot"]);
    assert_eq!(hsup.end().code(), Some(0), "{}", hsup.log());
    let log = hsup.log();
    let said = log
        .lines()
        .find(|line| line.contains("not delivered to logplex+http://"));
    let said = said.unwrap_or_else(|| panic!("{log}"));
    let count: u64 = said.split(' ').nth(1).unwrap().parse().unwrap();
    // The dyno's own, and at least those of its life.
    assert!(count >= 10 + 5, "{said}");
}

#[test]
fn a_dead_drain_beside_a_live_one_costs_it_nothing_and_is_counted() {
    const LINES: u32 = 500_000;
    let dyno = binaries().join("test-dyno");
    let app = App::procfile(&format!(
        "worker: {} lines {LINES}; exec sleep 1000\n",
        dyno.display()
    ));
    let logplex = logplex();
    logplex.always(Some(Fault::Hang));
    let all = app.path("all.log");
    let socket = app.path("s");
    let file = format!("file://{}?max-size=1G", all.display());
    let hsup = app.start_as(
        &["-s", socket.to_str().unwrap(), "--log-to", &file],
        |command| {
            command.env("LOGPLEX_URL", logplex.url());
        },
    );
    hsup.wait_up(&["worker.1"]);
    hsup.wait_for("every line in the file", || {
        let [read, sent, dropped, lost, queued] = books(&socket, 2);
        (read > u64::from(LINES) && sent + dropped + lost == read && queued == 0).then_some(())
    });
    let [read, sent, dropped, lost, queued] = books(&socket, 1);
    assert_eq!((sent, lost), (0, 0));
    assert!(dropped > 0 && queued > 0, "{dropped} {queued}");
    // What is in the requests that nobody answers is neither.
    assert!(
        dropped + queued <= read && read - dropped - queued <= 8 * 501,
        "{read}"
    );

    let [_, sent, dropped, _, _] = books(&socket, 2);
    let text = fs::read_to_string(&all).unwrap();
    let own: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once(" app[worker.1]: "))
        .map(|(_, text)| text)
        .collect();
    if dropped == 0 {
        assert!(own == expected(LINES), "{} lines", own.len());
    } else {
        assert_eq!(text.lines().count() as u64, sent + 1);
        assert!(text.contains(&format!("{dropped} messages dropped since")));
    }

    // The requests end, the dead come back to life, and what was dropped is told.
    logplex.always(None);
    logplex.down();
    logplex.back().unwrap();
    hsup.wait_for("the count of what was dropped", || {
        let [read, sent, dropped, lost, _] = books(&socket, 1);
        let balance = sent + dropped + lost == read && logplex.told_missing() == (dropped, lost);
        (balance && logplex.taken() == sent).then_some(())
    });
    hsup.interrupt();
}

#[test]
fn a_long_line_comes_in_pieces_that_logplex_takes() {
    let app = App::procfile(
        "worker: head -c 50000 /dev/zero | tr '\\0' x; echo; printf 'ä%.0s' $(seq 6000); echo\n",
    );
    let logplex = logplex();
    let mut hsup = start(&app, &logplex.url(), &["--oneshot"]);
    assert_eq!(hsup.end().code(), Some(0), "{}", hsup.log());
    let texts = logplex.texts("worker.1");
    let lengths: Vec<usize> = texts.iter().map(String::len).collect();
    assert_eq!(
        lengths,
        [10_000, 10_000, 10_000, 10_000, 10_000, 10_000, 2000]
    );
    assert_eq!(texts[5..].concat(), "ä".repeat(6000));
}

#[test]
fn batches_can_be_compressed() {
    let (app, logplex) = (writes(1000), logplex());
    let url = format!("{}#gzip", logplex.url());
    let mut hsup = start(&app, &url, &["--oneshot"]);
    assert_eq!(hsup.end().code(), Some(0), "{}", hsup.log());
    assert!(logplex.texts("worker.1") == expected(1000));
    let seen = logplex.seen();
    assert!(seen.iter().all(|seen| seen.gzip && seen.status == 204));
    assert!(seen.iter().map(|seen| seen.body_bytes).sum::<usize>() < 50_000);
}

#[test]
fn an_https_drain_gets_what_logplex_sends_to_one() {
    let app = writes(100);
    let drain = FakeLogplex::start(Dialect::Drain).unwrap();
    let mut hsup = app.start(&["--oneshot", "--log-to", &drain.url()]);
    assert_eq!(hsup.end().code(), Some(0), "{}", hsup.log());
    assert!(
        drain.texts("worker.1") == expected(100),
        "{:?}",
        drain.seen()
    );
    assert!(
        drain
            .messages()
            .iter()
            .all(|message| message.host == "host")
    );
}

#[test]
fn a_drain_that_can_trust_nobody_is_refused_before_a_line_is_lost() {
    let app = writes(1);
    let mut hsup = app.start_as(&["--log-to", "https://logs.example/x"], |command| {
        command.env("SSL_CERT_FILE", app.path("missing.pem"));
    });
    assert_eq!(hsup.end().code(), Some(1), "{}", hsup.log());
    let log = hsup.log();
    assert!(log.contains("log drain https://logs.example"), "{log}");
    assert!(log.contains("certificate"), "{log}");
    assert!(log.contains("SSL_CERT_FILE"), "{log}");
}

#[test]
fn a_drain_without_tls_asks_for_nobody_to_trust() {
    let app = writes(1);
    let drain = FakeLogplex::start(Dialect::Drain).unwrap();
    let mut hsup = app.start_as(&["--oneshot", "--log-to", &drain.url()], |command| {
        command.env("SSL_CERT_FILE", app.path("missing.pem"));
    });
    assert_eq!(hsup.end().code(), Some(0), "{}", hsup.log());
    assert!(drain.texts("worker.1") == expected(1));
}

#[test]
fn syslog_over_tls_trusts_the_named_certificate_and_no_other() {
    let app = writes(100);
    let [certificate, other] = ["ca.pem", "other.pem"].map(|name| app.path(name));
    let syslog = FakeSyslog::start(&certificate, []).unwrap();
    let run = |trusted: &Path| {
        let mut hsup = app.start_as(&["--oneshot", "--log-to", &syslog.url()], |command| {
            command.env("SSL_CERT_FILE", trusted);
        });
        assert_eq!(hsup.end().code(), Some(0), "{}", hsup.log());
        hsup.log()
    };
    drop(FakeSyslog::start(&other, []).unwrap());
    let log = run(&other);
    assert!(
        log.contains("not delivered to syslog+tls://localhost:")
            && log.contains("invalid peer certificate"),
        "{log}"
    );
    assert_eq!(syslog.messages(), Some(vec![]));

    let log = run(&certificate);
    let messages = syslog.messages().unwrap();
    let own: Vec<&String> = messages
        .iter()
        .filter(|message| message.source == "app" && message.dyno == "worker.1")
        .map(|message| &message.text)
        .collect();
    assert!(own == expected(100).iter().collect::<Vec<_>>(), "{log}");
    assert!(messages.iter().all(|message| message.host == "box"));
}

#[test]
fn a_file_is_put_aside_when_it_is_full() {
    let app = writes(1000);
    let path = app.path("app.log");
    let file = format!("file://{}?max-size=16K&keep=2", path.display());
    let mut hsup = app.start(&["--oneshot", "--log-to", &file]);
    assert_eq!(hsup.end().code(), Some(0), "{}", hsup.log());
    let mut all = String::new();
    for end in [".2", ".1", ""] {
        let text = fs::read_to_string(format!("{}{end}", path.display())).unwrap();
        assert!(text.len() <= 16 * 1024 && text.ends_with('\n'));
        all += &text;
    }
    assert!(!app.path("app.log.3").exists());
    let own: Vec<&str> = all
        .lines()
        .filter_map(|line| line.split_once(" app[worker.1]: "))
        .map(|(_, text)| text)
        .collect();
    assert!(own.len() > 200 && own == expected(1000)[1000 - own.len()..]);
}

#[test]
fn a_file_is_one_drains() {
    let app = writes(10);
    let path = app.path("app.log");
    let [text, json] = ["file", "json"].map(|scheme| format!("{scheme}://{}", path.display()));
    let twice = app.run(&["start", "--log-to", &text, "--log-to", &json]);
    let said = String::from_utf8_lossy(&twice.stderr).into_owned();
    assert_eq!(twice.status.code(), Some(2), "{said}");
    assert!(
        said.contains("--log-to number 1 and --log-to number 2 name one file"),
        "{said}"
    );

    // Another process has it, until it lets go.
    let other = File::options()
        .append(true)
        .create(true)
        .open(&path)
        .unwrap();
    other.try_lock().unwrap();
    let hsup = app.start(&["--restart-backoff", "1h..1h", "--log-to", &text]);
    let pid = std::process::id();
    hsup.wait_for_line(&format!("Log drain {text}: process {pid} writes to it"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "");
    drop(other);
    hsup.wait_for("every line", || {
        let text = fs::read_to_string(&path).unwrap();
        // It has run twice by now, for the first restart has no wait.
        (text.matches(" app[worker.1]: ").count() == 20).then_some(())
    });
    hsup.interrupt();
}

#[test]
fn the_url_of_the_wanted_release_is_used_and_a_new_one_restarts_nobody() {
    let app = App::empty();
    let (first, second) = (logplex(), logplex());
    let release = |url: &str| {
        let line = "while sleep 0.05; do echo tick; done";
        let member = format!(r#""LogplexURL":"{url}","#);
        app.hand_in(&app.text(1, &member, &process("worker", line, 1)));
    };
    release(&first.url());
    let hsup = app.control(&[]);
    let ids = hsup.wait_up(&["worker.1"]);
    let comes = |to: &FakeLogplex| {
        let before = to.texts("worker.1").len();
        hsup.wait_for("more lines", || {
            (to.texts("worker.1").len() > before + 2).then_some(())
        });
    };
    comes(&first);
    release(&second.url());
    comes(&second);
    // What it has read is on its way to the first for a moment more.
    hsup.wait_for("the end of the first", || {
        let page = http(&socket_of(&app), "GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n");
        (!page.contains(&shown(&first))).then_some(())
    });
    let no_more = first.messages().len();
    comes(&second);
    assert_eq!(first.messages().len(), no_more);
    assert_eq!(hsup.wait_up(&["worker.1"]), ids);
    let log = hsup.log();
    assert!(
        log.contains("Log target of v1 changed by control directory"),
        "{log}"
    );
    assert!(!log.contains("Scaled to"), "{log}");
    release("");
    hsup.wait_for("nobody to send to", || {
        let messages = second.messages().len();
        let socket = socket_of(&app);
        let page = http(&socket, "GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n");
        (!page.contains("hsup_drain_lines_read_total{") && messages > 0).then_some(())
    });
    hsup.interrupt();
}

#[test]
fn what_a_replaced_logplex_never_took_is_said_to_the_next() {
    let app = App::empty();
    let (first, second) = (logplex(), logplex());
    first.always(Some(Fault::Hang));
    let release = |url: &str| {
        let line = "while sleep 0.02; do echo tick; done";
        let member = format!(r#""LogplexURL":"{url}","#);
        app.hand_in(&app.text(1, &member, &process("worker", line, 1)));
    };
    release(&first.url());
    let all = app.path("all.json");
    let hsup = app.control(&["--log-to", &format!("json://{}", all.display())]);
    hsup.wait_up(&["worker.1"]);
    let socket = socket_of(&app);
    hsup.wait_for("lines that wait", || {
        (books(&socket, 2)[0] > 50).then_some(())
    });
    release(&second.url());
    hsup.wait_for("lines of both", || {
        let taken = second.texts("worker.1").len();
        (taken > 0 && books(&socket, 3)[0] > 0).then_some(())
    });
    let [read, sent, dropped, lost, _] = books(&socket, 2);
    assert!(read > 50, "it is there until it is over");
    assert_eq!((sent, dropped, lost), (0, 0, 0));
    let of_first = format!("not delivered to {}", shown(&first));
    hsup.wait_for_line(&of_first);
    hsup.wait_for("the end of the first", || {
        let page = http(&socket, "GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n");
        (!page.contains(&shown(&first))).then_some(())
    });
    hsup.interrupt_and(|log| {
        assert_eq!(log.matches(&of_first).count(), 1, "{log}");
        let line = log.lines().find(|line| line.contains(&of_first)).unwrap();
        let (_, text) = line.split_once(" | ").unwrap();
        let undelivered: usize = text.split(' ').next().unwrap().parse().unwrap();
        assert!(undelivered as u64 >= read, "{text}");
        // From its beginning on, every line is with the second, or in the count.
        let begun = format!("Lines are sent to {}", shown(&first));
        let written = objects(&all);
        let at = written.iter().position(|object| object["line"] == *begun);
        let written = written.len() - at.expect("it has begun");
        assert!(second.told_missing() == (0, 0) && first.messages().is_empty());
        assert_eq!(second.messages().len() + undelivered, written, "{text}");
    });
}

/// What people see of it.
fn shown(logplex: &FakeLogplex) -> String {
    let url = logplex.url();
    let (_, host) = url.split_once('@').unwrap();
    format!("logplex+http://{}", host.trim_end_matches("/logs"))
}

/// The control socket in the runtime folder.
fn socket_of(app: &App) -> std::path::PathBuf {
    let entries = fs::read_dir(app.path("rt/hsup")).unwrap().flatten();
    let mut paths = entries.map(|entry| entry.path());
    paths
        .find(|path| path.extension().is_some_and(|end| end == "sock"))
        .unwrap()
}

#[test]
fn the_token_of_a_drain_is_in_no_output() {
    let (_, secret) = CREDENTIALS.split_once(':').unwrap();
    let dyno = binaries().join("test-dyno");
    // Again and again: the first lines may all be in the request that is refused.
    let line = format!("worker: while {} env; do sleep 0.2; done\n", dyno.display());
    let (app, logplex) = (App::procfile(&line), logplex());
    logplex.fail([Fault::Status(400, None), Fault::Reset, Fault::Reset]);
    let socket = app.path("s");
    let hsup = app.start_as(&["-s", socket.to_str().unwrap()], |command| {
        command.env("LOGPLEX_URL", logplex.url());
        // One more that has a secret, and nobody there.
        command.env(
            "HSUP_LOG_TO",
            format!("http://u:{secret}@127.0.0.1:1/{secret}?{secret}"),
        );
    });
    hsup.wait_for("lines that arrive", || {
        (!logplex.texts("worker.1").is_empty()).then_some(())
    });
    hsup.wait_for_line("Log drain http://127.0.0.1:1: Connection refused");
    hsup.signal(Signal::SIGUSR1);
    hsup.wait_for_line("driver connected");
    let mut said = hsup.log();
    said += &http(&socket, "GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n");
    said += &http(&socket, "GET /status HTTP/1.0\r\nHost: x\r\n\r\n");
    said += &String::from_utf8_lossy(&app.ctl(&["logs", "-n", "1000"]).stdout);
    said += &fs::read_to_string(format!("/proc/{}/cmdline", hsup.pid())).unwrap();
    for message in logplex.messages() {
        said += &message.text;
    }
    for wrong in ["--log-to", "--logplex-url"] {
        let url = format!("nonsense://u:{secret}@host/{secret}");
        let output = app.run(&["start", wrong, &url]);
        assert_eq!(output.status.code(), Some(2));
        said += &String::from_utf8_lossy(&output.stderr);
    }
    assert!(said.contains("names no log drain"), "{said}");
    assert!(said.contains("DYNO=worker.1"), "{said}");
    let mut files = vec![app.path("state")];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(
                fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else {
            said += &String::from_utf8_lossy(&fs::read(path).unwrap());
        }
    }
    let place = said.find(secret);
    let around = place.map(|at| &said[said.floor_char_boundary(at.saturating_sub(200))..at]);
    assert_eq!(around, None, "a secret follows this");
    hsup.interrupt();
}
