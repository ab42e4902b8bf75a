//! Releases that replace each other, and bad ones that take nothing down.

use std::fs;

use crate::app::{App, Running, binaries, page};

fn web(arguments: &str, quantity: &str) -> String {
    let dyno = binaries().join("test-dyno");
    format!(
        r#"{{"Type":"web","Args":["exec","{}","serve {arguments}"],"Quantity":{quantity}}}"#,
        dyno.display()
    )
}

fn started(app: &App) -> Running<'_> {
    app.release(1, "", &web("", "2"));
    let control = app.path("ctl");
    app.start(&[
        "--control-dir",
        control.to_str().unwrap(),
        "--boot-timeout",
        "2s",
        "--grace",
        "2s",
    ])
}

fn last_error(app: &App) -> Option<String> {
    fs::read_to_string(app.path("ctl/last_error")).ok()
}

#[test]
fn a_bad_file_takes_nothing_down() {
    let app = App::empty();
    let hsup = started(&app);
    let before = hsup.wait_up(&["web.1", "web.2"]);
    for (text, expected) in [
        (r#"{"Version":2,"Env":{"NAME":"#.to_owned(), "at Env.NAME"),
        (r#"{"Version":2,"Processes":[]}"#.to_owned(), "Processes"),
        (
            format!(r#"{{"Version":2,"Processes":[{}]}}"#, web("", "-1")),
            "at Processes[0].Quantity",
        ),
        (
            r#"{"Version":2,"Processes":[{"Type":"../x","Args":["true"],"Quantity":1}]}"#
                .to_owned(),
            "at Processes[0].Type",
        ),
    ] {
        app.write("next", &text);
        fs::rename(app.path("next"), app.path("ctl/new")).unwrap();
        hsup.wait_for(expected, || {
            last_error(&app).filter(|error| error.contains(expected))
        });
    }
    assert_eq!(hsup.wait_up(&["web.1", "web.2"]), before);
    hsup.interrupt();
}

#[test]
fn an_unknown_key_is_a_warning_with_its_path() {
    let app = App::empty();
    let hsup = started(&app);
    hsup.wait_up(&["web.1", "web.2"]);
    let process = web("", "1").replace("\"Quantity\"", "\"Quantty\":1,\"Quantity\"");
    app.release(2, "", &process);
    hsup.wait_for_line("Processes[0].Quantty");
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
}

#[test]
fn a_release_that_never_binds_its_port_is_rolled_back() {
    let app = App::empty();
    let hsup = started(&app);
    let before = hsup.wait_up(&["web.1", "web.2"]);
    app.release(2, "", &web("--never", "2"));
    hsup.wait_for_line("Release v2 rejected, v1 keeps running");
    let after = hsup.wait_up(&["web.1", "web.2"]);
    assert_eq!(before[1], after[1], "the second was never touched");
    assert!(page(app.port).unwrap().contains("hello"));
    let releases = String::from_utf8(app.ctl(&["releases"]).stdout).unwrap();
    assert!(releases.contains("Error R10"), "{releases}");
    assert!(last_error(&app).unwrap().contains("Error R10"));
    let loaded = fs::read_to_string(app.path("ctl/loaded")).unwrap();
    assert!(loaded.contains("\"Version\":1"), "{loaded}");
    hsup.interrupt();
}

#[test]
fn a_release_that_cannot_be_built_is_rejected() {
    let app = App::empty();
    let hsup = started(&app);
    let before = hsup.wait_up(&["web.1", "web.2"]);
    let text = format!(
        r#"{{"Version":2,"Slug":"file:///no/such/folder/","Processes":[{}]}}"#,
        web("", "2")
    );
    app.write("bad.json", &text);
    let applied = app.ctl(&["apply", app.path("bad.json").to_str().unwrap()]);
    assert_eq!(applied.status.code(), Some(1));
    let said = String::from_utf8(applied.stderr).unwrap();
    assert!(said.contains("/no/such/folder"), "{said}");
    assert_eq!(hsup.wait_up(&["web.1", "web.2"]), before);
    hsup.interrupt();
}

#[test]
fn limits_that_the_driver_does_not_set_are_said_once_a_release() {
    let app = App::empty();
    let control = app.path("ctl");
    let limited = |version: u32| {
        format!(
            r#"{{"Version":{version},"Limits":{{"Pids":9}},"Processes":[{{"Type":"worker","Quantity":2,"Args":["sleep","1000"]}}]}}"#
        )
    };
    app.write("ctl/new", &limited(1));
    let hsup = app.start(&["--control-dir", control.to_str().unwrap()]);
    hsup.wait_up(&["worker.1", "worker.2"]);
    app.write("ctl/new", &limited(2));
    hsup.wait_for_line("Release v2 is current");
    let log = hsup.log();
    for version in ["v1", "v2"] {
        let said = format!("sets no limits: those of {version} have no effect");
        assert_eq!(log.matches(&said).count(), 1, "{log}");
    }
    hsup.interrupt();
}

#[test]
fn config_replaces_dynos_and_quantities_do_not() {
    let app = App::empty();
    let hsup = started(&app);
    let first = hsup.wait_up(&["web.1", "web.2"]);
    app.release(1, "", &web("", "3"));
    let scaled = hsup.wait_up(&["web.1", "web.2", "web.3"]);
    assert_eq!(first[..], scaled[..2]);
    app.release(2, r#","NAME":"two""#, &web("", "3"));
    hsup.wait_for_line("Release v2 is current");
    let replaced = hsup.wait_up(&["web.1", "web.2", "web.3"]);
    assert!(replaced.iter().all(|id| !scaled.contains(id)));
    hsup.interrupt();
}
