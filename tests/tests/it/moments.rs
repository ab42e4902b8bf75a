//! hsup is killed at each moment of a rollout, alone or with its driver: the next one goes on from
//! there, and nothing of it runs twice.
//!
//! The driver hangs at one call, so that hsup waits for its answer, and that is the moment.

use std::fs;

use hsup_tests::deadline::poll;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    app::{App, Running, binaries, process, processes_of},
    survival::driver_pid,
};

/// Where a rollout can be. Before a Start a dyno is in the journal and the driver knows nothing of
/// it; before a Remove it has ended, and the driver still knows it.
const MOMENTS: [&str; 7] = ["build", "start", "wait", "ip", "list", "stop", "remove"];

/// What dies with hsup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dies {
    Hsup,
    Both,
}

fn start<'a>(app: &'a App, arguments: &[&str]) -> Running<'a> {
    let driver = binaries().join("hsup-driver-fault");
    let mut all = vec!["-d", driver.to_str().unwrap(), "--boot-timeout", "60s"];
    all.extend(arguments);
    app.control(&all)
}

/// A release that has to be built, whose dynos can be told from those of another.
fn release(app: &App, version: u32, command: bool) {
    let slug = app.path(&format!("slug{version}"));
    fs::create_dir(&slug).unwrap();
    let (dyno, ran) = (binaries().join("test-dyno"), app.path("ran"));
    let web = process(
        "web",
        &format!("exec {} serve # {version}", dyno.display()),
        1,
    );
    let worker = process("worker", &format!("exec sleep {}", 1000 + version), 2);
    let mut processes = format!("{web},{worker}");
    if command {
        let line = format!("echo {version} >> {}", ran.display());
        processes = format!("{processes},{}", process("release", &line, 1));
    }
    let members = format!(r#""Slug":"file://{}/","#, slug.display());
    app.hand_in(&app.text(version, &members, &processes));
}

/// How many processes run of the workers of this version.
fn workers(app: &App, version: u32) -> usize {
    let wanted = format!("sleep\0{}\0", 1000 + version);
    let runs = |pid: &i32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted.as_bytes())
    };
    processes_of(app).iter().filter(|pid| runs(pid)).count()
}

/// Has the driver hang at the next call of this kind.
fn hang_at(app: &App, call: &str) {
    app.faults(&format!("once {call} hang\n"));
}

/// Waits for the moment, and kills.
fn kill_at(hsup: Running<'_>, call: &str, dies: Dies) {
    let app = hsup.app;
    hsup.wait_for(&format!("a {call} that hangs, for {dies:?}"), || {
        let calls = app.calls(call);
        calls
            .iter()
            .any(|call| call.ends_with(": hang"))
            .then_some(())
    });
    let driver = driver_pid(&hsup);
    hsup.kill();
    if dies == Dies::Both {
        kill(Pid::from_raw(driver), Signal::SIGKILL).unwrap();
    }
    app.faults("");
}

/// What runs of a release.
const NAMES: [&str; 3] = ["web.1", "worker.1", "worker.2"];

/// v1 runs, and the driver is to hang; the ids of its dynos.
fn with_v1<'a>(app: &'a App, call: &str) -> (Running<'a>, Vec<String>) {
    release(app, 1, false);
    let hsup = start(app, &[]);
    hsup.wait_releases(&["v1 current"]);
    let ids = hsup.wait_up(&NAMES);
    hang_at(app, call);
    (hsup, ids)
}

/// What the release commands have left.
fn ran(app: &App) -> String {
    fs::read_to_string(app.path("ran")).unwrap_or_default()
}

/// Kills in the middle of the rollout of v2, which is to be all that runs in the end.
fn rollout(call: &str, dies: Dies, command: bool) {
    let app = App::empty();
    let (hsup, before) = with_v1(&app, call);
    release(&app, 2, command);
    // The driver is asked for a list when hsup meets it.
    if call == "list" {
        kill(Pid::from_raw(driver_pid(&hsup)), Signal::SIGKILL).unwrap();
    }
    kill_at(hsup, call, dies);

    let hsup = start(&app, &[]);
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    let after = hsup.wait_up(&NAMES);
    assert!(after.iter().all(|id| !before.contains(id)), "{call}");
    poll(|| (workers(&app, 1) == 0).then_some(())).unwrap();
    assert_eq!(workers(&app, 2), 2, "{call}");
    assert_eq!(ran(&app), if command { "2\n" } else { "" }, "{call}");
    // Nothing was started twice under one id, and what is not up any more is no dyno's. Where the
    // driver is killed first, it may be at the Starts of a wave, one of each type, which are then
    // asked for once more.
    let starts = app.calls("start");
    let mut ids: Vec<_> = starts.iter().map(|call| call.split(' ').nth(1)).collect();
    ids.sort_unstable();
    ids.dedup();
    let cut = if call == "list" { 2 } else { 0 };
    assert!(ids.len() + cut >= starts.len(), "{call}: {starts:?}");
    hsup.interrupt();
}

#[test]
fn hsup_is_killed_at_each_moment_of_a_rollout() {
    for call in MOMENTS {
        rollout(call, Dies::Hsup, false);
    }
}

#[test]
fn hsup_and_its_driver_are_killed_at_each_moment_of_a_rollout() {
    for call in MOMENTS {
        rollout(call, Dies::Both, false);
    }
}

#[test]
fn hsup_is_killed_at_each_moment_of_a_release_phase() {
    for call in ["build", "wait", "remove"] {
        rollout(call, Dies::Hsup, true);
    }
}

/// That it began is written down, and the driver knows nothing of it: nobody can say that it did
/// not run.
#[test]
fn a_release_command_of_which_nothing_is_known_is_not_run_again() {
    for dies in [Dies::Hsup, Dies::Both] {
        let app = App::empty();
        let (hsup, before) = with_v1(&app, "start");
        release(&app, 2, true);
        kill_at(hsup, "start", dies);
        let hsup = start(&app, &[]);
        hsup.wait_releases(&["v2 rejected", "v1 current"]);
        assert!(app.last_error().unwrap().contains("release command failed"));
        let after = hsup.wait_up(&NAMES);
        assert_eq!(after == before, dies == Dies::Hsup, "{before:?} {after:?}");
        assert_eq!((workers(&app, 1), ran(&app)), (2, String::new()));
        hsup.interrupt();
    }
}

#[test]
fn what_is_to_run_once_is_not_run_twice_whenever_hsup_is_killed() {
    for dies in [Dies::Hsup, Dies::Both] {
        for (call, expected) in [("build", "ran\n"), ("start", ""), ("wait", "ran\n")] {
            let app = App::empty();
            let slug = app.path("slug");
            fs::create_dir(&slug).unwrap();
            let line = format!("echo ran >> {}", app.path("ran").display());
            let members = format!(r#""Slug":"file://{}/","#, slug.display());
            app.hand_in(&app.text(1, &members, &process("job", &line, 1)));
            hang_at(&app, call);
            let hsup = start(&app, &["--oneshot"]);
            if call == "wait" {
                hsup.wait_for("the job", || (ran(&app) == expected).then_some(()));
            }
            kill_at(hsup, call, dies);
            let mut hsup = start(&app, &["--oneshot"]);
            hsup.end();
            assert_eq!(ran(&app), expected, "{}", hsup.log());
            hsup.nothing_is_left();
        }
    }
}
