//! Every state and event, and what must hold whatever happens.

use proptest::prelude::*;

use super::*;
use crate::backoff::Policy;

const GRACE: Stop = Stop::Gracefully {
    grace: Duration::from_secs(30),
};
const SHORT: Stop = Stop::Gracefully {
    grace: Duration::from_secs(3),
};
const HEALTHY: Duration = Duration::from_hours(1);

fn dyno(kind: Kind) -> Lifecycle {
    Lifecycle::new(kind, Backoff::new(Policy::default(), 1))
}

fn ended(attempt: Attempt, status: ExitStatus) -> Event {
    Event::Ended {
        attempt,
        status,
        uptime: Duration::ZERO,
    }
}

fn code(code: i32) -> ExitStatus {
    ExitStatus::code(code, 1)
}

/// A dyno brought into each state; where there is an attempt, it is the first.
fn in_state(name: &str, kind: Kind) -> Lifecycle {
    brought(dyno(kind), name)
}

fn brought(mut dyno: Lifecycle, name: &str) -> Lifecycle {
    let first = Attempt(1);
    let events = match name {
        "Stopped" => vec![],
        // One on trial has been lost.
        "Waiting" if dyno.is_on_trial() => {
            vec![Event::StayStarted, ended(first, ExitStatus::lost("", 1))]
        }
        "Waiting" | "Failed" => vec![Event::StayStarted, ended(first, code(1))],
        "Starting" => vec![Event::StayStarted],
        "Started" => vec![Event::StayStarted, Event::StartOk(first)],
        "Restarting" => vec![Event::StayStarted, Event::Restart { how: GRACE }],
        "Retiring" => vec![Event::StayStarted, Event::Retire { how: GRACE }],
        "Retired" => vec![Event::Retire { how: GRACE }],
        other => panic!("no state {other}"),
    };
    for event in events {
        dyno.step(event);
    }
    assert_eq!(state_name(dyno.state()), name);
    dyno
}

fn state_name(state: &State) -> &'static str {
    match state {
        State::Stopped => "Stopped",
        State::Waiting { .. } => "Waiting",
        State::Failed { .. } => "Failed",
        State::Starting { .. } => "Starting",
        State::Started { .. } => "Started",
        State::Restarting { .. } => "Restarting",
        State::Retiring { .. } => "Retiring",
        State::Retired { .. } => "Retired",
    }
}

fn action_name(action: &Action) -> String {
    match action {
        Action::Start(attempt) => format!("start-{attempt}"),
        Action::Stop(attempt, GRACE) => format!("stop-{attempt}"),
        Action::Stop(attempt, _) => format!("stop-{attempt}-sooner"),
        Action::ArmBackoff(_) => "arm".to_owned(),
        Action::DisarmBackoff => "disarm".to_owned(),
        Action::Complete(None) => "complete".to_owned(),
        Action::Complete(Some(status)) => format!("complete-{}", status.exit_code()),
    }
}

/// Every event of a column; `Ended` is two of them.
fn events(column: &str, attempt: Attempt) -> Vec<Event> {
    match column {
        "StayStarted" => vec![Event::StayStarted],
        "Restart" => vec![Event::Restart { how: GRACE }],
        "StartOk" => vec![Event::StartOk(attempt)],
        "Ended" => vec![
            ended(attempt, ExitStatus::code(1, 2)),
            ended(attempt, ExitStatus::not_started("no such stack", 2)),
        ],
        "Lost" => vec![ended(attempt, ExitStatus::lost("driver died", 2))],
        "Ready" => vec![Event::Ready(attempt)],
        "Elapsed" => vec![Event::Elapsed],
        "Retire" => vec![Event::Retire { how: GRACE }],
        "Sooner" => vec![
            Event::Retire { how: SHORT },
            Event::Retire {
                how: Stop::Immediately,
            },
        ],
        "Adopt" => vec![Event::Adopt(attempt)],
        "StopFailed" => vec![Event::StopFailed(attempt)],
        other => panic!("no event {other}"),
    }
}

