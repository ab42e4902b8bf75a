//! Processes that take pains to get away from their dyno.

use std::time::Duration;

use hsup_driver_kit::processes::{Process, Processes};
use hsup_proto::driver::exit_status::How;
use nix::sys::signal::{Signal, kill};
use tokio::time::sleep;

use super::{Output, driver, ended, exists, shell, within};

/// What does not listen and says who it is.
const STUBBORN: &str = r#"sh -c "trap \"\" TERM HUP INT; echo \$\$; while :; do sleep 1000; done""#;

/// A dyno whose script brings forth somebody who says his pid.
async fn with_escaped(processes: &Processes, script: &str) -> (Process, Output, String) {
    let (process, mut output) = shell(processes, "escapes", script);
    let escaped = output.line().await;
    assert!(exists(&escaped), "{escaped}");
    (process, output, escaped)
}

/// Kills the dyno, and fails if that leaves the one who escaped.
async fn killed_with(process: &Process, escaped: &str) {
    within("kill", process.kill()).await;
    assert_eq!(ended(process).await, How::Signal("SIGKILL".to_owned()));
    assert!(!exists(escaped), "it got away");
}

/// Waits until the dyno is seen to have so many processes.
async fn counted(process: &Process, pids: u32) {
    let counting = async {
        while process.stats().await.unwrap().pids != Some(pids) {
            sleep(Duration::from_millis(2)).await;
        }
    };
    within("all of its processes", counting).await;
}

#[test]
fn an_orphan_cannot_raise_its_limits_back() {
    driver(async |processes: Processes| {
        // What fails here has no consequence.
        let script = format!(
            "bash -c 'ulimit -S -x unlimited 2>/dev/null; setsid {STUBBORN} &'; exec sleep 1000"
        );
        let (process, _output, escaped) = with_escaped(&processes, &script).await;
        killed_with(&process, &escaped).await;
    });
}

#[test]
fn an_orphan_with_marks_of_its_own_is_known_by_its_hard_limit() {
    driver(async |processes: Processes| {
        // As a driver marks its dynos that is a dyno itself.
        let script = format!("bash -c 'ulimit -S -x 77; setsid {STUBBORN} &'; exec sleep 1000");
        let (process, _output, escaped) = with_escaped(&processes, &script).await;
        killed_with(&process, &escaped).await;
    });
}

#[test]
fn who_has_neither_mark_nor_session_is_known_by_its_parent() {
    driver(async |processes: Processes| {
        let script = format!("bash -c 'ulimit -x 5; exec setsid {STUBBORN}' & exec sleep 1000");
        let (process, _output, escaped) = with_escaped(&processes, &script).await;
        killed_with(&process, &escaped).await;
    });
}

#[test]
fn who_was_seen_with_its_parent_is_known_without_it() {
    driver(async |processes: Processes| {
        let script = format!("bash -c 'ulimit -x 5; exec setsid {STUBBORN}' & exec sleep 1000");
        let (process, _output, escaped) = with_escaped(&processes, &script).await;
        counted(&process, 3).await;
        kill(process.pid().unwrap(), Signal::SIGTERM).unwrap();
        assert_eq!(ended(&process).await, How::Signal("SIGTERM".to_owned()));
        assert!(!exists(&escaped), "it got away");
    });
}

#[test]
fn a_name_that_is_no_text_hides_nobody() {
    driver(async |processes: Processes| {
        let script = r#"sh -c 'printf "\377\n) S 1 1 1" >/proc/$$/comm; echo $$; read -r _' &
            exec sleep 1000"#;
        let (process, _output, escaped) = with_escaped(&processes, script).await;
        counted(&process, 2).await;
        killed_with(&process, &escaped).await;
    });
}
