//! Rollouts as an operator steers them: strategies, checks, and the way back.

use std::process::Output;

use crate::app::{App, binaries, page, process, web};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_start_first_web_on_a_shared_port_is_refused() {
    let app = App::empty();
    app.release(1, "", &web("", "1"));
    let mut hsup = app.control(&["--strategy", "start-first"]);
    assert_eq!(hsup.end().code(), Some(1), "{}", hsup.log());
    let log = hsup.log();
    let hint = "the simple driver: they share this machine's ports";
    assert!(log.contains(hint), "{log}");
    for bad in ["rolling", "web=blue", "=stop-first"] {
        let output = app.run(&["start", "--strategy", bad]);
        assert_eq!(output.status.code(), Some(2), "{bad}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("use start-first or stop-first"), "{said}");
    }
}

#[test]
fn with_start_first_a_bad_release_takes_no_worker_down() {
    let app = App::empty();
    app.release(1, "", &process("worker", "sleep 1000", 2));
    let hsup = app.control(&["--strategy", "worker=start-first"]);
    let before = hsup.wait_up(&["worker.1", "worker.2"]);
    app.release(2, "", &process("worker", "exit 7", 2));
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    assert_eq!(hsup.wait_up(&["worker.1", "worker.2"]), before);
    assert_eq!(hsup.releases()[0]["gap_ms"], 0);

    // A good one takes their place, beside them, on a port of its own.
    app.release(3, "", &process("worker", "sleep 1001", 2));
    hsup.wait_releases(&["v3 current", "v2 rejected", "v1 superseded"]);
    let after = hsup.wait_up(&["worker.1", "worker.2"]);
    assert!(after.iter().all(|id| !before.contains(id)));
    hsup.wait_for_line("so PORT is");
    hsup.interrupt();
}

#[test]
fn a_release_whose_dyno_was_ready_and_ends_again_is_rolled_back() {
    let app = App::empty();
    app.release(1, "", &web("", "3"));
    let hsup = app.control(&["--boot-timeout", "60s"]);
    let before = hsup.wait_up(&["web.1", "web.2", "web.3"]);
    let dyno = binaries().join("test-dyno");
    let line = format!(
        "case $DYNO in web.1) {dyno} serve & until [ -e ../die ]; do sleep 0.05; done; echo alas; exit 7;; \
         *) touch ../next; exec sleep 1000;; esac",
        dyno = dyno.display()
    );
    app.release(2, "", &process("web", &line, 3));
    hsup.wait_for("the second wave", || {
        app.path("next").exists().then_some(())
    });
    app.write("die", "");
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    let rejected = &hsup.releases()[0];
    assert_eq!(rejected["reason"], "web.1: Process exited with status 7");
    assert!(rejected.to_string().contains("alas"), "{rejected}");
    let after = hsup.wait_up(&["web.1", "web.2", "web.3"]);
    assert_eq!(after[2], before[2], "it was touched");
    hsup.interrupt();
}

/// It is no other type that keeps the rollout open until it ends.
#[test]
fn a_web_that_accepts_connections_and_ends_at_once_is_not_ready() {
    let app = App::empty();
    app.release(1, "", &web("", "1"));
    let hsup = app.control(&[]);
    hsup.wait_up(&["web.1"]);
    // The first to connect is hsup.
    app.release(2, "", &web("--briefly", "1"));
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    let reason = hsup.releases()[0]["reason"].to_string();
    assert!(
        reason.contains("web.1: Process exited with status 3"),
        "{reason}"
    );
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
}

/// Where there is no better one, what crashes is started again.
#[test]
fn a_first_release_whose_dyno_ends_again_in_its_rollout_stays() {
    let app = App::empty();
    let dyno = binaries().join("test-dyno");
    let line = format!(
        "case $DYNO in web.1) [ -e ../died ] && exec {dyno} serve; {dyno} serve & \
         until [ -e ../next ]; do sleep 0.05; done; touch ../died; exit 7;; \
         *) touch ../next; until [ -e ../died ]; do sleep 0.05; done; exec {dyno} serve;; esac",
        dyno = dyno.display()
    );
    app.release(1, "", &process("web", &line, 2));
    let hsup = app.control(&["--boot-timeout", "60s"]);
    hsup.wait_up(&["web.1", "web.2"]);
    hsup.wait_releases(&["v1 current"]);
    hsup.interrupt();
}

#[test]
fn a_web_is_ready_when_it_answers_the_check() {
    let app = App::empty();
    app.release(1, "", &web("--once ../go", "1"));
    let hsup = app.control(&["--http-check", "web=/health", "--boot-timeout", "100s"]);
    hsup.wait_for_line("listening on");
    assert_ne!(hsup.dynos()[0]["ready"], true);
    app.write("go", "");
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
}

#[test]
fn a_release_that_fails_the_check_is_rolled_back_and_says_what_it_answered() {
    let app = App::empty();
    app.release(1, "", &web("", "1"));
    let hsup = app.control(&["--http-check", "/health"]);
    hsup.wait_up(&["web.1"]);
    app.release(2, "", &web("--once ../never", "1"));
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    let reason = hsup.releases()[0]["reason"].as_str().unwrap().to_owned();
    let expected = "did not answer GET /health with 2xx or 3xx within 2 seconds of launch: 503 Service Unavailable";
    assert!(reason.contains(expected), "{reason}");
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
}

#[test]
fn a_rollback_runs_an_earlier_release_as_a_new_one_and_a_restart_begins_with_it() {
    let app = App::empty();
    app.release(1, r#","SECRET":"hunter2""#, &web("", "1"));
    let hsup = app.control(&[]);
    hsup.wait_up(&["web.1"]);
    let none = app.ctl(&["rollback"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(
        said(&none).contains("hsup remembers no release that ran before v1"),
        "{}",
        said(&none)
    );
    app.release(2, "", &process("worker", "sleep 1000", 1));
    hsup.wait_up(&["worker.1"]);
    app.release(3, "", &process("worker", "exit 7", 1));
    hsup.wait_releases(&["v3 rejected", "v2 current", "v1 superseded"]);

    let unknown = app.ctl(&["rollback", "v9"]);
    assert_eq!(unknown.status.code(), Some(4), "{}", said(&unknown));
    let bad = app.ctl(&["rollback", "v3"]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(
        said(&bad).contains("v3 never ran: it was rejected: worker.1"),
        "{}",
        said(&bad)
    );
    let same = app.ctl(&["rollback", "2"]);
    assert!(said(&same).contains("v2 runs already"), "{}", said(&same));

    let back = app.ctl(&["rollback"]);
    let expected = "Release v4 (rollback to v1)... done, is current\n";
    assert_eq!(
        (said(&back).as_str(), back.status.code()),
        (expected, Some(0))
    );
    hsup.wait_releases(&[
        "v4 current",
        "v3 rejected",
        "v2 superseded",
        "v1 superseded",
    ]);
    hsup.wait_up(&["web.1"]);
    let page = page(app.port).unwrap();
    assert!(page.contains("release v4"), "{page}");
    hsup.wait_for("the file `loaded`", || {
        (app.version_in("loaded")? == 4).then_some(())
    });
    assert_eq!(app.last_error(), None);
    let shown = said(&app.ctl(&["releases", "v4"]));
    assert!(shown.contains("Config vars: PORT, SECRET"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
    hsup.interrupt_and(|log| assert!(!log.contains("hunter2"), "{log}"));

    let hsup = app.control(&[]);
    hsup.wait_up(&["web.1"]);
    assert_eq!(hsup.releases()[0]["version"], 4);
    hsup.interrupt();
}

#[test]
fn a_rollback_calls_off_what_is_being_rolled_out() {
    let app = App::empty();
    app.release(1, "", &web("", "1"));
    let hsup = app.control(&["--boot-timeout", "100s"]);
    hsup.wait_up(&["web.1"]);
    app.release(2, "", &web("--never", "1"));
    hsup.wait_dyno_of(2);
    let back = app.ctl(&["rollback"]);
    assert!(
        said(&back).contains("v3 (rollback to v1)... done"),
        "{}",
        said(&back)
    );
    hsup.wait_releases(&["v3 current", "v2 rejected", "v1 superseded"]);
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
}

#[test]
fn a_rollback_of_a_procfile_lasts_until_the_next_start() {
    let app = App::procfile("worker: sleep 1000\n");
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt();
    app.write("app/Procfile", "worker: sleep 1001\n");
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    let back = app.ctl(&["rollback"]);
    assert_eq!(back.status.code(), Some(0), "{}", said(&back));
    assert!(said(&back).contains("lasts until then"), "{}", said(&back));
    assert_eq!(hsup.dynos()[0]["command"], "sleep 1000");
    hsup.interrupt();
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    assert_eq!(hsup.dynos()[0]["command"], "sleep 1001");
    hsup.interrupt();
}
