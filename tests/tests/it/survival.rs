//! What is killed comes back, and nothing is left over.

use std::fs::File;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    app::{App, Running, binaries, processes_of},
    bad_input::script,
    faults::Standing,
};

fn number_after(log: &str, word: &str) -> Option<i32> {
    let at = log.rfind(word)? + word.len();
    let word = log[at..].split_whitespace().next()?;
    word.trim_end_matches(',').parse().ok()
}

pub(crate) fn driver_pid(hsup: &Running<'_>) -> i32 {
    hsup.wait_for("a driver", || {
        let shown = hsup.app.ctl(&["driver", "info"]);
        number_after(&String::from_utf8(shown.stdout).unwrap(), "Process:")
    })
}

fn alive(pid: i32) -> bool {
    // A zombie that nobody reaps is as dead as can be.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_killed_driver_comes_back_with_its_dynos() {
    let dyno = binaries().join("test-dyno");
    let app = App::procfile(&format!("worker: {} grandchild\n", dyno.display()));
    let hsup = app.start(&["--grace", "1s"]);
    let before = hsup.wait_up(&["worker.1"]);
    let grandchild = hsup.wait_for("a grandchild", || number_after(&hsup.log(), "grandchild "));
    kill(Pid::from_raw(driver_pid(&hsup)), Signal::SIGKILL).unwrap();
    hsup.wait_for("another dyno", || {
        (hsup.wait_up(&["worker.1"]) != before).then_some(())
    });
    hsup.wait_for("the end of the old grandchild", || {
        (!alive(grandchild)).then_some(())
    });
    hsup.interrupt();
}

#[test]
fn a_killed_dyno_comes_back_and_its_grandchild_goes() {
    let dyno = binaries().join("test-dyno");
    let app = App::procfile(&format!("worker: exec {} grandchild\n", dyno.display()));
    let hsup = app.start(&["--grace", "1s"]);
    let before = hsup.wait_up(&["worker.1"]);
    let first = hsup.wait_for("a dyno", || number_after(&hsup.log(), "| dyno "));
    let grandchild = hsup.wait_for("a grandchild", || number_after(&hsup.log(), "grandchild "));
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    hsup.wait_for("another dyno", || {
        (hsup.wait_up(&["worker.1"]) != before).then_some(())
    });
    assert!(!alive(grandchild), "what a dyno leaves behind is killed");
    hsup.wait_for_line("Process exited with status 137");
    hsup.interrupt();
}

#[test]
fn a_killed_hsup_takes_its_dynos_over_again() {
    let app = App::procfile("worker: sleep 1000\n");
    let mut first = app.start(&["worker=2", "--linger", "60s"]);
    let before = first.wait_up(&["worker.1", "worker.2"]);
    first.signal(Signal::SIGKILL);
    first.end();
    let second = app.start(&["worker=2", "--linger", "60s"]);
    assert_eq!(second.wait_up(&["worker.1", "worker.2"]), before);
    second.interrupt();
}

#[test]
fn a_rollout_of_a_procfile_is_gone_on_with_by_the_next_hsup() {
    let web = binaries().join("test-dyno");
    let line = format!(
        "until [ -e ../go$V ]; do sleep 0.1; done; exec {} serve",
        web.display()
    );
    let app = App::procfile(&format!("web: {line}\nrelease: echo $V >> ../ran\n"));
    let start = |version: u32| {
        app.write("app/.env", &format!("PORT={}\nV={version}\n", app.port));
        app.start(&["--linger", "60s", "--boot-timeout", "60s"])
    };
    app.write("go1", "");
    let hsup = start(1);
    hsup.wait_up(&["web.1"]);
    hsup.kill();
    let hsup = start(2);
    hsup.wait_releases(&["v1 rolling out", "v1 current"]);
    hsup.wait_for("a dyno of it", || {
        let dynos = hsup.dynos();
        let is_new = |dyno: &serde_json::Value| dyno["state"] == "starting";
        dynos.iter().any(is_new).then_some(())
    });
    hsup.kill();
    let hsup = start(2);
    hsup.wait_for_line("of an earlier hsup");
    app.write("go2", "");
    hsup.wait_releases(&["v1 current", "v1 superseded"]);
    hsup.wait_up(&["web.1"]);
    assert!(!hsup.log().contains("rejected"), "{}", hsup.log());
    let ran = std::fs::read_to_string(app.path("ran")).unwrap();
    assert_eq!(ran, "1\n2\n");
    hsup.interrupt();
}

