//! Rollouts as an operator steers them: strategies, checks.

use crate::app::{App, process, web};

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
