//! Does the conformance suite catch wrong drivers, and pass good ones?
//!
//! Each fault is planted in a naive driver, and the case that names its rule must fail; the same
//! case must pass, not be skipped, without the fault.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    sync::{Condvar, Mutex, PoisonError},
    thread::available_parallelism,
    time::Duration,
};

use hsup_tests::{
    binary,
    conformance::{self, Config, Report, RunError, Verdict},
};

/// How many suites run now, and who waits for one to end.
static RUNNING: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());
/// Held by who starts hundreds of dynos at once, which keeps all processors busy.
static STORM: Mutex<()> = Mutex::new(());

/// Runs a suite as soon as there is a processor for it, and no storm beside another one, however
/// many tests run at once: its cases have deadlines.
fn run(config: &Config) -> Result<Report, RunError> {
    let is_storm = |part: &String| part.contains("concurrency");
    let has_storm = config.focus.is_empty() || config.focus.iter().any(is_storm);
    // One that failed in its storm has said so.
    let _alone = has_storm.then(|| STORM.lock().unwrap_or_else(PoisonError::into_inner));
    let (count, ended) = &RUNNING;
    let places = available_parallelism().unwrap().get();
    let full = |running: &mut usize| *running >= places;
    *ended.wait_while(count.lock().unwrap(), full).unwrap() += 1;
    let report = conformance::run(config);
    *count.lock().unwrap() -= 1;
    ended.notify_one();
    report
}

/// How the naive driver is started.
fn naive(options: &str) -> Config {
    let driver = binary(env!("CARGO_BIN_EXE_naive-driver"));
    let quoted = driver.display().to_string().replace('\'', r"'\''");
    let mut config = Config::exec(format!("'{quoted}' {options}"));
    // What is to be seen in a storm of Starts is seen in a smaller one, too, and with whatever else
    // wants the processors there is none of three hundred in time.
    config.storm = 100;
    config
}

/// How the driver is started whose dynos outlive it.
fn lasting(options: &str) -> Config {
    let driver = binary(env!("CARGO_BIN_EXE_lasting-driver"));
    let quoted = driver.display().to_string().replace('\'', r"'\''");
    Config::exec(format!("'{quoted}' {options}"))
}

/// How long a case waits for what a faulty driver never does. The good one has the usual time.
const LONG_ENOUGH: Duration = Duration::from_secs(5);

/// Runs the cases whose title contains one of `focus`.
fn check(options: &str, focus: &[&str]) -> Report {
    run(&focused(options, focus)).unwrap()
}

fn focused(options: &str, focus: &[&str]) -> Config {
    let mut config = naive(options);
    config.focus = focus.iter().map(|&part| part.to_owned()).collect();
    config
}

/// Fails unless the last case of `focus` passes on the good driver and fails on the faulty one.
fn caught(fault: &str, with: &str, focus: &[&str]) {
    let judged = |report: &Report| report.results.last().unwrap().clone();
    let with = match with {
        "" => String::new(),
        extra => format!("--with {extra}"),
    };
    let good = judged(&check(&with, focus));
    assert_eq!(good.verdict, Verdict::Passed, "without the fault");
    let mut config = focused(&format!("{with} --fault {fault}"), focus);
    config.deadline = LONG_ENOUGH;
    let faulty = judged(&run(&config).unwrap());
    assert!(
        matches!(faulty.verdict, Verdict::Failed(_)),
        "`{}: {}` did not catch {fault}: {:?}",
        faulty.chapter,
        faulty.name,
        faulty.verdict
    );
}

macro_rules! faults {
    ($($test:ident: $fault:literal $(with $with:literal)?, $($focus:literal),+;)*) => {$(
        #[test]
        fn $test() {
            caught($fault, concat!($($with)?), &[$($focus),+]);
        }
    )*};
}

