//! Releases that come while another is still on its way: every one of them is decided, and
//! whoever waits for it hears of it.

use std::process::{Child, Output, Stdio};

use crate::app::{App, Running, process, web};

/// `hsupctl apply` of this text, which waits for what becomes of the release.
fn apply(app: &App, text: &str) -> Child {
    app.write("applied", text);
    let path = app.path("applied");
    let mut command = app.command("hsupctl");
    command.args(["apply", path.to_str().unwrap()]);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// v1 runs, and so does a v2 that will never be up; `boot` is how long it has.
fn with_v2_on_trial<'a>(app: &'a App, boot: &str) -> Running<'a> {
    app.release(1, "", &web("", "1"));
    let hsup = app.control(&["--boot-timeout", boot]);
    hsup.wait_up(&["web.1"]);
    app.release(2, "", &web("--never", "1"));
    hsup.wait_dyno_of(2);
    hsup
}

#[test]
fn the_same_release_again_shares_the_fate_of_the_first() {
    let app = App::empty();
    let hsup = with_v2_on_trial(&app, "10s");
    let v2 = app.text(2, "", &web("--never", "1"));
    let applied = apply(&app, &v2);
    app.hand_in(&v2);
    let output = applied.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("Error R10"), "{}", said(&output));
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    hsup.wait_up(&["web.1"]);
    assert_eq!(app.version_in("loaded"), Some(1));
    assert_eq!(app.version_in("rejected"), Some(2));
    assert!(app.last_error().unwrap().contains("Error R10"));

    // What runs already is still nothing to do.
    let output = apply(&app, &app.text(1, "", &web("", "1")))
        .wait_with_output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(
        said(&output).contains("v1 runs already"),
        "{}",
        said(&output)
    );
    hsup.interrupt();
}

#[test]
fn a_release_on_trial_is_overtaken_by_a_better_one() {
    let app = App::empty();
    let hsup = with_v2_on_trial(&app, "100s");
    let output = apply(&app, &app.text(3, "", &web("", "1")))
        .wait_with_output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    hsup.wait_releases(&["v3 current", "v2 rejected", "v1 superseded"]);
    hsup.wait_for_line("Release v2 rejected: overtaken by v3 before it was up");
    assert_eq!(
        hsup.releases()[1]["reason"],
        "overtaken by v3 before it was up"
    );
    hsup.wait_up(&["web.1"]);
    assert_ne!(hsup.releases()[1]["gap_ms"], 0, "it had taken v1 down");
    assert_eq!(app.version_in("loaded"), Some(3));
    assert_eq!(app.last_error(), None, "the newest attempt went well");
    hsup.interrupt();
}

#[test]
fn of_two_that_come_while_a_third_is_undone_the_last_one_runs() {
    let app = App::empty();
    app.release(1, "", &web("", "1"));
    let hsup = app.control(&["--grace", "60s", "--boot-timeout", "100s"]);
    hsup.wait_up(&["web.1"]);
    // Undoing it takes as long as its worker does: until the test says so.
    let stubborn = "trap '' TERM; touch ../stubborn; until [ -e ../go ]; do sleep 0.05; done";
    let fails = "until [ -e ../stubborn ]; do sleep 0.05; done; exit 7";
    let [stubborn, fails] = [("worker", stubborn), ("web", fails)]
        .map(|(process_type, line)| process(process_type, line, 1));
    app.release(2, "", &format!("{fails},{stubborn}"));
    hsup.wait_for_line("Release v2 rejected");
    let third = apply(&app, &app.text(3, "", &web("", "1")));
    hsup.wait_releases(&["v3 building", "v2 rejected", "v1 current"]);
    app.release(4, "", &web("", "1"));
    hsup.wait_for("v4 to be taken in", || {
        app.version_in("new").is_none().then_some(())
    });
    app.write("go", "");
    let output = third.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("overtaken by v4"),
        "{}",
        said(&output)
    );
    hsup.wait_releases(&["v4 current", "v3 rejected", "v2 rejected", "v1 superseded"]);
    hsup.wait_up(&["web.1"]);
    assert_eq!(app.version_in("loaded"), Some(4));
    hsup.interrupt();
}

#[test]
fn releases_in_quick_succession_are_all_decided() {
    let app = App::empty();
    app.release(1, "", &web("", "2"));
    let hsup = app.control(&[]);
    hsup.wait_up(&["web.1", "web.2"]);
    for version in 2..=15 {
        let bad = version % 3 == 0;
        app.release(version, "", &web(if bad { "--never" } else { "" }, "2"));
        // Some are seen, some are replaced before anybody looks.
        hsup.wait_for("the file to be taken in", || {
            (version % 2 == 0 || app.version_in("new").is_none()).then_some(())
        });
    }
    app.release(16, "", &web("", "2"));
    hsup.wait_for("v16 to be current", || {
        let releases = hsup.releases();
        let first = releases.first()?;
        (first["version"] == 16 && first["state"] == "current").then_some(())
    });
    for release in &hsup.releases()[1..] {
        let (state, reason) = (&release["state"], &release["reason"]);
        match state.as_str() {
            Some("superseded") => assert!(reason.is_null(), "{release}"),
            Some("rejected") => assert!(!reason.is_null(), "{release}"),
            _ => panic!("not decided: {release}"),
        }
    }
    hsup.wait_up(&["web.1", "web.2"]);
    assert_eq!(app.version_in("loaded"), Some(16));
    assert_eq!(app.last_error(), None);
    hsup.interrupt();
}

#[test]
fn a_web_that_crashes_at_once_is_told_with_its_last_lines() {
    let app = App::empty();
    app.release(1, "", &web("", "1"));
    let hsup = app.control(&["--boot-timeout", "100s"]);
    hsup.wait_up(&["web.1"]);
    // A report is kept with its release for ever: only so much of what came before fits.
    let line =
        "seq 90000 | fold -w 30000 | tr -d '\\\\n' | fold -w 30000; echo; echo no database; exit 7";
    app.release(2, "", &process("web", line, 1));
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    hsup.wait_up(&["web.1"]);
    let rejected = &hsup.releases()[0];
    let reason = rejected["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("web.1: Process exited with status 7"),
        "{reason}"
    );
    assert_eq!(rejected["last_lines"], serde_json::json!(["no database"]));
    hsup.interrupt();
}
