//! `--driver-option`, and what a driver tells besides: that the driver gets what an operator
//! says, and the operator what the driver says.

use std::{fs, os::unix::net::UnixStream, process::Stdio};

use hsup_tests::deadline::poll;
use serde_json::Value;

use crate::app::{App, Running, process};

/// A driver that knows the options `a` and `b`, writes down what it is given, and stays when hsup
/// ends.
fn driver<'a>(app: &'a App, options: &[&str]) -> Running<'a> {
    let socket = app.path("driver.sock");
    let mut command = app.command("lasting-driver");
    command
        .args(["--option", "a", "--option", "b"])
        .args(options);
    command.arg("--socket").arg(&socket);
    let driver = Running::of(app, command.spawn().unwrap());
    driver.wait_for("the driver", || UnixStream::connect(&socket).ok());
    driver
}

/// The options of every Build that the driver has made.
fn builds(app: &App) -> Vec<String> {
    let builds = fs::read_to_string(app.path("driver.state/builds")).unwrap_or_default();
    builds.lines().map(str::to_owned).collect()
}

/// What the only dyno whose id begins so was started from, and its options.
fn order(app: &App, dyno: &str) -> (String, String) {
    let dynos = fs::read_dir(app.path("driver.state/dynos")).unwrap();
    let mut of_dyno = dynos.flatten().filter(|entry| {
        let name = entry.file_name().into_string().unwrap();
        name.split_once('.').unwrap().1.starts_with(dyno)
    });
    let found = of_dyno.next().unwrap().path();
    assert!(of_dyno.next().is_none(), "there are two of {dyno}");
    let order = fs::read_to_string(found.join("order")).unwrap();
    let (artifact, options) = order.split_once(" by ").unwrap();
    (artifact.to_owned(), options.to_owned())
}

/// Its options alone.
fn of_start(app: &App, dyno: &str) -> String {
    order(app, dyno).1
}

const WORKER: &str = "worker: exec sleep 1000\n";

#[test]
fn each_build_and_start_has_them_wherever_they_are_said() {
    let app = App::procfile(WORKER);
    let _driver = driver(&app, &[]);
    let socket = app.path("driver.sock");
    let socket = ["--driver-socket", socket.to_str().unwrap()];
    app.write(
        "app/hsup.toml",
        "[driver-option]\na = 'from a file'\nb = true\n",
    );
    let hsup = app.start(&socket);
    hsup.wait_up(&["worker.1"]);
    assert_eq!(of_start(&app, "worker-1"), "a=from a file b=true");
    hsup.interrupt_beside_others();

    // The whole list of whoever is nearer to the command line.
    let hsup = app.start_as(&socket, |command| {
        command.env("HSUP_DRIVER_OPTION", "b=1 a=x=y");
    });
    hsup.wait_up(&["worker.1"]);
    assert_eq!(of_start(&app, "worker-1"), "a=x=y b=1");
    hsup.interrupt_beside_others();

    let flags = ["--driver-option", "a=2", "--driver-option", "a=3"];
    let built = app.run(&[&["build"], &socket[..], &flags].concat());
    assert!(built.status.success(), "{built:?}");
    let dynos = app.path("driver.state/dynos");
    let cat = format!("cat {}/*.run-1-*/order", dynos.display());
    let ran = app.run(&[&["run"], &socket[..], &flags, &[&cat]].concat());
    let written = String::from_utf8_lossy(&ran.stdout).into_owned();
    let artifact = String::from_utf8(built.stdout).unwrap();
    assert_eq!(
        written,
        format!("{} by a=3", artifact.trim_end()),
        "{ran:?}"
    );
    // The driver joins equal ones.
    assert_eq!(builds(&app), ["a=from a file b=true", "a=x=y b=1", "a=3"]);
}

