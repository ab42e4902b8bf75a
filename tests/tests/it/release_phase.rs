//! The release phase: a release's command runs once, before any dyno of it.

use std::fs;

use nix::sys::signal::Signal;

use crate::app::{App, Running, process, web};

/// What the release commands of an app have written to its file `ran`.
fn ran(app: &App) -> Vec<String> {
    let text = fs::read_to_string(app.path("ran")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// A release whose command is this shell line.
fn release(app: &App, version: u32, line: &str) {
    let command = process("release", &format!("echo {version} >> ../ran; {line}"), 1);
    app.release(version, "", &format!("{},{command}", web("", "1")));
}

/// v1 runs, and had nothing to do in its release phase.
fn with_v1<'a>(app: &'a App, arguments: &[&str]) -> Running<'a> {
    release(app, 1, "true");
    let hsup = app.control(arguments);
    hsup.wait_up(&["web.1"]);
    hsup
}

#[test]
fn the_command_runs_once_per_release_and_not_for_quantities() {
    let app = App::empty();
    let hsup = with_v1(&app, &[]);
    assert_eq!(ran(&app), ["1"]);
    let log = hsup.log();
    let (done, up) = (
        "release.1 | Process exited with status 0",
        "web.1     | Starting process",
    );
    assert!(log.find(done).unwrap() < log.find(up).unwrap(), "{log}");

    let command = process("release", "echo 1 >> ../ran; true", 5);
    app.release(1, "", &format!("{},{command}", web("", "2")));
    hsup.wait_up(&["web.1", "web.2"]);
    assert!(app.ctl(&["scale", "web=1"]).status.success());
    let refused = app.ctl(&["scale", "release=1"]);
    assert!(!refused.status.success());
    hsup.wait_up(&["web.1"]);
    assert_eq!(ran(&app), ["1"]);

    release(&app, 2, "true");
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    assert!(app.ctl(&["rollback"]).status.success());
    assert_eq!(ran(&app), ["1", "2", "1"], "a rollback is a release");
    hsup.interrupt();

    // A restart of hsup is none. (Two dynos are what v1 had in the end.)
    let hsup = app.control(&[]);
    hsup.wait_up(&["web.1", "web.2"]);
    assert_eq!(ran(&app).len(), 3);
    hsup.interrupt();
}

#[test]
fn a_release_whose_command_fails_is_rejected_and_touches_no_dyno() {
    let app = App::empty();
    let hsup = with_v1(&app, &[]);
    let before = hsup.wait_up(&["web.1"]);
    release(&app, 2, "echo no such table; exit 3");
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    assert_eq!(hsup.wait_up(&["web.1"]), before);
    let rejected = &hsup.releases()[0];
    let expected = "release command failed: Process exited with status 3";
    assert_eq!(rejected["reason"], expected);
    assert_eq!(rejected["last_lines"], serde_json::json!(["no such table"]));
    assert!(app.last_error().unwrap().contains(expected));
    hsup.wait_for_line("Release v2 rejected, v1 keeps running: release command failed");
    hsup.interrupt();
}

#[test]
fn a_command_that_takes_too_long_is_ended() {
    let app = App::empty();
    let hsup = with_v1(&app, &["--release-timeout", "1s"]);
    release(&app, 2, "echo waiting; sleep 1000");
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    let reason = hsup.releases()[0]["reason"].as_str().unwrap().to_owned();
    assert_eq!(
        reason,
        "release command failed: it did not end within 1 seconds"
    );
    hsup.interrupt();
}

#[test]
fn while_it_runs_it_is_shown_and_a_newer_release_waits_for_its_end() {
    let app = App::empty();
    let hsup = with_v1(&app, &[]);
    release(
        &app,
        2,
        "until [ -e ../go ]; do sleep 0.1; done; echo end of 2 >> ../ran",
    );
    hsup.wait_releases(&["v2 releasing", "v1 current"]);
    hsup.wait_for("release.2", || {
        let dynos = hsup.dynos();
        dynos
            .iter()
            .any(|dyno| dyno["name"] == "release.2")
            .then_some(())
    });
    // It is no dyno of the formation: nothing that is wanted is missing.
    assert_eq!(app.ctl(&["ps"]).status.code(), Some(0));
    release(&app, 3, "true");
    hsup.wait_for_line("Release v3 waits until the release command of v2 has ended");
    hsup.wait_for_line("Release v2 rejected: overtaken by v3 before it was released");
    app.write("go", "");
    hsup.wait_releases(&["v3 current", "v2 rejected", "v1 superseded"]);
    assert_eq!(ran(&app), ["1", "2", "end of 2", "3"]);
    hsup.interrupt();
}

