//! `hsup-driver-check` when there is nothing to test: exit code 2, and why.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::process::{Command, Output};

#[expect(
    clippy::disallowed_methods,
    reason = "the command under test is neither a dyno nor a driver"
)]
fn check(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hsup-driver-check"))
        .args(args)
        .output()
        .unwrap()
}

/// Fails unless the command ends with 2 and its error says `text`.
fn refused(args: &[&str], text: &str) {
    let output = check(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(stderr.contains(text), "{args:?}: {stderr}");
}

#[test]
fn the_output_of_a_driver_that_ends_at_once_is_shown() {
    let driver = "sh -c 'echo out of uids; echo really >&2; exit 3'";
    refused(&["--exec", driver], "exit status: 3");
    refused(&["--exec", driver], "out of uids");
    refused(&["--exec", driver], "really");
}

#[test]
fn a_driver_that_is_not_there_is_named() {
    refused(&["--exec", "/no/such/driver"], "/no/such/driver");
}

#[test]
fn a_socket_that_is_not_there_is_named() {
    refused(&["--socket", "/no/such.sock"], "`/no/such.sock`");
}

#[test]
fn one_target_is_needed() {
    refused(&[], "--socket PATH or --exec COMMAND");
    refused(
        &["--socket", "/x.sock", "--exec", "x"],
        "cannot be used with",
    );
}

#[test]
fn a_focus_that_matches_nothing_is_an_error() {
    refused(
        &["--socket", "/x.sock", "--focus", "no such case"],
        "no case has a title",
    );
}

#[test]
fn the_list_has_every_case_with_its_rule() {
    let output = check(&["--list", "--focus", "stop:"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let expected =
        "stop: an unknown dyno is stopped already\n    §8 Stop: unknown or exited → OK\n";
    assert!(text.starts_with(expected), "{text}");
    assert!(!text.contains("\nwait: "), "{text}");
}