/// An hsup with a driver of its own, killed; the driver is frozen, and the next hsup answers.
fn begun_with_a_frozen_driver<'app>(app: &'app App, options: &[&str]) -> (Running<'app>, Pid) {
    let first = app.start(options);
    first.wait_up(&["worker.1"]);
    let driver = Pid::from_raw(driver_pid(&first));
    kill(driver, Signal::SIGSTOP).unwrap();
    first.kill();
    let second = app.start(options);
    second.wait_for("an hsup that answers", || {
        (!second.dynos().is_empty()).then_some(())
    });
    (second, driver)
}

#[test]
fn whoever_stops_hsup_before_the_driver_has_answered_stops_the_dynos_that_survived() {
    let app = App::procfile("worker: exec sleep 1000\n");
    let mut standing = Standing::at(&app, "one.sock");
    let socket = app.path("one.sock");
    let options = [
        "--driver-socket",
        socket.to_str().unwrap(),
        "--linger",
        "600s",
    ];
    let (mut second, driver) = begun_with_a_frozen_driver(&app, &options);
    second.signal(Signal::SIGINT);
    assert_eq!(second.has_ended(), None, "it waits for the driver's answer");
    kill(driver, Signal::SIGCONT).unwrap();
    assert_eq!(second.end().code(), Some(130), "{}", second.log());
    assert!(
        second.log().contains("Taking over 1 dyno"),
        "{}",
        second.log()
    );
    assert_eq!(processes_of(&app), [driver.as_raw()]);
    standing.kill();
    second.nothing_is_left();
}

#[test]
fn whoever_stops_hsup_twice_does_not_wait_for_a_driver_and_is_told_what_runs_on() {
    let app = App::procfile("worker: exec sleep 1000\n");
    let mut standing = Standing::at(&app, "one.sock");
    let socket = app.path("one.sock");
    let options = [
        "--driver-socket",
        socket.to_str().unwrap(),
        "--linger",
        "600s",
    ];
    let (mut second, driver) = begun_with_a_frozen_driver(&app, &options);
    second.signal(Signal::SIGINT);
    second.signal(Signal::SIGTERM);
    second.end();
    let log = second.log();
    assert!(
        log.contains("1 dyno of an earlier hsup may run on"),
        "{log}"
    );
    kill(driver, Signal::SIGCONT).unwrap();
    // Nothing of it was forgotten.
    let third = app.start(&options);
    third.wait_for_line("Taking over 1 dyno of an earlier hsup");
    third.wait_up(&["worker.1"]);
    second.leave();
    third.interrupt_beside_others();
    standing.kill();
}

#[test]
fn the_last_words_of_a_dyno_that_ended_without_hsup_are_shown_by_the_next_one() {
    let app = App::procfile(
        "worker: [ -e die ] && exec sleep 1000; until [ -e die ]; do sleep 0.01; done; \
         echo dying words; echo and why >&2; exit 3\n\
         other: sleep 1000\n",
    );
    let arguments = ["worker=1", "other=1", "--linger", "60s"];
    let mut first = app.start(&arguments);
    first.wait_up(&["other.1", "worker.1"]);
    let worker = || running(&app, "dying words").len();
    assert!(worker() > 0);
    first.signal(Signal::SIGKILL);
    first.end();
    app.write("app/die", "");
    first.wait_for("the end of the dyno", || (worker() == 0).then_some(()));
    let second = app.start(&arguments);
    second.wait_for_line("Process exited with status 3");
    let log = second.log();
    assert!(log.contains("| dying words"), "{log}");
    assert!(log.contains("| and why"), "{log}");
    second.interrupt();
}

#[test]
fn the_driver_of_an_earlier_life_leaves_nobody_when_it_is_killed() {
    let dyno = binaries().join("test-dyno");
    let app = App::procfile(&format!("worker: {} grandchild\n", dyno.display()));
    let arguments = ["--linger", "60s", "--grace", "1s"];
    let mut first = app.start(&arguments);
    let before = first.wait_up(&["worker.1"]);
    let grandchild = first.wait_for("a grandchild", || number_after(&first.log(), "grandchild "));
    let driver = driver_pid(&first);
    first.signal(Signal::SIGKILL);
    first.end();
    let second = app.start(&arguments);
    assert_eq!(second.wait_up(&["worker.1"]), before, "adopted");
    assert_eq!(driver_pid(&second), driver);
    assert!(alive(grandchild));
    // Its orphans do not become hsup's: another hsup was its parent.
    kill(Pid::from_raw(driver), Signal::SIGKILL).unwrap();
    second.wait_for("another dyno", || {
        (second.wait_up(&["worker.1"]) != before).then_some(())
    });
    assert!(!alive(grandchild), "it outlived its driver");
    second.interrupt();
}

