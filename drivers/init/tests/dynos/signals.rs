//! PID 1: what it hands on, what it reaps, what it survives.

use nix::sys::signal::Signal;

use crate::dyno::Plan;

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn a_signal_reaches_everybody() {
    // One in the command's process group, one in a session of its own, the command itself.
    let script = "
        exec 2>/dev/null
        trap 'wait; echo one' USR1
        sh -c 'trap \"echo two; exit\" USR1; echo ready; while :; do sleep 0.05; done' &
        setsid sh -c 'trap \"echo three; exit\" USR1; echo ready; while :; do sleep 0.05; done' &
        wait; wait";
    let mut dyno = Plan::sh(script).start();
    dyno.read_until("ready\n");
    dyno.read_until("ready\n");
    dyno.signal(Signal::SIGUSR1);
    let end = dyno.end();
    let mut said: Vec<&str> = end.output.lines().collect();
    said.sort_unstable();
    assert_eq!(said, ["one", "three", "two"]);
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn every_signal_is_handed_on_also_to_stop() {
    for (signal, name) in [
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGQUIT, "QUIT"),
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGTSTP, "TSTP"),
        (Signal::SIGWINCH, "WINCH"),
        (Signal::SIGCONT, "CONT"),
    ] {
        let script = format!(
            "exec 2>/dev/null; trap 'echo {name}; exit 4' {name}; echo ready; while :; do sleep 0.02; done"
        );
        let mut dyno = Plan::sh(&script).start();
        dyno.read_until("ready\n");
        dyno.signal(signal);
        dyno.end().is("\"code\":4", &format!("{name}\n"));
    }
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn orphans_are_reaped() {
    let script = "
        for i in 1 2 3 4 5; do (sh -c 'exit 9' & echo $!); done >/tmp/orphans
        for pid in $(cat /tmp/orphans); do
            while [ -e /proc/$pid ]; do sleep 0.02; done
        done
        ps -e -o stat= | grep -c Z";
    Plan::sh(script).run().is("\"code\":1", "0\n");
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn the_command_starts_with_nothing_blocked_ignored_or_inherited() {
    let script =
        "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status | tr -d '\\t\\n'; echo /proc/self/fd/*";
    let end = Plan::new(&[
        "bash",
        "-c",
        &format!("exec 9</dev/null; exec 9<&-; {script}"),
    ])
    .run();
    assert!(
        end.output
            .contains("SigBlk:0000000000000000SigIgn:0000000000000000"),
        "{}",
        end.output
    );
    let end = Plan::new(&["ls", "/proc/self/fd"]).run();
    // The last is that of the directory itself.
    end.is("\"code\":0", "0\n1\n2\n3\n");
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn the_dyno_can_neither_look_into_pid_1_nor_end_it() {
    let script = "
        for signal in KILL STOP SEGV TERM; do kill -$signal 1; done 2>&1
        ls /proc/1/fd 2>/dev/null; cat /proc/1/environ 2>/dev/null
        echo x 2>/dev/null >/proc/1/fd/3
        echo alive";
    let mut plan = Plan::new(&["bash", "-c", &format!("trap '' TERM SEGV; {script}")]);
    plan.environment.push(("SECRET", "x"));
    plan.run().is("\"code\":0", "alive\n");
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn a_flood_of_signals_hides_no_end() {
    // They ignore what comes back, and go on after the command's end.
    let script = "
        trap '' HUP USR1 RTMIN
        for signal in HUP USR1 RTMIN HUP; do
            setsid bash -c \"while :; do kill -$signal 1; done\" 2>/dev/null &
        done
        sleep 0.3
        (exit 1) & wait $!
        exit 5";
    Plan::new(&["bash", "-c", script])
        .run()
        .is("\"code\":5", "");
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn a_dyno_without_processes_to_spare_says_so() {
    let mut plan = Plan::sh("echo never");
    // PID 1 is the one that it may have.
    plan.processes = Some(1);
    plan.uid = 54_322;
    let end = plan.run();
    assert_eq!(
        end.exit.as_deref(),
        Some("{\"code\":126,\"oom_killed\":false")
    );
    assert!(
        end.output
            .starts_with("hsup-init: failed to start a process: "),
        "{}",
        end.output
    );
}
