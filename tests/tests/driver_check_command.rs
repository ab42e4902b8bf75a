//! `hsup-driver-check` as a person meets it: its exit codes, and that it leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use hsup_tests::{
    binary,
    deadline::{self, poll},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

/// The command, with a folder of its own for everything that it makes.
struct Check {
    tmp: TempDir,
}

impl Check {
    fn new() -> Self {
        let tmp = tempfile::Builder::new().prefix("hsup-check-it-").tempdir();
        Self { tmp: tmp.unwrap() }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the command under test is neither a dyno nor a driver"
    )]
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary(env!("CARGO_BIN_EXE_hsup-driver-check")));
        command
            .args(args)
            .env("TMPDIR", self.tmp.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs it to its end, and fails unless it ends with `code` and leaves nothing.
    fn ends(&self, code: i32, args: &[&str]) -> String {
        let output = deadline::output(&mut self.command(args));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}{stderr}");
        self.nothing_is_left();
        text + &stderr
    }

    /// What the folder holds.
    fn made(&self) -> usize {
        fs::read_dir(self.tmp.path()).unwrap().count()
    }

    /// The processes that were started for this check: the driver has the folder in its
    /// environment, a dyno runs in a slug in it.
    fn processes(&self) -> Vec<i32> {
        let folder = self.tmp.path();
        let bytes = folder.to_str().unwrap().as_bytes();
        let has = |pid: &i32| {
            let proc = Path::new("/proc").join(pid.to_string());
            let environ = fs::read(proc.join("environ")).unwrap_or_default();
            let here = fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
            here || environ.windows(bytes.len()).any(|part| part == bytes)
        };
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(has)
            .collect()
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.processes(), Vec::<i32>::new());
        assert_eq!(self.made(), 0, "in {}", self.tmp.path().display());
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn naive(options: &str) -> String {
    let driver = binary(env!("CARGO_BIN_EXE_naive-driver"));
    let quoted = driver.display().to_string().replace('\'', r"'\''");
    format!("'{quoted}' {options}")
}

/// Fails unless the command ends with 2 and its error says `text`.
fn refused(args: &[&str], text: &str) {
    let said = Check::new().ends(2, args);
    assert!(said.contains(text), "{args:?}: {said}");
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
    let text = Check::new().ends(0, &["--list", "--focus", "stop:"]);
    let expected =
        "stop: an unknown dyno is stopped already\n    §8 Stop: unknown or exited → OK\n";
    assert!(text.starts_with(expected), "{text}");
    assert!(!text.contains("\nwait: "), "{text}");
}

#[test]
fn a_driver_that_keeps_the_rules_is_0_and_one_that_does_not_is_1() {
    let focus = ["--focus", "stop: an unknown dyno"];
    let check = Check::new();
    let good = check.ends(0, &[&["--exec", &naive("")], &focus[..]].concat());
    assert!(good.contains("1 passed, 0 failed, 0 skipped"), "{good}");
    let faulty = naive("--fault stop-unknown-not-found");
    let bad = check.ends(1, &[&["--exec", &faulty], &focus[..]].concat());
    assert!(
        bad.contains("FAIL an unknown dyno is stopped already"),
        "{bad}"
    );
    assert!(bad.contains("0 passed, 1 failed"), "{bad}");
}

#[test]
fn a_driver_at_a_socket_is_tested_and_not_ended() {
    let (check, dir) = (Check::new(), TempDir::new().unwrap());
    let socket = dir.path().join("driver.sock");
    #[expect(clippy::disallowed_methods, reason = "somebody else's driver")]
    let mut driver = Command::new(binary(env!("CARGO_BIN_EXE_naive-driver")))
        .env("HSUP_DRIVER_SOCKET", &socket)
        .spawn()
        .unwrap();
    poll(|| socket.exists().then_some(())).expect("a socket");
    let args = ["--socket", socket.to_str().unwrap()];
    let focus = [
        "--focus",
        "wait: exit codes",
        "--focus",
        "driver process: SIGTERM ends it, and",
    ];
    let text = check.ends(0, &[&args[..], &focus].concat());
    assert!(text.contains("(needs --exec)"), "{text}");
    assert!(text.contains("1 passed, 0 failed, 1 skipped"), "{text}");
    assert!(driver.try_wait().unwrap().is_none(), "it has ended");
    driver.kill().unwrap();
    driver.wait().unwrap();
}

#[test]
fn a_case_without_an_end_fails_and_a_wedged_driver_is_cleared_away() {
    let driver = naive("--fault stop-hangs");
    let args = [
        "--exec",
        &driver,
        "--deadline",
        "1",
        "--focus",
        "stop: force kills",
    ];
    let text = Check::new().ends(1, &args);
    assert!(text.contains("its end within 1 s"), "{text}");
}

