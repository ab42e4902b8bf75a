//! Configuration: files and variables beside the command line, and who has the last word.

use serde_json::Value;

use crate::app::App;

/// What counts for a key, and who says so.
fn shown(app: &App, key: &str, variables: &[(&str, &str)], arguments: &[&str]) -> (Value, String) {
    let mut command = app.command("hsup");
    command.envs(variables.iter().copied());
    command
        .args(arguments)
        .args(["config", "show", "-o", "json"]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let shown: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{:?}", output.stderr));
    let settings = shown["settings"].as_array().unwrap();
    let setting = settings
        .iter()
        .find(|setting| setting["key"] == key)
        .unwrap();
    let origin = setting["origin"].as_str().unwrap();
    let root = app.path("").to_str().unwrap().to_owned();
    (setting["value"].clone(), origin.replace(&root, ""))
}

/// A configuration that the file of this machine has no part in.
fn configured(app: &App, text: &str) -> String {
    app.write("hsup.toml", text);
    app.path("hsup.toml").to_str().unwrap().to_owned()
}

#[test]
fn each_layer_goes_before_those_behind_it() {
    let app = App::procfile("worker: echo done\n");
    let file = configured(&app, "# ours\ngrace = '3s'\n");
    let with_file = [("HSUP_CONFIG", file.as_str())];
    let is = |text: &str, origin: &str| (Value::from(text), origin.to_owned());
    assert_eq!(
        shown(&app, "grace", &with_file, &[]),
        is("3s", "hsup.toml:2")
    );
    app.write("app/hsup.toml", "grace = 4");
    assert_eq!(
        shown(&app, "grace", &with_file, &[]),
        is("4", "app/hsup.toml:1")
    );
    let with_variable = [with_file[0], ("HSUP_GRACE", "5s")];
    assert_eq!(
        shown(&app, "grace", &with_variable, &[]),
        is("5s", "HSUP_GRACE")
    );
    assert_eq!(
        shown(&app, "grace", &with_variable, &["--grace", "6s"]),
        is("6s", "flag")
    );
}

#[test]
fn hsup_goes_by_it() {
    let app = App::procfile("worker: echo done\n");
    let file = configured(&app, "oneshot = true\njson = true\nstart-number = 7\n");
    let mut command = app.command("hsup");
    command.env("HSUP_CONFIG", &file).arg("start");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text
        .lines()
        .find(|line| line.contains("\"done\""))
        .unwrap_or_else(|| panic!("{text}"));
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["dyno"], "worker.7");
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let app = App::procfile("worker: echo done\n");
    for (text, expected) in [
        (
            "\ngrac = 1",
            "hsup.toml:2: unknown key `grac`: did you mean `grace`?",
        ),
        ("grace = 'soon'", "hsup.toml:1: grace: `soon` is not a time"),
        (
            "cycle = 1",
            "hsup.toml:1: cycle: expected true or false, found integer",
        ),
        (
            "driver-socket = '/s'\ndriver = 'simple'",
            "hsup.toml:2: driver and ",
        ),
        (
            "\ndriver = 'nope'",
            "hsup.toml:2: driver: unknown driver `nope`: use simple, ",
        ),
        ("driver = 'abspath'", "hsup.toml:1: driver: the abspath "),
        ("log-to = ['gopher://x']", "URL 1 of log-to ("),
    ] {
        let file = configured(&app, text);
        let output = app.run(&["start", "--config", &file]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(expected), "{text}: {said}");
        assert!(matches!(output.status.code(), Some(1 | 2)), "{text}");
    }
}

#[test]
fn a_driver_that_a_variable_names_wrongly_is_told_with_the_variable() {
    let app = App::procfile("worker: echo done\n");
    for arguments in [&["start"][..], &["run", "true"], &["build"]] {
        let mut command = app.command("hsup");
        command.env("HSUP_DRIVER", "nonsense").args(arguments);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let expected = "hsup: HSUP_DRIVER: unknown driver `nonsense`: use simple, ";
        assert!(said.starts_with(expected), "{arguments:?}: {said}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn flags_that_start_refuses_are_refused_by_who_shows_what_counts() {
    let app = App::procfile("worker: echo done\n");
    for flags in [
        ["-d", "simple", "--driver-socket", "/y"],
        ["-C", ".", "-a", "shop"],
        ["--control-dir", "ctl", "-a", "shop"],
        ["--control-dir", "ctl", "-C", "."],
    ] {
        let said = |command: &[&str]| {
            let output = app.run(&[command, &flags].concat());
            let said = String::from_utf8(output.stderr).unwrap();
            (output.status.code(), said)
        };
        let start = said(&["start"]);
        assert!(start.1.contains("give one of them"), "{start:?}");
        assert_eq!(start.0, Some(2));
        assert_eq!(said(&["config", "show"]), start);
        assert_eq!(said(&["doctor"]), start);
    }
    // An app need not be there to be shown.
    let none = app.run(&["config", "show", "-C", "nowhere"]);
    assert_eq!(none.status.code(), Some(0));
}

#[test]
fn secrets_are_not_shown() {
    let app = App::procfile("worker: echo done\n");
    let file = configured(
        &app,
        "logplex-url = 'https://token:t.s3cret@logs.example'\n",
    );
    let output = app.run(&["config", "show", "--config", &file]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("logplex-url"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
}

#[test]
fn what_is_the_same_for_everybody_does_not_wait_for_a_file_to_be_mended() {
    let app = App::procfile("web: true\n");
    app.write("app/hsup.toml", "grace = ");
    for arguments in [["schema", "config"], ["completions", "bash"]] {
        let output = app.run(&arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert!(!output.stdout.is_empty(), "{arguments:?}");
    }
    assert_eq!(app.run(&["config", "show"]).status.code(), Some(1));
}

#[test]
fn schemas_are_json() {
    let app = App::empty();
    for (what, key) in [("config", "grace"), ("control", "Processes")] {
        let output = app.run(&["schema", what]);
        let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(schema["properties"][key].is_object(), "{what}");
    }
}
