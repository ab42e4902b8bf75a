//! Does the conformance suite catch wrong drivers?
//!
//! Each fault is planted in a naive driver, and the case that names its rule must fail; the same
//! case must pass, not be skipped, without the fault.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fake;

use fake::{Fake, Fault};
use hsup_tests::conformance::{Config, Report, Verdict, run};

/// Runs the cases whose title contains one of `focus` against a driver with `fault`.
fn check(fault: Option<Fault>, focus: &[&str]) -> Report {
    let fake = Fake::serve(fault);
    let mut config = Config::socket(fake.socket());
    config.focus = focus.iter().map(|&part| part.to_owned()).collect();
    run(&config).unwrap()
}

/// Fails unless the last case of `focus` passes on the good driver and fails on the faulty one.
fn caught(fault: Fault, focus: &[&str]) {
    let judged = |report: &Report| report.results.last().unwrap().clone();
    let good = judged(&check(None, focus));
    assert_eq!(good.verdict, Verdict::Passed, "without the fault");
    let faulty = judged(&check(Some(fault), focus));
    assert!(
        matches!(faulty.verdict, Verdict::Failed(_)),
        "`{}: {}` did not catch {fault:?}: {:?}",
        faulty.chapter,
        faulty.name,
        faulty.verdict
    );
}

macro_rules! faults {
    ($($test:ident: $fault:ident, $($focus:literal),+;)*) => {$(
        #[test]
        fn $test() {
            caught(Fault::$fault, &[$($focus),+]);
        }
    )*};
}

faults! {
    stop_of_an_unknown_dyno_is_an_error: StopUnknownNotFound, "stop: an unknown dyno";
    wait_answers_differ: WaitAnswersDiffer, "wait: after the exit the answer stays the same";
    env_is_leaked: LeaksEnv, "start: env arrives as it was given";
    an_empty_env_is_filled: LeaksEnv, "start: an empty env stays empty";
    a_signal_becomes_exit_0: SignalIsExitZero, "wait: signals arrive by name";
    a_repeated_start_starts_again: StartRestarts, "start: the same request after the exit";
    ten_starts_at_once_are_ten_dynos: StartDoesNotJoin, "start: ten at once";
    another_request_is_taken: OtherRequestOk, "start: the same id with another request is ALREADY_EXISTS";
    a_running_dyno_is_removed: RemovesRunning, "list and remove: a running dyno";
    list_waits_for_stop: ListBehindStop, "stop: GetInfo, List";
    an_unknown_dyno_is_unavailable: WaitUnknownUnavailable, "wait: an unknown dyno";
    the_end_of_stdin_never_comes: StdinReadWrite, "stdio: stdin arrives";
    output_breaks_with_its_reader: OutputWriteOnly, "stdio: a dyno outlives its reader";
    no_grace_is_taken_for_none: GraceZeroKills, "stop: no grace given";
    stop_answers_too_early: StopDoesNotWait, "stop: a dyno that ignores SIGTERM";
    stop_ends_with_its_caller: StopEndsWithCaller, "stop: a caller that hangs up";
    a_second_stop_is_ignored: SecondStopIgnored, "stop: a second Stop shortens";
    a_capability_is_declared_and_missing: DeclaresSignal, "identity: Signal is there";
    a_status_is_unknown: AnswersUnknown, "wait: a removed dyno", "whole run: no call answered";
    builds_differ: BuildsDiffer, "build: the same release twice";
    argv_goes_through_a_shell: ArgvThroughShell, "start: argv arrives";
    a_secret_is_in_a_message: TellsEnv, "start: an unknown artifact", "whole run: no refusal showed";
    a_removed_id_starts_again: ForgetsRemoved, "start: an id that was removed is refused";
    stopped_too_late_for_list: ListLacksState, "list and remove: an exited dyno stays listed";
}

#[test]
fn a_case_that_cannot_run_is_skipped_with_its_reason() {
    let report = check(
        None,
        &["signal: a signal arrives", "driver process: SIGTERM ends"],
    );
    assert!(report.passed());
    assert_eq!(report.counts().passed, 0);
    let reasons: Vec<_> = report
        .results
        .iter()
        .map(|result| match &result.verdict {
            Verdict::Skipped(reason) => reason.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(reasons[0].contains("CAPABILITY_SIGNAL"), "{reasons:?}");
    assert!(reasons[1].contains("--exec"), "{reasons:?}");
}

#[test]
fn dynos_are_cleared_away_after_a_failure() {
    let fake = Fake::serve(Some(Fault::WaitAnswersDiffer));
    let mut config = Config::socket(fake.socket());
    config.focus = vec!["wait: after the exit the answer stays the same".to_owned()];
    assert!(!run(&config).unwrap().passed());
    assert_eq!(fake.dynos(), Vec::<String>::new());
}
