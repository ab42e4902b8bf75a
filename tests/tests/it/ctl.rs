//! `hsupctl` as a person meets it, against a running hsup.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStdout, Stdio},
};

use crate::app::{App, Running};

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
        command.args(arguments).stdout(Stdio::piped());
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

    /// Reads no more, as `head` does, and waits for its end.
    fn abandon(&mut self, hsup: &Running<'_>) -> Option<i32> {
        self.lines = None;
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
