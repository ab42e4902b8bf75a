//! `hsupctl` as a person meets it: what it asks and what it changes.

use std::{fs, os::unix::fs::symlink, path::Path, process::Stdio, thread};

use hsup_tests::{deadline, programs};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    app::{App, binaries, http},
    follow::Following,
    one_off::driver_of_its_own,
};

/// An app that says nothing once it is up.
fn quiet() -> App {
    App::procfile("worker: sleep 1000\n")
}

/// An app that says `deaf`, and that no SIGTERM ends before there is the file `go`.
fn deaf() -> App {
    let app = App::empty();
    let go = app.path("go");
    let line = format!(
        "trap '' TERM; echo deaf; until [ -e {} ]; do sleep 0.05; done",
        go.display()
    );
    app.write("app/Procfile", &format!("worker: {line}\n"));
    app
}

/// The exit code, standard output and standard error.
fn said(app: &App, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = app.ctl(arguments);
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn an_app_goes_by_the_name_of_its_release() {
    let app = App::empty();
    let control = app.path("ctl");
    let hsup = app.start(&["--control-dir", control.to_str().unwrap()]);
    let status = |name: &str| app.ctl(&["--app", name, "status"]);
    // Without a release nothing is up.
    hsup.wait_for("an app named as its directory", || {
        (status("ctl").status.code() == Some(3)).then_some(())
    });
    app.write(
        "ctl/new",
        r#"{"Version":1,"Name":"sample","Processes":[{"Type":"worker","Quantity":1,"Args":["sleep","1000"]}]}"#,
    );
    hsup.wait_up(&["worker.1"]);
    let shown = status("sample");
    assert_eq!(shown.status.code(), Some(0));
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.starts_with("● sample\n"), "{text}");
    assert_eq!(status("ctl").status.code(), Some(4));
    hsup.interrupt();
}

