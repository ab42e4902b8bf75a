//! A driver that misbehaves, and an hsup that copes.

use std::{
    fs::{self, File},
    os::unix::net::UnixListener,
    process::Child,
    time::{Duration, SystemTime},
};

use hsup_tests::programs;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    app::{App, Running, binaries, page, process, processes_of},
    survival::driver_pid,
};

/// `hsup start` with the driver that does what its script says.
fn started<'a>(app: &'a App, arguments: &[&str]) -> Running<'a> {
    let driver = binaries().join("hsup-driver-fault");
    let mut all = vec!["-d", driver.to_str().unwrap(), "--grace", "2s"];
    all.extend(arguments);
    app.start(&all)
}

fn serve() -> String {
    format!("exec {} serve", binaries().join("test-dyno").display())
}

#[test]
fn a_driver_without_faults_is_one_like_any_other() {
    let app = App::procfile(&format!("web: {}\n", serve()));
    let hsup = started(&app, &[]);
    let ids = hsup.wait_up(&["web.1"]);
    assert!(page(app.port).unwrap().contains("hello from web.1"));
    assert_eq!(app.calls("start"), [format!("start {}: -", ids[0])]);
    hsup.interrupt();
}

#[test]
fn a_start_that_is_refused_is_told_and_tried_again() {
    let app = App::procfile(&format!("web: {}\n", serve()));
    app.faults("once start resource-exhausted no memory is left\n");
    let hsup = started(&app, &[]);
    hsup.wait_up(&["web.1"]);
    hsup.wait_for_line("Process could not be started: no memory is left");
    assert_eq!(app.calls("start").len(), 2);
    hsup.interrupt();
}

#[test]
fn a_driver_without_room_to_build_is_asked_again_and_the_good_release_runs_on() {
    let app = App::empty();
    let driver = binaries().join("hsup-driver-fault");
    let driver = ["-d", driver.to_str().unwrap()];
    app.release(1, "", &process("worker", "sleep 1000", 1));
    let hsup = app.control(&driver);
    let before = hsup.wait_up(&["worker.1"]);
    app.faults("build resource-exhausted no space left on device\n");
    let v2 = app.text(
        2,
        r#""Slug":"file:///","#,
        &process("worker", "sleep 1000", 2),
    );
    app.hand_in(&v2);
    let asked = |times: usize| {
        let builds = || app.calls("build").into_iter();
        let is_v2 = |call: &String| call.contains("v2");
        hsup.wait_for("its builds", || {
            (builds().filter(is_v2).count() >= times).then_some(())
        });
    };
    asked(3);
    hsup.wait_releases(&["v2 building", "v1 current"]);
    assert_eq!(hsup.wait_up(&["worker.1"]), before);
    let said =
        "Release v2 cannot be built, trying again: the driver has no room to build it: no space";
    assert_eq!(hsup.log().matches(said).count(), 1, "{}", hsup.log());
    hsup.interrupt();

    // Nor does the good one wait for room that it does not need.
    let hsup = app.control(&driver);
    hsup.wait_up(&["worker.1"]);
    hsup.wait_releases(&["v2 building", "v1 current"]);
    app.faults("");
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    hsup.wait_up(&["worker.1", "worker.2"]);
    hsup.interrupt();
}

#[test]
fn each_release_of_a_directory_is_built() {
    let app = App::procfile("worker: sleep 1000\n");
    let hsup = started(&app, &["--linger", "60s"]);
    hsup.wait_up(&["worker.1"]);
    assert_eq!(app.calls("build").len(), 1);
    hsup.kill();
    app.write("app/.env", &format!("PORT={}\nA=b\n", app.port));
    let hsup = started(&app, &["--linger", "60s"]);
    hsup.wait_releases(&["v1 current", "v1 superseded"]);
    assert_eq!(app.calls("build").len(), 2, "its code may be another, too");
    hsup.interrupt();
}

