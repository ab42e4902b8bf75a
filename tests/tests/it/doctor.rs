//! `hsup doctor`: what it says of the machine that it is run on, and its exit code.

use std::{
    fs::DirBuilder,
    io::ErrorKind,
    os::unix::{fs::DirBuilderExt as _, net::UnixListener},
};

use serde_json::Value;

use crate::app::{App, processes_of};

/// What it found, and its code.
fn doctor(app: &App, arguments: &[&str]) -> (Value, Option<i32>) {
    let mut all = vec!["doctor", "-o", "json"];
    all.extend(arguments);
    let output = app.run(&all);
    let text = String::from_utf8(output.stdout).unwrap();
    let found = serde_json::from_str(&text);
    let found = found.unwrap_or_else(|error| panic!("{error}: {text}{:?}", output.stderr));
    (found, output.status.code())
}

/// The verdict on a thing, and what was found.
fn of(found: &Value, area: &str, what: &str) -> (String, String) {
    let findings = found["findings"].as_array().unwrap();
    let finding = findings
        .iter()
        .find(|finding| finding["area"] == area && finding["what"] == what)
        .unwrap_or_else(|| panic!("nothing of {area} {what}: {found}"));
    let text = |name: &str| finding[name].as_str().unwrap().to_owned();
    (text("verdict"), text("found"))
}

#[test]
fn a_driver_that_is_ready_is_all_that_is_needed() {
    let app = App::empty();
    let (found, code) = doctor(&app, &["-d", "simple"]);
    let (verdict, said) = of(&found, "drivers", "simple");
    assert_eq!(verdict, "ok");
    assert!(said.ends_with(", ready"), "{said}");
    assert_eq!(
        (&found["ok"], code),
        (&Value::Bool(true), Some(0)),
        "{found}"
    );
    assert_eq!(
        processes_of(&app),
        [0; 0],
        "the driver that was asked is gone"
    );
}

#[test]
fn what_only_root_may_list_is_not_missing_for_others() {
    let app = App::empty();
    let (found, _) = doctor(&app, &["-d", "simple"]);
    let (verdict, said) = of(&found, "kernel", "namespaces");
    assert_eq!(
        (verdict.as_str(), said.as_str()),
        ("ok", "cgroup ipc mnt net pid")
    );
}

#[test]
fn a_driver_that_does_not_answer_is_a_fault_where_it_is_asked_for() {
    let app = App::empty();
    let (found, code) = doctor(&app, &["-d", "/bin/false"]);
    let (verdict, said) = of(&found, "drivers", "/bin/false");
    assert_eq!((verdict.as_str(), code), ("wrong", Some(1)));
    assert!(said.contains("ended before it answered"), "{said}");

    let socket = app.path("no.sock");
    let socket = socket.to_str().unwrap();
    let (found, code) = doctor(&app, &["--driver-socket", socket]);
    let (verdict, _) = of(&found, "drivers", socket);
    assert_eq!((verdict.as_str(), code), ("wrong", Some(1)));
}

#[test]
fn a_driver_that_is_none_cannot_be_started_by_hand() {
    let app = App::empty();
    for (none, why) in [
        ("nonsense", "unknown driver `nonsense`"),
        ("./", "is not a file"),
    ] {
        let (found, code) = doctor(&app, &["-d", none]);
        let (verdict, said) = of(&found, "drivers", none);
        assert_eq!((verdict.as_str(), code), ("wrong", Some(1)));
        assert!(said.contains(why), "{said}");
        assert!(!found.to_string().contains("by hand"), "{found}");
    }
}

#[test]
fn people_get_lines_that_fit_their_terminal() {
    let app = App::empty();
    let mut command = app.command("hsup");
    command
        .env("COLUMNS", "60")
        .args(["doctor", "-d", "simple"]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("kernel\n"), "{text}");
    assert!(text.contains("for the driver simple"), "{text}");
    let is_path = |line: &&str| line.contains('/');
    for line in text.lines().filter(|line| !is_path(line)) {
        assert!(line.chars().count() <= 60, "{line}");
    }
}

#[test]
fn control_sockets_are_tried() {
    let app = App::procfile("worker: sleep 1000\n");
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    let (found, _) = doctor(&app, &["-d", "simple"]);
    let (verdict, said) = of(&found, "sockets", "control");
    assert_eq!(verdict, "ok");
    assert!(said.ends_with(".sock has a listener"), "{said}");
    hsup.interrupt();

    let dead = app.path("rt/hsup/dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    // What another test spawns meanwhile holds it too, until its `exec`.
    while std::os::unix::net::UnixStream::connect(&dead).is_ok() {}
    let (found, code) = doctor(&app, &["-d", "simple"]);
    let (verdict, said) = of(&found, "sockets", "control");
    assert_eq!((verdict.as_str(), code), ("note", Some(0)));
    assert!(said.ends_with("dead.sock was left behind"), "{said}");
}

/// systemd starts the app that a socket belongs to when somebody connects.
#[test]
fn a_control_socket_is_looked_at_without_a_connection() {
    let app = App::empty();
    let folder = app.path("rt/hsup");
    DirBuilder::new().mode(0o700).create(&folder).unwrap();
    let listener = UnixListener::bind(folder.join("shop.sock")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (found, _) = doctor(&app, &["-d", "simple"]);
    let (verdict, said) = of(&found, "sockets", "control");
    assert_eq!(verdict, "ok");
    assert!(said.ends_with("shop.sock has a listener"), "{said}");
    let connected = listener.accept().map_err(|error| error.kind());
    assert_eq!(connected.unwrap_err(), ErrorKind::WouldBlock);
}

#[test]
fn a_driver_at_a_socket_is_judged_by_what_it_says_it_is() {
    let app = App::procfile("web: sleep 1000\n");
    app.write("app/.env", "PORT=7000\n");
    let path = app.path("driver.sock");
    let socket = path.to_str().unwrap();
    let mut command = app.command("hsup-driver-simple");
    command.args(["--socket", socket]);
    let driver = app.running(command);
    driver.wait_for("the driver's socket", || path.exists().then_some(()));
    let (found, code) = doctor(&app, &["--driver-socket", socket]);
    assert_eq!((&found["driver"], code), (&Value::from("simple"), Some(0)));
    of(&found, "ports", "7000");
    driver.kill();
}