#[test]
fn a_release_is_planned_applied_and_listed() {
    let app = quiet();
    let hsup = app.start(&[]);
    let before = hsup.wait_up(&["worker.1"]);
    let release = |command: &str, quantity: u32| {
        format!(
            r#"{{"Version":2,"Env":{{"SECRET":"hunter2"}},"Processes":[{{"Type":"worker","Quantity":{quantity},"Args":["{command}"]}}]}}"#
        )
    };
    app.write("next.json", &release("sleep 2000", 2));
    let next = app.path("next.json");
    let (code, plan, _) = said(&app, &["plan", next.to_str().unwrap()]);
    assert_eq!(code, Some(0));
    for line in [
        "warning: the next start of hsup runs the Procfile again: ",
        "+ config SECRET\n",
        "~ quantity worker: 1 -> 2\n",
        "~ command worker: sleep 1000 -> sleep 2000\n",
        "\nRestarts worker.1\nStarts worker.2\n",
    ] {
        assert!(plan.contains(line), "`{line}` is not in:\n{plan}");
    }
    assert!(!plan.contains("hunter2"), "{plan}");
    assert_eq!(
        hsup.wait_up(&["worker.1"]),
        before,
        "a plan changes nothing"
    );

    let (code, applied, _) = said(&app, &["apply", next.to_str().unwrap()]);
    assert_eq!(code, Some(0));
    let (warning, applied) = applied.split_once('\n').unwrap();
    assert!(
        warning.ends_with("in a control directory for good"),
        "{warning}"
    );
    assert_eq!(applied, "Release v2... done, is current\n");
    hsup.wait_up(&["worker.1", "worker.2"]);
    let (_, again, _) = said(&app, &["apply", next.to_str().unwrap()]);
    assert!(
        again.ends_with("Nothing to do: v2 runs already\n"),
        "{again}"
    );

    app.write("bad.json", &release("echo no such luck; exit 7", 1));
    let (code, _, error) = said(&app, &["apply", app.path("bad.json").to_str().unwrap()]);
    assert_eq!(code, Some(1));
    let expected = "hsupctl: release v2 was rejected: worker.1: Process exited with status 7\n\
        hint: `hsupctl releases` shows what its dynos said last\n";
    assert_eq!(error, expected);
    let (code, listed, _) = said(&app, &["releases"]);
    assert_eq!(code, Some(0));
    let states: Vec<_> = listed
        .lines()
        .filter(|line| line.starts_with('v'))
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    assert_eq!(states, ["rejected", "current", "superseded"], "{listed}");
    assert!(listed.contains("\n    | no such luck\n"), "{listed}");
    let (_, json, _) = said(&app, &["releases", "-o", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[1]["config_names"], serde_json::json!(["SECRET"]));

    let (code, _, error) = said(&app, &["apply", "/nonexistent"]);
    assert_eq!(code, Some(1));
    assert!(
        error.starts_with("hsupctl: failed to read the release from `/nonexistent`"),
        "{error}"
    );
    app.write("none.json", "{");
    let (code, _, error) = said(&app, &["apply", app.path("none.json").to_str().unwrap()]);
    assert_eq!(code, Some(1));
    let path = app.path("none.json");
    let expected = format!(
        "hsupctl: `{}` is not a release: line 1 column",
        path.display()
    );
    assert!(error.starts_with(&expected), "{error}");
    let (code, _, again) = said(&app, &["plan", path.to_str().unwrap()]);
    assert_eq!((code, again), (Some(1), error));
    // Its standard input is empty.
    let (code, _, error) = said(&app, &["apply", "-"]);
    assert_eq!(code, Some(1));
    assert!(
        error.starts_with("hsupctl: standard input is not a release: "),
        "{error}"
    );
    hsup.interrupt();
}

#[test]
fn a_release_that_is_too_large_is_refused_with_the_limit() {
    const LIMIT: usize = 4 << 20;
    let app = quiet();
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    let path = app.path("large.json");
    let path = path.to_str().unwrap();
    let sized = |size: usize| {
        let text =
            r#"{"Version":2,"Processes":[{"Type":"worker","Quantity":1,"Args":["sleep","1000"]}]}"#;
        app.write(
            "large.json",
            &format!("{text}{}", " ".repeat(size - text.len())),
        );
    };
    sized(LIMIT + 1);
    for command in ["apply", "plan"] {
        let (code, text, error) = said(&app, &[command, path]);
        assert_eq!((code, text.as_str()), (Some(1), ""), "{error}");
        let expected = format!(
            "hsupctl: `{path}` is no release: it is larger than {LIMIT} bytes\n\
             hint: what is large belongs into the slug, and not into config vars\n"
        );
        assert_eq!(error, expected);
    }
    // What a file of the control directory may have, may come this way.
    sized(LIMIT);
    let (code, plan, error) = said(&app, &["plan", path]);
    assert_eq!(code, Some(0), "{error}");
    assert!(plan.contains("Restarts worker.1"), "{plan}");
    hsup.interrupt();
}

#[test]
fn a_scaling_that_cannot_be_meant_is_wrong_usage_and_changes_nothing() {
    let app = App::procfile("worker: sleep 1000\nother: sleep 1000\n");
    let hsup = app.start(&["worker=2", "other"]);
    let before = hsup.wait_up(&["other.1", "worker.1", "worker.2"]);
    let twice = "`worker` has two changes, `worker=1` and `worker=3`: give it one";
    let below = "`worker` is at 2 and cannot be at -7: a quantity is 0 to 10000";
    let above = "`worker` is at 2 and cannot be at 10001: a quantity is 0 to 10000";
    for (changes, code, said_of_it) in [
        (&["worker"][..], 2, "`worker` says no quantity: `worker=1` "),
        (&["other=0", "worker"], 2, "`worker+1` one more"),
        (&["worker=1", "worker=3"], 2, twice),
        (&["worker-9"], 2, below),
        (&["worker+9999"], 2, above),
        (&["worker=x"], 2, "`x` in `worker=x` is not a quantity"),
        (
            &["cron-1"],
            4,
            "no process type `cron`: there is worker, other",
        ),
    ] {
        let arguments = [&["scale"], changes].concat();
        let (code_now, out, error) = said(&app, &arguments);
        assert_eq!(
            (code_now, out.as_str()),
            (Some(code), ""),
            "{changes:?}: {error}"
        );
        assert!(error.contains(said_of_it), "{changes:?}: {error}");
    }
    let formation = "worker=2 other=1\n";
    assert_eq!(said(&app, &["scale"]).1, formation);
    assert_eq!(hsup.wait_up(&["other.1", "worker.1", "worker.2"]), before);
    hsup.interrupt();
}

#[test]
fn a_restart_that_does_not_come_up_says_so() {
    let app = quiet();
    app.write(
        "app/Procfile",
        "worker: test ! -e ../broken && sleep 1000\nother: sleep 1000\n",
    );
    let hsup = app.start(&[]);
    let before = hsup.wait_up(&["other.1", "worker.1"]);
    let restarted = app.ctl(&["restart"]);
    let text = String::from_utf8(restarted.stdout).unwrap();
    assert_eq!(text, "Restarting other.1, worker.1... done\n");
    let after = hsup.wait_up(&["other.1", "worker.1"]);
    assert!(before.iter().all(|id| !after.contains(id)));

    app.write("broken", "");
    let failed = app.ctl(&["restart"]);
    assert_eq!(failed.status.code(), Some(1));
    let text = String::from_utf8(failed.stderr).unwrap();
    let said = "hsupctl: worker.1 did not come up: Process exited with status 1\nhint: ";
    assert!(text.starts_with(said), "{text}");
    let waited_for_nothing = app.ctl(&["restart", "--no-wait", "worker"]);
    let text = String::from_utf8(waited_for_nothing.stdout).unwrap();
    assert_eq!(text, "Restarting worker.1...\n");
    hsup.interrupt();
}

#[test]
fn a_restart_starts_what_was_stopped_where_it_is_named() {
    let app = App::procfile("worker: sleep 1000\nother: sleep 1000\n");
    let hsup = app.start(&["worker=2", "other"]);
    let all = ["other.1", "worker.1", "worker.2"];
    hsup.wait_up(&all);
    let done = |arguments: &[&str], text: &str| {
        let expected = (Some(0), text.to_owned(), String::new());
        assert_eq!(said(&app, arguments), expected, "{arguments:?}");
    };
    done(&["stop", "worker.2"], "Stopping worker.2... done\n");
    // What was stopped by hand is not what a restart of everything means.
    done(&["restart"], "Restarting other.1, worker.1... done\n");
    assert!(said(&app, &["ps"]).1.contains("\nworker.2: down "));
    done(&["restart", "worker.2"], "Restarting worker.2... done\n");
    hsup.wait_up(&all);
    done(&["stop", "worker"], "Stopping worker.1, worker.2... done\n");
    done(
        &["restart", "worker"],
        "Restarting worker.1, worker.2... done\n",
    );
    hsup.wait_up(&all);
    // One that is on its way down is waited for, and then the one after it.
    done(&["stop", "--no-wait", "worker.1"], "Stopping worker.1...\n");
    done(&["restart", "worker.1"], "Restarting worker.1... done\n");
    hsup.wait_up(&all);
    done(&["stop"], "Stopping other.1, worker.1, worker.2... done\n");
    let nothing = "Nothing to restart: no dyno runs, and what was stopped needs `hsupctl start`\n";
    done(&["restart"], nothing);
    done(&["start"], "Starting other.1, worker.1, worker.2... done\n");
    hsup.wait_up(&all);
    done(&["start"], "Nothing to start: no dyno was stopped\n");
    hsup.interrupt();
}

#[test]
fn a_start_waits_until_the_dyno_is_up_or_says_that_it_is_not() {
    let app = App::procfile("worker: test ! -e ../broken && sleep 1000\n");
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    assert_eq!(said(&app, &["stop", "worker"]).0, Some(0));
    app.write("broken", "");
    let (code, _, error) = said(&app, &["start", "worker"]);
    assert_eq!(code, Some(1));
    let not_up = "hsupctl: worker.1 did not come up: Process exited with status 1\nhint: ";
    assert!(error.starts_with(not_up), "{error}");
    assert_eq!(said(&app, &["stop", "worker"]).0, Some(0));
    let started = said(&app, &["start", "--no-wait", "worker"]);
    assert_eq!(started.1, "Starting worker.1...\n");
    hsup.interrupt();
}

#[test]
fn a_start_that_somebody_stops_meanwhile_is_not_done() {
    // It never listens, so it never comes up.
    let app = App::procfile("web: exec sleep 1000\n");
    let hsup = app.start(&["--boot-timeout", "1h"]);
    let starting = |but: &Value| {
        hsup.wait_for("another web.1 that starts", || {
            let dyno = hsup.dynos().into_iter().next()?;
            let is_it = dyno["state"] == "starting" && dyno["dyno_id"].is_string();
            (is_it && dyno["dyno_id"] != *but).then(|| dyno["dyno_id"].clone())
        })
    };
    let mut before = starting(&Value::Null);
    assert_eq!(said(&app, &["stop", "web"]).0, Some(0));
    for (command, meanwhile) in [("start", ["stop", "web"]), ("restart", ["scale", "web=0"])] {
        let mut waiting = app.command("hsupctl");
        let waiting = waiting.args([command, "web"]).stdout(Stdio::piped());
        let waiting = waiting.stderr(Stdio::piped()).spawn().unwrap();
        before = starting(&before);
        assert_eq!(said(&app, &meanwhile).0, Some(0));
        let ended = waiting.wait_with_output().unwrap();
        let text = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(text, "hsupctl: web.1 was stopped meanwhile\n", "{command}");
        assert_eq!((ended.status.code(), ended.stdout.len()), (Some(1), 0));
    }
    hsup.interrupt();
}

#[test]
fn what_runs_once_is_not_restarted() {
    let app = App::procfile("worker: sleep 1000\nonce: echo ran >>../ran\nother: sleep 1000\n");
    let hsup = app.start(&["--oneshot"]);
    let ps = || said(&app, &["ps"]).1;
    hsup.wait_for("once.1 complete, the others up", || {
        let (shown, up) = (ps(), ["\nother.1: up ", "\nworker.1: up "]);
        let is_so = shown.contains("\nonce.1: complete ") && up.iter().all(|it| shown.contains(it));
        is_so.then_some(())
    });
    // As systemctl has it of a unit that ran once, well or not.
    assert_eq!(said(&app, &["status", "once"]).0, Some(3));
    assert_eq!(said(&app, &["status", "worker"]).0, Some(0));
    assert_eq!(said(&app, &["stop", "other"]).0, Some(0));
    for (arguments, name) in [
        (&["restart"][..], "worker.1"),
        (&["restart", "once"], "once.1"),
        (&["restart", "once.1"], "once.1"),
        (&["restart", "other"], "other.1"),
    ] {
        let (code, _, error) = said(&app, arguments);
        assert_eq!(code, Some(1), "{arguments:?}");
        let refused = format!("hsupctl: {name} is not started twice: hsup runs with --oneshot\n");
        assert_eq!(error, refused, "and no hint");
    }
    let shown = ps();
    assert!(shown.contains("\nworker.1: up "), "{shown}");
    assert!(shown.contains("\nother.1: down "), "{shown}");
    assert_eq!(fs::read_to_string(app.path("ran")).unwrap(), "ran\n");
    // Whoever says start means it.
    let started = said(&app, &["start", "once"]);
    assert_eq!(started.1, "Starting once.1... done\n", "{started:?}");
    hsup.wait_for("its second run", || {
        let ran = fs::read_to_string(app.path("ran")).unwrap();
        (ran == "ran\nran\n").then_some(())
    });
    hsup.interrupt();
}

#[test]
fn the_socket_may_be_named_by_an_option_or_a_variable() {
    let app = quiet();
    let socket = app.path("elsewhere.sock");
    let hsup = app.start(&["-s", socket.to_str().unwrap()]);
    hsup.wait_for_line("State changed from starting to up");
    let code = |variable: &Path, arguments: &[&str]| {
        let mut command = app.command("hsupctl");
        command.env("HSUP_CONTROL_SOCKET", variable).args(arguments);
        command.output().unwrap().status.code()
    };
    let option = socket.to_str().unwrap();
    assert_eq!(code(&socket, &["ps"]), Some(0));
    assert_eq!(code("/no.sock".as_ref(), &["-s", option, "ps"]), Some(0));
    let long = ["ps", "--control-socket", option];
    assert_eq!(code("/no.sock".as_ref(), &long), Some(0));
    assert_eq!(code("".as_ref(), &["-s", option, "ps"]), Some(0));
    assert_eq!(code("/no.sock".as_ref(), &["ps"]), Some(4));
    hsup.interrupt();
}

#[test]
fn an_hsup_is_found_wherever_its_socket_is() {
    let app = quiet();
    let socket = app.path("elsewhere.sock");
    let at = |said: (Option<i32>, String, String)| {
        let (_, server) = said.1.split_once("\nhsup ").unwrap();
        server.trim_end().to_owned()
    };
    let version = env!("CARGO_PKG_VERSION");
    let elsewhere = format!("{version} at {}", socket.display());
    // By a relative path, too: hsup and hsupctl are not in the same directory.
    for name in [socket.to_str().unwrap(), "../elsewhere.sock"] {
        let hsup = app.start(&["--linger", "60s", "-s", name]);
        hsup.wait_up(&["worker.1"]);
        assert_eq!(at(said(&app, &["version"])), elsewhere);
        hsup.interrupt();
    }
    // By a link to where it is looked for anyway: that is one hsup, not two.
    symlink(app.path("rt"), app.path("link")).unwrap();
    let near = app.path("link/hsup/my.sock");
    let hsup = app.start(&["--linger", "60s", "-s", near.to_str().unwrap()]);
    hsup.wait_up(&["worker.1"]);
    let near = app.path("rt/hsup/my.sock");
    let expected = format!("{version} at {}", near.display());
    assert_eq!(at(said(&app, &["version"])), expected);
    hsup.interrupt();
    let hsup = app.start(&["--linger", "60s", "-s", socket.to_str().unwrap()]);
    let before = hsup.wait_up(&["worker.1"]);
    assert_eq!(at(said(&app, &["version"])), elsewhere);
    hsup.kill();
    assert_eq!(at(said(&app, &["version"])), "not running");
    let hsup = app.start(&["--linger", "60s"]);
    assert_eq!(hsup.wait_up(&["worker.1"]), before);
    let shown = at(said(&app, &["version"]));
    assert!(
        shown.contains(app.path("rt/hsup").to_str().unwrap()),
        "{shown}"
    );
    hsup.interrupt();
}

#[test]
fn the_status_of_a_dyno_is_its_crash_report() {
    let app = App::procfile("worker: echo out of ideas; exit 7\n");
    let hsup = app.start(&["--restart-backoff", "1h..1h"]);
    hsup.wait_for_line("Crashed 2 times in a row");
    let (code, screen, _) = said(&app, &["status", "worker.1"]);
    assert_eq!(code, Some(3));
    for part in [
        "× worker.1 - echo out of ideas; exit 7\n",
        "     State: crashed since ",
        "   Trouble: exited with code 7, starting again in ",
        " (2nd crash)\n",
        "   Release: v1\n",
        "  Restarts: 1\n",
        " (code=exited, status=7)\n",
        "    Driver: simple\n",
        "; its last lines:\n    out of ideas\n",
    ] {
        assert!(screen.contains(part), "`{part}` is not in:\n{screen}");
    }
    let (code, screen, _) = said(&app, &["status"]);
    assert_eq!(code, Some(3));
    assert!(screen.contains("     Dynos: 1 crashed\n"), "{screen}");
    assert!(
        screen.contains("    × worker.1: exited with code 7, "),
        "{screen}"
    );
    let (code, list, _) = said(&app, &["ps", "worker"]);
    assert_eq!(code, Some(3));
    assert!(list.contains("\nworker.1: crashed "), "{list}");
    let (code, _, error) = said(&app, &["status", "worker.2"]);
    assert_eq!(code, Some(4));
    assert!(
        error.contains("no dyno or process type `worker.2`"),
        "{error}"
    );
    hsup.interrupt();
}

#[test]
fn the_process_of_a_dyno_is_shown() {
    let app = App::procfile("worker: exec sleep 1000\n");
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    let pid = hsup.dynos()[0]["pid"].to_string();
    // Its own, and not that of a driver or of a shell in between.
    hsup.wait_for("the command in that process", || {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        (command == b"sleep\x001000\0").then_some(())
    });
    let screen = said(&app, &["status", "worker.1"]).1;
    assert!(screen.contains(&format!("  Main PID: {pid}\n")), "{screen}");
    let list = said(&app, &["ps", "-o", "wide"]).1;
    assert!(list.contains(&format!("  yes    {pid} ")), "{list}");
    assert!(app.ctl(&["stop"]).status.success());
    assert!(hsup.dynos()[0]["pid"].is_null());
    hsup.interrupt();
}

#[test]
fn the_status_of_what_was_stopped_is_3_and_has_an_empty_dot() {
    let app = App::procfile("worker: sleep 1000\nother: sleep 1000\n");
    let hsup = app.start(&[]);
    hsup.wait_up(&["other.1", "worker.1"]);
    let begins = |arguments: &[&str], code: i32, start: &str| {
        let (ended, text, _) = said(&app, arguments);
        assert_eq!(ended, Some(code), "{arguments:?}: {text}");
        assert!(text.starts_with(start), "{arguments:?}: {text}");
    };
    begins(&["status"], 0, "● app\n");
    assert!(app.ctl(&["stop", "worker"]).status.success());
    begins(&["status"], 0, "● app\n");
    begins(
        &["status", "worker"],
        3,
        "○ worker.1 - sleep 1000\n      State: down since ",
    );
    begins(&["status", "other"], 0, "● other.1 ");
    begins(&["status", "other", "worker"], 3, "● other.1 ");
    begins(&["ps"], 0, "=== other: ");
    assert!(app.ctl(&["stop"]).status.success());
    begins(&["status"], 3, "○ app\n");
    begins(&["ps"], 0, "=== other: ");
    assert!(app.ctl(&["start"]).status.success());
    begins(&["status"], 0, "● app\n");
    hsup.interrupt();
}

#[test]
fn ps_tells_names_that_are_unknown_from_types_that_are_not_wanted() {
    let app = App::procfile("worker: sleep 1000\nidle: true\n");
    let hsup = app.start(&["worker", "idle=0"]);
    hsup.wait_up(&["worker.1"]);
    let (code, text, _) = said(&app, &["ps", "idle"]);
    assert!(text.starts_with("No idle dynos on "), "{text}");
    assert_eq!(code, Some(0));
    assert_eq!(said(&app, &["status", "idle"]).0, Some(0));
    for unknown in ["nosuch", "../x", "worker.0", ""] {
        assert_eq!(said(&app, &["ps", unknown]).0, Some(4), "ps {unknown}");
        assert_eq!(
            said(&app, &["status", unknown]).0,
            Some(4),
            "status {unknown}"
        );
        assert_eq!(said(&app, &["stop", unknown]).0, Some(4), "stop {unknown}");
    }
    let (code, text, _) = said(&app, &["ps", "worker", "nosuch"]);
    assert_eq!(code, Some(4));
    assert!(text.contains("\nworker.1: up "), "{text}");
    assert!(text.contains("\nNo nosuch dynos on "), "{text}");
    let quiet = said(&app, &["ps", "-q", "worker", "nosuch"]);
    assert_eq!((quiet.0, quiet.1.as_str()), (Some(4), "worker.1\n"));
    assert!(quiet.2.starts_with("No nosuch dynos on "), "{}", quiet.2);
    hsup.interrupt();
}

#[test]
fn logs_without_a_line_say_so() {
    let app = App::procfile("worker: sleep 1000\nidle: true\n");
    let hsup = app.start(&["worker", "idle=0"]);
    hsup.wait_up(&["worker.1"]);
    let nothing = |arguments: &[&str], of: &str| {
        let expected = format!("hsupctl: there is no line{of} yet\n");
        assert_eq!(said(&app, arguments), (Some(0), String::new(), expected));
    };
    nothing(&["logs", "-p", "idle"], " of idle");
    nothing(
        &["logs", "-d", "worker.1", "-p", "idle", "-s", "app"],
        " of worker.1 or idle from the source app",
    );
    assert_eq!(
        said(&app, &["logs", "-n", "0"]),
        (Some(0), String::new(), String::new()),
        "no line is what was asked for"
    );
    assert_eq!(
        said(&app, &["logs", "-d", "worker"]).2,
        "",
        "a type is a name, too"
    );
    let (code, _, error) = said(&app, &["logs", "-d", "worker.2"]);
    assert_eq!(code, Some(4));
    let unknown = "hsupctl: no dyno or process type `worker.2`: there is worker.1\n";
    assert_eq!(error, unknown, "and no hint that says it again");
    hsup.interrupt();
}

#[test]
fn the_driver_is_shown_and_can_be_checked() {
    let app = quiet();
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    let (code, info, _) = said(&app, &["driver", "info"]);
    assert_eq!(code, Some(0));
    for line in [
        "Driver: simple ",
        "State: ready\n",
        ", started by hsup\n",
        "STDIO_FIFO",
    ] {
        assert!(info.contains(line), "`{line}` is not in:\n{info}");
    }
    let socket = info
        .lines()
        .find_map(|line| line.trim().strip_prefix("Socket: "));

    // The check is the program of that name beside hsupctl; its code is hsupctl's.
    fs::create_dir(app.path("bin")).unwrap();
    fs::copy(binaries().join("hsupctl"), app.path("bin/hsupctl")).unwrap();
    let check = app.path("bin/hsup-driver-check");
    programs::script(&check, "#!/bin/sh\necho checks \"$@\"; exit 9\n");
    let program = app.path("bin/hsupctl");
    let check = |arguments: &[&str]| {
        let mut command = app.command(program.to_str().unwrap());
        let output = deadline::output(command.args(["driver", "check"]).args(arguments));
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let its_own = format!("checks --socket {}\n", socket.unwrap());
    assert_eq!(check(&[]), (Some(9), its_own));
    let named = "checks --socket /x.sock\n".to_owned();
    assert_eq!(check(&["--socket", "/x.sock"]), (Some(9), named));
    hsup.interrupt();
}

#[test]
fn the_version_is_of_both() {
    let app = quiet();
    let version = env!("CARGO_PKG_VERSION");
    let alone = (Some(0), format!("hsupctl {version}\nhsup not running\n"));
    let (code, text, _) = said(&app, &["version"]);
    assert_eq!((code, text), alone);
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    let (_, text, _) = said(&app, &["version"]);
    let both = format!("hsupctl {version}\nhsup {version} at ");
    assert!(text.starts_with(&both), "{text}");
    hsup.interrupt();
}

#[test]
fn a_shutdown_stops_everything_and_says_so() {
    let app = quiet();
    let mut hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    let mut following = Following::of(&app, &["logs", "-t"]);
    following.line();
    let (code, text, _) = said(&app, &["shutdown"]);
    let expected = "hsup has stopped every dyno and ends\n";
    assert_eq!((code, text.as_str()), (Some(0), expected));
    following.until("Process exited with status 143\n");
    assert_eq!(following.end(&hsup), Some(0), "nothing more follows");
    assert_eq!(hsup.end().code(), Some(0), "{}", hsup.log());
    hsup.nothing_is_left();
}

#[test]
fn a_shutdown_whose_driver_stops_nothing_does_not_pass_for_one() {
    let app = quiet();
    let (driver, socket) = driver_of_its_own(&app);
    let mut hsup = app.start(&["--driver-socket", &socket, "--linger", "600s"]);
    hsup.wait_up(&["worker.1"]);
    driver.signal(Signal::SIGSTOP);
    let (code, text, error) = said(&app, &["shutdown", "--grace", "0"]);
    assert_eq!((code, text.as_str()), (Some(1), ""), "{error}");
    let expected = "hsupctl: hsup ends, but its driver has not stopped 1 dyno, which may run on: \
        once the driver answers again, `hsup start` takes over what runs on, and `hsupctl shutdown` \
        stops it\n";
    assert_eq!(error, expected);
    assert_eq!(hsup.end().code(), Some(1), "{}", hsup.log());
    hsup.wait_for_line("1 dyno did not end in time: left to the driver; once the driver answers");
    hsup.leave();
}

#[test]
fn what_is_being_shut_down_is_not_left() {
    let app = deaf();
    let mut hsup = app.start(&[]);
    hsup.wait_for_line("deaf");
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| said(&app, &["shutdown"]));
        hsup.wait_for_line("Stopping all processes with SIGTERM");
        hsup.signal(Signal::SIGUSR2);
        app.write("go", "");
        let (code, text, error) = shutdown.join().unwrap();
        assert_eq!(code, Some(0), "{text}{error}");
    });
    assert_eq!(hsup.end().code(), Some(0), "{}", hsup.log());
    hsup.nothing_is_left();
}