#[test]
fn a_rollback_to_what_the_driver_has_lost_and_nobody_can_verify_is_rejected() {
    let app = App::empty();
    let driver = binaries().join("hsup-driver-fault");
    let text = |version: u32, line: &str| {
        let slug = r#""Slug":"file:///","#;
        app.text(version, slug, &process("worker", line, 1))
    };
    app.hand_in(&text(1, "sleep 1000"));
    let hsup = app.control(&["-d", driver.to_str().unwrap()]);
    hsup.wait_up(&["worker.1"]);
    app.hand_in(&text(2, "sleep 2000"));
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    let builds = app.calls("build").len();
    app.faults("once start not-found artifact is not known\n");
    let rollback = app.ctl(&["rollback"]);
    assert!(!rollback.status.success());
    let said = format!("{rollback:?}");
    let why = "the driver no longer has what it built of v1, and nothing tells whether its slug";
    assert!(said.contains(why), "{said}");
    assert!(
        said.contains("--keep-slugs, or DOCKER_KEEP_IMAGES"),
        "{said}"
    );
    hsup.wait_releases(&["v3 rejected", "v2 current", "v1 superseded"]);
    assert_eq!(app.calls("build").len(), builds);

    // What runs is built again, and told.
    let ids = hsup.wait_up(&["worker.1"]);
    app.faults("once start not-found artifact is gone\n");
    assert!(app.ctl(&["restart"]).status.success());
    assert_ne!(hsup.wait_up(&["worker.1"]), ids);
    hsup.wait_for_line("The driver no longer has what it built of v2: building it again");
    hsup.interrupt();
}