faults! {
    a_capability_is_declared_and_missing: "declares-signal", "identity: Signal is there";
    builds_differ: "builds-differ", "build: the same release twice";
    get_info_waits_for_build: "get-info-behind-build", "build: GetInfo and List";
    one_artifact_for_every_slug: "one-artifact", "build: another slug is another";
    one_artifact_for_every_image: "one-artifact", "build: an image is not taken";
    dynos_of_two_slugs_run_in_one: "one-artifact", "build: a dyno of another slug";
    a_fresh_url_builds_anew: "query-in-key", "build: the query of the slug's URL";
    a_slug_that_changed_is_not_built: "slug-is-kept", "build: a slug that has changed";
    a_repeated_start_starts_again: "start-restarts", "start: the same request after the exit";
    ten_starts_at_once_are_ten_dynos: "start-does-not-join", "start: ten at once";
    another_request_is_taken: "other-request-ok", "start: the same id with another request is ALREADY_EXISTS";
    a_dyno_without_a_supervisor: "takes-no-supervisor", "start: a missing supervisor_id";
    names_get_in_the_way_of_list: "takes-endless-names", "start: names without an end";
    a_word_ends_at_its_nul_byte: "cuts-at-nul", "start: a NUL byte";
    a_name_that_is_none: "takes-any-name", "start: a name in env";
    a_checksum_that_is_none: "takes-any-checksum", "build: a malformed slug_checksum";
    an_artifact_of_nothing: "takes-missing-slug", "build: a slug directory that is not there";
    get_info_waits_for_starts: "get-info-behind-start", "concurrency: GetInfo and List";
    a_wait_is_forgotten_with_its_dyno: "wait-misses-remove", "wait: one that is open";
    a_socket_is_taken_from_another: "takes-any-socket", "driver process: a socket that another";
    a_file_is_taken_for_a_socket: "takes-any-socket", "driver process: what is no socket";
    a_descriptor_of_another_is_taken: "listen-pid-is-ignored", "driver process: a listening descriptor of another";
    who_came_back_is_gone_all_the_same: "linger-is-not-cancelled", "driver process: a supervisor that comes back";
    a_removed_id_starts_again: "forgets-removed", "start: an id that was removed is refused";
    env_is_leaked: "leaks-env", "start: env arrives as it was given";
    an_empty_env_is_filled: "leaks-env", "start: an empty env stays empty";
    argv_goes_through_a_shell: "argv-through-shell", "start: argv arrives";
    stop_of_an_unknown_dyno_is_an_error: "stop-unknown-not-found", "stop: an unknown dyno";
    no_grace_is_taken_for_none: "grace-zero-kills", "stop: no grace given";
    stop_answers_too_early: "stop-does-not-wait", "stop: a dyno that ignores SIGTERM";
    stop_ends_with_its_caller: "stop-ends-with-caller", "stop: a caller that hangs up";
    a_second_stop_is_ignored: "second-stop-ignored", "stop: a second Stop shortens";
    list_waits_for_stop: "list-behind-stop", "stop: GetInfo, List";
    wait_answers_differ: "wait-answers-differ", "wait: after the exit the answer stays the same";
    a_signal_becomes_exit_0: "signal-is-exit-zero", "wait: signals arrive by name";
    an_unknown_dyno_is_unavailable: "wait-unknown-unavailable", "wait: an unknown dyno";
    a_running_dyno_is_removed: "removes-running", "list and remove: a running dyno";
    stopped_too_late_for_list: "list-lacks-state", "list and remove: an exited dyno stays listed";
    a_dyno_is_not_where_it_is_said_to_be: "address-elsewhere", "ip info: what listens on PORT";
    a_port_that_is_none: "address-of-nothing", "ip info: a dyno without PORT";
    the_end_of_stdin_never_comes: "stdin-read-write", "stdio: stdin arrives";
    output_breaks_with_its_reader: "output-write-only", "stdio: a dyno outlives its reader";
    last_words_go_with_the_dyno: "forgets-last-words", "stdio: what a dyno wrote before its end";
    logs_are_empty: "logs-are-empty" with "logs", "logs: stdout and stderr arrive apart";
    logs_are_not_in_order: "logs-are-empty" with "logs", "logs: lines arrive in their order";
    logs_are_not_followed: "logs-are-empty" with "logs", "logs: what a running dyno writes";
    logs_join_the_streams: "logs-join-streams" with "logs", "logs: stdout and stderr arrive apart";
    logs_go_on_for_ever: "logs-do-not-end" with "logs", "logs: the stream ends";
    logs_are_gone_with_the_dyno: "logs-are-empty" with "logs", "logs: after the exit all of it";
    a_cursor_is_forgotten: "logs-forget-cursor" with "logs", "logs: a cursor goes on";
    a_second_caller_gets_nothing: "logs-are-empty" with "logs", "logs: two callers";
    a_hang_up_is_none: "hang-up-is-ignored" with "attach", "attach: a caller that vanishes";
    the_end_of_input_is_none: "stdin-eof-is-ignored" with "attach", "attach: stdin_eof";
    a_window_has_no_size_at_first: "first-size-is-ignored" with "attach", "attach: the window has its size";
    a_terminal_that_is_none: "takes-anything", "attach: a terminal that is not offered";
    one_address_for_all: "one-address" with "own-network", "own network: two dynos";
    what_is_bound_is_missing: "binds-are-ignored" with "binds", "binds: a dyno reads what is bound";
    what_is_bound_can_be_changed: "binds-are-writable" with "binds", "binds: a dyno does not change";
    a_bind_of_nothing: "binds-are-ignored" with "binds", "binds: a path that is not there";
    a_bind_that_is_dropped: "takes-anything", "binds: a bind that is not offered";
    memory_without_limit: "limits-are-ignored" with "limits", "limits: a dyno that needs more memory";
    processor_time_without_limit: "limits-are-ignored" with "limits", "limits: a dyno gets no more";
    processes_without_limit: "limits-are-ignored" with "limits", "limits: a dyno has no more";
    a_limit_that_is_dropped: "takes-anything", "limits: a limit that is not offered";
    a_socket_that_all_may_use_at_first: "chmods-after-bind", "driver process: the socket is its owner's";
    a_stale_socket_is_in_the_way: "stale-socket-stays", "driver process: a stale socket";
    a_descriptor_is_not_taken: "listen-fds-are-ignored", "driver process: a listening descriptor is";
    sigterm_is_ignored: "ignores-sigterm", "driver process: SIGTERM ends it, and";
    dynos_linger_for_ever: "ignores-linger", "driver process: linger_ms";
    a_false_claim_of_durability: "claims-exact", "durability: an exit while the driver is down";
    dynos_that_should_have_survived: "claims-exact", "durability: SIGTERM leaves";
    dynos_that_should_not_have_survived: "dynos-outlive-it", "durability: kill -9";
    a_grandchild_that_outlives_its_driver: "leaves-grandchildren", "durability: kill -9";
    an_invented_exit: "invents137", "durability: an exit while the driver is down";
    a_status_is_unknown: "answers-unknown", "wait: a removed dyno", "whole run: no call answered";
    a_secret_is_in_a_message: "tells-env", "start: an unknown artifact", "whole run: no refusal showed";
    a_secret_is_printed: "prints-env", "wait: an exited", "wait: exit codes", "whole run: the driver's output";
}

