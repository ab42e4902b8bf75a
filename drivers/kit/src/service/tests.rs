//! The rules of a dyno's table, by property, against any order of events.

use std::time::Duration;

use hsup_proto::driver::{ExitStatus, exit_status::How};
use proptest::prelude::*;
use tokio::time::Instant;

use crate::signal::Signal;

use super::table::{Key, Remove, Spec, Start, Started, Stop, Stopping, Table, View};

fn spec(hash: u8) -> Spec {
    Spec {
        hash: [hash; 32],
        supervisor_id: "s".into(),
        artifact: "a".into(),
        app: "app".into(),
        release: 1,
        process_type: "web".into(),
        process_number: 1,
        linger: Duration::ZERO,
    }
}

fn code(code: i32) -> ExitStatus {
    ExitStatus {
        how: Some(How::Code(code)),
        ..Default::default()
    }
}

fn stop_at(deadline: Instant) -> Stop {
    Stop {
        signal: Signal::TERM,
        deadline,
    }
}

fn start(table: &mut Table<()>, key: &Key, hash: u8, now: Instant) -> Start {
    table.start(key, spec(hash), now, 0, || ())
}

#[test]
fn a_repeat_is_known_by_its_request_even_after_the_exit() {
    let (mut table, now, key) = (Table::default(), Instant::now(), Key::new(1, "a"));
    assert_eq!(start(&mut table, &key, 1, now), Start::Begin);
    assert_eq!(start(&mut table, &key, 1, now), Start::Join);
    assert_eq!(start(&mut table, &key, 2, now), Start::OtherRequest);
    assert_eq!(table.started(&key), Started::Running);
    assert_eq!(start(&mut table, &key, 1, now), Start::Done);
    table.exited(&key, code(0), now);
    assert_eq!(start(&mut table, &key, 1, now), Start::Done);
    assert_eq!(start(&mut table, &key, 2, now), Start::OtherRequest);
}

#[test]
fn a_removed_id_is_refused_for_ten_minutes_known_or_not() {
    let (mut table, now) = (Table::default(), Instant::now());
    let (known, unknown) = (Key::new(1, "a"), Key::new(1, "b"));
    start(&mut table, &known, 1, now);
    table.started(&known);
    assert_eq!(table.remove(&known, now).0, Remove::Running);
    table.exited(&known, code(0), now);
    assert_eq!(table.remove(&known, now).0, Remove::Done);
    assert_eq!(table.remove(&unknown, now).0, Remove::Done);
    let later = now + Duration::from_secs(599);
    assert_eq!(start(&mut table, &known, 1, later), Start::Removed);
    assert_eq!(start(&mut table, &unknown, 1, later), Start::Removed);
    let (much_later, other) = (now + Duration::from_secs(601), Key::new(2, "a"));
    assert_eq!(start(&mut table, &other, 1, later), Start::Begin);
    assert_eq!(start(&mut table, &known, 1, much_later), Start::Begin);
}

#[test]
fn a_stop_during_start_is_carried_out_and_a_cancelled_start_is_not_repeated() {
    let (mut table, now, key) = (Table::default(), Instant::now(), Key::new(1, "a"));
    start(&mut table, &key, 1, now);
    assert_eq!(table.stop(&key, stop_at(now)), Stopping::Cancel);
    assert_eq!(table.started(&key), Started::StopNow);
    assert_eq!(table.stop_of(&key), Some(stop_at(now)));

    let cancelled = Key::new(1, "b");
    start(&mut table, &cancelled, 1, now);
    table.stop(&cancelled, stop_at(now));
    table.failed(&cancelled, now, 7);
    assert_eq!(start(&mut table, &cancelled, 1, now), Start::Done);
    let Some(View::Exited(status)) = table.view(&cancelled) else {
        panic!("not exited: {:?}", table.view(&cancelled));
    };
    assert!(matches!(status.how, Some(How::Lost(_))), "{status:?}");
}

#[test]
fn a_dyno_that_was_found_again_runs_until_it_is_known_to_have_ended() {
    let (mut table, now, key) = (Table::default(), Instant::now(), Key::new(1, "a"));
    assert!(table.recovered(key.clone(), spec(1), 5, ()));
    assert!(!table.recovered(key.clone(), spec(2), 6, ()), "twice");
    assert_eq!((table.alive(), table.view(&key)), (1, Some(View::Running)));
    assert_eq!(table.list(1, "s")[0].started_at_unix_ms, 5);
    assert_eq!(start(&mut table, &key, 1, now), Start::Done);
    assert_eq!(start(&mut table, &key, 2, now), Start::OtherRequest);
    assert_eq!(table.stop(&key, stop_at(now)), Stopping::Begin);
    table.exited(&key, code(42), now);
    assert_eq!(table.view(&key), Some(View::Exited(code(42))));
    assert_eq!(table.remove(&key, now).0, Remove::Done);
}

#[test]
fn a_start_that_failed_may_be_tried_again() {
    let (mut table, now, key) = (Table::default(), Instant::now(), Key::new(1, "a"));
    start(&mut table, &key, 1, now);
    table.failed(&key, now, 0);
    assert_eq!(table.alive(), 0);
    assert_eq!(table.view(&key), None);
    assert_eq!(start(&mut table, &key, 2, now), Start::Begin);
}

