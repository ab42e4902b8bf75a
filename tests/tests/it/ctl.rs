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