/// The whole machine. `-` changes nothing; the others are the next state and the
/// actions, with the attempt each speaks of and the code it completes with.
const KEPT: &str = "
               StayStarted       Restart                  StartOk            Ready  Ended               Lost                Elapsed           Retire                      Sooner                      Adopt    StopFailed
    Stopped    Starting:start-1  Starting:start-1         -                  -      -                   -                   -                 Retired:complete            Retired:complete            Started  -
    Waiting    -                 Starting:disarm,start-2  -                  -      -                   -                   Starting:start-2  Retired:disarm,complete-1   Retired:disarm,complete-1   -        -
    Starting   -                 Restarting:stop-1        Started            -      Waiting:arm         Waiting:arm         -                 Retiring:stop-1             Retiring:stop-1-sooner      -        -
    Started    -                 Restarting:stop-1        -                  -      Waiting:arm         Waiting:arm         -                 Retiring:stop-1             Retiring:stop-1-sooner      -        -
    Restarting -                 -                        Restarting:stop-1  -      Starting:start-2    Starting:start-2    -                 Retiring                    Retiring:stop-1-sooner      -        Restarting:stop-1
    Retiring   -                 -                        Retiring:stop-1    -      Retired:complete-1  Retired:complete-1  -                 Retiring:stop-1             Retiring:stop-1-sooner      -        Retiring:stop-1
    Retired    -                 -                        -                  -      -                   -                   -                 -                           -                           -        -
";
/// One on trial differs in what becomes of it when it ends by itself, but for a loss.
const ON_TRIAL: &str = "
               StayStarted       Restart                  StartOk            Ready  Ended               Lost                Elapsed           Retire                      Sooner                      Adopt    StopFailed
    Stopped    Starting:start-1  Starting:start-1         -                  -      -                   -                   -                 Retired:complete            Retired:complete            Started  -
    Waiting    -                 Starting:disarm,start-2  -                  -      -                   -                   Starting:start-2  Retired:disarm,complete-1   Retired:disarm,complete-1   -        -
    Failed     -                 Starting:start-2         -                  -      -                   -                   -                 Retired:complete-1          Retired:complete-1          -        -
    Starting   -                 Restarting:stop-1        Started            -      Failed              Waiting:arm         -                 Retiring:stop-1             Retiring:stop-1-sooner      -        -
    Started    -                 Restarting:stop-1        -                  -      Failed              Waiting:arm         -                 Retiring:stop-1             Retiring:stop-1-sooner      -        -
    Restarting -                 -                        Restarting:stop-1  -      Starting:start-2    Starting:start-2    -                 Retiring                    Retiring:stop-1-sooner      -        Restarting:stop-1
    Retiring   -                 -                        Retiring:stop-1    -      Retired:complete-1  Retired:complete-1  -                 Retiring:stop-1             Retiring:stop-1-sooner      -        Retiring:stop-1
    Retired    -                 -                        -                  -      -                   -                   -                 -                           -                           -        -
";
/// One-shots differ where they end, and in that nobody restarts them.
const ONE_SHOT: &str = "
               StayStarted       Restart                  StartOk            Ready  Ended               Lost                Elapsed           Retire                      Sooner                      Adopt    StopFailed
    Stopped    Starting:start-1  Starting:start-1         -                  -      -                   -                   -                 Retired:complete            Retired:complete            Started  -
    Starting   -                 -                        Started            -      Retired:complete-1  Retired:complete-1  -                 Retiring:stop-1             Retiring:stop-1-sooner      -        -
    Started    -                 -                        -                  -      Retired:complete-1  Retired:complete-1  -                 Retiring:stop-1             Retiring:stop-1-sooner      -        -
    Retiring   -                 -                        Retiring:stop-1    -      Retired:complete-1  Retired:complete-1  -                 Retiring:stop-1             Retiring:stop-1-sooner      -        Retiring:stop-1
    Retired    -                 -                        -                  -      -                   -                   -                 -                           -                           -        -
";

