//! What people ask for beside the release: scalings and stops, also while a release is on its
//! way.

use crate::app::{App, Running, process, web};

/// A web that begins to serve once the file `go` is there.
fn waiting(quantity: &str) -> String {
    let wait = r#""until [ -e ../go ]; do sleep 0.1; done; exec","#;
    web("", quantity).replace(r#""exec","#, wait)
}

/// v1 runs, and v2, with as many webs of its own, waits for `go`.
fn with_v2_on_trial<'a>(app: &'a App, quantity: &str) -> Running<'a> {
    app.release(1, "", &web("", "1"));
    let hsup = app.control(&["--boot-timeout", "100s"]);
    hsup.wait_up(&["web.1"]);
    app.release(2, "", &waiting(quantity));
    hsup.wait_releases(&["v2 rolling out", "v1 current"]);
    hsup.wait_dyno_of(2);
    hsup
}

#[test]
fn a_quantity_that_changes_in_a_rollout_restarts_nothing() {
    let app = App::empty();
    let hsup = with_v2_on_trial(&app, "2");
    let on_trial = hsup.wait_dyno_of(2);
    app.release(2, "", &waiting("3"));
    hsup.wait_for("v2 with three", || {
        (hsup.releases()[0]["processes"][0]["quantity"] == 3).then_some(())
    });
    app.write("go", "");
    let up = hsup.wait_up(&["web.1", "web.2", "web.3"]);
    assert_eq!(up[0], on_trial);
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    hsup.interrupt();
}

#[test]
fn a_scaling_in_a_rollout_is_the_later_word() {
    let app = App::empty();
    let hsup = with_v2_on_trial(&app, "2");
    assert!(app.ctl(&["scale", "web=4"]).status.success());
    app.write("go", "");
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    hsup.wait_up(&["web.1", "web.2", "web.3", "web.4"]);
    // And what a release says after that is later still.
    app.release(3, "", &web("", "1"));
    hsup.wait_releases(&["v3 current", "v2 superseded", "v1 superseded"]);
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
}

#[test]
fn a_stop_in_a_rollout_holds_in_the_new_release() {
    let app = App::empty();
    let worker = process("worker", "sleep 1000", 2);
    app.release(1, "", &format!("{},{worker}", web("", "1")));
    let hsup = app.control(&["--boot-timeout", "100s"]);
    hsup.wait_up(&["web.1", "worker.1", "worker.2"]);
    app.release(2, "", &format!("{},{worker}", waiting("1")));
    hsup.wait_dyno_of(2);
    assert!(app.ctl(&["stop", "worker.2"]).status.success());
    app.write("go", "");
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    hsup.wait_for("two up and one down", || {
        let dynos = hsup.dynos();
        let states: Vec<_> = dynos
            .iter()
            .filter_map(|dyno| dyno["state"].as_str())
            .collect();
        (states == ["up", "up", "down"]).then_some(())
    });
    hsup.interrupt();
}

#[test]
fn a_release_of_which_nothing_is_wanted_any_more_is_current_all_the_same() {
    let app = App::empty();
    let hsup = with_v2_on_trial(&app, "1");
    assert!(app.ctl(&["scale", "web=0"]).status.success());
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    app.write("go", "");
    assert!(app.ctl(&["scale", "web=1"]).status.success());
    hsup.wait_dyno_of(2);
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
}

#[test]
fn a_release_whose_dyno_is_stopped_before_it_was_ready_does_not_take_the_good_ones_place() {
    let app = App::empty();
    let hsup = with_v2_on_trial(&app, "1");
    assert!(app.ctl(&["stop", "web.1"]).status.success());
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    let reason = hsup.releases()[0]["reason"].to_string();
    assert!(
        reason.contains("web.1: stopped before it was ready"),
        "{reason}"
    );
    assert!(app.ctl(&["start", "web.1"]).status.success());
    hsup.wait_up(&["web.1"]);
    hsup.wait_dyno_of(1);
    hsup.interrupt();
}

#[test]
fn a_type_that_is_scaled_away_on_trial_holds_up_no_other() {
    let app = App::empty();
    let worker = process("worker", "sleep 1000", 1);
    app.release(1, "", &format!("{},{worker}", web("", "1")));
    let hsup = app.control(&["--boot-timeout", "100s"]);
    hsup.wait_up(&["web.1", "worker.1"]);
    app.release(2, "", &format!("{},{worker}", waiting("1")));
    hsup.wait_dyno_of(2);
    hsup.wait_for("the worker of v2", || {
        let dynos = hsup.dynos();
        let is_up = |dyno: &serde_json::Value| dyno["release"] == 2 && dyno["state"] == "up";
        dynos.iter().any(is_up).then_some(())
    });
    assert!(app.ctl(&["scale", "web=0"]).status.success());
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt();
}