#[test]
fn a_stop_that_comes_with_the_word_to_leave_is_carried_out() {
    for _ in 0..4 {
        let app = quiet();
        let mut hsup = app.start(&[]);
        hsup.wait_up(&["worker.1"]);
        // Both are there when hsup looks.
        for signal in [
            Signal::SIGSTOP,
            Signal::SIGUSR2,
            Signal::SIGTERM,
            Signal::SIGCONT,
        ] {
            hsup.signal(signal);
        }
        assert_eq!(hsup.end().code(), Some(143), "{}", hsup.log());
        hsup.nothing_is_left();
    }
}

#[test]
fn who_wants_a_stop_when_the_dynos_are_left_is_told_that_they_run_on() {
    let app = quiet();
    // What waits for a drain that is not there keeps hsup for some seconds.
    let drain = format!("syslog://127.0.0.1:{}", app.port + 200);
    let mut hsup = app.start(&["--linger", "60s", "--log-to", &drain]);
    let before = hsup.wait_up(&["worker.1"]);
    hsup.signal(Signal::SIGUSR2);
    hsup.wait_for_line("Leaving the dynos as they are");
    hsup.signal(Signal::SIGTERM);
    assert_eq!(hsup.end().code(), Some(143), "{}", hsup.log());
    assert!(hsup.log().contains("they run on"), "{}", hsup.log());
    hsup.leave();
    let hsup = app.start(&[]);
    assert_eq!(hsup.wait_up(&["worker.1"]), before);
    hsup.interrupt();
}

