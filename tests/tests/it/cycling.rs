//! Dynos that are replaced by fresh ones after a while.

use std::fs;

use crate::app::{App, Running, binaries, process, web};

#[test]
fn every_dyno_is_started_again_in_its_time_one_of_a_type_at_a_time() {
    let app = App::empty();
    app.release(1, "", &web("", "3"));
    let names = ["web.1", "web.2", "web.3"];
    let hsup = app.control(&["--cycle-every", "2s", "--boot-timeout", "100s"]);
    // Where a start takes long, they are never all up at once.
    for name in names {
        hsup.wait_for(&format!("another {name}"), || {
            let log = hsup.log();
            let (_, cycled) = log.split_once(&format!("{name}  | Cycling\n"))?;
            let up = format!("{name}  | State changed from starting to up\n");
            cycled.contains(&up).then_some(())
        });
    }
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

#[test]
fn one_whose_successor_fails_stays() {
    let app = App::empty();
    // Nobody runs beside the first, whenever it is cycled.
    let line = "test ! -e ../bad && touch ../bad && exec sleep 1000";
    app.release(1, "", &process("worker", line, 1));
    let hsup = app.control(&["--cycle-every", "3s", "--strategy", "worker=start-first"]);
    let before = hsup.wait_up(&["worker.1"]);
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
    app.faults("is own-network\n");
    app.write("go", "");
    app.release(1, "", &web("--once ../go", "1"));
    let first = start_first(&app, &["--cycle-every", "3s"]);
    first.wait_for_line("State changed from starting to up");
    // What is started from now on is not ready.
    fs::remove_file(app.path("go")).unwrap();
    first.wait_for("both of them", || {
        let dynos = first.dynos();
        (dynos.len() == 2 && dynos.iter().any(|dyno| dyno["ready"] == false)).then_some(())
    });
    first.kill();
    let second = start_first(&app, &[]);
    second.wait_for_line("Taking over 2 dynos of an earlier hsup");
    app.write("go", "");
    second.wait_up(&["web.1"]);
    second.interrupt();
}

/// hsup with a web that has an address of its own, and so goes when its successor answers.
fn start_first<'a>(app: &'a App, arguments: &[&str]) -> Running<'a> {
    let driver = binaries().join("hsup-driver-fault");
    let driver = ["-d", driver.to_str().unwrap()];
    let check = ["--http-check", "/", "--boot-timeout", "100s"];
    app.control(&[&driver[..], &check, arguments].concat())
}