#[test]
fn a_slug_of_another_checksum_is_told_in_herokus_words() {
    let app = App::empty();
    let driver = binaries().join("hsup-driver-fault");
    app.release(1, "", &process("worker", "sleep 1000", 1));
    let hsup = app.control(&["-d", driver.to_str().unwrap()]);
    let before = hsup.wait_up(&["worker.1"]);
    let words = "Checksum does match expected value. Expected: SHA256:aa Actual: SHA256:bb";
    app.faults(&format!("build failed-precondition slug: {words}\n"));
    app.hand_in(&app.text(2, r#""Slug":"file:///","#, &process("worker", "true", 1)));
    hsup.wait_for_line(&format!("build    | Error R17 (Checksum error) -> {words}"));
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    assert_eq!(hsup.wait_up(&["worker.1"]), before);
    hsup.interrupt();
}

#[test]
fn a_driver_without_room_to_start_is_asked_again_and_the_good_release_runs_on() {
    let app = App::empty();
    let driver = binaries().join("hsup-driver-fault");
    let driver = driver.to_str().unwrap();
    app.release(1, "", &process("worker", "sleep 1000", 1));
    let hsup = app.control(&[
        "-d",
        driver,
        "--strategy",
        "worker=start-first",
        "--boot-timeout",
        "10m",
    ]);
    let before = hsup.wait_up(&["worker.1"]);
    app.faults("start resource-exhausted no memory is left\n");
    let both = [
        process("worker", "sleep 2000", 1),
        process("release", "exit 0", 0),
    ]
    .join(",");
    app.hand_in(&app.text(2, "", &both));
    let refused = |dyno: &str, times: usize| {
        hsup.wait_for("its Starts", || {
            let calls = app.calls("start").into_iter();
            let of_dyno = calls.filter(|call| call.starts_with(&format!("start {dyno}")));
            (of_dyno.count() >= times).then_some(())
        });
    };
    // Neither the release command is held against it, nor the dyno that is tried.
    refused("release-2", 3);
    hsup.wait_releases(&["v2 releasing", "v1 current"]);
    app.faults("");
    hsup.wait_for_line("Process exited with status 0");
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    let now = hsup.wait_up(&["worker.1"]);
    assert_ne!(now, before);

    app.faults("start resource-exhausted no memory is left\n");
    app.hand_in(&app.text(3, "", &process("worker", "sleep 3000", 1)));
    let tried = app.calls("start").len();
    hsup.wait_for("its Starts", || {
        (app.calls("start").len() >= tried + 3).then_some(())
    });
    hsup.wait_releases(&["v3 rolling out", "v2 current", "v1 superseded"]);
    let said = "The driver has no room to start it yet: no memory is left";
    assert_eq!(hsup.log().matches(said).count(), 2, "{}", hsup.log());
    app.faults("");
    hsup.wait_releases(&["v3 current", "v2 superseded", "v1 superseded"]);
    hsup.interrupt();
}

#[test]
fn what_the_driver_has_no_room_to_start_in_time_is_rejected_with_the_reason() {
    let app = App::empty();
    let driver = binaries().join("hsup-driver-fault");
    app.release(1, "", &process("worker", "sleep 1000", 1));
    let hsup = app.control(&[
        "-d",
        driver.to_str().unwrap(),
        "--strategy",
        "worker=start-first",
        "--boot-timeout",
        "1s",
        "--release-timeout",
        "1500ms",
    ]);
    let before = hsup.wait_up(&["worker.1"]);
    app.faults("start resource-exhausted no memory is left\n");
    let worker = process("worker", "sleep 2000", 1);
    app.hand_in(&app.text(2, "", &worker));
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    let command = process("release", "exit 0", 0);
    app.hand_in(&app.text(3, "", &format!("{worker},{command}")));
    hsup.wait_releases(&["v3 rejected", "v2 rejected", "v1 current"]);
    let releases = hsup.releases();
    let reasons = [1, 0].map(|at| releases[at]["reason"].as_str().unwrap());
    let no_room = "no memory is left (ResourceExhausted)";
    assert_eq!(
        reasons,
        [
            format!(
                "worker.1: Process could not be started: the driver could not start it within 1 \
                 seconds: {no_room}"
            ),
            format!(
                "release command failed: it did not begin within 1.5 seconds: it was stopped \
                 before it ran: {no_room}"
            ),
        ]
    );
    assert_eq!(hsup.wait_up(&["worker.1"]), before);
    hsup.interrupt();
}

#[test]
fn another_instance_on_the_same_connection_is_waited_for_anew() {
    let app = App::procfile("worker: sleep 1000\n");
    let hsup = started(&app, &[]);
    let before = hsup.wait_up(&["worker.1"]);
    // Start is answered before hsup waits for what it began.
    hsup.wait_for("its Wait", || (app.calls("wait").len() == 1).then_some(()));
    app.faults("is instance another\n");
    hsup.wait_for("another Wait", || {
        (app.calls("wait").len() > 1).then_some(())
    });
    assert_eq!(hsup.wait_up(&["worker.1"]), before);
    hsup.interrupt();
}

/// A control directory's release with a slug of its own, so that it is built.
fn release(app: &App, version: u32, slug: &str) {
    let slug = app.path(slug);
    std::fs::create_dir_all(&slug).unwrap();
    let text = format!(
        r#"{{"Version":{version},"Slug":"file://{}/","Env":{{"PORT":"{}"}},
            "Processes":[{{"Type":"worker","Args":["sleep","1000"],"Quantity":1}}]}}"#,
        slug.display(),
        app.port
    );
    app.write("next", &text);
    std::fs::rename(app.path("next"), app.path("ctl/new")).unwrap();
}

#[test]
fn a_build_goes_on_when_the_drivers_backend_is_back() {
    let app = App::procfile("worker: sleep 1000\n");
    app.faults("build unavailable the store is down\n");
    let hsup = started(&app, &[]);
    hsup.wait_for_line("It cannot be built yet: the store is down (Unavailable)");
    app.faults("");
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt();
}

#[test]
fn a_driver_that_dies_while_it_builds_condemns_no_release_unless_it_always_does() {
    let app = App::empty();
    release(&app, 1, "one");
    let control = app.path("ctl");
    let hsup = started(&app, &["--control-dir", control.to_str().unwrap()]);
    hsup.wait_up(&["worker.1"]);
    app.faults("once build die\n");
    release(&app, 2, "two");
    hsup.wait_for_line("Release v2 is current");
    app.faults("build die\n");
    release(&app, 3, "three");
    hsup.wait_for_line(
        "Release v3 rejected, v2 keeps running: the driver was lost 3 times while it built it",
    );
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt();
}