#[test]
fn a_later_stop_may_only_shorten_the_grace() {
    let (mut table, now, key) = (Table::default(), Instant::now(), Key::new(1, "a"));
    start(&mut table, &key, 1, now);
    table.started(&key);
    let at = |secs| now + Duration::from_secs(secs);
    assert_eq!(table.stop(&key, stop_at(at(30))), Stopping::Begin);
    assert_eq!(table.stop(&key, stop_at(at(60))), Stopping::Join);
    assert_eq!(table.stop_of(&key), Some(stop_at(at(30))));
    assert_eq!(table.stop(&key, stop_at(at(5))), Stopping::Join);
    assert_eq!(table.stop_of(&key), Some(stop_at(at(5))));
}

#[test]
fn a_lingered_dyno_keeps_its_status_for_an_hour() {
    let (mut table, now) = (Table::default(), Instant::now());
    let (lingers, stays) = (Key::new(1, "a"), Key::new(1, "b"));
    let short = Spec {
        linger: Duration::from_secs(1),
        ..spec(1)
    };
    table.start(&lingers, short, now, 0, || ());
    start(&mut table, &stays, 1, now);
    for key in [&lingers, &stays] {
        table.started(key);
        table.exited(key, code(0), now);
    }
    let hour = now + Duration::from_hours(1);
    assert!(table.expire(hour, |_, _| false).is_empty());
    assert!(table.expire(now, |_, _| true).is_empty());
    assert!(table.view(&lingers).is_some());
    assert_eq!(table.expire(hour, |_, _| true), [()]);
    assert_eq!(table.view(&lingers), None);
    assert!(table.view(&stays).is_some());
}

#[test]
fn who_may_come_back_for_an_exited_dyno_is_waited_for_as_long_as_it_lingers() {
    let (mut table, now, key) = (Table::default(), Instant::now(), Key::new(1, "a"));
    let linger = Duration::from_mins(1);
    let lingers = Spec { linger, ..spec(1) };
    table.start(&key, lingers, now, 0, || ());
    start(&mut table, &Key::new(1, "b"), 1, now);
    table.started(&key);
    assert_eq!(
        table.lingers(1, "s").into_iter().collect::<Vec<_>>(),
        [linger]
    );
    let is_awaited = |table: &Table<()>, at| table.is_awaited(at, |_, _| Some(now));
    assert!(!is_awaited(&table, now), "it runs");
    table.exited(&key, code(0), now);
    table.exited(&Key::new(1, "b"), code(0), now);
    let late = now + linger;
    assert!(is_awaited(&table, late - Duration::from_millis(1)));
    assert!(!is_awaited(&table, late));
    assert!(
        !table.is_awaited(now, |_, _| None),
        "its supervisor is there"
    );
    table.remove(&key, now);
    assert!(!is_awaited(&table, now), "the other does not linger");
}

/// What can happen to one of two dynos of one of two users.
#[derive(Clone, Copy, Debug)]
enum Event {
    Start(u8),
    Started,
    Failed,
    Stop(u64),
    Exited(i32),
    Remove,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..2_u8).prop_map(Event::Start),
        Just(Event::Started),
        Just(Event::Failed),
        (0..60_u64).prop_map(Event::Stop),
        (0..3).prop_map(Event::Exited),
        Just(Event::Remove),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_table_keeps_its_promises(
        events in prop::collection::vec((0..2_u32, prop::bool::ANY, event()), 0..60)
    ) {
        let mut table = Table::default();
        let now = Instant::now();
        for (uid, first, event) in events {
            let key = Key::new(uid, if first { "a" } else { "b" });
            let before = table.view(&key);
            let stop_before = table.stop_of(&key);
            match event {
                Event::Start(hash) => {
                    let meaning = start(&mut table, &key, hash, now);
                    prop_assert_eq!(meaning == Start::Begin, before.is_none() && table.view(&key).is_some());
                }
                // The driver tells these of a dyno that is being started only.
                Event::Started if before == Some(View::Starting) => { table.started(&key); }
                Event::Failed if before == Some(View::Starting) => table.failed(&key, now, 0),
                Event::Exited(status) if before == Some(View::Running) => {
                    table.exited(&key, code(status), now);
                    prop_assert_eq!(table.view(&key), Some(View::Exited(code(status))));
                }
                Event::Started | Event::Failed => {}
                Event::Exited(status) => {
                    if matches!(before, Some(View::Exited(_))) {
                        table.exited(&key, code(status), now);
                    }
                }
                Event::Stop(secs) => {
                    let meaning = table.stop(&key, stop_at(now + Duration::from_secs(secs)));
                    let exists = matches!(before, Some(View::Starting | View::Running));
                    prop_assert_eq!(meaning == Stopping::Done, !exists);
                    if let (Some(old), Some(new)) = (stop_before, table.stop_of(&key)) {
                        prop_assert!(new.deadline <= old.deadline);
                    }
                }
                Event::Remove => {
                    let (meaning, _) = table.remove(&key, now);
                    let alive = matches!(before, Some(View::Starting | View::Running));
                    prop_assert_eq!(meaning == Remove::Running, alive);
                }
            }
            // The status of an exit never changes until it is removed.
            if let Some(View::Exited(status)) = before
                && !matches!(event, Event::Remove)
            {
                prop_assert_eq!(table.view(&key), Some(View::Exited(status)));
            }
            prop_assert_eq!(table.alive(), table.alive_keys().len());
            let listed = table.list(0, "").len() + table.list(1, "s").len();
            prop_assert!(listed <= 4 && listed >= table.alive());
        }
    }
}