/// The report of a run as JSON.
fn report(check: &Check, code: i32, args: &[&str]) -> Value {
    let text = check.ends(code, &[args, &["--format", "json"]].concat());
    serde_json::from_str(&text).unwrap()
}

fn verdicts(report: &Value) -> Vec<(&str, &str)> {
    let cases = report["cases"].as_array().unwrap().iter();
    cases
        .map(|case| (case["name"].as_str(), case["verdict"].as_str()))
        .map(|(name, verdict)| (name.unwrap(), verdict.unwrap()))
        .collect()
}

/// The first kills the driver, the second needs one.
const DEADLY: [&str; 4] = [
    "--focus",
    "list and remove: an unknown dyno",
    "--focus",
    "whole run: no refusal carried",
];

#[test]
fn the_cases_after_one_that_kills_the_driver_have_another() {
    let driver = naive("--fault dies-of-remove");
    let report = report(
        &Check::new(),
        1,
        &[&["--exec", &driver], &DEADLY[..]].concat(),
    );
    let expected = [
        ("an unknown dyno is removed already", "failed"),
        ("no refusal carried details", "passed"),
    ];
    assert_eq!(verdicts(&report), expected);
}

#[test]
fn a_driver_that_does_not_come_back_ends_the_run() {
    let dir = TempDir::new().unwrap();
    let once = dir.path().join("once");
    let driver = naive("--fault dies-of-remove");
    let driver = format!(
        "sh -c 'mkdir {} && exec {}'",
        once.display(),
        driver.replace('\'', "")
    );
    let report = report(
        &Check::new(),
        1,
        &[&["--exec", &driver], &DEADLY[..]].concat(),
    );
    let expected = [
        ("an unknown dyno is removed already", "failed"),
        ("the driver is there until the end", "failed"),
    ];
    assert_eq!(verdicts(&report), expected);
}

#[test]
fn a_repeated_run_runs_every_case_again() {
    let driver = naive("");
    let args = [
        "--exec",
        &driver,
        "--repeat",
        "3",
        "--focus",
        "wait: an unknown",
    ];
    let report = report(&Check::new(), 0, &args);
    let rounds: Vec<_> = report["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|case| &case["round"])
        .collect();
    assert_eq!(rounds, [1, 2, 3]);
    assert_eq!(report["passed"], 3);
}

#[test]
fn what_the_suite_lacks_is_no_fault_of_the_driver() {
    let check = Check::new();
    let command = binary(env!("CARGO_BIN_EXE_hsup-driver-check"));
    #[expect(clippy::disallowed_methods, reason = "a shell for its ulimit")]
    let output = deadline::output(
        Command::new("/bin/sh")
            .args(["-c", "ulimit -n 256; exec \"$@\"", "sh"])
            .arg(command)
            .args(["--exec", &naive(""), "--focus", "many Starts at once"])
            .env("TMPDIR", check.tmp.path()),
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("hindered: FIFOs for a dyno: Too many open files"),
        "{text}"
    );
    assert!(
        text.contains("0 passed, 0 failed, 0 skipped, 1 hindered"),
        "{text}"
    );
    check.nothing_is_left();
}

/// A run that would go on for a long time, in the middle of it.
fn under_way(check: &Check) -> Child {
    let driver = naive("");
    let args = [
        "--exec",
        &driver,
        "--focus",
        "many Starts at once",
        "--repeat",
        "1000",
    ];
    let child = check.command(&args).spawn().unwrap();
    poll(|| (check.processes().len() > 100).then_some(())).expect("a hundred dynos");
    child
}

fn interrupted_by(signal: Signal, code: i32) {
    let check = Check::new();
    let mut child = under_way(&check);
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
    let status = deadline::end(&mut child);
    assert_eq!(status.code(), Some(code));
    check.nothing_is_left();
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    interrupted_by(Signal::SIGINT, 130);
    interrupted_by(Signal::SIGTERM, 143);
    interrupted_by(Signal::SIGHUP, 129);
}

#[test]
fn a_killed_run_leaves_no_process() {
    let check = Check::new();
    let mut child = under_way(&check);
    child.kill().unwrap();
    child.wait().unwrap();
    poll(|| check.processes().is_empty().then_some(())).expect("the end of driver and dynos");
}

#[test]
fn a_report_that_nobody_reads_ends_the_run() {
    let check = Check::new();
    let driver = naive("");
    let args = [
        "--exec",
        &driver,
        "--focus",
        "identity: GetInfo",
        "--repeat",
        "1000000",
    ];
    let mut child = check.command(&args).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "driver org.example.naive 1");
    drop(lines);
    let status = deadline::end(&mut child);
    let said = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(
        said.contains("failed to print the report: Broken pipe"),
        "{said}"
    );
    check.nothing_is_left();
}