#[test]
fn a_driver_that_is_not_ready_is_waited_for() {
    let app = App::procfile("worker: sleep 1000\n");
    app.faults("is not-ready still warming up\n");
    let hsup = started(&app, &[]);
    hsup.wait_for_line("The simple driver is not ready: still warming up");
    assert!(app.calls("build").is_empty());
    app.faults("");
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt();
}

#[test]
fn run_waits_for_a_driver_that_is_not_ready_and_a_signal_ends_the_wait() {
    let app = App::procfile("worker: true\n");
    let driver = binaries().join("hsup-driver-fault");
    let run = |said: &str| {
        let mut command = app.command("hsup");
        command
            .args(["run", "-d", driver.to_str().unwrap(), "echo done"])
            .stdout(File::create(app.path("out")).unwrap())
            .stderr(File::create(app.path("err")).unwrap());
        let child = command.spawn().unwrap();
        let hsup = Running::of(&app, child);
        hsup.wait_for_line(said);
        hsup
    };
    app.faults("is not-ready still warming up\n");
    let mut hsup = run("hsup: The simple driver is not ready: still warming up");
    hsup.signal(Signal::SIGTERM);
    assert_eq!(hsup.end().code(), Some(128 + 15));
    hsup.nothing_is_left();
    let mut hsup = run("hsup: The simple driver is not ready: still warming up");
    app.faults("build unavailable the store is down\n");
    hsup.wait_for_line("hsup: The release cannot be built yet: the store is down");
    app.faults("");
    assert_eq!(hsup.end().code(), Some(0), "{}", hsup.log());
    assert!(hsup.log().starts_with("done\n"));
    hsup.nothing_is_left();
}

/// The processes of the app that run `test-dyno serve`.
fn servers(app: &App) -> usize {
    let serves = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.ends_with(b"test-dyno\0serve\0")
    };
    processes_of(app).iter().filter(|pid| serves(pid)).count()
}

#[test]
fn a_start_that_the_driver_cannot_make_yet_is_told_and_can_be_given_up() {
    let app = App::procfile("worker: sleep 1000\n");
    app.faults("start unavailable the backend is down\n");
    let hsup = started(&app, &[]);
    hsup.wait_for_line("The driver cannot start it yet: the backend is down (Unavailable)");
    assert!(app.ctl(&["stop", "worker.1"]).status.success());
    hsup.wait_for_line("State changed from starting to down");
    // It would wait for as long as the driver cannot.
    let start = app.ctl(&["start", "--no-wait", "worker.1"]);
    assert!(start.status.success());
    app.faults("");
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt();
}

#[test]
fn a_start_that_is_never_answered_holds_up_neither_a_restart_nor_the_end() {
    let app = App::procfile("worker: sleep 1000\n");
    app.faults("once start hang\n");
    let hsup = started(&app, &[]);
    hsup.wait_for("a Start", || app.calls("start").pop());
    assert!(app.ctl(&["restart", "worker.1"]).status.success());
    let first = hsup.wait_up(&["worker.1"]);
    app.faults("start hang\n");
    assert!(
        app.ctl(&["restart", "--no-wait", "worker.1"])
            .status
            .success()
    );
    hsup.wait_for("another Start", || {
        let starts = app.calls("start");
        (!starts.last()?.contains(&first[0])).then_some(())
    });
    hsup.signal(Signal::SIGINT);
    hsup.nothing_is_left();
    assert!(!hsup.log().contains("R12"), "{}", hsup.log());
    assert!(
        !hsup.log().contains("did not end in time"),
        "{}",
        hsup.log()
    );
}

#[test]
fn a_start_that_fails_after_all_leaves_no_twin() {
    let app = App::procfile(&format!("web: {}\n", serve()));
    app.faults("once start unknown-after lost its mind\nonce remove internal\n");
    let hsup = started(&app, &[]);
    hsup.wait_for_line("Process could not be started: lost its mind (Unknown)");
    hsup.wait_up(&["web.1"]);
    assert_eq!(servers(&app), 1);
    assert!(hsup.log().contains(&format!("listening on {}\n", app.port)));
    hsup.wait_for("the first to be removed", || {
        let first = app.calls("start")[0].clone();
        let removed = first
            .replace("start", "remove")
            .replace("unknown-after lost its mind", "-");
        app.calls("remove").contains(&removed).then_some(())
    });
    hsup.interrupt();
}

