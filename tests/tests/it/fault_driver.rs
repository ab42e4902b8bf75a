//! `hsup-driver-fault` as a program that somebody starts by hand.

use crate::app::{App, Running, processes_of};

/// The driver of faults with this script, at the socket `f.sock`.
fn driver<'a>(app: &'a App, script: &str, options: &[&str]) -> Running<'a> {
    let mut command = app.command("hsup-driver-fault");
    let socket = app.path("f.sock");
    command.args(["--script", script, "--socket"]).arg(socket);
    command.args(options);
    Running::of(app, command.spawn().unwrap())
}

#[test]
fn a_script_may_stand_on_the_command_line() {
    let app = App::procfile("worker: exec sleep 1000\n");
    let script = "once start@worker- aborted not now; once stop cut-after";
    let _driver = driver(&app, script, &["--", "--durable"]);
    let socket = app.path("f.sock");
    let hsup = app.start(&["--driver-socket", socket.to_str().unwrap()]);
    let before = hsup.wait_up(&["worker.1"]);
    // The answer is lost, and it has ended all the same.
    assert!(app.ctl(&["restart"]).status.success());
    assert_ne!(hsup.wait_up(&["worker.1"]), before);
    let processes = processes_of(&app).into_iter();
    let is_dyno = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"sleep\0")
    };
    assert_eq!(processes.filter(is_dyno).count(), 1);
}

#[test]
fn a_script_that_makes_no_sense_is_refused() {
    let app = App::procfile("");
    for (script, why) in [
        ("once start explode", "line 1: `explode` is no fault"),
        ("start die; go hang", "line 2: `go` is no call"),
    ] {
        let mut command = app.command("hsup-driver-fault");
        command.args(["--script", script, "--socket", "f.sock"]);
        let output = hsup_tests::deadline::output(&mut command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why), "{said}");
    }
}
