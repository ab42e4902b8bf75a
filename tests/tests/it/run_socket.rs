//! `hsup run -s PATH`: a one-off seen and stopped through a socket.

use std::{
    fs::{self, File},
    process::{Child, Output, Stdio},
};

use hsup_tests::deadline;
use serde_json::Value;

use crate::app::{App, Running, binaries, processes_of};

/// A command with a socket, and hsupctl at it.
struct Command<'a> {
    hsup: Running<'a>,
    socket: String,
}

impl<'a> Command<'a> {
    fn run(app: &'a App, line: &str) -> Self {
        let socket = app.path("run.sock").to_str().unwrap().to_owned();
        let driver = binaries().join("hsup-driver-fault");
        let arguments = ["-s", &socket, "-d", driver.to_str().unwrap(), line];
        let out = File::create(app.path("out")).unwrap();
        let err = File::create(app.path("err")).unwrap();
        let hsup = app.spawn("run", &arguments, out, err);
        Self { hsup, socket }
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        self.hsup
            .app
            .ctl(&[&["-s", &self.socket], arguments].concat())
    }

    /// hsupctl beside the test; what it says is in a file of its own.
    fn beside(&self, file: &str, arguments: &[&str]) -> Child {
        let mut command = self.hsup.app.command("hsupctl");
        command
            .args(["-s", &self.socket])
            .args(arguments)
            .stdout(File::create(self.hsup.app.path(file)).unwrap())
            .stderr(Stdio::null());
        command.spawn().unwrap()
    }

    fn dyno(&self) -> Option<Value> {
        let shown = self.ctl(&["ps", "-o", "json"]);
        let dynos: Value = serde_json::from_slice(&shown.stdout).ok()?;
        dynos.get(0).cloned()
    }

    fn wait_until(&self, state: &str) -> Value {
        self.hsup
            .wait_for(state, || self.dyno().filter(|dyno| dyno["state"] == state))
    }

    fn ends(mut self, code: i32) {
        assert_eq!(self.hsup.end().code(), Some(code), "{}", self.hsup.log());
        self.hsup.nothing_is_left();
        for left in [self.socket.clone(), format!("{}.lock", self.socket)] {
            assert!(!fs::exists(&left).unwrap(), "{left}");
        }
    }
}

