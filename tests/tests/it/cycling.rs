//! Dynos that are replaced by fresh ones after a while.

use std::fs;

use crate::app::{App, Running, process, web};

#[test]
fn every_dyno_is_started_again_in_its_time_one_of_a_type_at_a_time() {
    let app = App::empty();
    app.release(1, "", &web("", "3"));
    let names = ["web.1", "web.2", "web.3"];
    let hsup = app.control(&["--cycle-every", "2s"]);
    let before = hsup.wait_up(&names);
    for name in names {
        hsup.wait_for_line(&format!("{name}  | Cycling"));
    }
    hsup.wait_for("three others", || {
        let dynos = hsup.dynos();
        let ids: Vec<_> = dynos
            .iter()
            .filter_map(|dyno| dyno["dyno_id"].as_str())
            .collect();
        let new = ids.iter().filter(|id| !before.iter().any(|old| old == *id));
        (new.count() == 3).then_some(())
    });
    hsup.interrupt_and(|log| {
        // What begins a cycling is over before the next begins.
        let mut in_between = false;
        for line in log.lines() {
            if line.contains("| Cycling") {
                assert!(!in_between, "{log}");
                in_between = true;
            } else if line.contains("State changed from starting to up") {
                in_between = false;
            }
        }
    });
}

#[test]
fn with_start_first_the_old_one_goes_when_the_new_one_is_ready() {
    let app = App::empty();
    app.release(1, "", &process("worker", "exec sleep 1000", 1));
    let hsup = app.control(&[
        "--cycle-every",
        "5s",
        "--strategy",
        "start-first",
        "--strategy",
        "web=stop-first",
    ]);
    let before = hsup.wait_up(&["worker.1"]);
    hsup.wait_for("both of them", || {
        let dynos = hsup.dynos();
        let both = dynos.len() == 2 && dynos.iter().all(|dyno| dyno["name"] == "worker.1");
        let old = dynos
            .iter()
            .any(|dyno| dyno["dyno_id"] == before[0].as_str() && dyno["ready"] == true);
        (both && old).then_some(())
    });
    hsup.wait_for("the new one alone", || {
        let dynos = hsup.dynos();
        (dynos.len() == 1 && dynos[0]["dyno_id"] != before[0].as_str() && dynos[0]["ready"] == true)
            .then_some(())
    });
    hsup.interrupt_and(|log| {
        let begun = log.matches("State changed from down to starting").count();
        let cycled = log.matches("| Cycling").count();
        assert_eq!(begun, 1 + cycled, "one for one: {log}");
    });
}

/// A worker that is replaced start-first every other moment, and runs this shell line.
fn worker<'a>(app: &'a App, line: &str) -> Running<'a> {
    app.release(1, "", &process("worker", line, 1));
    app.control(&["--cycle-every", "3s", "--strategy", "worker=start-first"])
}

#[test]
fn one_whose_successor_fails_stays() {
    let app = App::empty();
    let hsup = worker(&app, "test ! -e ../bad && exec sleep 1000");
    let before = hsup.wait_up(&["worker.1"]);
    app.write("bad", "");
    hsup.wait_for_line("Cycling given up, the one that runs stays: Process exited with status 1");
    assert_eq!(hsup.wait_up(&["worker.1"]), before);
    fs::remove_file(app.path("bad")).unwrap();
    hsup.wait_for("another one", || {
        let dynos = hsup.dynos();
        (dynos.len() == 1 && dynos[0]["dyno_id"] != before[0].as_str()).then_some(())
    });
    hsup.interrupt();
}

#[test]
fn of_two_that_a_killed_hsup_leaves_one_goes() {
    let app = App::empty();
    let hsup = worker(&app, "exec sleep 1000");
    let both = || hsup.dynos().len() == 2;
    hsup.wait_for("both of them", || both().then_some(()));
    hsup.kill();
    let hsup = app.control(&[]);
    hsup.wait_for_line("Taking over 2 dynos of an earlier hsup");
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt();
}
