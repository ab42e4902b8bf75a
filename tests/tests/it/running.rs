//! A Procfile app that runs: seen, scaled, stopped, asked over HTTP.

use nix::sys::signal::Signal;

use crate::app::{App, binaries, http, page, processes_of};

fn two_types() -> App {
    let dyno = binaries().join("test-dyno");
    App::procfile(&format!(
        "web: exec {0} serve\nworker: exec {0} ignore-term\n",
        dyno.display()
    ))
}

#[test]
fn an_app_runs_and_ends_without_a_trace() {
    let app = two_types();
    let mut hsup = app.start(&["--grace", "1s"]);
    hsup.wait_up(&["web.1", "worker.1"]);
    assert!(page(app.port).unwrap().contains("hello from web.1"));
    let shown = String::from_utf8(app.ctl(&["ps"]).stdout).unwrap();
    assert!(shown.contains("web.1: up "), "{shown}");
    hsup.wait_for_line("| listening on");
    // The worker ignores SIGTERM from now on.
    hsup.wait_for_line("| ready");
    hsup.signal(Signal::SIGINT);
    hsup.wait_for_line("Error R12 (Exit timeout)");
    assert_eq!(hsup.end().code(), Some(130), "{}", hsup.log());
    hsup.nothing_is_left();
}

#[test]
fn every_signal_that_ends_it_stops_the_dynos() {
    for (signal, code) in [
        (Signal::SIGQUIT, 131),
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
    ] {
        let app = two_types();
        let mut hsup = app.start(&["--grace", "1s"]);
        hsup.wait_up(&["web.1", "worker.1"]);
        hsup.signal(signal);
        assert_eq!(hsup.end().code(), Some(code), "{signal}");
        assert!(processes_of(&app).is_empty(), "{signal}");
    }
}

#[test]
fn what_dynos_use_is_in_their_log_where_that_is_asked_for() {
    let app = two_types();
    let hsup = app.start(&["--grace", "1s", "--log-runtime-metrics"]);
    let ids = hsup.wait_up(&["web.1", "worker.1"]);
    for (name, id) in ["web.1", "worker.1"].iter().zip(ids) {
        hsup.wait_for_line(&format!("| source={name} dyno={id} sample#memory_total="));
    }
    hsup.interrupt();
}

#[test]
fn a_change_of_quantities_restarts_nobody() {
    let app = two_types();
    let hsup = app.start(&["web", "--grace", "1s"]);
    let before = hsup.wait_up(&["web.1"]);
    assert!(app.ctl(&["scale", "web=3"]).status.success());
    let after = hsup.wait_up(&["web.1", "web.2", "web.3"]);
    assert_eq!(before[0], after[0]);
    assert!(app.ctl(&["scale", "web-2"]).status.success());
    assert_eq!(hsup.wait_up(&["web.1"]), before);
    hsup.interrupt();
}

#[test]
fn a_stop_holds_until_a_start() {
    let app = two_types();
    let hsup = app.start(&["web=2"]);
    hsup.wait_up(&["web.1", "web.2"]);
    assert!(app.ctl(&["stop", "web.2"]).status.success());
    let down = app.ctl(&["ps"]);
    assert!(String::from_utf8_lossy(&down.stdout).contains("web.2: down"));
    assert_eq!(
        down.status.code(),
        Some(0),
        "a dyno stopped by hand is not missing"
    );
    assert!(app.ctl(&["start", "web.2"]).status.success());
    let ids = hsup.wait_up(&["web.1", "web.2"]);
    assert!(app.ctl(&["restart", "web.1"]).status.success());
    let restarted = hsup.wait_up(&["web.1", "web.2"]);
    assert_ne!(ids[0], restarted[0]);
    assert_eq!(ids[1], restarted[1]);
    assert_eq!(app.ctl(&["ps", "nosuch"]).status.code(), Some(4));
    hsup.interrupt();
}

#[test]
fn nobody_to_ask_is_exit_code_4() {
    let app = App::empty();
    assert_eq!(app.ctl(&["ps"]).status.code(), Some(4));
    assert_eq!(app.ctl(&["nosuch"]).status.code(), Some(2));
}

#[test]
fn the_http_of_the_original_is_there() {
    let app = two_types();
    let socket = app.path("control.sock");
    let hsup = app.start(&["web=2", "-s", socket.to_str().unwrap()]);
    hsup.wait_for_line("web.2  | State changed from starting to up");
    hsup.wait_for_line("web.1  | State changed from starting to up");
    let get = |path: &str| format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
    assert!(http(&socket, &get("/health")).ends_with("OK"));
    let status = http(&socket, &get("/status"));
    assert!(status.contains(r#""web":{"Status":"Started","IPAddress":"127.0.0.1","Port":"#));
    assert!(status.contains(r#""web.2":{"#), "{status}");
    let post = |body: &str| {
        let length = body.len();
        format!("POST /control/stop HTTP/1.0\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    assert!(http(&socket, &post("{")).contains(" 500 "));
    assert!(http(&socket, &post(r#"[["web"]]"#)).contains(" 500 "));
    assert!(http(&socket, &get("/control/stop")).contains(" 405 "));
    let stopped = http(&socket, &post(r#"{"PROCESSES":["web"]}"#));
    assert!(
        stopped.contains(r#""StoppedProcesses":["web"]"#),
        "{stopped}"
    );
    hsup.wait_for_line("State changed from up to down");
    hsup.interrupt();
}

#[test]
fn sigusr1_prints_diagnostics() {
    let app = two_types();
    let hsup = app.start(&["web"]);
    hsup.wait_up(&["web.1"]);
    hsup.signal(Signal::SIGUSR1);
    hsup.wait_for_line("driver connected");
    hsup.interrupt();
}

#[test]
fn oneshot_ends_with_the_largest_code() {
    let app = App::procfile("a: exit 3\nb: exit 4\n");
    let mut hsup = app.start(&["--oneshot"]);
    assert_eq!(hsup.end().code(), Some(4), "{}", hsup.log());
    hsup.nothing_is_left();
}