#[test]
fn other_options_are_another_build_also_of_a_release_that_was_built_before() {
    let app = App::empty();
    let _driver = driver(&app, &[]);
    let socket = app.path("driver.sock");
    let worker = process("worker", "exec sleep 1000", 1);
    let release = |version: u32| {
        let slug = app.path(&format!("slug{version}"));
        fs::create_dir_all(&slug).unwrap();
        let slug = format!(r#""Slug":"{}","#, slug.display());
        app.hand_in(&app.text(version, &slug, &worker));
    };
    let start = |option| {
        let socket = socket.to_str().unwrap();
        app.control(&["--driver-socket", socket, "--driver-option", option])
    };
    release(1);
    let hsup = start("a=1");
    hsup.wait_releases(&["v1 current"]);
    release(2);
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    assert!(app.ctl(&["rollback"]).status.success());
    assert_eq!(builds(&app), ["a=1", "a=1"], "what was made of v1 will do");
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt_beside_others();

    let hsup = start("a=2");
    hsup.wait_up(&["worker.1"]);
    assert_eq!(of_start(&app, "worker-1"), "a=2");
    assert!(app.ctl(&["rollback", "v2"]).status.success());
    hsup.wait_up(&["worker.1"]);
    assert_eq!(builds(&app), ["a=1", "a=1", "a=2", "a=2"]);
    hsup.interrupt_beside_others();
}

#[test]
fn dynos_that_are_taken_over_have_theirs_until_they_are_started_again() {
    let app = App::procfile(WORKER);
    let _driver = driver(&app, &[]);
    let socket = app.path("driver.sock");
    let socket = socket.to_str().unwrap();
    let start = |option| app.start(&["--driver-socket", socket, "--driver-option", option]);
    let first = start("a=1");
    let before = first.wait_up(&["worker.1"]);
    first.kill();
    let second = start("a=2");
    assert_eq!(second.wait_up(&["worker.1"]), before);
    second.wait_for("a build with the new ones", || {
        (builds(&app) == ["a=1", "a=2"]).then_some(())
    });
    let (old, options) = order(&app, "worker-1");
    assert_eq!(options, "a=1");
    assert!(app.ctl(&["restart", "worker"]).status.success());
    second.wait_for("a Remove of the old one", || {
        let dynos = fs::read_dir(app.path("driver.state/dynos")).unwrap();
        (dynos.count() == 1).then_some(())
    });
    let (new, options) = order(&app, "worker-1");
    assert_eq!(options, "a=2");
    assert_ne!(new, old, "it is what was built by the new ones");
    second.interrupt_beside_others();
}

#[test]
fn what_is_no_option_is_told_and_so_is_one_that_the_driver_does_not_know() {
    let app = App::procfile(WORKER);
    let said = |arguments: &[&str], code| {
        let output = app.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let out = String::from_utf8(output.stdout).unwrap();
        out + &String::from_utf8(output.stderr).unwrap()
    };
    for (option, why) in [
        ("swarm", "`swarm` is no option of a driver: use KEY=VALUE"),
        ("a/b=1", "`a/b` is no key of a driver's option"),
    ] {
        let told = said(&["start", "--driver-option", option], 2);
        assert!(told.contains(why), "{told}");
    }
    let why = "unknown option `swarm`: the simple driver has none";
    let option = ["--driver-option", "swarm=true"];
    for words in [&["start"][..], &["build"], &["run", "true"]] {
        let arguments = [&option, words].concat();
        let told = said(&arguments, 1);
        assert!(told.contains(why), "{told}");
    }
    let shown = said(&[&option[..], &["config", "show"]].concat(), 0);
    let line = shown.lines().find(|line| line.starts_with("driver-option"));
    assert!(line.unwrap().contains(r#"["swarm=true"]"#), "{shown}");
}

#[test]
fn a_driver_of_several_machines_tells_where_dynos_are() {
    let app = App::procfile(&format!("{WORKER}web: exec perl web.pl\n"));
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hello/web.pl");
    fs::copy(example, app.path("app/web.pl")).unwrap();
    let _driver = driver(&app, &["--node", "swarm-2"]);
    let socket = app.path("driver.sock");
    let socket = ["--driver-socket", socket.to_str().unwrap()];
    let on_node = |hsup: &Running<'_>| {
        hsup.wait_for("the nodes", || {
            let dynos = hsup.dynos();
            let on_node = |dyno: &Value| dyno["node"] == "swarm-2";
            (dynos.len() == 2 && dynos.iter().all(on_node)).then_some(dynos)
        })
    };
    let first = app.start(&socket);
    first.wait_up(&["web.1", "worker.1"]);
    on_node(&first);
    // Also of those that are taken over.
    first.kill();
    let second = app.start(&socket);
    second.wait_up(&["web.1", "worker.1"]);
    let dynos = on_node(&second);
    assert_ne!(dynos[0]["port"], Value::Null, "{dynos:?}");
    let wide = String::from_utf8(app.ctl(&["ps", "-o", "wide"]).stdout).unwrap();
    let last = wide.lines().filter_map(|line| line.split(' ').next_back());
    let last: Vec<_> = last.collect();
    assert_eq!(last, ["NODE", "swarm-2", "swarm-2"], "{wide}");
    assert!(app.ctl(&["stop", "worker"]).status.success());
    let dynos = second.dynos();
    assert_eq!(dynos[1]["node"], Value::Null, "it is nowhere: {dynos:?}");
    second.interrupt_beside_others();

    let control = app.path("run.sock");
    let control = control.to_str().unwrap();
    let run = [&["-s", control], &socket[..], &["exec sleep 1000"]].concat();
    let _run = app.spawn("run", &run, Stdio::null(), Stdio::null());
    let shown = poll(|| {
        let shown = app.ctl(&["-s", control, "ps", "-o", "json"]);
        let dynos: Value = serde_json::from_slice(&shown.stdout).ok()?;
        (dynos[0]["node"] == "swarm-2").then_some(())
    });
    assert!(shown.is_some(), "`hsup run` does not tell");
}

#[test]
fn a_driver_of_one_machine_names_none() {
    let app = App::procfile(WORKER);
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    let wide = String::from_utf8(app.ctl(&["ps", "-o", "wide"]).stdout).unwrap();
    assert!(wide.contains("PORT") && !wide.contains("NODE"), "{wide}");
    assert_eq!(hsup.dynos()[0]["node"], Value::Null);
    hsup.interrupt();
}
