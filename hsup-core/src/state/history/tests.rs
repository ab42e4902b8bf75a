use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::*;
use crate::release::{ConfigVars, Limits};

fn release(version: u64) -> Release {
    Release {
        app: "shop".into(),
        version,
        config: [("DATABASE_URL", "hunter2")]
            .into_iter()
            .collect::<ConfigVars>(),
        slug: None,
        slug_checksum: None,
        stack: String::new(),
        image: None,
        limits: Limits::default(),
        log_target: None,
        processes: vec![],
        metadata: None,
    }
}

fn load(path: &Path) -> History {
    let (history, damage) = History::load(path.to_owned()).unwrap();
    assert_eq!(damage, None);
    history
}

fn take_in(history: &mut History, version: u64) -> u64 {
    let text = ControlText::new(b"hunter2");
    let taken = history.take_in(release(version), Some(text), "apply", None, 1);
    taken.unwrap().id
}

fn set(history: &mut History, id: u64, state: ReleaseState) {
    history.update(id, |record| record.state = state).unwrap();
}

#[test]
fn the_history_outlives_hsup_and_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.json");
    let mut history = load(&path);
    let id = take_in(&mut history, 7);
    history
        .update(id, |record| {
            record.state = ReleaseState::Rejected;
            record.reason = "web.1 did not come up".into();
            record.artifact = Some(Artifact {
                driver: "simple".into(),
                options: ["swarm=true".parse().unwrap()].into_iter().collect(),
                artifact: "a-1".into(),
            });
        })
        .unwrap();
    let again = load(&path);
    assert!(again.iter().eq(history.iter()));
    assert_eq!(again.get(id).unwrap().release, release(7));
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!format!("{again:?}").contains("hunter2"));
}

#[test]
fn one_release_is_current() {
    let dir = tempfile::tempdir().unwrap();
    let mut history = load(&dir.path().join("history.json"));
    let first = take_in(&mut history, 1);
    let second = take_in(&mut history, 1);
    assert_ne!(first, second);
    assert!(history.last_good().is_none());
    set(&mut history, first, ReleaseState::Current);
    set(&mut history, second, ReleaseState::RollingOut);
    assert_eq!(history.last_good().unwrap().id, first);
    set(&mut history, second, ReleaseState::Current);
    assert_eq!(history.current().unwrap().id, second);
    assert_eq!(history.get(first).unwrap().state, ReleaseState::Superseded);
}

#[test]
fn what_was_good_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut history = load(&dir.path().join("history.json"));
    let first = take_in(&mut history, 1);
    let second = take_in(&mut history, 2);
    for (id, state) in [
        (first, ReleaseState::Current),
        (second, ReleaseState::Current),
    ] {
        set(&mut history, id, state);
        for change in [
            ReleaseState::Building,
            ReleaseState::RollingOut,
            ReleaseState::Rejected,
        ] {
            set(&mut history, id, change);
            assert_eq!(history.get(id).unwrap().state, state);
        }
    }
    set(&mut history, first, ReleaseState::Rejected);
    assert_eq!(history.get(first).unwrap().state, ReleaseState::Superseded);
    assert_eq!(history.last_good().unwrap().id, second);
}

#[test]
fn the_text_is_kept_where_it_may_be_needed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.json");
    let mut history = load(&path);
    let [first, second, third] = [1, 2, 3].map(|version| take_in(&mut history, version));
    set(&mut history, first, ReleaseState::Current);
    set(&mut history, second, ReleaseState::Rejected);
    set(&mut history, third, ReleaseState::Current);
    let kept = |id| load(&path).get(id).unwrap().text.is_some();
    assert_eq!([first, second, third].map(kept), [false, false, true]);
}

#[test]
fn old_releases_are_forgotten_but_never_the_last_good_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.json");
    let mut history = load(&path);
    let good = take_in(&mut history, 1);
    set(&mut history, good, ReleaseState::Superseded);
    let mut forgotten = Vec::new();
    for version in 2..=100 {
        let taken = history
            .take_in(release(version), None, "apply", None, 1)
            .unwrap();
        forgotten.extend(taken.forgotten.iter().map(|record| record.id));
        set(&mut history, taken.id, ReleaseState::Rejected);
    }
    let again = load(&path);
    assert_eq!(again.iter().count(), KEEP);
    assert_eq!(again.last_good().unwrap().id, good);
    assert_eq!(again.iter().next().unwrap().id, 100);
    let expected: Vec<u64> = (2..=81).collect();
    assert_eq!(forgotten, expected);
}