#[test]
fn a_start_whose_answer_is_lost_makes_no_twin() {
    let app = App::procfile(&format!("web: {}\n", serve()));
    app.faults("once start cut-after\n");
    let hsup = started(&app, &[]);
    hsup.wait_up(&["web.1"]);
    assert_eq!(servers(&app), 1);
    hsup.interrupt();
}

#[test]
fn run_reads_the_errors_of_start_the_same_way() {
    let app = App::procfile("worker: true\n");
    let driver = binaries().join("hsup-driver-fault");
    let run = |faults: &str| {
        app.faults(faults);
        app.run(&["run", "-d", driver.to_str().unwrap(), "echo done"])
    };
    let waited = run("once start unavailable the backend is down\n");
    let said = String::from_utf8_lossy(&waited.stderr);
    assert!(
        said.contains("The driver cannot start it yet: the backend is down"),
        "{said}"
    );
    assert_eq!(waited.stdout, b"done\n");
    let failed = run("once start internal-after no idea\n");
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(
        said.contains("could not be started: no idea (Internal)"),
        "{said}"
    );
    assert_eq!(failed.status.code(), Some(1));
    assert_eq!(
        app.calls("stop").len(),
        1,
        "what it may have started is stopped"
    );
    assert!(processes_of(&app).is_empty());
}

/// Writes a release with a web whose shell line is this.
fn release_web(app: &App, version: u32, line: &str) {
    let line = serde_json::to_string(line).unwrap();
    let web = format!(r#"{{"Type":"web","Args":[{line}],"Quantity":1}}"#);
    app.release(version, "", &web);
}

/// A control directory whose first release serves pages.
fn serving<'a>(app: &'a App, arguments: &[&str]) -> Running<'a> {
    release_web(app, 1, &serve());
    let control = app.path("ctl");
    let mut all = vec!["--control-dir", control.to_str().unwrap()];
    all.extend(arguments);
    let hsup = started(app, &all);
    hsup.wait_up(&["web.1"]);
    hsup
}

#[test]
fn a_release_that_the_driver_cannot_start_in_time_is_rolled_back() {
    let app = App::empty();
    let hsup = serving(&app, &["--boot-timeout", "1s"]);
    app.faults("start unavailable the cluster is full\n");
    release_web(&app, 2, &format!("{} # two", serve()));
    hsup.wait_for_line(
        "the driver could not start it within 1 seconds: the cluster is full (Unavailable)",
    );
    app.faults("");
    hsup.wait_for_line(
        "Release v2 rejected, going back to v1: web.1: Process could not be started",
    );
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
}

#[test]
fn a_dyno_of_a_bad_release_is_started_once() {
    let app = App::empty();
    let hsup = serving(&app, &[]);
    release_web(&app, 2, "exit 3");
    hsup.wait_for_line(
        "Release v2 rejected, going back to v1: web.1: Process exited with status 3",
    );
    hsup.wait_up(&["web.1"]);
    assert_eq!(app.calls("start").len(), 3, "v1, v2, and v1 again");
    hsup.interrupt();
}

#[test]
fn a_driver_that_dies_in_a_rollout_condemns_no_release_unless_it_always_does() {
    let app = App::empty();
    let hsup = serving(&app, &[]);
    app.faults("once ip die\n");
    release_web(&app, 2, &format!("{} # two", serve()));
    hsup.wait_for_line("Release v2 is current");
    hsup.wait_up(&["web.1"]);
    app.faults("ip die\n");
    release_web(&app, 3, &format!("{} # three", serve()));
    hsup.wait_for_line("Release v3 rejected, going back to v2: web.1: Process exited with unknown");
    app.faults("");
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
}