#[test]
fn what_was_asked_for_in_an_earlier_life_is_said_at_the_start() {
    let app = App::procfile("api: sleep 1000\nworker: sleep 1000\n");
    let hsup = app.start(&[]);
    hsup.wait_up(&["api.1", "worker.1"]);
    assert!(app.ctl(&["scale", "api=2"]).status.success());
    assert!(app.ctl(&["stop", "worker.1"]).status.success());
    hsup.interrupt();

    let hsup = app.start(&[]);
    hsup.wait_for_line("Scaled before: api=2");
    hsup.wait_for_line("Stopped before, and so until `hsupctl start`: worker.1");
    hsup.interrupt();

    // The command line is the later word.
    let hsup = app.start(&["worker"]);
    hsup.wait_up(&["worker.1"]);
    assert!(!hsup.log().contains("before"), "{}", hsup.log());
    hsup.interrupt();
    let hsup = app.start(&["worker=0"]);
    hsup.wait_for_line("There is nothing to run");
    hsup.interrupt();
}

#[test]
fn what_was_asked_for_outlives_a_start_with_the_same_types() {
    let app = App::procfile("api: sleep 1000\nworker: sleep 1000\n");
    let types = ["api=1", "worker"];
    let hsup = app.start(&types);
    hsup.wait_up(&["api.1", "worker.1"]);
    assert!(app.ctl(&["scale", "api=2"]).status.success());
    assert!(app.ctl(&["stop", "worker.1"]).status.success());
    hsup.interrupt();
    // As a manager does that starts hsup again.
    let hsup = app.start(&types);
    hsup.wait_for_line("Scaled before: api=2");
    hsup.wait_for_line("Stopped before, and so until `hsupctl start`: worker.1");
    hsup.interrupt();
}

#[test]
fn what_runs_once_runs_though_it_was_stopped_the_last_time() {
    let app = App::procfile("report: echo begun; sleep 1000\n");
    for _ in 0..2 {
        let mut hsup = app.start(&["--oneshot", "report"]);
        hsup.wait_for_line("begun");
        hsup.wait_up(&["report.1"]);
        assert!(app.ctl(&["stop", "report.1"]).status.success());
        hsup.end();
        hsup.nothing_is_left();
    }
}

#[test]
fn a_port_is_the_same_whatever_runs_and_in_every_life() {
    let line = "echo port=$PORT; exec sleep 1000";
    let app = App::procfile(&format!(
        "release: true\nweb: {line}\nclock: {line}\nworker: {line}\n"
    ));
    for _ in 0..2 {
        let hsup = app.start(&["worker"]);
        hsup.wait_for_line(&format!("port={}", app.port + 200));
        hsup.interrupt();
    }
}

#[test]
fn a_type_that_there_is_not_takes_no_survivor_down() {
    let app = App::procfile("worker: sleep 1000\n");
    let hsup = app.start(&["--linger", "60s"]);
    let before = hsup.wait_up(&["worker.1"]);
    hsup.kill();
    let refused = app.run(&["start", "nosuch"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("no process type `nosuch`: there is worker"),
        "{said}"
    );
    let hsup = app.start(&[]);
    assert_eq!(hsup.wait_up(&["worker.1"]), before);
    hsup.wait_for_line("Taking over 1 dyno of an earlier hsup");
    hsup.interrupt();
}

#[test]
fn neither_does_one_that_a_release_handed_in_meanwhile_does_not_have() {
    let app = App::empty();
    let worker = process("worker", "sleep 1000", 1);
    app.release(1, "", &worker);
    let hsup = app.control(&[]);
    hsup.wait_up(&["worker.1"]);
    assert!(app.ctl(&["scale", "worker=2"]).status.success());
    let before = hsup.wait_up(&["worker.1", "worker.2"]);
    hsup.kill();
    app.release(1, "", &worker);
    let mut refused = app.control(&["nosuch"]);
    assert_eq!(refused.end().code(), Some(1), "{}", refused.log());
    refused.wait_for_line("hsup: no process type `nosuch`: there is worker");
    refused.leave();
    let hsup = app.control(&[]);
    assert_eq!(hsup.wait_up(&["worker.1", "worker.2"]), before);
    hsup.wait_for_line("Scaled before: worker=2");
    hsup.interrupt();
}

#[test]
fn a_release_put_into_loaded_that_lacks_a_type_of_the_command_line_is_refused() {
    let app = App::empty();
    let worker = process("worker", "sleep 1000", 1);
    app.release(1, "", &format!("{},{worker}", web("", "1")));
    let hsup = app.control(&["web", "worker"]);
    let before = hsup.wait_up(&["web.1", "worker.1"]);
    hsup.kill();
    app.write("ctl/loaded", &app.text(2, "", &web("", "1")));
    let hsup = app.control(&["web", "worker"]);
    hsup.wait_for_line("v1 keeps running: no process type `worker`: there is web");
    assert_eq!(hsup.wait_up(&["web.1", "worker.1"]), before);
    hsup.wait_for("v2 in rejected, and v1 in loaded", || {
        let versions = ["rejected", "loaded"].map(|name| app.version_in(name));
        (versions == [Some(2), Some(1)]).then_some(())
    });
    hsup.interrupt();
}