#[test]
fn a_killed_hsup_leaves_it_to_the_next_one_and_it_does_not_run_twice() {
    let app = App::empty();
    let hsup = with_v1(&app, &[]);
    release(&app, 2, "until [ -e ../go ]; do sleep 0.1; done");
    hsup.wait_releases(&["v2 releasing", "v1 current"]);
    hsup.wait_for("its process", || (ran(&app).len() == 2).then_some(()));
    hsup.kill();
    let hsup = app.control(&[]);
    hsup.wait_for_line("Taking over 2 dynos of an earlier hsup");
    app.write("go", "");
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    hsup.wait_up(&["web.1"]);
    assert_eq!(ran(&app), ["1", "2"]);
    hsup.interrupt();
}

#[test]
fn one_that_was_stopped_with_hsup_is_begun_anew_by_the_next_one() {
    let app = App::empty();
    let hsup = with_v1(&app, &[]);
    release(&app, 2, "test -e ../go || sleep 1000");
    hsup.wait_releases(&["v2 releasing", "v1 current"]);
    hsup.wait_for("its process", || (ran(&app).len() == 2).then_some(()));
    hsup.interrupt_and(|log| {
        let said = "Release v2: its release command was stopped, and is run again";
        assert!(log.contains(said), "{log}");
    });
    app.write("go", "");
    let hsup = app.control(&[]);
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    hsup.wait_up(&["web.1"]);
    assert_eq!(ran(&app), ["1", "2", "2"]);
    hsup.interrupt();
}

#[test]
fn a_procfiles_command_runs_at_each_start_and_its_failure_is_hsups() {
    let app = App::procfile("worker: sleep 1000\nrelease: echo ran >> ../ran; test ! -e ../bad\n");
    for times in 1..=2 {
        let hsup = app.start(&[]);
        hsup.wait_up(&["worker.1"]);
        assert_eq!(ran(&app).len(), times);
        hsup.interrupt();
    }
    let hsup = app.start(&["--no-release-phase"]);
    hsup.wait_up(&["worker.1"]);
    assert_eq!(ran(&app).len(), 2);
    hsup.interrupt();
    app.write("bad", "");
    let mut hsup = app.start(&[]);
    assert_eq!(hsup.end().code(), Some(1), "{}", hsup.log());
    assert_eq!(ran(&app).len(), 3);
    let log = hsup.log();
    assert!(
        log.contains("hsup: release command failed: Process exited with status 1"),
        "{log}"
    );
    assert!(!log.contains("worker.1"), "{log}");
    hsup.nothing_is_left();
}

#[test]
fn a_procfiles_command_that_outlives_hsup_is_waited_for_and_its_failure_is_hsups() {
    let line = "echo ran >> ../ran; until [ -e ../go ]; do sleep 0.1; done; test ! -e ../bad";
    let app = App::procfile(&format!("worker: sleep 1000\nrelease: {line}\n"));
    // That of a first release, and that of one which ran before.
    for times in 1..=2 {
        let hsup = app.start(&["--linger", "60s"]);
        hsup.wait_for("its process", || (ran(&app).len() == times).then_some(()));
        hsup.kill();
        let mut hsup = app.start(&["--linger", "60s"]);
        hsup.wait_for_line("Taking over 1 dyno of an earlier hsup");
        hsup.wait_releases(if times == 1 {
            &["v1 releasing"]
        } else {
            &["v1 current"]
        });
        if times == 1 {
            app.write("go", "");
            hsup.wait_up(&["worker.1"]);
            assert_eq!(ran(&app).len(), 1);
            hsup.interrupt();
            fs::remove_file(app.path("go")).unwrap();
            continue;
        }
        app.write("bad", "");
        app.write("go", "");
        assert_eq!(hsup.end().code(), Some(1), "{}", hsup.log());
        assert_eq!(ran(&app).len(), 2);
        let log = hsup.log();
        let why = "hsup: release command failed: Process exited with status 1";
        assert!(log.contains(why), "{log}");
        assert!(!log.contains("worker.1"), "{log}");
        hsup.nothing_is_left();
    }
}

#[test]
fn a_start_that_is_interrupted_in_it_ends() {
    let line = "echo ran >> ../ran; test -e ../quick || sleep 1000";
    let app = App::procfile(&format!("worker: sleep 1000\nrelease: {line}\n"));
    let interrupted = |times: usize| {
        let mut hsup = app.start(&[]);
        hsup.wait_for("its process", || (ran(&app).len() == times).then_some(()));
        hsup.signal(Signal::SIGINT);
        assert_eq!(hsup.end().code(), Some(130), "{}", hsup.log());
        hsup.nothing_is_left();
    };
    interrupted(1);
    app.write("quick", "");
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt();
    // Now it is a release that was good.
    fs::remove_file(app.path("quick")).unwrap();
    interrupted(3);
}