/// Fails unless the case of `focus` passes on the driver whose dynos outlive it, and fails with a
/// fault.
fn caught_lasting(fault: &str, focus: &str) {
    let judged = |options: &str| {
        let mut config = lasting(options);
        config.focus = vec![focus.to_owned()];
        config.deadline = LONG_ENOUGH * 4;
        run(&config).unwrap().results.last().unwrap().clone()
    };
    assert_eq!(judged("").verdict, Verdict::Passed, "without the fault");
    let faulty = judged(&format!("--fault {fault}"));
    assert!(
        matches!(faulty.verdict, Verdict::Failed(_)),
        "{fault}: {faulty:?}"
    );
}

#[test]
fn an_exit_is_told_by_one_driver_only() {
    caught_lasting("tells-once", "durability: a dyno runs on");
}

#[test]
fn an_exit_while_the_driver_is_down_is_forgotten() {
    caught_lasting("forgets-ended", "durability: an exit while");
}

#[test]
fn a_removed_dyno_comes_back() {
    caught_lasting("comes-back", "durability: a dyno that was removed");
}

#[test]
fn a_dyno_is_started_again() {
    caught_lasting("forgets-running", "durability: a Start is known");
}

#[test]
fn output_breaks_when_nobody_reads() {
    caught_lasting("write-only", "durability: what a dyno writes");
}

#[test]
fn a_good_driver_whose_dynos_outlive_it_passes() {
    let report = run(&lasting("")).unwrap();
    let failures: Vec<_> = report.failures().collect();
    assert!(failures.is_empty(), "{failures:?}");
    assert_eq!(
        report.summary().split(" — ").next(),
        Some("core · durability EXACT · stdio_fifo · signal")
    );
}

/// Whoever the drivers of root's are called by; need not exist.
const PEER: u32 = 47_111;

fn with_peer(mut config: Config, focus: &str) -> Report {
    config.as_peer = Some(PEER);
    config.focus = vec![format!("privilege boundary: {focus}")];
    run(&config).unwrap()
}

/// Fails unless the case of `focus` passes on a good driver of root's, and fails on one that knows
/// no users.
fn caught_at_boundary(focus: &str) {
    let good = with_peer(lasting(&format!("--allow-uid {PEER}")), focus);
    assert_eq!(good.results.last().unwrap().verdict, Verdict::Passed);
    let faulty = with_peer(naive("--fault knows-no-users"), focus);
    let faulty = faulty.results.last().unwrap();
    assert!(
        matches!(faulty.verdict, Verdict::Failed(_)),
        "{focus}: {faulty:?}"
    );
}

macro_rules! boundary {
    ($($test:ident: $focus:literal;)*) => {$(
        #[test]
        #[ignore = "needs root: it acts as another user"]
        fn $test() {
            caught_at_boundary($focus);
        }
    )*};
}

boundary! {
    a_socket_for_everybody: "the socket";
    a_third_user_is_served: "a third user";
    anothers_dyno_is_shown: "another's dyno";
    an_id_is_everybodys: "the same dyno_id";
    an_artifact_is_everybodys: "another's artifact";
    any_name_gets_into_a_path: "a name that could do harm";
    any_fifo_is_opened: "FIFOs that are not";
    any_slug_is_read: "a slug that the caller";
    calls_without_end: "a caller has so many";
}