fn check(table: &str, new: &Lifecycle) {
    let mut rows = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|row| !row.is_empty());
    let columns = rows.next().unwrap();
    for row in rows {
        let (name, cells) = row.split_first().unwrap();
        assert_eq!(cells.len(), columns.len(), "{name}");
        for (column, cell) in columns.iter().zip(cells) {
            let start = brought(new.clone(), name);
            let current = start.state().attempt().unwrap_or(Attempt(1));
            for event in events(column, current) {
                let mut dyno = start.clone();
                let before = dyno.state().clone();
                let actions = dyno.step(event.clone());
                let actions: Vec<_> = actions.iter().map(action_name).collect();
                let got = match (dyno.state() == &before, actions.as_slice()) {
                    (true, []) => "-".to_owned(),
                    (_, []) => state_name(dyno.state()).to_owned(),
                    (_, some) => format!("{}:{}", state_name(dyno.state()), some.join(",")),
                };
                assert_eq!(&got, cell, "{new:?} {name} on {event:?}");
            }
        }
    }
}

#[test]
fn every_state_answers_every_event_as_the_table_says() {
    check(KEPT, &dyno(Kind::Kept));
    check(ON_TRIAL, &dyno(Kind::Kept).on_trial());
    check(ONE_SHOT, &dyno(Kind::OneShot));
    // Being ready, and then ending, is all that tells a trial that is over.
    let mut proved = dyno(Kind::Kept).on_trial();
    for event in [
        Event::StayStarted,
        Event::StartOk(Attempt(1)),
        Event::Ready(Attempt(1)),
    ] {
        proved.step(event);
    }
    assert_eq!(
        proved.step(ended(Attempt(1), code(1))),
        [Action::ArmBackoff(Duration::ZERO)]
    );
}

#[test]
fn a_dyno_on_trial_that_is_always_lost_has_failed() {
    let mut dyno = dyno(Kind::Kept).on_trial();
    dyno.step(Event::StayStarted);
    for attempt in 1..=2 {
        let lost = ended(Attempt(attempt), ExitStatus::lost("driver died", 2));
        assert!(matches!(dyno.step(lost)[..], [Action::ArmBackoff(_)]));
        dyno.step(Event::Elapsed);
    }
    let lost = ended(Attempt(3), ExitStatus::lost("driver died", 2));
    assert_eq!(dyno.step(lost), []);
    assert_eq!(state_name(dyno.state()), "Failed");
}

#[test]
fn a_report_about_another_attempt_changes_nothing() {
    let names = [
        "Stopped",
        "Waiting",
        "Starting",
        "Started",
        "Restarting",
        "Retiring",
        "Retired",
    ];
    for name in names {
        for column in ["StartOk", "Ready", "Ended", "Lost", "Adopt", "StopFailed"] {
            for event in events(column, Attempt(9)) {
                let mut dyno = in_state(name, Kind::Kept);
                let before = dyno.state().clone();
                assert_eq!(dyno.step(event), [], "{name} {column}");
                assert_eq!(dyno.state(), &before, "{name} {column}");
            }
        }
    }
}

#[test]
fn the_grace_of_a_stop_only_ever_shortens() {
    let mut dyno = in_state("Started", Kind::Kept);
    let first = Attempt(1);
    assert_eq!(
        dyno.step(Event::Retire { how: SHORT }),
        [Action::Stop(first, SHORT)]
    );
    assert_eq!(
        dyno.step(Event::Retire { how: GRACE }),
        [Action::Stop(first, SHORT)]
    );
    let now = Stop::Immediately;
    assert_eq!(
        dyno.step(Event::Retire { how: now }),
        [Action::Stop(first, now)]
    );
    assert_eq!(
        dyno.step(Event::StopFailed(first)),
        [Action::Stop(first, now)]
    );
}