#[test]
fn the_socket_shows_how_far_the_command_is_from_the_first_moment_to_the_last() {
    let app = App::procfile("web: true\n");
    app.faults("is not-ready still warming up\n");
    let line = "trap 'while [ ! -e ../end ]; do sleep 0.02; done; exit 5' TERM; \
                while :; do sleep 0.02; done";
    let command = Command::run(&app, line);
    let dyno = command.wait_until("starting");
    assert_eq!(dyno["ready"], false);
    assert_eq!(dyno["dyno_id"], Value::Null);
    let mut events = command.beside("events", &["events", "-o", "json"]);
    let told = || -> Vec<Value> {
        let text = fs::read_to_string(app.path("events")).unwrap();
        let lines = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    command
        .hsup
        .wait_for("a snapshot", || (told().len() == 1).then_some(()));
    command.hsup.wait_for("the driver's reason", || {
        let shown = command.ctl(&["driver", "info"]);
        let shown = String::from_utf8(shown.stdout).unwrap();
        shown.contains("still warming up").then_some(())
    });

    app.faults("");
    let dyno = command.wait_until("up");
    assert_eq!(dyno["ready"], true);
    assert!(dyno["dyno_id"].is_string());

    let mut stop = command.beside("stop", &["stop", "run.1"]);
    command.wait_until("stopping");
    let at_once = command.ctl(&["stop", "--no-wait", "run"]);
    assert_eq!(at_once.status.code(), Some(0));
    assert!(stop.try_wait().unwrap().is_none(), "it is not down yet");
    app.write("end", "");
    assert_eq!(deadline::end(&mut stop).code(), Some(0));
    command.ends(5);

    deadline::end(&mut events);
    let told = told();
    assert_eq!(told[0]["event"], "snapshot");
    assert_eq!(told[0]["dynos"][0]["state"], "starting");
    assert_eq!(told[0]["all_up"], false);
    let states: Vec<_> = told[1..]
        .iter()
        .map(|event| &event["dyno"]["state"])
        .collect();
    assert_eq!(states, ["up", "stopping", "complete"]);
    assert_eq!(told[3]["dyno"]["last_exit"]["code"], 5);
}

#[test]
fn hsupctl_finds_the_command_by_itself_and_shows_its_release() {
    let app = App::procfile("web: true\n");
    let command = Command::run(&app, "exec sleep 1000");
    command.wait_until("up");
    let shown = |arguments: &[&str]| {
        let shown = app.ctl(arguments);
        assert_eq!(shown.status.code(), Some(0), "{arguments:?}: {shown:?}");
        String::from_utf8(shown.stdout).unwrap()
    };
    let at = format!(" at {}", command.socket);
    assert!(shown(&["version"]).contains(&at), "{}", shown(&["version"]));
    let status = shown(&["status"]);
    assert!(status.contains("Release: v1 from Procfile, "), "{status}");
    assert!(!status.contains("Formation"), "{status}");
    let mut events = command.beside("events", &["events"]);
    let told = || fs::read_to_string(app.path("events")).unwrap();
    let snapshot = || told().contains("run.1 up").then(told);
    let snapshot = command.hsup.wait_for("a snapshot", snapshot);
    assert!(snapshot.contains(" release v1 current"), "{snapshot}");
    assert!(!snapshot.contains(" formation"), "{snapshot}");
    shown(&["stop"]);
    command.ends(143);
    deadline::end(&mut events);
}

#[test]
fn a_stop_ends_what_has_not_begun() {
    let app = App::procfile("web: true\n");
    app.faults("build hang\n");
    for arguments in [&["stop", "run.1"][..], &["shutdown"]] {
        let command = Command::run(&app, "true");
        command.wait_until("starting");
        assert_eq!(command.ctl(arguments).status.code(), Some(0));
        command.ends(143);
    }
    assert!(app.calls("start").is_empty());
}

#[test]
fn a_shutdown_is_answered_when_the_command_is_down() {
    let app = App::procfile("web: true\n");
    let command = Command::run(&app, "trap 'exit 6' TERM; while :; do sleep 0.02; done");
    command.wait_until("up");
    assert_eq!(command.ctl(&["shutdown"]).status.code(), Some(0));
    let bash = |pid: &i32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"bash\0"))
    };
    assert!(!processes_of(&app).iter().any(bash));
    command.ends(6);
}

#[test]
fn a_shutdown_whose_driver_does_not_stop_the_command_does_not_pass_for_one() {
    let app = App::procfile("web: true\n");
    app.faults("stop hang\n");
    let command = Command::run(&app, "exec sleep 1000");
    command.wait_until("up");
    let said = command.ctl(&["shutdown", "--grace", "0"]);
    let expected = "hsupctl: it is not known how the command ended: \
                    the driver did not stop it in time\n";
    assert_eq!(String::from_utf8(said.stderr).unwrap(), expected);
    assert_eq!(said.status.code(), Some(1));
    assert!(said.stdout.is_empty());
    command.ends(1);
}

#[test]
fn a_command_that_was_stopped_has_ended_though_the_driver_does_not_tell() {
    let app = App::procfile("web: true\n");
    app.faults("wait hang\n");
    let command = Command::run(&app, "trap 'exit 6' TERM; while :; do sleep 0.02; done");
    command.wait_until("up");
    assert_eq!(command.ctl(&["stop", "run.1"]).status.code(), Some(0));
    command.ends(6);
}

#[test]
fn what_a_one_off_cannot_do_is_said_with_the_reason() {
    let app = App::procfile("web: true\n");
    let command = Command::run(&app, "exec sleep 1000");
    command.wait_until("up");
    for (arguments, why) in [
        (&["logs"][..], "goes to its own standard output"),
        (&["releases"], "it runs in one release, and remembers none"),
        (
            &["scale", "web=2"],
            "it has one dyno, which can be seen and stopped",
        ),
        (
            &["restart", "run.1"],
            "it has one dyno, which can be seen and stopped",
        ),
    ] {
        let answer = command.ctl(arguments);
        let said = String::from_utf8(answer.stderr).unwrap();
        assert_eq!(answer.status.code(), Some(1), "{said}");
        assert!(said.contains("this is `hsup run`: "), "{said}");
        assert!(said.contains(why), "{said}");
    }
    let unknown = command.ctl(&["stop", "web.1"]);
    assert_eq!(unknown.status.code(), Some(4));
    assert_eq!(command.ctl(&["stop", "--force"]).status.code(), Some(0));
    command.ends(137);
}