#[test]
fn who_waits_for_a_stop_when_the_dynos_are_left_is_told_that_hsup_ends() {
    let app = deaf();
    let mut hsup = app.start(&["--linger", "60s"]);
    hsup.wait_for_line("deaf");
    thread::scope(|scope| {
        let stop = scope.spawn(|| said(&app, &["stop", "worker.1"]));
        hsup.wait_for_line("Stopping all processes with SIGTERM");
        hsup.signal(Signal::SIGUSR2);
        let (code, text, error) = stop.join().unwrap();
        assert_eq!(code, Some(1), "{text}{error}");
        assert!(error.contains("hsup is shutting down"), "{error}");
    });
    hsup.end();
    hsup.leave();
    app.write("go", "");
    let hsup = app.start(&[]);
    hsup.wait_for_line("Stopped before, and so until `hsupctl start`: worker.1");
    hsup.interrupt();
}

#[test]
fn what_follows_an_hsup_that_is_killed_lost_it() {
    let app = quiet();
    let mut hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    let mut following = [&["logs", "-t"][..], &["events"]].map(|it| Following::of(&app, it));
    for one in &mut following {
        one.line();
    }
    hsup.signal(Signal::SIGKILL);
    hsup.end();
    for one in &mut following {
        assert_eq!(one.end(&hsup), Some(4));
    }
}