#[test]
#[ignore = "needs root: it acts as another user"]
fn anything_is_bound() {
    let focus = "what the driver's own configuration";
    let verdict = |options: &str| {
        let options = format!("--allow-uid {PEER} --binds {options}");
        let report = with_peer(lasting(&options), focus);
        report.results.last().unwrap().verdict.clone()
    };
    assert_eq!(verdict(""), Verdict::Passed);
    let faulty = verdict("--fault binds-anything");
    assert!(matches!(faulty, Verdict::Failed(_)), "{faulty:?}");
}

#[test]
#[ignore = "needs root: it acts as another user"]
fn the_boundary_is_a_word_of_the_verdict() {
    let mut config = lasting(&format!("--allow-uid {PEER}"));
    config.as_peer = Some(PEER);
    config.focus = vec!["privilege boundary:".to_owned()];
    let summary = run(&config).unwrap().summary();
    assert!(
        summary.contains("· privilege boundary — 9 passed"),
        "{summary}"
    );
}

/// Fails unless the driver passes everything that is about it. Of malformed messages it never
/// hears: its gRPC library refuses them, as others do.
fn passes(options: &str, words: &str) {
    let report = run(&naive(options)).unwrap();
    let failures: Vec<_> = report
        .failures()
        .map(|(result, failure)| format!("{}: {}\n  {failure}\n", result.chapter, result.name))
        .collect();
    assert!(failures.is_empty(), "{}", failures.concat());
    assert_eq!(report.counts().hindered, 0, "{}", report.summary());
    assert_eq!(report.summary().split(" — ").next(), Some(words));
}

#[test]
fn a_good_driver_with_fifos_passes() {
    passes(
        "--with signal --with stats --with attach --with own-network --with binds --with limits",
        "core (in part) · durability NONE · stdio_fifo · signal · stats · attach · own_network · binds · limits",
    );
}

#[test]
fn a_good_driver_with_logs_passes() {
    // What a dyno leaves behind, and what becomes of it without its driver, is seen through
    // FIFOs only.
    passes(
        "--with logs --with signal --with attach",
        "core (in part) · durability NONE (not tested) · logs · signal · attach",
    );
}

#[test]
fn a_dyno_of_which_the_node_alone_is_known_passes() {
    let mut config = lasting("--node swarm-2");
    config.focus = vec!["ip info".to_owned()];
    let report = run(&config).unwrap();
    assert!(report.passed(), "{}", report.summary());
    let mut results = report.results.iter();
    let judged = results.find(|case| case.name.starts_with("a dyno without PORT"));
    let judged = judged.unwrap();
    assert_eq!(judged.verdict, Verdict::Passed);
}

#[test]
fn a_capability_that_came_later_is_warned_of_and_fails_nobody() {
    let report = check("--fault declares-unknown", &["identity:"]);
    assert!(report.passed(), "{}", report.summary());
    let expected = ["capability 1000 is not known to this suite"];
    assert_eq!(report.driver.warnings, expected);
}

#[test]
fn a_lie_is_not_kept() {
    let report = check("--fault claims-exact", &["durability:"]);
    let expected = "core (not tested) · durability EXACT (not kept) · stdio_fifo (not tested)";
    let summary = report.summary();
    assert!(summary.starts_with(expected), "{summary}");
}

#[test]
fn a_case_that_cannot_run_is_skipped_with_its_reason() {
    let report = check("", &["signal: a signal arrives"]);
    assert!(report.passed());
    assert_eq!(report.counts().passed, 0);
    let Verdict::Skipped(reason) = &report.results[0].verdict else {
        panic!("{:?}", report.results)
    };
    assert!(reason.contains("CAPABILITY_SIGNAL"), "{reason}");
}

#[test]
fn an_artifact_that_cannot_be_built_is_waited_for_once() {
    let mut config = focused("--fault build-hangs", &["wait: exit"]);
    config.deadline = Duration::from_secs(1);
    let results = run(&config).unwrap().results;
    assert!(
        matches!(results[0].verdict, Verdict::Failed(_)),
        "{results:?}"
    );
    assert!(results.len() > 1, "{results:?}");
    for result in &results[1..] {
        let Verdict::Skipped(reason) = &result.verdict else {
            panic!("{result:?}")
        };
        assert!(reason.starts_with("no artifact: "), "{reason}");
    }
}

#[test]
fn a_stop_that_hangs_is_waited_for_once_as_long() {
    let report = check(
        "--fault stop-hangs",
        &["wait: exit codes", "wait: signals arrive"],
    );
    let limits: Vec<_> = report
        .failures()
        .map(|(_, failure)| failure.observed.as_str())
        .collect();
    assert_eq!(limits, ["no answer within 10 s", "no answer within 2 s"]);
}
