//! What is wrong is told with its name, its place and the way out.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    net::TcpListener,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
};

use hsup_tests::{deadline, programs};

use crate::app::{App, Running, binaries, process, processes_of};

fn refused(app: &App, arguments: &[&str], expected: &str) {
    refused_with(1, app, arguments, expected);
}

fn refused_with(code: i32, app: &App, arguments: &[&str], expected: &str) {
    let output = app.run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(said.contains(expected), "{arguments:?}: {said}");
}

pub(crate) fn script(app: &App, text: &str) -> String {
    let path = app.path("driver.sh");
    programs::script(&path, text);
    path.to_str().unwrap().to_owned()
}

#[test]
fn what_cannot_be_started_says_why() {
    let app = App::procfile("web: true\nworker: true\n");
    refused(&app, &["start", "nosuch"], "there is web, worker");
    refused(
        &app,
        &["start", "release"],
        "no process type `release`: there is",
    );
    refused(&app, &["start", "-d", "./none"], "`./none` does not exist");
    refused(&app, &["start", "-d", "abspath"], "-d simple");
    let no_token = "there is no token to ask with: set HEROKU_API_KEY";
    refused(&app, &["run", "-a", "app", "true"], no_token);
    refused_with(
        2,
        &app,
        &["start", "-a", "a/b"],
        "`a/b` is not a name for an app",
    );
    refused(&app, &["start", "-C", "/"], "no Procfile in `/`");
    for none in ["/nosuch", "Procfile"] {
        let said = format!("there is no directory `{none}`, which -C/--directory names");
        refused(&app, &["start", "-C", none], &said);
    }
    let no_binds = "the simple driver cannot show a path";
    refused(&app, &["run", "--bind", "/tmp:/x", "true"], no_binds);
    refused(&app, &["start", "--bind", "/tmp"], no_binds);
    assert!(processes_of(&app).is_empty());
    app.write("app/Procfile", "# nothing\n");
    refused(&app, &["start"], "Procfile");
    app.write("app/Procfile", "release: true\n");
    refused(&app, &["start"], "no process but `release`");
    app.write("app/Procfile", "web: true\nrelease: true\n");
    refused(&app, &["start", "release"], "gets no dyno: there is web");
}

/// Runs hsup in a directory that has been removed.
fn nowhere(app: &App, arguments: &[&str]) -> (Option<i32>, String) {
    fs::create_dir(app.path("gone")).unwrap();
    let mut command = app.command("/bin/sh");
    command
        .current_dir(app.path("gone"))
        .args(["-c", "rmdir ../gone && exec \"$0\" \"$@\""])
        .arg(binaries().join("hsup"))
        .args(arguments);
    let output = deadline::output(&mut command);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.code(), said)
}

