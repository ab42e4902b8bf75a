//! A dyno with a terminal.

use std::io::Write as _;

use crate::dyno::Plan;

fn with_terminal(script: &str) -> Plan {
    let mut plan = Plan::sh(script);
    plan.terminal = Some((33, 77));
    plan
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn it_is_the_dynos_own_with_its_size_and_controls_the_session() {
    let script = "tty; stty size; echo by name >/dev/tty; read -r line; echo got $line; ps -o tty= -p $$; exit 3";
    for no_ptmx in [false, true] {
        let mut plan = with_terminal(script);
        plan.no_ptmx = no_ptmx;
        let mut dyno = plan.start();
        dyno.read_until("/dev/pts/0\r\n33 77\r\nby name\r\n");
        let mut master = dyno.master.as_ref().expect("a terminal");
        master.write_all(b"typed\n").expect("somebody reads");
        dyno.read_until("typed\r\ngot typed\r\npts/0\r\n");
        dyno.end().is("\"code\":3", "");
    }
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn ctrl_c_ends_what_is_in_the_foreground() {
    let mut dyno = with_terminal("echo ready; exec sleep 1000").start();
    dyno.read_until("ready\r\n");
    let mut master = dyno.master.as_ref().expect("a terminal");
    master.write_all(b"\x03").expect("somebody reads");
    dyno.end().is("\"signal\":2", "");
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn who_hangs_up_is_noticed() {
    let mut dyno =
        with_terminal("trap 'exit 6' HUP; echo ready; while :; do sleep 0.02; done").start();
    dyno.read_until("ready\r\n");
    drop(dyno.master.take());
    dyno.end().is("\"code\":6", "");
}

#[test]
#[ignore = "needs root: a dyno has a root and a pid namespace of its own"]
fn what_is_wrong_is_said_on_it() {
    let mut plan = with_terminal("");
    plan.command = vec!["no-such-command".to_owned()];
    let mut dyno = plan.start();
    dyno.read_until("hsup-init: no-such-command: command not found\r\n");
    dyno.end().is("\"code\":127", "");
}