#[test]
fn the_dynos_of_a_driver_that_was_killed_with_hsup_do_not_meet_the_next_ones() {
    let dyno = binaries().join("test-dyno");
    let app = App::procfile(&format!("worker: {} grandchild\n", dyno.display()));
    let mut first = app.start(&["--grace", "1s"]);
    first.wait_up(&["worker.1"]);
    let grandchild = first.wait_for("a grandchild", || number_after(&first.log(), "grandchild "));
    let driver = Pid::from_raw(driver_pid(&first));
    first.signal(Signal::SIGKILL);
    kill(driver, Signal::SIGKILL).unwrap();
    first.end();
    // Any driver that begins, also another test's, kills what a dead one left in its cgroups.
    let second = app.start(&["--grace", "1s"]);
    second.wait_up(&["worker.1"]);
    assert!(!alive(grandchild), "it outlived its driver");
    second.interrupt();
}

#[test]
fn what_a_killed_hsup_leaves_ends_by_itself() {
    let app = App::procfile("worker: sleep 1000\n");
    let mut hsup = app.start(&["--linger", "1s"]);
    hsup.wait_up(&["worker.1"]);
    hsup.signal(Signal::SIGKILL);
    hsup.end();
    hsup.wait_for("the end of dyno and driver", || {
        processes_of(&app).is_empty().then_some(())
    });
}

#[test]
fn a_child_that_hsup_did_not_start_is_left_alone_with_what_it_leaves() {
    let app = App::procfile("worker: exec sleep 1000\n");
    // As the entry point of a container does it.
    let entry = "(sleep 7771 & exec sleep 7772) & sleep 7773 & exec \"$@\"";
    let mut command = app.command("/bin/bash");
    let hsup = binaries().join("hsup");
    command
        .args(["-c", entry, "bash"])
        .arg(hsup)
        .args(["start", "--grace", "1s"])
        .stdout(File::create(app.path("out")).unwrap())
        .stderr(File::create(app.path("err")).unwrap());
    let mut hsup = Running::of(&app, command.spawn().unwrap());
    let before = hsup.wait_up(&["worker.1"]);
    let sidecar = |seconds: u32| {
        let found = running(&app, &format!("sleep\0{seconds}"));
        found.first().map(|pid| Pid::from_raw(*pid))
    };
    // Its child becomes hsup's.
    kill(sidecar(7772).unwrap(), Signal::SIGKILL).unwrap();
    kill(Pid::from_raw(driver_pid(&hsup)), Signal::SIGKILL).unwrap();
    hsup.wait_for("another dyno", || {
        (hsup.wait_up(&["worker.1"]) != before).then_some(())
    });
    assert!(sidecar(7771).is_some() && sidecar(7773).is_some());
    hsup.signal(Signal::SIGINT);
    hsup.end();
    for seconds in [7771, 7773] {
        kill(sidecar(seconds).unwrap(), Signal::SIGKILL).unwrap();
    }
    hsup.nothing_is_left();
}

#[test]
fn a_driver_that_hangs_is_killed_with_all_that_its_dynos_left() {
    let dyno = binaries().join("test-dyno");
    let app = App::procfile(&format!("worker: {} grandchild\n", dyno.display()));
    let mut hsup = app.start(&["--grace", "1s"]);
    hsup.wait_up(&["worker.1"]);
    let grandchild = hsup.wait_for("a grandchild", || number_after(&hsup.log(), "grandchild "));
    kill(Pid::from_raw(driver_pid(&hsup)), Signal::SIGSTOP).unwrap();
    hsup.signal(Signal::SIGINT);
    hsup.signal(Signal::SIGINT);
    hsup.end();
    assert!(!alive(grandchild), "it has outlived hsup");
    hsup.nothing_is_left();
    let log = hsup.log();
    assert!(
        log.contains("1 dyno did not end in time: ended with the driver"),
        "{log}"
    );
    assert!(!log.contains("R12"), "nobody was killed for that: {log}");
}

#[test]
fn a_driver_that_is_not_up_yet_leaves_nothing_when_hsup_ends() {
    let app = App::procfile("worker: sleep 1000\n");
    let driver = script(&app, "#!/bin/sh\nsleep 1000 & sleep 1000\n");
    let mut hsup = app.start(&["-d", &driver]);
    let sleeps = || running(&app, "sleep\x001000").len();
    hsup.wait_for("what the driver starts", || (sleeps() == 2).then_some(()));
    hsup.signal(Signal::SIGINT);
    hsup.end();
    assert_eq!(sleeps(), 0);
    hsup.nothing_is_left();
}