#[test]
fn the_dynos_of_a_driver_that_cannot_be_started_again_are_known_to_be_gone() {
    let app = App::procfile("worker: sleep 1000\n");
    let driver = app.path("driver");
    programs::copy(&binaries().join("hsup-driver-fault"), &driver);
    let hsup = app.start(&["-d", driver.to_str().unwrap()]);
    hsup.wait_up(&["worker.1"]);
    std::fs::remove_file(&driver).unwrap();
    kill(Pid::from_raw(driver_pid(&hsup)), Signal::SIGKILL).unwrap();
    hsup.wait_for_line("State changed from up to crashed");
    hsup.wait_for_line("does not exist");
    hsup.wait_for("more attempts", || {
        hsup.signal(Signal::SIGUSR1);
        (hsup.log().matches("driver not reached").count() > 4).then_some(())
    });
    hsup.signal(Signal::SIGINT);
    hsup.nothing_is_left();
    let log = hsup.log();
    assert!(!log.contains("did not end in time"), "{log}");
    assert!(log.matches("The driver is gone").count() <= 2, "{log}");
}

#[test]
fn a_driver_that_dies_at_once_is_started_again_with_pauses() {
    let app = App::procfile("worker: sleep 1000\n");
    let hsup = started(&app, &[]);
    hsup.wait_up(&["worker.1"]);
    // The first call that it gets when it is back.
    app.faults("list die\n");
    let lists = app.calls("list").len();
    let begun = SystemTime::now();
    kill(Pid::from_raw(driver_pid(&hsup)), Signal::SIGKILL).unwrap();
    hsup.wait_for("five drivers more", || {
        (app.calls("list").len() >= lists + 5).then_some(())
    });
    assert!(begun.elapsed().unwrap() > Duration::from_millis(100 + 200 + 400 + 800));
    app.faults("");
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt();
}

#[test]
fn the_end_of_a_dyno_is_seen_though_its_wait_fails() {
    let app = App::procfile("worker: exec sleep 1000\n");
    app.faults("wait internal no idea\n");
    let hsup = started(&app, &[]);
    hsup.wait_for_line("The driver does not tell when it ends: no idea (Internal)");
    let before = hsup.wait_up(&["worker.1"]);
    kill(sleeper(&hsup), Signal::SIGKILL).unwrap();
    hsup.wait_for_line("Process exited with status 137");
    hsup.wait_for("another dyno", || {
        (hsup.wait_up(&["worker.1"]) != before).then_some(())
    });
    hsup.signal(Signal::SIGINT);
    hsup.nothing_is_left();
    let log = hsup.log();
    assert!(!log.contains("did not end in time"), "{log}");
    assert_eq!(log.matches("does not tell").count(), 2, "once for each");
}

/// The process of the app that is `sleep 1000`.
fn sleeper(hsup: &Running<'_>) -> Pid {
    let is_sleeper = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"sleep\x001000\0")
    };
    let find = || processes_of(hsup.app).into_iter().find(is_sleeper);
    Pid::from_raw(hsup.wait_for("the dyno's process", find))
}

#[test]
fn an_end_that_no_wait_tells_is_seen_in_the_drivers_list() {
    let app = App::procfile("worker: exec sleep 1000\n");
    app.faults("wait hang\n");
    let hsup = started(&app, &[]);
    let before = hsup.wait_up(&["worker.1"]);
    hsup.wait_for("a Wait", || app.calls("wait").pop());
    kill(sleeper(&hsup), Signal::SIGKILL).unwrap();
    // Its list is asked for whenever the driver has news.
    app.faults("is not-ready about to be ready\n");
    hsup.wait_for_line("Process exited with status 137");
    app.faults("");
    hsup.wait_for("another dyno", || {
        (hsup.wait_up(&["worker.1"]) != before).then_some(())
    });
    hsup.interrupt();
}

#[test]
fn what_was_stopped_has_ended_though_its_wait_hangs() {
    let app = App::empty();
    app.faults("wait hang\n");
    release(&app, 1, "one");
    let control = app.path("ctl");
    let hsup = started(&app, &["--control-dir", control.to_str().unwrap()]);
    hsup.wait_up(&["worker.1"]);
    release(&app, 2, "two");
    hsup.wait_for_line("Release v2 is current");
    hsup.wait_up(&["worker.1"]);
    assert!(app.ctl(&["stop", "worker.1"]).status.success());
    assert!(app.ctl(&["start", "worker.1"]).status.success());
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt_and(|log| {
        assert!(!log.contains("R12"), "{log}");
        assert!(!log.contains("did not end in time"), "{log}");
        assert_eq!(
            log.matches("Process exited with status 143").count(),
            3,
            "{log}"
        );
    });
}

