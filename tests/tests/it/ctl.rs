//! `hsupctl` as a person meets it, against a running hsup.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStdout, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::app::{App, Running, processes_of};

/// An app that says nothing once it is up.
fn quiet() -> App {
    App::procfile("worker: sleep 1000\n")
}

/// An `hsupctl` whose output is read line by line. Dropped, it is killed.
struct Following {
    child: Child,
    lines: Option<BufReader<ChildStdout>>,
}

impl Following {
    fn of(app: &App, arguments: &[&str]) -> Self {
        let mut command = app.command("hsupctl");
        command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let lines = child.stdout.take().map(BufReader::new);
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let lines = self.lines.as_mut().expect("it is still read");
        lines.read_line(&mut line).unwrap();
        line
    }

    /// Reads on until `text` was there; what was read.
    fn until(&mut self, text: &str) -> String {
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
        hsup.wait_for("the end of hsupctl", || self.child.try_wait().unwrap())
            .code()
    }
}

/// The exit code, standard output and standard error.
fn said(app: &App, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = app.ctl(arguments);
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
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

impl Drop for Following {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn what_follows_ends_when_nobody_reads_it_any_more() {
    let app = quiet();
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
fn an_app_goes_by_the_name_of_its_release() {
    let app = App::empty();
    let control = app.path("ctl");
    let hsup = app.start(&["--control-dir", control.to_str().unwrap()]);
    let status = |name: &str| app.ctl(&["--app", name, "status"]);
    // Without a release nothing is up.
    hsup.wait_for("an app named as its directory", || {
        (status("ctl").status.code() == Some(3)).then_some(())
    });
    app.write(
        "ctl/new",
        r#"{"Version":1,"Name":"sample","Processes":[{"Type":"worker","Quantity":1,"Args":["sleep","1000"]}]}"#,
    );
    hsup.wait_up(&["worker.1"]);
    let shown = status("sample");
    assert_eq!(shown.status.code(), Some(0));
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.starts_with("● sample\n"), "{text}");
    assert_eq!(status("ctl").status.code(), Some(4));
    hsup.interrupt();
}

#[test]
fn a_release_is_planned_applied_and_listed() {
    let app = quiet();
    let hsup = app.start(&[]);
    let before = hsup.wait_up(&["worker.1"]);
    let release = |command: &str, quantity: u32| {
        format!(
            r#"{{"Version":2,"Env":{{"SECRET":"hunter2"}},"Processes":[{{"Type":"worker","Quantity":{quantity},"Args":["{command}"]}}]}}"#
        )
    };
    app.write("next.json", &release("sleep 2000", 2));
    let next = app.path("next.json");
    let (code, plan, _) = said(&app, &["plan", next.to_str().unwrap()]);
    assert_eq!(code, Some(0));
    for line in [
        "warning: the next start of hsup runs the Procfile again: ",
        "+ config SECRET\n",
        "~ quantity worker: 1 -> 2\n",
        "~ command worker: sleep 1000 -> sleep 2000\n",
        "\nRestarts worker.1\nStarts worker.2\n",
    ] {
        assert!(plan.contains(line), "`{line}` is not in:\n{plan}");
    }
    assert!(!plan.contains("hunter2"), "{plan}");
    assert_eq!(
        hsup.wait_up(&["worker.1"]),
        before,
        "a plan changes nothing"
    );

    let (code, applied, _) = said(&app, &["apply", next.to_str().unwrap()]);
    assert_eq!(code, Some(0));
    let (warning, applied) = applied.split_once('\n').unwrap();
    assert!(
        warning.ends_with("in a control directory for good"),
        "{warning}"
    );
    assert_eq!(applied, "Release v2... done, is current\n");
    hsup.wait_up(&["worker.1", "worker.2"]);
    let (_, again, _) = said(&app, &["apply", next.to_str().unwrap()]);
    assert!(
        again.ends_with("Nothing to do: v2 runs already\n"),
        "{again}"
    );

    app.write("bad.json", &release("echo no such luck; exit 7", 1));
    let (code, _, error) = said(&app, &["apply", app.path("bad.json").to_str().unwrap()]);
    assert_eq!(code, Some(1));
    let expected = "hsupctl: release v2 was rejected: worker.1: Process exited with status 7\n\
        hint: `hsupctl releases` shows what its dynos said last\n";
    assert_eq!(error, expected);
    let (code, listed, _) = said(&app, &["releases"]);
    assert_eq!(code, Some(0));
    let states: Vec<_> = listed
        .lines()
        .filter(|line| line.starts_with('v'))
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    assert_eq!(states, ["rejected", "current", "superseded"], "{listed}");
    assert!(listed.contains("\n    | no such luck\n"), "{listed}");
    let (_, json, _) = said(&app, &["releases", "-o", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[1]["config_names"], serde_json::json!(["SECRET"]));

    let (code, _, error) = said(&app, &["apply", "/nonexistent"]);
    assert_eq!(code, Some(1));
    assert!(
        error.starts_with("hsupctl: failed to read the release from `/nonexistent`"),
        "{error}"
    );
    app.write("none.json", "{");
    let (code, _, error) = said(&app, &["apply", app.path("none.json").to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(error.contains("line 1 column"), "{error}");
    hsup.interrupt();
}

#[test]
fn a_restart_that_does_not_come_up_says_so() {
    let app = quiet();
    app.write(
        "app/Procfile",
        "worker: test ! -e ../broken && sleep 1000\nother: sleep 1000\n",
    );
    let hsup = app.start(&[]);
    let before = hsup.wait_up(&["other.1", "worker.1"]);
    let restarted = app.ctl(&["restart"]);
    let text = String::from_utf8(restarted.stdout).unwrap();
    assert_eq!(text, "Restarting other.1, worker.1... done\n");
    let after = hsup.wait_up(&["other.1", "worker.1"]);
    assert!(before.iter().all(|id| !after.contains(id)));

    app.write("broken", "");
    let failed = app.ctl(&["restart"]);
    assert_eq!(failed.status.code(), Some(1));
    let text = String::from_utf8(failed.stderr).unwrap();
    let said = "hsupctl: worker.1 did not come up: Process exited with status 1\nhint: ";
    assert!(text.starts_with(said), "{text}");
    let waited_for_nothing = app.ctl(&["restart", "--no-wait", "worker"]);
    let text = String::from_utf8(waited_for_nothing.stdout).unwrap();
    assert_eq!(text, "Restarting worker.1...\n");
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
fn the_socket_may_be_named_by_an_option_or_a_variable() {
    let app = quiet();
    let socket = app.path("elsewhere.sock");
    let hsup = app.start(&["-s", socket.to_str().unwrap()]);
    hsup.wait_for_line("State changed from starting to up");
    let code = |variable: &Path, arguments: &[&str]| {
        let mut command = app.command("hsupctl");
        command.env("HSUP_CONTROL_SOCKET", variable).args(arguments);
        command.output().unwrap().status.code()
    };
    let option = socket.to_str().unwrap();
    assert_eq!(code(&socket, &["ps"]), Some(0));
    assert_eq!(code("/no.sock".as_ref(), &["-s", option, "ps"]), Some(0));
    let long = ["ps", "--control-socket", option];
    assert_eq!(code("/no.sock".as_ref(), &long), Some(0));
    assert_eq!(code("".as_ref(), &["-s", option, "ps"]), Some(0));
    assert_eq!(code("/no.sock".as_ref(), &["ps"]), Some(4));
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
        (&["-p", "api"], "heroku[api]: Release v1 is current\n"),
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