#[test]
fn what_nobody_remembers_is_stopped_at_once_and_before_anything_is_started() {
    let dyno = binaries().join("test-dyno");
    let app = App::procfile(&format!("worker: exec {} ignore-term\n", dyno.display()));
    let arguments = ["worker=3", "--grace", "1s", "--linger", "60s"];
    let names = ["worker.1", "worker.2", "worker.3"];
    let mut first = app.start(&arguments);
    let before = first.wait_up(&names);
    first.wait_for("all to ignore SIGTERM", || {
        (first.log().matches("| ready").count() == 3).then_some(())
    });
    first.signal(Signal::SIGKILL);
    first.end();
    let state = std::fs::read_dir(app.path("state/hsup"))
        .unwrap()
        .next()
        .unwrap();
    std::fs::File::create(state.unwrap().path().join("journal")).unwrap();
    let second = app.start(&arguments);
    second.wait_for_line("Stopping 3 dynos that the driver has and hsup does not know");
    let after = second.wait_up(&names);
    assert_eq!(running(&app, "ignore-term").len(), 3);
    assert!(after.iter().all(|id| !before.contains(id)));
    second.interrupt();
}

/// The processes of the app whose arguments hold this.
fn running(app: &App, what: &str) -> Vec<i32> {
    let runs = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(what)
    };
    processes_of(app).into_iter().filter(runs).collect()
}

#[test]
fn a_damaged_memory_makes_no_second_driver() {
    let app = App::procfile("worker: exec sleep 1000\n");
    let mut first = app.start(&["--linger", "60s"]);
    first.wait_up(&["worker.1"]);
    let drivers = running(&app, "hsup-driver-simple");
    first.signal(Signal::SIGKILL);
    first.end();
    let state = std::fs::read_dir(app.path("state/hsup"))
        .unwrap()
        .next()
        .unwrap();
    let runtime = std::fs::read_dir(app.path("rt/hsup/run"))
        .unwrap()
        .next()
        .unwrap();
    let (state, runtime) = (state.unwrap().path(), runtime.unwrap().path());
    for damaged in [
        state.join("history.json"),
        state.join("memory.json"),
        runtime.join("driver.json"),
    ] {
        use std::io::Write as _;
        let file = std::fs::File::options().append(true).open(&damaged);
        file.unwrap().write_all(b"garbage").unwrap();
    }
    let second = app.start(&["--linger", "60s"]);
    second.wait_up(&["worker.1"]);
    assert_eq!(running(&app, "hsup-driver-simple"), drivers);
    assert_eq!(running(&app, "sleep\x001000").len(), 1);
    let log = second.log();
    assert!(
        log.contains("Not taking over 1 dyno of an earlier hsup, whose release is not remembered"),
        "{log}"
    );
    assert!(!log.contains("Taking over"), "{log}");
    second.interrupt();
}

#[test]
fn another_driver_than_before_takes_the_place_of_the_first() {
    let app = App::procfile("worker: exec sleep 1000\n");
    let mut first = app.start(&["--linger", "60s"]);
    let before = first.wait_up(&["worker.1"]);
    let simple = driver_pid(&first);
    first.signal(Signal::SIGKILL);
    first.end();
    let driver = binaries().join("hsup-driver-fault");
    let second = app.start(&["-d", driver.to_str().unwrap(), "--linger", "60s"]);
    second.wait_for_line("Another driver is used than before");
    assert_ne!(second.wait_up(&["worker.1"]), before);
    assert_eq!(app.calls("start").len(), 1);
    assert!(!alive(simple));
    assert_eq!(running(&app, "sleep\x001000").len(), 1);
    second.interrupt();
}

