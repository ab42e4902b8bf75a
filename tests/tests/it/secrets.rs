//! A config var's value, a slug's signature and a log token reach the dyno, the driver's socket
//! and private files, and nothing else.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Stdio,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    app::{App, Running, http, process, web},
    survival::driver_pid,
};

const MARK: &str = "hunter2";

/// A release with the mark wherever a secret may be.
fn release(app: &App, version: u32, processes: &str) -> String {
    app.text(
        version,
        &format!(
            r#""Slug":"https://user:{MARK}@store.example/app.tgz?sig={MARK}#{MARK}",
               "LogplexURL":"https://token:{MARK}@logs.example/logs?{MARK}","#
        ),
        processes,
    )
    .replace(r#""Env":{"#, &format!(r#""Env":{{"SECRET":"{MARK}","#))
}

/// Everything that hsupctl shows, and the original's status.
fn shown(hsup: &Running<'_>, socket: &Path, plan: &Path) -> String {
    let plan = plan.to_str().unwrap();
    let questions: &[&[&str]] = &[
        &["ps"],
        &["ps", "-o", "wide"],
        &["ps", "-o", "json"],
        &["status", "web.1"],
        &["releases"],
        &["releases", "-o", "json"],
        &["plan", plan],
        &["driver", "info"],
        &["logs", "-n", "10000"],
        &["scale"],
    ];
    let mut all = String::new();
    for question in questions {
        let output = hsup.app.ctl(question);
        for part in [output.stdout, output.stderr] {
            all += &String::from_utf8_lossy(&part);
        }
    }
    all + &http(socket, "GET /status HTTP/1.0\r\nHost: x\r\n\r\n")
}

/// What the kernel shows of a process to its own user.
fn of_process(pid: i32) -> String {
    let read = |name| fs::read(format!("/proc/{pid}/{name}")).unwrap();
    [read("cmdline"), read("environ"), read("comm")]
        .iter()
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .collect()
}

fn assert_private(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let metadata = entry.metadata().unwrap();
        let mode = metadata.permissions().mode() & 0o777;
        let path = entry.path();
        if metadata.is_dir() {
            assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
            assert_private(&path);
        } else {
            assert!(
                mode == 0o600 || mode == 0o400,
                "{}: {mode:o}",
                path.display()
            );
        }
    }
}

#[test]
fn a_secret_is_seen_by_the_dyno_alone() {
    let app = App::empty();
    let prove = r#""[ ${#SECRET} = 7 ] && echo it has it; exec","#;
    let v1 = release(&app, 1, &web("", "1").replace(r#""exec","#, prove));
    app.hand_in(&v1);
    let hsup = app.control(&[]);
    hsup.wait_up(&["web.1"]);
    let sockets = fs::read_dir(app.path("rt/hsup")).unwrap().flatten();
    let mut sockets = sockets.map(|entry| entry.path());
    let socket = sockets
        .find(|path| path.extension().is_some_and(|end| end == "sock"))
        .unwrap();
    hsup.wait_for_line("it has it");
    let events = File::create(app.path("events")).unwrap();
    let mut command = app.command("hsupctl");
    command.args(["events", "-o", "json"]);
    let mut listener = command
        .stdout(events)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let read_events = || fs::read_to_string(app.path("events")).unwrap();
    hsup.wait_for("a snapshot", || (!read_events().is_empty()).then_some(()));

    // Bad releases of each kind: no JSON, no release, not built, not up.
    let values = [
        format!(r#"{{"Env":{{"SECRET":"{MARK}"#),
        format!(r#"{{"Env":{{"SECRET":["{MARK}"]}}}}"#),
        format!(r#"{{"Env":{{"SECRET={MARK}":""}}}}"#),
        format!(r#"{{"Env":{{"SECRET={MARK}": x}}}}"#),
        format!(r#"{{"LogplexURL":"{MARK}"}}"#),
    ];
    let mut said = String::new();
    for (index, text) in values.iter().enumerate() {
        app.hand_in(text);
        hsup.wait_for("the verdict on it", || {
            (hsup.log().matches("Release rejected").count() > index).then_some(())
        });
        said += &app.last_error().unwrap();
        assert_private(&app.path("ctl"));
    }
    let missing = format!("file:///no/such/{}/", "folder");
    let unbuildable = release(&app, 2, &web("", "1"));
    let from = unbuildable.find("https://user").unwrap();
    let to = from + unbuildable[from..].find('"').unwrap();
    app.hand_in(&(unbuildable[..from].to_owned() + &missing + &unbuildable[to..]));
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    said += &app.last_error().unwrap();
    app.hand_in(&release(&app, 3, &process("web", "exit 3", 1)));
    hsup.wait_releases(&["v3 rejected", "v2 rejected", "v1 current"]);
    hsup.wait_up(&["web.1"]);
    said += &app.last_error().unwrap();

    // A crash of the driver, and the diagnostics of it all.
    let before = driver_pid(&hsup);
    kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
    hsup.wait_for("another driver", || {
        hsup.wait_up(&["web.1"]);
        let dynos = hsup.dynos();
        (dynos[0]["restarts"] != 0 || hsup.log().contains("The driver is gone")).then_some(())
    });
    hsup.wait_up(&["web.1"]);
    hsup.signal(Signal::SIGUSR1);
    hsup.wait_for_line("driver connected");
    app.write("plan", &v1.replace(MARK, "changed-hunter2"));

    said += &shown(&hsup, &socket, &app.path("plan"));
    said += &of_process(hsup.pid());
    said += &of_process(driver_pid(&hsup));
    said += &hsup.log();
    said += &read_events();
    let place = said.find(MARK);
    let around = place.map(|at| &said[said.floor_char_boundary(at.saturating_sub(300))..at]);
    assert_eq!(around, None, "a secret follows this");

    // It is kept, so that it could have been shown.
    for name in ["ctl/loaded", "ctl/rejected"] {
        assert!(
            fs::read_to_string(app.path(name)).unwrap().contains(MARK),
            "{name}"
        );
    }
    assert_private(&app.path("ctl"));
    assert_private(&app.path("state"));
    listener.kill().unwrap();
    listener.wait().unwrap();
    hsup.interrupt();
}
