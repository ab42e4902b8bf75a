//! A driver that misbehaves, and an hsup that copes.

use crate::app::{App, Running, binaries, page};

/// `hsup start` with the driver that does what its script says.
fn started<'a>(app: &'a App, arguments: &[&str]) -> Running<'a> {
    let driver = binaries().join("test-driver");
    let mut all = vec!["-d", driver.to_str().unwrap(), "--grace", "2s"];
    all.extend(arguments);
    app.start(&all)
}

fn serve() -> String {
    format!("exec {} serve", binaries().join("test-dyno").display())
}

#[test]
fn a_driver_without_faults_is_one_like_any_other() {
    let app = App::procfile(&format!("web: {}\n", serve()));
    let hsup = started(&app, &[]);
    let ids = hsup.wait_up(&["web.1"]);
    assert!(page(app.port).unwrap().contains("hello from web.1"));
    assert_eq!(app.calls("start"), [format!("start {}: -", ids[0])]);
    hsup.interrupt();
}

#[test]
fn a_start_that_is_refused_is_told_and_tried_again() {
    let app = App::procfile(&format!("web: {}\n", serve()));
    app.faults("once start resource-exhausted no memory is left\n");
    let hsup = started(&app, &[]);
    hsup.wait_up(&["web.1"]);
    hsup.wait_for_line("Process could not be started: no memory is left");
    assert_eq!(app.calls("start").len(), 2);
    hsup.interrupt();
}

#[test]
fn another_instance_on_the_same_connection_is_waited_for_anew() {
    let app = App::procfile("worker: sleep 1000\n");
    let hsup = started(&app, &[]);
    let before = hsup.wait_up(&["worker.1"]);
    assert_eq!(app.calls("wait").len(), 1);
    app.faults("is instance another\n");
    hsup.wait_for("another Wait", || {
        (app.calls("wait").len() > 1).then_some(())
    });
    assert_eq!(hsup.wait_up(&["worker.1"]), before);
    hsup.interrupt();
}