#[test]
fn a_web_that_was_up_may_close_its_port_in_a_later_life_and_one_that_never_was_may_not() {
    let app = App::procfile("");
    let (dyno, closing) = (binaries().join("test-dyno"), app.path("closing"));
    let line = format!(
        "test $DYNO = web.2 && exec sleep 1000; {} serve & \
         until test -e {}; do sleep 0.05; done; kill $!; exec sleep 2000",
        dyno.display(),
        closing.display()
    );
    app.write("app/Procfile", &format!("web: {line}\n"));
    let arguments = ["web=2", "--linger", "60s", "--boot-timeout"];
    let first = app.start(&[&arguments[..], &["60s"]].concat());
    let id = |hsup: &Running<'_>, name: &str, state: &str| {
        hsup.wait_for(&format!("{name} {state}"), || {
            let dynos = hsup.dynos();
            let dyno = dynos.iter().find(|dyno| dyno["name"] == name)?;
            let id = dyno["dyno_id"].as_str().filter(|id| !id.is_empty())?;
            (dyno["state"] == state).then(|| id.to_owned())
        })
    };
    let before = (id(&first, "web.1", "up"), id(&first, "web.2", "starting"));
    app.write("closing", "");
    first.wait_for("a closed port", || {
        (running(&app, "sleep\x002000").len() == 1).then_some(())
    });
    first.kill();
    let second = app.start(&[&arguments[..], &["1s"]].concat());
    assert_eq!(id(&second, "web.1", "up"), before.0);
    // By then a second has passed for both.
    second.wait_for("another web.2", || {
        (id(&second, "web.2", "starting") != before.1).then_some(())
    });
    let boot_timeouts = || second.log().matches("Error R10").count();
    second.wait_for("two boot timeouts", || (boot_timeouts() >= 2).then_some(()));
    assert_eq!(id(&second, "web.1", "up"), before.0);
    second.interrupt();
}

#[test]
fn a_runtime_folder_that_was_cleared_up_is_made_again() {
    let app = App::procfile("worker: exec sleep 1000\n");
    let hsup = app.start(&[]);
    let before = hsup.wait_up(&["worker.1"]);
    let runtime = std::fs::read_dir(app.path("rt/hsup/run"))
        .unwrap()
        .next()
        .unwrap();
    std::fs::remove_dir_all(runtime.unwrap().path().join("io")).unwrap();
    let dyno = running(&app, "sleep\x001000")[0];
    kill(Pid::from_raw(dyno), Signal::SIGKILL).unwrap();
    hsup.wait_for("another dyno", || {
        (hsup.wait_up(&["worker.1"]) != before).then_some(())
    });
    assert!(app.ctl(&["restart"]).status.success());
    hsup.wait_up(&["worker.1"]);
    assert_eq!(
        hsup.dynos()[0]["restarts"],
        1,
        "one by hand is none that counts"
    );
    hsup.interrupt();
}

#[test]
fn a_control_socket_that_was_removed_is_made_again() {
    let app = App::procfile("worker: exec sleep 1000\n");
    let hsup = app.start(&[]);
    let before = hsup.wait_up(&["worker.1"]);
    // Without its lock, as somebody may who tidies up.
    let entries = std::fs::read_dir(app.path("rt/hsup")).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    let socket = paths.find(|path| path.extension().is_some_and(|it| it == "sock"));
    std::fs::remove_file(socket.unwrap()).unwrap();
    hsup.wait_for_line("The control socket was removed: it is at ");
    assert_eq!(hsup.wait_up(&["worker.1"]), before);
    std::fs::remove_dir_all(app.path("rt/hsup")).unwrap();
    hsup.wait_for("the socket in a new folder", || hsup.up(&["worker.1"]));
    assert_eq!(hsup.wait_up(&["worker.1"]), before);
    // And once more, with dynos that need their folder.
    std::fs::remove_dir_all(app.path("rt/hsup")).unwrap();
    hsup.wait_for("another socket", || hsup.up(&["worker.1"]));
    assert!(app.ctl(&["restart"]).status.success());
    assert_ne!(hsup.wait_up(&["worker.1"]), before);
    hsup.interrupt();
}

#[test]
fn what_cannot_even_begin_is_told_once() {
    let app = App::procfile("worker: exec sleep 1000\n");
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    let runtime = std::fs::read_dir(app.path("rt/hsup/run"))
        .unwrap()
        .next()
        .unwrap();
    let io = runtime.unwrap().path().join("io");
    std::fs::remove_dir_all(&io).unwrap();
    std::fs::File::create(&io).unwrap();
    let dyno = running(&app, "sleep\x001000")[0];
    kill(Pid::from_raw(dyno), Signal::SIGKILL).unwrap();
    hsup.wait_for("three attempts", || {
        let crashes = hsup.dynos().first()?["crashes_in_a_row"].as_u64()?;
        (crashes >= 4).then_some(())
    });
    let log = hsup.log();
    let count = |text: &str| log.matches(text).count();
    assert_eq!(
        count("Process could not be started: failed to make the FIFO"),
        1,
        "{log}"
    );
    assert_eq!(
        (count("Starting process"), count("times in a row")),
        (1, 0),
        "{log}"
    );
    assert_eq!(count("State changed from starting to crashed"), 1, "{log}");
    std::fs::remove_file(&io).unwrap();
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt();
}