#[test]
fn the_first_crash_waits_for_nothing_and_a_healthy_run_makes_it_first_again() {
    let mut dyno = in_state("Started", Kind::Kept);
    let crash = |dyno: &mut Lifecycle, uptime| {
        let attempt = dyno.state().attempt().unwrap();
        let actions = dyno.step(Event::Ended {
            attempt,
            status: code(1),
            uptime,
        });
        let [Action::ArmBackoff(wait)] = actions[..] else {
            panic!("{actions:?}");
        };
        dyno.step(Event::Elapsed);
        wait
    };
    assert_eq!(crash(&mut dyno, Duration::ZERO), Duration::ZERO);
    assert!(crash(&mut dyno, Duration::ZERO) > Duration::ZERO);
    assert_eq!(crash(&mut dyno, HEALTHY), Duration::ZERO);
    assert!(crash(&mut dyno, Duration::ZERO) > Duration::ZERO);
    assert_eq!(dyno.crashes_in_a_row(), 2);
    dyno.step(Event::Restart { how: GRACE });
    assert_eq!(dyno.crashes_in_a_row(), 0);
}

#[test]
fn a_restart_by_hand_is_none_that_counts() {
    let mut dyno = in_state("Waiting", Kind::Kept);
    assert_eq!(dyno.restarts(), 0);
    dyno.step(Event::Elapsed);
    assert_eq!(dyno.restarts(), 1);
    dyno.step(Event::Restart { how: GRACE });
    let attempt = dyno.state().attempt().unwrap();
    dyno.step(ended(attempt, code(0)));
    assert_eq!(state_name(dyno.state()), "Starting");
    assert_eq!(dyno.restarts(), 1);
}

#[test]
fn a_restart_by_hand_forgets_the_crashes_while_it_waits_too() {
    let mut dyno = in_state("Waiting", Kind::Kept);
    assert_eq!(dyno.crashes_in_a_row(), 1);
    dyno.step(Event::Restart { how: GRACE });
    assert_eq!(dyno.crashes_in_a_row(), 0);
}

#[test]
fn a_dyno_adopted_after_a_reconnect_goes_on_as_if_started_here() {
    let mut dyno = dyno(Kind::OneShot);
    let attempt = dyno.next_attempt();
    assert_eq!(dyno.step(Event::Adopt(attempt)), []);
    assert_eq!(dyno.state(), &State::Started { attempt });
    assert_eq!(dyno.next_attempt(), Attempt(2));
    assert_eq!(
        dyno.step(ended(attempt, code(42))),
        [Action::Complete(Some(code(42)))]
    );
}

#[test]
fn heroku_has_its_words() {
    let rows = [
        ("Stopped", "down"),
        ("Waiting", "crashed"),
        ("Starting", "starting"),
        ("Started", "up"),
        ("Restarting", "starting"),
        ("Retiring", "stopping"),
        ("Retired", "down"),
    ];
    for (name, heroku) in rows {
        let dyno = in_state(name, Kind::Kept);
        assert_eq!(words::heroku(dyno.heroku_state()), heroku);
    }
    let failed = brought(dyno(Kind::Kept).on_trial(), "Failed");
    assert_eq!(failed.heroku_state(), DynoState::Crashed);
    let complete = in_state("Retired", Kind::OneShot).heroku_state();
    assert_eq!(complete, DynoState::Complete);
    assert_eq!(
        words::state_changed(DynoState::Up, DynoState::Crashed).unwrap(),
        "State changed from up to crashed"
    );
    assert_eq!(words::state_changed(DynoState::Up, DynoState::Up), None);
}

/// Events as a driver, a timer and people might send them: some speak of the attempt
/// that runs (0), some of one before or after it.
fn event() -> impl Strategy<Value = (u8, i64, u64)> {
    (
        0_u8..11,
        prop_oneof![4 => Just(0_i64), 1 => -2..3_i64],
        0..100_u64,
    )
}

/// What a driver and a timer would know.
#[derive(Default)]
struct World {
    live: Option<Attempt>,
    stop_wanted: bool,
    timer: bool,
    starts: u64,
}

