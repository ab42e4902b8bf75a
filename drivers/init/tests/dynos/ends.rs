//! How the end of a dyno becomes known, and that somebody sweeps after it.

use nix::sys::signal::{Signal, kill};

use crate::dyno::Plan;

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn a_code_is_exact_and_the_sweep_is_the_same_process() {
    for code in [0, 1, 7, 127, 255] {
        let end = Plan::sh(&format!("echo a; exit {code}")).run();
        end.is(&format!("\"code\":{code}"), "a\n");
        assert_eq!(end.sweep.code(), Some(7), "the sweep's own end");
    }
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn a_signal_is_exact() {
    for signal in [1, 9, 11, 15, 34, 64] {
        let end = Plan::new(&["bash", "-c", &format!("ulimit -c 0; kill -{signal} $$")]).run();
        end.is(&format!("\"signal\":{signal}"), "");
    }
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn when_pid_1_is_killed_that_is_how_the_dyno_ended() {
    let mut dyno = Plan::sh("echo ready; sleep 1000 & wait").start();
    dyno.read_until("ready\n");
    dyno.signal(Signal::SIGKILL);
    dyno.end().is("\"signal\":9", "");
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn the_dyno_ends_with_its_command_whoever_else_lives() {
    // In a session of its own, deaf to SIGHUP and SIGTERM, and with the output in its hand.
    let script = "setsid sh -c 'trap \"\" HUP TERM; sleep 1000' & exit 3";
    Plan::sh(script).run().is("\"code\":3", "");
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn only_sigkill_ends_the_one_who_waits() {
    let mut dyno = Plan::sh("echo ready; exec sleep 1000").start();
    dyno.read_until("ready\n");
    dyno.await_waiting();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGTSTP,
        Signal::SIGALRM,
    ] {
        kill(dyno.waiter(), signal).expect("it is there");
    }
    dyno.signal(Signal::SIGTERM);
    dyno.end().is("\"signal\":15", "");
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn a_want_of_memory_is_told() {
    for (oom, told) in [
        (vec!["low 0\noom 1\noom_kill 0\n"], false),
        (
            vec![
                "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
                "oom_kill 2\n",
            ],
            true,
        ),
    ] {
        let mut plan = Plan::sh("kill -9 $$");
        plan.oom = oom;
        let end = plan.run();
        let expected = format!("{{\"signal\":9,\"oom_killed\":{told}");
        assert_eq!(end.exit, Some(expected), "{}", end.output);
    }
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn a_full_file_system_loses_the_status_and_nothing_else() {
    let mut plan = Plan::sh("echo last words");
    plan.room = Some(64 << 10);
    let end = plan.run();
    assert_eq!(end.exit, None);
    assert_eq!(end.sweep.code(), Some(7), "{}", end.output);
    let complaint = "last words\nhsup-wait: failed to write the exit status: ";
    assert!(end.output.starts_with(complaint), "{}", end.output);
    assert!(end.output.contains("No space left"), "{}", end.output);
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn a_file_system_that_fills_up_later_loses_nothing() {
    let mut plan = Plan::sh("echo ready; exec sleep 1000");
    plan.room = Some(64 << 10);
    plan.room_is_taken_later = true;
    let mut dyno = plan.start();
    dyno.read_until("ready\n");
    dyno.await_waiting();
    dyno.fill_up();
    dyno.signal(Signal::SIGTERM);
    dyno.end().is("\"signal\":15", "");
}
