//! hsup ends at any moment of a release's life and is started again: the last good release
//! runs, and what was undecided is decided.

use std::fs;

use crate::app::{App, Running, process, web};

/// In the first life a bad web is not given up before hsup ends.
const PATIENT: &[&str] = &["--boot-timeout", "100s"];

/// v1 runs.
fn with_v1(app: &App) -> Running<'_> {
    app.release(1, "", &web("", "1"));
    let hsup = app.control(PATIENT);
    hsup.wait_up(&["web.1"]);
    hsup
}

/// The version of every dyno that is up.
fn versions_up(hsup: &Running<'_>, names: &[&str]) -> Vec<u64> {
    hsup.wait_up(names);
    let dynos = hsup.dynos();
    dynos
        .iter()
        .filter_map(|dyno| dyno["release"].as_u64())
        .collect()
}

#[test]
fn a_killed_rollout_goes_on_and_a_bad_release_leads_back() {
    let app = App::empty();
    let hsup = with_v1(&app);
    app.release(2, "", &web("--never", "1"));
    let on_trial = hsup.wait_dyno_of(2);
    hsup.kill();

    let hsup = app.control(&[]);
    assert_eq!(
        hsup.wait_dyno_of(2),
        on_trial,
        "it was adopted, not started again"
    );
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    assert_eq!(versions_up(&hsup, &["web.1"]), [1]);
    assert_eq!(app.version_in("loaded"), Some(1));
    assert_eq!(app.version_in("rejected"), Some(2));
    assert!(app.last_error().unwrap().contains("Error R10"));

    app.release(3, "", &web("", "1").replace("serve", "exit 1; serve"));
    hsup.wait_releases(&["v3 rejected", "v2 rejected", "v1 current"]);
    assert_eq!(app.version_in("loaded"), Some(1));
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();

    let hsup = app.control(&[]);
    assert_eq!(versions_up(&hsup, &["web.1"]), [1]);
    hsup.wait_releases(&["v3 rejected", "v2 rejected", "v1 current"]);
    hsup.interrupt();
}