#[test]
fn a_driver_of_an_earlier_life_that_hangs_gets_no_second_one_beside_it() {
    let app = App::procfile("worker: sleep 1000\n");
    let mut first = started(&app, &["--linger", "60s"]);
    let before = first.wait_up(&["worker.1"]);
    app.faults("info hang\n");
    first.signal(Signal::SIGKILL);
    first.end();
    let second = started(&app, &["--linger", "60s"]);
    second.wait_for_line(
        "Waiting for the driver: the driver of an earlier hsup runs but does not answer",
    );
    app.faults("");
    assert_eq!(second.wait_up(&["worker.1"]), before);
    second.interrupt();
}

#[test]
fn a_driver_that_does_not_tell_the_address_is_no_boot_timeout_of_the_web() {
    let app = App::procfile(&format!("web: {}\n", serve()));
    // It is asked where the dyno is reached, and, for people, which machine it is on.
    app.faults("2 times ip hang\n");
    let hsup = started(&app, &["--boot-timeout", "1s"]);
    hsup.wait_for_line(
        "The driver did not tell within 1 seconds where the process can be reached: no answer",
    );
    hsup.wait_up(&["web.1"]);
    assert!(!hsup.log().contains("R10"), "{}", hsup.log());
    hsup.interrupt();
}

#[test]
fn a_stop_that_is_not_answered_is_named_and_nothing_is_said_to_be_killed() {
    let app = App::procfile("worker: exec sleep 1000\n");
    app.faults("stop hang\n");
    let hsup = started(&app, &[]);
    hsup.wait_up(&["worker.1"]);
    hsup.signal(Signal::SIGINT);
    hsup.wait_for_line("The driver has not answered the Stop for 4 seconds");
    hsup.signal(Signal::SIGINT);
    hsup.wait_for_line("1 dyno did not end in time: ended with the driver");
    hsup.nothing_is_left();
    let log = hsup.log();
    assert!(!log.contains("R12"), "{log}");
    assert!(!log.contains("Stopping remaining processes"), "{log}");
}

#[test]
fn a_stop_that_fails_is_made_again_and_told_once() {
    let app = App::procfile("worker: exec sleep 1000\n");
    app.faults("stop internal no idea\n");
    let hsup = started(&app, &[]);
    hsup.wait_up(&["worker.1"]);
    hsup.signal(Signal::SIGINT);
    hsup.wait_for("three Stops", || {
        (app.calls("stop").len() >= 3).then_some(())
    });
    app.faults("");
    hsup.nothing_is_left();
    let log = hsup.log();
    for said in [
        "It could not be stopped, trying again: no idea (Internal)",
        "Stopping all processes with SIGTERM",
    ] {
        assert_eq!(log.matches(said).count(), 1, "{log}");
    }
    assert!(!log.contains("R12"), "{log}");
}

/// A test driver that hsup finds running at a socket.
pub(crate) struct Standing(Child);

