//! `hsup check` and `hsup build`: what they tell, and that they start nothing.

use nix::{sys::stat::Mode, unistd::mkfifo};

use crate::app::{App, processes_of};

fn said(app: &App, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = app.run(arguments);
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn control_dir(app: &App) -> String {
    app.path("ctl").to_str().unwrap().to_owned()
}

#[test]
fn a_procfile_is_shown_as_its_formation() {
    let app = App::procfile("web: ./serve\nworker: ./work --fast\n");
    let formation = "web       1  ./serve\nworker    1  ./work --fast\n".to_owned();
    assert_eq!(
        said(&app, &["check"]),
        (Some(0), formation.clone(), String::new())
    );
    app.write(
        "app/Procfile",
        "web: x\nweb: ./serve\nworker: ./work --fast\n",
    );
    let warning = "warning: Procfile, line 2: another `web`: this one counts\n".to_owned();
    assert_eq!(said(&app, &["check"]), (Some(0), formation, warning));
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let app = App::procfile("web\n");
    let (code, out, err) = said(&app, &["check"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains("Procfile` is not a Procfile: line 1"), "{err}");

    let control = control_dir(&app);
    let arguments = ["check", "--control-dir", &control];
    let (code, _, err) = said(&app, &arguments);
    assert_eq!(code, Some(1));
    assert!(err.contains("has neither `new` nor `loaded`"), "{err}");
    app.write("ctl/new", "{\"Version\": ");
    let (code, _, err) = said(&app, &arguments);
    assert_eq!(code, Some(1));
    assert!(err.contains("ctl/new` is not a release: "), "{err}");
}

#[test]
fn a_strategy_of_a_type_that_there_is_not_is_told() {
    let app = App::procfile("web: true\nworker: true\n");
    let strategies = [
        "--strategy",
        "wroker=stop-first",
        "--strategy",
        "web=stop-first",
    ];
    let (code, shown, error) = said(&app, &[&["check"][..], &strategies].concat());
    assert_eq!((code, shown.lines().count()), (Some(0), 2), "{error}");
    let idle = "--strategy has no effect on wroker: v1 has the process types web, worker\n";
    assert_eq!(error, format!("warning: {idle}"));
    let hsup = app.start(&strategies);
    hsup.wait_for_line(&format!("Warning: {idle}"));
    hsup.interrupt();
}

#[test]
fn a_release_that_has_no_type_of_a_strategy_is_told_when_it_comes() {
    let app = App::empty();
    let hsup = app.control(&["--strategy", "worker=stop-first"]);
    let process =
        |name: &str| format!(r#"{{"Type":"{name}","Quantity":1,"Args":["sleep","1000"]}}"#);
    app.release(1, "", &process("worker"));
    hsup.wait_up(&["worker.1"]);
    assert!(!hsup.log().contains("no effect"), "{}", hsup.log());
    app.release(2, "", &process("job"));
    hsup.wait_for_line("Warning: --strategy has no effect on worker: v2 has the process types job");
    hsup.wait_up(&["job.1"]);
    hsup.interrupt();
}

#[test]
fn of_a_control_directory_the_newer_file_counts() {
    let app = App::empty();
    let control = control_dir(&app);
    let release = |command: &str| {
        format!(
            r#"{{"Version":1,"Processes":[{{"Type":"web","Quantity":2,"Args":["{command}"]}}]}}"#
        )
    };
    app.write("ctl/loaded", &release("old"));
    let arguments = ["check", "--control-dir", &control];
    assert_eq!(said(&app, &arguments).1, "web    2  old\n");
    app.write("ctl/new", &release("next"));
    assert_eq!(said(&app, &arguments).1, "web    2  next\n");
}

#[test]
fn a_fifo_is_refused_and_not_waited_for() {
    let app = App::empty();
    mkfifo(&app.path("ctl/new"), Mode::S_IRWXU).unwrap();
    let (code, _, err) = said(&app, &["check", "--control-dir", &control_dir(&app)]);
    assert_eq!(code, Some(1));
    assert!(err.contains("is a FIFO, not a regular file"), "{err}");
}

#[test]
fn a_build_answers_the_artifact_and_leaves_nothing() {
    let app = App::procfile("web: echo never\n");
    let (code, artifact, err) = said(&app, &["build"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(artifact.lines().count(), 1, "{artifact}");
    assert_eq!(said(&app, &["build"]).1, artifact, "the same again");
    assert!(processes_of(&app).is_empty());

    let control = control_dir(&app);
    let nothing = said(&app, &["build", "--control-dir", &control]);
    assert_eq!(nothing.0, Some(1));
    assert!(nothing.2.contains("has no release yet"), "{}", nothing.2);
    app.release(
        1,
        r#","X":"y""#,
        r#"{"Type":"web","Quantity":1,"Args":["x"]}"#,
    );
    assert_eq!(said(&app, &["build", "--control-dir", &control]).0, Some(0));
}
