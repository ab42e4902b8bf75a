//! `hsupctl logs` and `events`: what has been, and what follows.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::app::{App, Running, processes_of};

/// An `hsupctl` whose output is read line by line. Dropped, it is killed.
pub(crate) struct Following {
    child: Child,
    lines: Option<BufReader<ChildStdout>>,
}

impl Following {
    pub(crate) fn of(app: &App, arguments: &[&str]) -> Self {
        let mut command = app.command("hsupctl");
        command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let lines = child.stdout.take().map(BufReader::new);
        Self { child, lines }
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        let lines = self.lines.as_mut().expect("it is still read");
        lines.read_line(&mut line).unwrap();
        line
    }

    /// Reads on until `text` was there; what was read.
    pub(crate) fn until(&mut self, text: &str) -> String {
        let mut read = String::new();
        while !read.contains(text) {
            let line = self.line();
            assert!(!line.is_empty(), "ended before `{text}`:\n{read}");
            read.push_str(&line);
        }
        read
    }

    /// Reads no more, as `head` does, and waits for its end.
    fn abandon(&mut self, hsup: &Running<'_>) -> Option<i32> {
        self.lines = None;
        self.end(hsup)
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self, hsup: &Running<'_>) -> Option<i32> {
        hsup.wait_for("the end of hsupctl", || self.child.try_wait().unwrap())
            .code()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The process of the app that runs this command.
fn pid_of(app: &App, command: &[&str]) -> Pid {
    let line = command.join("\0") + "\0";
    let is_it =
        |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| it == line.as_bytes());
    let found = processes_of(app).into_iter().find(is_it);
    Pid::from_raw(found.unwrap_or_else(|| panic!("no process {command:?}")))
}

/// A line of `events` without its time.
fn without_time(line: &str) -> &str {
    line.splitn(4, ' ')
        .nth(3)
        .unwrap_or_else(|| panic!("{line}"))
}

#[test]
fn what_follows_ends_when_nobody_reads_it_any_more() {
    // It says nothing once it is up.
    let app = App::procfile("worker: sleep 1000\n");
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    for arguments in [&["logs", "-t"][..], &["events"]] {
        let mut following = Following::of(&app, arguments);
        assert!(!following.line().is_empty());
        assert_eq!(following.abandon(&hsup), Some(0), "{arguments:?}");
    }
    hsup.interrupt();
}

#[test]
fn events_tell_every_change_once_and_a_first_crash_too() {
    let app = App::procfile("worker: sleep 1000\nbad: exec sleep 2000\n");
    let hsup = app.start(&[]);
    hsup.wait_up(&["bad.1", "worker.1"]);
    let mut text = Following::of(&app, &["events"]);
    let mut json = Following::of(&app, &["events", "-o", "json"]);
    let snapshot = text.until(" worker.1 up\n");
    let lines: Vec<_> = snapshot.lines().map(without_time).collect();
    let expected = [
        "release v1 current",
        "formation worker=1 bad=1",
        "driver simple ready",
        "bad.1 up",
        "worker.1 up",
    ];
    assert_eq!(lines, expected);
    let first: Value = serde_json::from_str(&json.line()).unwrap();
    assert_eq!(
        (&first["event"], &first["all_up"]),
        (&"snapshot".into(), &true.into())
    );
    assert_eq!(first["dynos"][1]["name"], "worker.1");

    // The first crash is followed by a start at once.
    kill(pid_of(&app, &["sleep", "2000"]), Signal::SIGKILL).unwrap();
    let change = text.until(" bad.1 up\n");
    let lines: Vec<_> = change.lines().map(without_time).collect();
    let expected = [
        "bad.1 crashed: killed by SIGKILL (1st crash)",
        "bad.1 starting",
        "bad.1 up",
    ];
    assert_eq!(lines, expected, "{change}");
    let told = json.until(r#""state":"crashed""#);
    let crash: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    assert_eq!(crash["dyno"]["crash"]["signal"], "SIGKILL");

    assert!(app.ctl(&["restart", "worker.1"]).status.success());
    let change = text.until(" worker.1 up\n");
    assert_eq!(change.matches("worker.1 starting").count(), 1, "{change}");
    assert!(app.ctl(&["scale", "worker=0"]).status.success());
    let change = text.until(" worker.1 gone");
    assert!(change.contains("formation"), "{change}");
    hsup.interrupt();
}

#[test]
fn logs_of_a_name_that_never_was_are_refused() {
    let app = App::procfile("worker: echo hello; sleep 1000\nidle: true\n");
    let hsup = app.start(&["worker", "idle=0"]);
    hsup.wait_for_line("| hello");
    for (options, said) in [
        (&["-d", "nosuch"][..], "no dyno or process type `nosuch`"),
        (&["-t", "-p", "nosuch"], "no dyno or process type `nosuch`"),
        (&["-d", "worker.1", "-d", "worker.9"], "`worker.9`"),
        (&["-t", "-d", "../x"], "`../x` is neither"),
    ] {
        let refused = app.ctl(&[&["logs"], options].concat());
        assert_eq!(refused.status.code(), Some(4), "{options:?}");
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(text.contains(said), "{options:?}: {text}");
    }
    for (options, line) in [
        (&["-p", "worker"][..], "app[worker.1]: hello\n"),
        (&["-d", "worker.1", "-s", "app"], "app[worker.1]: hello\n"),
        (&["-p", "api"], "[api]: Release v1 is current\n"),
    ] {
        let shown = app.ctl(&[&["logs"], options].concat());
        let text = String::from_utf8(shown.stdout).unwrap();
        assert!(text.contains(line), "{options:?}: {text}");
    }
    for silent in ["idle", "system"] {
        let nothing = app.ctl(&["logs", "-d", silent]);
        assert_eq!((nothing.status.code(), nothing.stdout.len()), (Some(0), 0));
    }
    // What has gone is still known by its lines.
    assert!(app.ctl(&["scale", "worker=0"]).status.success());
    hsup.wait_for_line("State changed from up to down");
    let past = app.ctl(&["logs", "-d", "worker.1", "-s", "app"]);
    let text = String::from_utf8(past.stdout).unwrap();
    assert!(text.ends_with(": hello\n"), "{text}");
    hsup.interrupt();
}