#[test]
fn completions_need_no_hsup() {
    let app = App::empty();
    let (code, script, _) = said(&app, &["completions", "bash"]);
    assert_eq!(code, Some(0));
    app.write("complete.bash", &script);
    let mut bash = app.command("/bin/bash");
    bash.args(["-c", ". \"$0\" && complete -p hsupctl"]);
    let output = bash.arg(app.path("complete.bash")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("_hsupctl"), "{text}");
    for shell in ["zsh", "fish"] {
        let (code, script, _) = said(&app, &["completions", shell]);
        assert_eq!(code, Some(0));
        assert!(script.contains("hsupctl"), "{shell}");
    }
    assert_eq!(said(&app, &["completions", "sh"]).0, Some(2));
}

#[test]
fn both_faces_of_the_socket_serve_at_once() {
    let app = App::procfile("worker: sleep 1000\nother: sleep 1000\n");
    let socket = app.path("control.sock");
    let path = socket.to_str().unwrap();
    let hsup = app.start(&["-s", path]);
    hsup.wait_for("both up", || {
        let code = said(&app, &["-s", path, "ps"]).0;
        (code == Some(0)).then_some(())
    });
    let mut events = Following::of(&app, &["-s", path, "events"]);
    events.until(" worker.1 up\n");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let names = said(&app, &["-s", path, "ps", "-q"]).1;
                    assert_eq!(names, "other.1\nworker.1\n");
                }
            });
            scope.spawn(|| {
                for _ in 0..20 {
                    let answer = http(&socket, "GET /status HTTP/1.0\r\nHost: x\r\n\r\n");
                    assert!(
                        answer.contains(r#""worker.1":{"Status":"Started""#),
                        "{answer}"
                    );
                }
            });
        }
    });
    // What one face changes, the other sees.
    let body = r#"{"Processes":["worker"]}"#;
    let length = body.len();
    let stop =
        format!("POST /control/stop HTTP/1.0\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
    assert!(http(&socket, &stop).contains(r#""StoppedProcesses":["worker"]"#));
    events.until(" worker.1 gone: killed by SIGTERM\n");
    assert!(
        said(&app, &["-s", path, "ps"])
            .1
            .contains("\nworker.1: down ")
    );
    hsup.interrupt();
}