#[test]
fn rejected_releases_do_not_push_out_those_that_ran() {
    let dir = tempfile::tempdir().unwrap();
    let mut history = load(&dir.path().join("history.json"));
    let mut version = 0;
    let mut follow = |history: &mut History, count: usize, state| {
        for _ in 0..count {
            version += 1;
            let id = take_in(history, version);
            set(history, id, state);
        }
    };
    let remembered = |history: &History| -> Vec<u64> {
        let good = history.iter().filter(|record| record.state.is_good());
        good.map(|record| record.id).collect()
    };
    follow(&mut history, 2, ReleaseState::Current);
    follow(&mut history, 25, ReleaseState::Rejected);
    assert_eq!(remembered(&history), [2, 1]);
    assert_eq!(history.iter().count(), KEEP);

    follow(&mut history, 30, ReleaseState::Current);
    let last: Vec<u64> = (38..=57).rev().collect();
    assert_eq!(remembered(&history), last, "as many as there is room for");
    follow(&mut history, 25, ReleaseState::Rejected);
    let last: Vec<u64> = (43..=57).rev().collect();
    assert_eq!(last.len(), KEEP_GOOD);
    assert_eq!(remembered(&history), last);
    assert_eq!(history.iter().count(), KEEP);
}

#[test]
fn what_a_rollback_goes_back_to_is_not_forgotten_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut history = load(&dir.path().join("history.json"));
    for version in 1..=20 {
        let id = take_in(&mut history, version);
        set(&mut history, id, ReleaseState::Current);
    }
    let back = history.take_in(release(21), None, "rollback", Some(1), 1);
    let back = back.unwrap();
    assert_eq!(back.forgotten[0].id, 2);
    assert!(history.get(1).is_some());
    assert_eq!(history.get(back.id).unwrap().repeats, Some(1));
    // Once it runs it has an artifact of its own.
    set(&mut history, back.id, ReleaseState::Current);
    let next = history.take_in(release(22), None, "apply", None, 1);
    assert_eq!(next.unwrap().forgotten[0].id, 1);
}

#[test]
fn a_release_that_is_on_its_way_is_not_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut history = load(&dir.path().join("history.json"));
    let rolling = take_in(&mut history, 1);
    set(&mut history, rolling, ReleaseState::RollingOut);
    for version in 2..=100 {
        let id = take_in(&mut history, version);
        set(&mut history, id, ReleaseState::Rejected);
    }
    assert!(history.get(rolling).is_some());
    assert_eq!(history.iter().count(), KEEP);
}

#[test]
fn a_release_that_cannot_be_saved_is_not_taken_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut history = load(&dir.path().join("state/history.json"));
    let refused = history.take_in(release(1), None, "apply", None, 1);
    assert!(refused.unwrap_err().to_string().contains("history.json"));
    assert_eq!(history.iter().count(), 0);
    fs::create_dir(dir.path().join("state")).unwrap();
    assert_eq!(take_in(&mut history, 1), 1);
}

#[test]
fn ids_are_not_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.json");
    take_in(&mut load(&path), 1);
    assert_eq!(take_in(&mut load(&path), 1), 2);
}

#[test]
fn a_damaged_history_is_set_aside_and_shows_no_value() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.json");
    crate::files::write_atomic(&path, b"{\"last_id\":\"hunter2\"}").unwrap();
    let (history, damage) = History::load(path.clone()).unwrap();
    assert_eq!(history.iter().count(), 0);
    let damage = damage.unwrap().to_string();
    assert!(
        damage.contains("line 1") && !damage.contains("hunter2"),
        "{damage}"
    );
    assert!(dir.path().join("history.json.damaged").exists());
    assert!(!path.exists());
}

#[test]
fn a_change_that_cannot_be_saved_still_counts() {
    let dir = tempfile::tempdir().unwrap();
    let mut history = load(&dir.path().join("history.json"));
    let id = take_in(&mut history, 1);
    drop(dir);
    let error = history
        .update(id, |record| record.state = ReleaseState::Current)
        .unwrap_err();
    assert!(error.to_string().contains("history.json"), "{error}");
    assert_eq!(history.current().unwrap().id, id);
}