#[test]
fn a_killed_rollout_goes_on_and_a_good_release_becomes_current() {
    let app = App::empty();
    app.release(1, "", &web("", "3"));
    let hsup = app.control(PATIENT);
    hsup.wait_up(&["web.1", "web.2", "web.3"]);
    // The first comes up at once; the second, of the next wave, is what hsup dies at.
    let line = r"case $DYNO in web.2) until [ -e ../go ]; do sleep 0.1; done;; esac; exec";
    let bad = web("", "3").replace(r#""exec","#, &format!(r#""{line}","#));
    app.release(2, "", &bad);
    let first = hsup.wait_dyno_of(2);
    hsup.wait_for("the second wave", || {
        let dynos = hsup.dynos();
        let of_v2 = dynos.iter().filter(|dyno| dyno["release"] == 2);
        (of_v2.count() == 2).then_some(())
    });
    hsup.kill();

    let hsup = app.control(PATIENT);
    app.write("go", "");
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    assert_eq!(versions_up(&hsup, &["web.1", "web.2", "web.3"]), [2, 2, 2]);
    assert_eq!(hsup.wait_up(&["web.1", "web.2", "web.3"])[0], first);
    assert_eq!(app.version_in("loaded"), Some(2));
    hsup.interrupt();
}

#[test]
fn an_interrupted_rollout_is_a_rollout_again() {
    let app = App::empty();
    let hsup = with_v1(&app);
    app.release(2, "", &web("--never", "1"));
    hsup.wait_dyno_of(2);
    hsup.interrupt();
    assert_eq!(app.version_in("loaded"), Some(2));

    let hsup = app.control(&[]);
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    assert_eq!(versions_up(&hsup, &["web.1"]), [1]);
    assert_eq!(app.version_in("loaded"), Some(1));
    assert!(app.last_error().unwrap().contains("Error R10"));
    assert!(!hsup.log().contains("v2 is current"), "{}", hsup.log());
    hsup.interrupt();
}

#[test]
fn a_release_that_was_being_undone_is_not_tried_again() {
    let app = App::empty();
    app.release(1, "", &web("", "1"));
    let hsup = app.control(&["--grace", "100s"]);
    hsup.wait_up(&["web.1"]);
    let stubborn = process("worker", "trap '' TERM; sleep 1000 & wait; wait", 1);
    app.release(2, "", &format!("{},{stubborn}", web("--never", "1")));
    hsup.wait_for_line("Release v2 rejected");
    hsup.kill();
    let hsup = app.control(&[]);
    assert_eq!(versions_up(&hsup, &["web.1"]), [1]);
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    assert_eq!(app.version_in("loaded"), Some(1));
    hsup.interrupt();
}

#[test]
fn a_bad_release_that_came_while_hsup_was_away_is_tried_first() {
    let app = App::empty();
    with_v1(&app).interrupt();
    app.release(2, "", &web("", "1").replace("serve", "exit 1; serve"));
    let hsup = app.control(&[]);
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    assert_eq!(versions_up(&hsup, &["web.1"]), [1]);
    assert_eq!(app.version_in("loaded"), Some(1));
    assert_eq!(app.version_in("rejected"), Some(2));
    // It is bad, but that does not keep anybody from trying it again.
    hsup.interrupt();
    app.release(2, "", &web("", "1").replace("serve", "exit 1; serve"));
    let hsup = app.control(&[]);
    hsup.wait_releases(&["v2 rejected", "v2 rejected", "v1 current"]);
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
}

#[test]
fn a_rejection_does_not_take_the_release_on_trial_out_of_loaded() {
    let app = App::empty();
    let hsup = with_v1(&app);
    let slow = r#""until [ -e ../go ]; do sleep 0.1; done; exec","#;
    app.release(2, "", &web("", "1").replace(r#""exec","#, slow));
    hsup.wait_dyno_of(2);
    app.hand_in(&app.text(3, r#""Slug":"file:///no/such/folder/","#, &web("", "1")));
    hsup.wait_releases(&["v3 rejected", "v2 rolling out", "v1 current"]);
    hsup.wait_for("v3 in rejected", || {
        (app.version_in("rejected") == Some(3)).then_some(())
    });
    assert_eq!(app.version_in("loaded"), Some(2));
    app.write("go", "");
    hsup.wait_releases(&["v3 rejected", "v2 current", "v1 superseded"]);
    hsup.interrupt();

    let hsup = app.control(&[]);
    assert_eq!(versions_up(&hsup, &["web.1"]), [2]);
    hsup.interrupt();
}

#[test]
fn a_loaded_that_is_damaged_or_gone_is_made_good_from_the_history() {
    let app = App::empty();
    with_v1(&app).interrupt();
    for damage in [Some("{]"), Some(""), None] {
        match damage {
            Some(text) => app.write("ctl/loaded", text),
            None => fs::remove_file(app.path("ctl/loaded")).unwrap(),
        }
        let hsup = app.control(&[]);
        assert_eq!(versions_up(&hsup, &["web.1"]), [1]);
        hsup.wait_for_line("running v1, the last good one");
        hsup.wait_releases(&["v1 current"]);
        hsup.wait_for("a good loaded", || {
            (app.version_in("loaded") == Some(1)).then_some(())
        });
        hsup.interrupt();
    }
}

#[test]
fn a_loaded_that_was_rejected_or_replaced_is_not_begun_with() {
    let app = App::empty();
    let hsup = with_v1(&app);
    app.release(2, "", &web("", "1").replace("serve", "exit 1; serve"));
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    hsup.wait_up(&["web.1"]);
    hsup.interrupt();
    let rejected = fs::read_to_string(app.path("ctl/rejected")).unwrap();
    app.write("ctl/loaded", &rejected);
    let hsup = app.control(&[]);
    hsup.wait_for_line("Release v2 was rejected");
    assert_eq!(versions_up(&hsup, &["web.1"]), [1]);
    let v1 = fs::read_to_string(app.path("ctl/loaded")).unwrap();
    app.release(3, "", &web("", "1"));
    hsup.wait_releases(&["v3 current", "v2 rejected", "v1 superseded"]);
    hsup.interrupt();

    app.write("ctl/loaded", &v1);
    let hsup = app.control(&[]);
    assert_eq!(versions_up(&hsup, &["web.1"]), [3]);
    hsup.wait_for("v3 in loaded", || {
        (app.version_in("loaded") == Some(3)).then_some(())
    });
    hsup.interrupt();
}

#[test]
fn a_lost_state_begins_with_what_loaded_holds() {
    let app = App::empty();
    with_v1(&app).interrupt();
    fs::remove_dir_all(app.path("state")).unwrap();
    let hsup = app.control(&[]);
    assert_eq!(versions_up(&hsup, &["web.1"]), [1]);
    hsup.wait_releases(&["v1 current"]);
    hsup.interrupt();
}

/// A slug of the simple driver is a folder: without it there is nothing to build.
fn with_slug(app: &App, version: u32) {
    let slug = app.path("slug");
    let members = format!(r#""Slug":"file://{}/","#, slug.display());
    app.hand_in(&app.text(version, &members, &process("worker", "sleep 1000", 1)));
}

#[test]
fn a_good_release_that_cannot_be_built_at_a_start_is_not_condemned() {
    let app = App::empty();
    app.release(1, "", &process("worker", "sleep 1000", 1));
    let hsup = app.control(&[]);
    hsup.wait_up(&["worker.1"]);
    fs::create_dir(app.path("slug")).unwrap();
    with_slug(&app, 2);
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt();

    fs::rename(app.path("slug"), app.path("away")).unwrap();
    let hsup = app.control(&[]);
    hsup.wait_for_line("Release v2 could not be built again");
    hsup.wait_releases(&["v2 current", "v1 superseded"]);
    fs::rename(app.path("away"), app.path("slug")).unwrap();
    assert_eq!(versions_up(&hsup, &["worker.1"]), [2]);
    assert_eq!(app.version_in("loaded"), Some(2));
    hsup.interrupt();
}

#[test]
fn what_there_is_to_begin_with_is_built_until_it_can_be() {
    let app = App::empty();
    fs::create_dir(app.path("slug")).unwrap();
    with_slug(&app, 1);
    let hsup = app.control(&[]);
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt();

    // Nobody remembers that it was good, nor what the driver had made of it.
    fs::remove_dir_all(app.path("state")).unwrap();
    fs::rename(app.path("slug"), app.path("away")).unwrap();
    let hsup = app.control(&[]);
    hsup.wait_for_line("Release v1 cannot be built, trying again");
    assert_eq!(app.version_in("loaded"), Some(1));
    fs::rename(app.path("away"), app.path("slug")).unwrap();
    hsup.wait_up(&["worker.1"]);
    hsup.wait_releases(&["v1 current"]);
    hsup.interrupt();
}

#[test]
fn a_new_release_that_cannot_be_built_at_a_start_gives_way_to_the_good_one() {
    let app = App::empty();
    app.release(1, "", &process("worker", "sleep 1000", 1));
    let hsup = app.control(&[]);
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt();
    with_slug(&app, 2);
    let hsup = app.control(&[]);
    hsup.wait_releases(&["v2 rejected", "v1 current"]);
    assert_eq!(versions_up(&hsup, &["worker.1"]), [1]);
    assert_eq!(app.version_in("rejected"), Some(2));
    assert_eq!(app.version_in("loaded"), Some(1));
    hsup.interrupt();
}

#[test]
fn a_procfile_that_changed_runs_as_it_is_now() {
    let app = App::procfile("web: sleep 1000\n");
    app.write("app/Procfile", "worker: sleep 1000\n");
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    hsup.interrupt();
    app.write("app/Procfile", "other: exit 3\n");
    let hsup = app.start(&[]);
    hsup.wait_for_line("Process exited with status 3");
    let log = hsup.log();
    assert!(!log.contains("worker.1"), "{log}");
    hsup.wait_releases(&["v1 current", "v1 superseded"]);
    hsup.interrupt();
}

#[test]
fn what_runs_once_is_the_newest_release_alone() {
    let app = App::empty();
    let job = |code: u32| process("job", &format!("echo ran {code}; exit {code}"), 1);
    for code in [0, 3] {
        app.release(code + 1, "", &job(code));
        let mut hsup = app.control(&["--oneshot"]);
        assert_eq!(
            hsup.end().code(),
            i32::try_from(code).ok(),
            "{}",
            hsup.log()
        );
        assert_eq!(hsup.log().matches("| ran ").count(), 1, "{}", hsup.log());
        assert_eq!(app.version_in("loaded"), Some(u64::from(code + 1)));
    }
    with_slug(&app, 5);
    let mut hsup = app.control(&["--oneshot"]);
    assert_eq!(hsup.end().code(), Some(1), "{}", hsup.log());
    assert!(hsup.log().contains("is not a directory"), "{}", hsup.log());
    assert!(!hsup.log().contains("| ran "), "{}", hsup.log());
}