impl Standing {
    pub(crate) fn at(app: &App, socket: &str) -> Self {
        let socket = app.path(socket);
        let said = File::create(app.path("driver.err")).unwrap();
        let mut command = app.command("hsup-driver-fault");
        command.env("HSUP_DRIVER_SOCKET", socket).stderr(said);
        Self(command.spawn().unwrap())
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn another_driver_waits_for_a_slow_one_of_before_to_give_up_its_dynos() {
    let app = App::procfile("worker: exec sleep 1000\n");
    let _standing = Standing::at(&app, "one.sock");
    let socket = app.path("one.sock");
    let arguments = [
        "--driver-socket",
        socket.to_str().unwrap(),
        "--linger",
        "60s",
    ];
    let first = app.start(&arguments);
    let before = first.wait_up(&["worker.1"]);
    let dyno = sleeper(&first);
    app.faults("info hang\n");
    first.kill();
    let second = app.start(&["--grace", "2s"]);
    second.wait_for_line(
        "Waiting for the driver: the driver of an earlier hsup runs but does not answer",
    );
    app.faults("");
    assert_ne!(second.wait_up(&["worker.1"]), before);
    assert!(kill(dyno, None).is_err(), "it has a twin");
    second.interrupt();
}

#[test]
fn another_driver_waits_for_one_of_before_to_stop_its_dynos() {
    let app = App::procfile("worker: exec sleep 1000\n");
    let _standing = Standing::at(&app, "one.sock");
    let socket = app.path("one.sock");
    let first = app.start(&[
        "--driver-socket",
        socket.to_str().unwrap(),
        "--linger",
        "60s",
    ]);
    let before = first.wait_up(&["worker.1"]);
    let dyno = sleeper(&first);
    first.kill();
    for fault in ["list internal no engine\n", "stop internal no engine\n"] {
        app.faults(fault);
        let mut second = app.start(&["--grace", "2s"]);
        second.wait_for_line("of an earlier hsup did not stop its dynos: no engine");
        assert!(kill(dyno, None).is_ok(), "nobody has stopped it");
        second.signal(Signal::SIGINT);
        second.end();
        second.leave();
    }
    app.faults("");
    let second = app.start(&["--grace", "2s"]);
    assert_ne!(second.wait_up(&["worker.1"]), before);
    assert!(kill(dyno, None).is_err(), "it has a twin");
    second.interrupt();
}

#[test]
fn a_rollback_while_the_driver_is_away_builds_nothing() {
    let app = App::empty();
    let mut standing = Standing::at(&app, "one.sock");
    let socket = app.path("one.sock");
    release(&app, 1, "one");
    let hsup = app.control(&["--driver-socket", socket.to_str().unwrap()]);
    hsup.wait_releases(&["v1 current"]);
    release(&app, 2, "two");
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    let builds = app.calls("build").len();
    standing.kill();
    hsup.wait_for_line("The driver is gone");
    assert!(app.ctl(&["rollback", "--no-wait", "v1"]).status.success());
    let _standing = Standing::at(&app, "one.sock");
    hsup.wait_releases(&["v3 current", "v2 superseded", "v1 superseded"]);
    assert_eq!(app.calls("build").len(), builds);
    hsup.interrupt();
}

#[test]
fn what_serves_in_a_former_drivers_place_may_be_removed() {
    let app = App::procfile("worker: exec sleep 1000\n");
    let mut standing = Standing::at(&app, "one.sock");
    let socket = app.path("one.sock");
    let at = ["--driver-socket", socket.to_str().unwrap()];
    let first = app.start(&at);
    first.wait_up(&["worker.1"]);
    first.kill();
    standing.kill();
    fs::remove_file(&socket).unwrap();
    let nobody_answers = UnixListener::bind(&socket).unwrap();
    let second = app.start(&["--grace", "2s"]);
    second.wait_for_line(&format!(
        "once it has ended, or `{}` is removed, its dynos count as gone",
        socket.display()
    ));
    fs::remove_file(&socket).unwrap();
    second.wait_up(&["worker.1"]);
    second.interrupt();
    drop(nobody_answers);
}

#[test]
fn a_driver_at_a_socket_that_ends_is_what_its_dynos_ended_of() {
    let app = App::procfile("worker: exec sleep 1000\n");
    let mut standing = Standing::at(&app, "one.sock");
    let socket = app.path("one.sock");
    let hsup = app.start(&["--driver-socket", socket.to_str().unwrap()]);
    let before = hsup.wait_up(&["worker.1"]);
    standing.kill();
    hsup.wait_for_line(&format!(
        "Process exited with unknown status: the driver at `{}` ended, and nobody listens there",
        socket.display()
    ));
    let _standing = Standing::at(&app, "one.sock");
    assert_ne!(hsup.wait_up(&["worker.1"]), before);
    hsup.interrupt();
}