#[test]
fn that_the_current_directory_is_gone_matters_to_who_needs_it() {
    let app = App::procfile("worker: echo from $PWD\n");
    let folder = app.path("app");
    let folder = folder.to_str().unwrap();
    let here = format!("from {folder}");
    for (arguments, expected) in [
        (&["schema", "config"][..], "\"$schema\""),
        (&["completions", "bash"], "complete -F"),
        (&["config", "show"], "grace"),
        (&["doctor", "-d", "simple"], "for the driver simple"),
        (&["export", "systemd", "-C", folder], "[Service]"),
        (&["start", "-C", folder, "--oneshot"], &here),
    ] {
        let (code, said) = nowhere(&app, arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    let (code, said) = nowhere(&app, &["start"]);
    let expected = "a Procfile in the current directory, which is gone: `cd` to one that is there";
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(expected), "{said}");

    let release = format!(
        r#"{{"Version":1,"Env":{{"PORT":"{}"}},"Processes":[{{"Type":"worker","Args":["pwd"],"Quantity":1}}]}}"#,
        app.port
    );
    app.hand_in(&release);
    let control_dir = app.path("ctl");
    let control_dir = control_dir.to_str().unwrap();
    let (_, said) = nowhere(&app, &["start", "--control-dir", control_dir, "--oneshot"]);
    let expected = "the directory that the driver was started in is gone";
    assert!(said.contains(expected), "{said}");
    assert!(processes_of(&app).is_empty());
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let app = App::procfile("web: true\n");
    for bad in ["web=10001", "web=-1", "web=x", "a/b", ""] {
        refused_with(2, &app, &["start", bad], "invalid value");
    }
    refused_with(2, &app, &["start", "web=10001"], "a quantity is 0 to 10000");
    let twice = "`web` is named twice";
    refused_with(2, &app, &["start", "web=1", "web=3"], twice);
    refused_with(2, &app, &["start", "web", "web"], twice);
    refused_with(
        2,
        &app,
        &["start", "--start-number", "4294967295"],
        "start-number",
    );
    refused_with(2, &app, &["start", "--nosuch"], "--nosuch");
    refused_with(2, &app, &["run", "--nosuch", "true"], "--nosuch");
    refused_with(2, &app, &[], "Usage");
    // On either side of the command word.
    let both = "--control-dir and -C";
    refused_with(2, &app, &["check", "-C.", "--control-dir", "x"], both);
    refused_with(2, &app, &["-C.", "check", "--control-dir", "x"], both);
    let both = "-a shop asks for an app on Heroku, and -C/--directory names another source";
    refused_with(2, &app, &["start", "-C.", "-a", "shop"], both);
    refused_with(2, &app, &["-a", "shop", "run", "-C.", "true"], both);
    let both = "and --control-dir names another source: give one of them";
    refused_with(2, &app, &["check", "--control-dir", "x", "-ashop"], both);
    let both = "-d/--driver and --driver-socket";
    refused_with(
        2,
        &app,
        &["run", "-dsimple", "--driver-socket=x", "ls"],
        both,
    );
    refused_with(2, &app, &["-dsimple", "start", "--driver-socket=x"], both);
}

#[test]
fn a_driver_that_is_none_is_told_and_leaves_nothing() {
    let app = App::procfile("web: true\n");
    let dies = script(&app, "#!/bin/sh\necho I cannot >&2; exit 3\n");
    refused(&app, &["start", "-d", &dies], "exit code 3");
    refused(&app, &["start", "-d", &dies], "I cannot");
    let silent = script(&app, "#!/bin/sh\nsleep 1000\n");
    refused(
        &app,
        &["start", "-d", &silent],
        "did not answer within 10 s",
    );
    assert!(processes_of(&app).is_empty());
}

#[test]
#[ignore = "runs a driver as another user: needs root"]
fn a_driver_of_another_user_is_told_nothing() {
    const NOBODY: u32 = 65534;
    let app = App::procfile("web: sleep 1000\n");
    let theirs = app.path("theirs");
    fs::create_dir(&theirs).unwrap();
    // The folder of the build may be root's alone.
    fs::copy(binaries().join("hsup-driver-simple"), theirs.join("driver")).unwrap();
    chown(&theirs, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(app.path(""), fs::Permissions::from_mode(0o711)).unwrap();
    let socket = theirs.join("drv.sock");
    let mut driver = app.command(theirs.join("driver").to_str().unwrap());
    let driver = driver.arg("--socket").arg(&socket).current_dir(&theirs);
    let driver = Running::of(&app, deadline::spawn(driver.uid(NOBODY).gid(NOBODY)));
    driver.wait_for("the socket", || socket.exists().then_some(()));
    for word in [&["start"][..], &["run", "true"]] {
        let option = format!("--driver-socket={}", socket.display());
        let (first, rest) = word.split_first().unwrap();
        let arguments = [&[*first, &option], rest].concat();
        refused(&app, &arguments, "belongs to uid 65534");
        refused(&app, &arguments, "not handing it the app's config vars");
    }
    driver.kill();
}

#[test]
fn a_second_hsup_of_the_same_app_names_the_first() {
    let app = App::procfile("worker: sleep 1000\n");
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    let first = format!(
        "hsup: hsup already runs this app (process {}): `hsupctl ps` shows its dynos, \
         `hsupctl shutdown` ends it\n",
        hsup.pid()
    );
    refused(&app, &["start"], &first);
    refused(
        &app,
        &["start", "-s", app.path("x").to_str().unwrap()],
        &first,
    );
    // What is wrong anyway is told first.
    refused(&app, &["start", "-d", "nosuch"], "unknown driver `nosuch`");
    refused(
        &app,
        &["start", "nosuch"],
        "no process type `nosuch`: there is worker",
    );
    hsup.interrupt();
}

#[test]
fn a_state_directory_in_use_may_be_another_apps() {
    let app = App::procfile("worker: sleep 1000\n");
    let state = app.path("one-state");
    let state = ["--state-dir", state.to_str().unwrap()];
    let hsup = app.start(&state);
    hsup.wait_up(&["worker.1"]);
    let in_use = format!("one-state` is in use by the hsup with pid {}", hsup.pid());
    refused(&app, &["start", state[0], state[1]], &in_use);
    hsup.interrupt();
}

#[test]
fn a_socket_that_cannot_be_bound_leaves_nothing_in_the_runtime_directory() {
    let app = App::procfile("worker: sleep 1000\n");
    let left = || fs::read_dir(app.path("rt/hsup/run")).map_or(0, Iterator::count);
    refused(
        &app,
        &["start", "-s", "/nosuch/x.sock"],
        "failed to lock `/nosuch/x.sock.lock`",
    );
    assert_eq!(left(), 0);
    refused(&app, &["start", "-s", &"x".repeat(200)], "is too long");
    assert_eq!(left(), 0);
    let file = app.path("app/Procfile");
    refused(
        &app,
        &["start", "-s", file.to_str().unwrap()],
        "is not a socket",
    );
    assert_eq!(left(), 0);
}

#[test]
fn a_name_beside_the_variable_is_said_to_have_no_effect() {
    let app = App::empty();
    app.release(1, "", r#"{"Type":"web","Quantity":1,"Args":["x"]}"#);
    let mut check = app.command("hsup");
    check
        .env("HSUP_CONTROL_DIR", app.path("ctl"))
        .args(["check", "-a", "shop"]);
    let output = check.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "web    1  x\n");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.starts_with("hsup: -a shop has no effect: HSUP_CONTROL_DIR "),
        "{said}"
    );
}

#[test]
fn a_control_directory_is_followed_by_one_hsup_alone() {
    let app = App::empty();
    app.release(1, "", &process("worker", "sleep 1000", 1));
    let hsup = app.control(&[]);
    hsup.wait_up(&["worker.1"]);
    let directory = app.path("ctl");
    let state = app.path("other-state");
    let socket = app.path("other.sock");
    let elsewhere = [
        "--control-dir",
        directory.to_str().unwrap(),
        "--state-dir",
        state.to_str().unwrap(),
    ];
    let start = ["start", "-s", socket.to_str().unwrap()];
    let arguments = [&start[..], &elsewhere].concat();
    refused(
        &app,
        &arguments,
        "another hsup follows the control directory",
    );
    // A one-off takes nothing away from it.
    let run = app.run(&[&["run"][..], &elsewhere, &["echo one-off"]].concat());
    assert_eq!(String::from_utf8_lossy(&run.stdout), "one-off\n");
    assert_eq!(app.version_in("loaded"), Some(1));
    hsup.interrupt();
}

#[test]
fn a_port_in_use_is_passed_over_and_said() {
    let app = App::procfile(&format!(
        "web: exec {} serve\n",
        binaries().join("test-dyno").display()
    ));
    let _taken = TcpListener::bind(("0.0.0.0", app.port)).unwrap();
    let hsup = app.start(&[]);
    hsup.wait_up(&["web.1"]);
    hsup.wait_for_line(&format!("Port {} is in use", app.port));
    hsup.interrupt();
}

#[test]
fn two_apps_that_listen_nowhere_yet_have_two_ports_for_as_long_as_both_run() {
    let line = "worker: echo port=$PORT; exec sleep 1000\n";
    let (app, other) = (App::procfile(line), App::procfile(line));
    other.write("app/.env", &format!("PORT={}\n", app.port));
    let port = app.port + 100;
    let first = app.start(&["--linger", "60s"]);
    first.wait_for_line(&format!("port={port}"));
    let second = other.start(&[]);
    second.wait_for_line(&format!("port={}", port + 1));
    second.wait_for_line(&format!("Port {port} is in use"));
    first.kill();
    assert!(other.ctl(&["restart", "worker.1"]).status.success());
    second.wait_for_line(&format!("port={port}"));
    second.interrupt();
}

#[test]
fn a_low_open_file_limit_is_told_and_what_fits_runs() {
    let app = App::procfile("worker: sleep 1000\n");
    let hsup = app.start_limited(256, &["worker=120"]);
    hsup.wait_for_line("the open-file limit of 256");
    let ps = || String::from_utf8(app.ctl(&["ps"]).stdout).unwrap();
    let up = || ps().matches(": up ").count();
    hsup.wait_for("what fits", || (up() == 64).then_some(()));
    assert_eq!(hsup.log().matches("the open-file limit of 256").count(), 1);
    assert!(ps().contains("worker.65: starting"));
    // Who waits for descriptors can be stopped, and gets them when another ends.
    app.ctl(&["stop", "worker.66"]);
    app.ctl(&["stop", "worker.1"]);
    hsup.wait_for("the next in turn", || {
        ps().contains("worker.65: up").then_some(())
    });
    assert!(ps().contains("worker.66: down"));
    hsup.interrupt();
}

#[test]
fn a_flood_without_a_newline_is_no_flood_in_memory() {
    const FLOOD: u64 = 1 << 30;
    let app = App::procfile(&format!(
        "worker: {} flood {FLOOD}; sleep 1000\n",
        binaries().join("test-dyno").display()
    ));
    let (mut reader, out) = io::pipe().unwrap();
    let err = File::create(app.path("err")).unwrap();
    let hsup = app.spawn("start", &["--no-prefix"], out, err);
    let mut piece = vec![0; 1 << 20];
    let mut read = 0;
    // The last piece waits for its end.
    while read < FLOOD - (1 << 20) {
        let count = reader.read(&mut piece).unwrap();
        assert!(count > 0, "hsup has ended");
        read += count as u64;
    }
    let status = fs::read_to_string(format!("/proc/{}/status", hsup.pid())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 64 * 1024, "hsup grew to {kib} KiB");
    hsup.interrupt();
}

#[test]
fn without_its_driver_hsup_tells_what_it_waits_for() {
    let app = App::procfile("worker: sleep 1000\n");
    let socket = app.path("nobody.sock");
    let hsup = app.start(&["--driver-socket", socket.to_str().unwrap()]);
    hsup.wait_for_line("Waiting for the driver: failed to connect to the driver socket");
    let said = |arguments: &[&str]| {
        let output = app.ctl(arguments);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    assert_eq!(said(&["ps"]).0, Some(3));
    assert_eq!(said(&["releases"]).0, Some(0));
    let (code, text) = said(&["scale", "worker=2"]);
    assert_eq!(code, Some(1));
    assert!(
        text.contains("hsup waits for it: failed to connect"),
        "{text}"
    );
    assert!(said(&["driver", "info"]).1.contains("failed to connect"));
    assert_eq!(hsup.log().matches("Waiting for the driver").count(), 1);
    hsup.interrupt();
}

#[test]
fn an_engine_that_is_down_is_waited_for() {
    let app = App::procfile("worker: sleep 1000\n");
    let host = format!("unix://{}", app.path("engine.sock").display());
    let hsup = app.start_as(&["-d", "docker"], |command| {
        command.env("DOCKER_HOST", &host);
    });
    let why = format!("The docker driver is not ready: the engine at {host} does not answer");
    hsup.wait_for_line(&why);
    assert_eq!(app.ctl(&["ps"]).status.code(), Some(3));
    hsup.interrupt();
}
