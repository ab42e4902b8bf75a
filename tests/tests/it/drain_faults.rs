//! What drains other than Logplex get when their other end fails.

use std::time::Duration;

use hsup_tests::fake::{
    logplex::{Dialect, FakeLogplex, Fault},
    stream::{Break, FakeStream},
    syslog::whole_messages,
};
use serde_json::Value;

use crate::{
    app::{App, binaries},
    drains::{books, objects, writes},
};

#[test]
fn an_https_drain_that_fails_gets_every_line_or_its_count() {
    const LINES: u32 = 4000;
    let app = writes(LINES);
    let drain = FakeLogplex::start(Dialect::Drain).unwrap();
    drain.fail([
        Fault::Reset,
        Fault::CutBody,
        Fault::Status(502, None),
        Fault::Status(403, None),
        Fault::Delay(Duration::from_millis(50)),
        Fault::Status(429, Some(0)),
        Fault::Reset,
    ]);
    let all = app.path("all.json");
    let json = format!("json://{}", all.display());
    let arguments = ["--oneshot", "--log-to", &drain.url(), "--log-to", &json];
    let mut hsup = app.start(&arguments);
    assert_eq!(hsup.end().code(), Some(0), "{}", hsup.log());
    let (dropped, lost) = drain.told_missing();
    assert!(dropped == 0 && lost > 0, "{:?}", drain.seen());
    let taken = drain.messages();
    let taken = taken.iter().filter(|message| message.priority != 172);
    let written = objects(&all).len() as u64;
    assert_eq!(taken.count() as u64 + lost, written, "{:?}", drain.seen());
}

/// What goes wrong with the first connections of a stream.
const BREAKS: [Break; 4] = [
    Break::Reset(100_001),
    Break::Close(50_003),
    Break::Reset(5),
    Break::Delay(Duration::from_millis(50)),
];

/// Has a drain with this scheme survive a stream that breaks in the middle of messages, with more
/// on its way, and looks at each connection: `lines` gives the texts of the dyno's whole lines in
/// it, or `None` when it is malformed.
///
/// There is no answer to syslog, nor to JSON over a stream: what a dead connection had taken is
/// missing, and nobody can know.
fn survives_breaks(scheme: &str, lines: fn(&[u8]) -> Option<Vec<String>>) {
    const LINES: u32 = 1000;
    let dyno = binaries().join("test-dyno");
    let line = format!(
        "while {} lines {LINES}; do sleep 0.05; done",
        dyno.display()
    );
    let app = App::procfile(&format!("worker: {line}\n"));
    let certificate = app.path("ca.pem");
    let (stream, host) = if scheme.ends_with("+tls") {
        let stream = FakeStream::over_tls(&certificate, BREAKS).unwrap();
        (stream, "localhost")
    } else {
        (FakeStream::start(BREAKS).unwrap(), "127.0.0.1")
    };
    let url = format!("{scheme}://{host}:{}", stream.address().port());
    let socket = app.path("s");
    let arguments = ["-s", socket.to_str().unwrap(), "--log-to", &url];
    let hsup = app.start_as(&arguments, |command| {
        command.env("SSL_CERT_FILE", &certificate);
    });
    let numbers = |connection: &Vec<u8>| -> Vec<u32> {
        let lines = lines(connection).unwrap_or_else(|| {
            panic!("malformed: {}", String::from_utf8_lossy(connection));
        });
        lines
            .iter()
            .map(|line| line.trim_end().parse().unwrap())
            .collect()
    };
    hsup.wait_for("lines after all that", || {
        let connections = stream.connections();
        let fourth = connections.get(3)?;
        (numbers(fourth).len() > 2 * LINES as usize).then_some(())
    });
    let [_, _, dropped, lost, _] = books(&socket, 1);
    assert_eq!((dropped, lost), (0, 0), "what was tried again is not lost");
    hsup.interrupt_and(|log| assert!(!log.contains("not delivered"), "{log}"));
    for connection in stream.connections() {
        let numbers = numbers(&connection);
        let follows = |pair: &[u32]| pair[1] == (pair[0] + 1) % LINES;
        assert!(
            numbers.windows(2).all(follows),
            "a hole within a connection"
        );
    }
}

/// The texts of the dyno's lines in syslog's frames.
fn of_syslog(connection: &[u8]) -> Option<Vec<String>> {
    let messages = whole_messages(connection)?;
    let own = messages
        .into_iter()
        .filter(|message| message.source == "app");
    let of_dyno = own.filter(|message| message.dyno == "worker.1");
    Some(of_dyno.map(|message| message.text).collect())
}

#[test]
fn syslog_over_tcp_is_framed_right_whatever_breaks() {
    survives_breaks("syslog", of_syslog);
}

#[test]
fn syslog_over_tls_is_framed_right_whatever_breaks() {
    survives_breaks("syslog+tls", of_syslog);
}

#[test]
fn json_over_tcp_is_whole_lines_whatever_breaks() {
    survives_breaks("json+tcp", |connection| {
        let end = connection.iter().rposition(|byte| *byte == b'\n');
        let whole = &connection[..end.map_or(0, |end| end + 1)];
        let objects = str::from_utf8(whole).ok()?.lines();
        let objects: Result<Vec<Value>, _> = objects.map(serde_json::from_str).collect();
        let objects = objects.ok()?.into_iter();
        let own =
            objects.filter(|object| object["dyno"] == "worker.1" && object["source"] == "app");
        Some(
            own.map(|object| object["line"].as_str().unwrap().to_owned())
                .collect(),
        )
    });
}