fn run(mut dyno: Lifecycle, script: &[(u8, i64, u64)]) -> Result<(), TestCaseError> {
    let kind = dyno.kind;
    let mut world = World::default();
    let mut retired: Option<State> = None;
    for &(which, off, seconds) in script {
        let about = dyno
            .state()
            .attempt()
            .unwrap_or_else(|| dyno.next_attempt());
        let attempt = Attempt(about.0.saturating_add_signed(off));
        let how = [GRACE, SHORT, Stop::Immediately][usize::try_from(seconds % 3).unwrap()];
        let event = match which {
            0 => Event::StayStarted,
            1 => Event::Restart { how },
            2 => Event::StartOk(attempt),
            3 | 4 => Event::Ended {
                attempt,
                status: code(1),
                uptime: Duration::from_secs(seconds),
            },
            5 if world.timer => Event::Elapsed,
            5 => continue,
            6 => Event::Retire { how },
            7 if world.live.is_none() => Event::Adopt(attempt),
            7 => continue,
            8 => Event::Ready(attempt),
            9 => Event::Ended {
                attempt,
                status: ExitStatus::lost("driver died", 1),
                uptime: Duration::from_secs(seconds),
            },
            _ => Event::StopFailed(attempt),
        };
        // What the event says has happened in the world.
        match &event {
            Event::Ended { attempt, .. } if world.live == Some(*attempt) => {
                world.live = None;
                world.stop_wanted = false;
            }
            Event::Elapsed => world.timer = false,
            _ => {}
        }
        // A Stop that failed, or that came before there was something to stop.
        let unstopped = matches!(
            event,
            Event::StopFailed(attempt) | Event::StartOk(attempt) if world.live == Some(attempt)
        );
        let (on_trial, by_hand) = (dyno.is_on_trial(), matches!(event, Event::Restart { .. }));
        let failed = matches!(dyno.state(), State::Failed { .. });
        let actions = dyno.step(event);
        prop_assert!(on_trial || !dyno.is_on_trial(), "on trial again");
        if failed && !by_hand {
            prop_assert!(
                !actions
                    .iter()
                    .any(|action| matches!(action, Action::Start(_))),
                "a dyno that failed on trial was started again"
            );
        }
        if unstopped && world.stop_wanted {
            prop_assert!(
                matches!(actions[..], [Action::Stop(attempt, _)] if world.live == Some(attempt)),
                "a stop without effect was not sent again: {:?}",
                actions
            );
        }
        for action in actions {
            match action {
                Action::Start(attempt) => {
                    prop_assert_eq!(world.live, None, "two live attempts");
                    prop_assert!(!world.timer, "started while a timer runs");
                    world.live = Some(attempt);
                    world.starts += 1;
                }
                Action::Stop(attempt, _) => {
                    prop_assert_eq!(world.live, Some(attempt), "stopped what does not run");
                    world.stop_wanted = true;
                }
                Action::ArmBackoff(_) => {
                    prop_assert!(!world.timer, "two timers");
                    world.timer = true;
                }
                Action::DisarmBackoff => {
                    prop_assert!(world.timer, "disarmed what is not armed");
                    world.timer = false;
                }
                Action::Complete(_) => {
                    prop_assert_eq!(world.live, None, "complete while it runs");
                    prop_assert!(retired.is_none(), "complete twice");
                }
            }
        }
        if let State::Started { attempt } = dyno.state() {
            // An adopted process runs, whoever started it.
            world.live.get_or_insert(*attempt);
        }
        prop_assert_eq!(dyno.state().attempt(), world.live);
        prop_assert_eq!(
            matches!(dyno.state(), State::Waiting { .. }),
            world.timer,
            "a timer runs exactly while it waits"
        );
        if let Some(state) = &retired {
            prop_assert_eq!(dyno.state(), state, "left retirement");
        } else if matches!(dyno.state(), State::Retired { .. }) {
            retired = Some(dyno.state().clone());
        }
        if kind == Kind::OneShot {
            prop_assert!(world.starts <= 1, "a one-shot was started twice");
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_kept_dyno_holds_its_invariants(script in prop::collection::vec(event(), 0..200)) {
        run(dyno(Kind::Kept), &script)?;
    }

    #[test]
    fn one_on_trial_holds_its_invariants(script in prop::collection::vec(event(), 0..200)) {
        run(dyno(Kind::Kept).on_trial(), &script)?;
    }

    #[test]
    fn a_one_shot_holds_its_invariants(script in prop::collection::vec(event(), 0..60)) {
        run(dyno(Kind::OneShot), &script)?;
    }
}
