//! Releases that replace each other, and bad ones that take nothing down.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    app::{App, Running, page, process, web},
    survival::driver_pid,
};

fn started(app: &App) -> Running<'_> {
    app.release(1, "", &web("", "2"));
    app.control(&[])
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
            app.last_error().filter(|error| error.contains(expected))
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
    hsup.wait_for_line("Release v2 rejected, going back to v1");
    let after = hsup.wait_up(&["web.1", "web.2"]);
    assert_eq!(before[1], after[1], "the second was never touched");
    assert!(page(app.port).unwrap().contains("hello"));
    let releases = String::from_utf8(app.ctl(&["releases"]).stdout).unwrap();
    assert!(releases.contains("Error R10"), "{releases}");
    assert!(app.last_error().unwrap().contains("Error R10"));
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
    // To who runs a command, too.
    let control = control.to_str().unwrap();
    let output = app.run(&["run", "--control-dir", control, "true"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("sets no limits: those of v2"), "{said}");
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

#[test]
fn the_gap_lasts_until_the_good_dynos_are_ready_again() {
    let app = App::empty();
    app.release(1, "", &web("--delay 1000", "1"));
    let hsup = app.control(&["--boot-timeout", "100s"]);
    hsup.wait_up(&["web.1"]);
    app.release(2, "", &process("web", "exit 7", 1));
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    hsup.wait_for("the whole gap", || {
        (hsup.releases()[0]["gap_ms"].as_u64()? >= 1000).then_some(())
    });
    assert_eq!(hsup.dynos()[0]["ready"], true);
    let shown = String::from_utf8(app.ctl(&["releases"]).stdout).unwrap();
    assert!(shown.contains("fewer dynos than wanted ran for"), "{shown}");

    // What takes nothing down leaves no gap.
    app.hand_in(&app.text(3, r#""Slug":"file:///no/such/folder/","#, &web("", "1")));
    hsup.wait_releases(&["v3 rejected", "v2 rejected", "v1 current"]);
    assert_eq!(hsup.releases()[0]["gap_ms"], 0);
    hsup.interrupt();
}

#[test]
fn a_driver_that_is_killed_in_a_rollout_is_no_verdict() {
    let app = App::empty();
    app.release(1, "", &web("", "1"));
    let hsup = app.control(&["--boot-timeout", "100s"]);
    hsup.wait_up(&["web.1"]);
    let wait = r#""until [ -e ../go ]; do sleep 0.1; done; exec","#;
    app.release(2, "", &web("", "1").replace(r#""exec","#, wait));
    let first = hsup.wait_dyno_of(2);
    kill(Pid::from_raw(driver_pid(&hsup)), Signal::SIGKILL).unwrap();
    hsup.wait_for("another try", || {
        (hsup.wait_dyno_of(2) != first).then_some(())
    });
    hsup.wait_releases(&["v2 rolling out", "v1 current"]);
    app.write("go", "");
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
}

#[test]
fn a_release_that_kills_its_driver_is_given_up() {
    let app = App::empty();
    app.release(1, "", &web("", "1"));
    let hsup = app.control(&["--boot-timeout", "100s"]);
    hsup.wait_up(&["web.1"]);
    app.release(2, "", &process("web", "kill -9 $PPID; sleep 1000", 1));
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    let reason = hsup.releases()[0]["reason"].as_str().unwrap().to_owned();
    // It may have killed its driver before that had answered the Start.
    let both = ["exited with unknown status", "the driver was lost 3 times"];
    assert!(both.iter().any(|why| reason.contains(why)), "{reason}");
    let drivers_lost = hsup.log().matches("The driver is gone").count();
    assert!(drivers_lost > 1, "{}", hsup.log());
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
}

#[test]
fn ten_thousand_dynos_are_no_hang() {
    let app = App::empty();
    app.release(1, "", &process("worker", "sleep 1000", 10_000));
    let control = app.path("ctl");
    let arguments = ["--control-dir", control.to_str().unwrap(), "--grace", "2s"];
    let hsup = app.start_limited(256, &arguments);
    // How many there are, and how many of them are up: more than a pipe holds.
    let dynos = || {
        let shown = app.command("hsupctl").arg("ps").output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        let of_workers = shown.lines().filter(|line| line.starts_with("worker."));
        let (up, down): (Vec<_>, Vec<_>) = of_workers.partition(|line| line.contains(": up "));
        (up.len() + down.len(), up.len())
    };
    hsup.wait_for("what fits", || {
        let (all, up) = dynos();
        (all == 10_000 && up >= 50).then_some(())
    });
    app.release(1, "", &process("worker", "sleep 1000", 2));
    hsup.wait_for("two of them", || (dynos() == (2, 2)).then_some(()));
    hsup.wait_up(&["worker.1", "worker.2"]);
    hsup.interrupt();
}
