//! What a dyno may use, and what becomes of one that wants more.

use std::{
    fs,
    path::{Path, PathBuf},
};

use hsup_proto::driver::Limits;

use crate::{
    caller::{Caller, how},
    host::Host,
    machine::{cgroups, left_out},
    running::Running,
};

const MIB: u64 = 1 << 20;

fn memory(mib: u64) -> Limits {
    Limits {
        memory_bytes: mib * MIB,
        ..Limits::default()
    }
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_dyno_that_outgrows_its_memory_is_told_to_have_done_so() {
    let host = Host::new();
    host.install("test-escape");
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let (said, status) = caller.output("a", "exec test-escape hold 200", |request| {
        request.limits = Some(memory(64));
    });
    assert_eq!(how(&status), "SIGKILL", "{said}");
    assert!(status.oom_killed, "{status:?}");
    // So is one that ends as its child did.
    let (said, status) = caller.output("b", "test-escape hold 200; exit $?", |request| {
        request.limits = Some(memory(64));
    });
    assert_eq!(how(&status), "137", "{said}");
    assert!(status.oom_killed, "{status:?}");
    // One that goes on without its child was not killed, and another dyno's limit is its own.
    let (said, status) = caller.output("d", "test-escape hold 200; echo $?", |request| {
        request.limits = Some(memory(64));
    });
    assert!(said.starts_with("137\n"), "{said}");
    assert_eq!(how(&status), "0");
    assert!(!status.oom_killed, "{status:?}");
    let (said, status) = caller.output("c", "test-escape hold 100", |request| {
        request.limits = Some(memory(256));
    });
    assert_eq!(said, "held 25600\n");
    assert!(!status.oom_killed, "{status:?}");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_dyno_with_a_limit_of_memory_does_not_swap() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let limited = caller.try_start("a", "read _", |request| request.limits = Some(memory(64)));
    let limited = limited.unwrap();
    // Of the two versions of cgroups, each has its own file; the one is of memory and swap.
    let end = format!("-{}", host.first_uid());
    let groups = cgroups().into_iter().filter(|group| group.ends_with(&end));
    let read = |group: String| {
        let files = [
            ("memory.swap.max", 0),
            ("memory.memsw.limit_in_bytes", 64 * MIB),
        ];
        files.into_iter().find_map(|(file, expected)| {
            let text = fs::read_to_string(Path::new(&group).join(file)).ok()?;
            Some((text.trim().to_owned(), expected.to_string()))
        })
    };
    let limits: Vec<_> = groups.filter_map(read).collect();
    if limits.is_empty() {
        left_out("the limit on swap: this kernel does not count it");
    }
    for (found, expected) in limits {
        assert_eq!(found, expected);
    }
    limited.end();
    driver.end();
    host.is_clean();
}

/// A control directory with a release of so many dynos, each of which wants more memory than its
/// 64 MiB.
fn limited(host: &Host, quantity: u32) -> PathBuf {
    let release = format!(
        r#"{{"Version":1,"Env":{{"PORT":"5000"}},"Stack":"test",
        "Limits":{{"MemoryBytes":67108864}},
        "Processes":[{{"Type":"worker","Args":["test-escape","hold","200"],"Quantity":{quantity}}}]}}"#
    );
    host.write("control/new", &release);
    host.give("control");
    host.path("control")
}

#[test]
#[ignore = "needs root: it makes containers"]
fn hsup_says_that_the_memory_was_not_enough() {
    let host = Host::new();
    host.install("test-escape");
    let driver = host.driver();
    let control = limited(&host, 1);
    let hsup = Running::start(&host, |command| {
        command.arg("--control-dir").arg(&control);
    });
    hsup.wait_for_line("Error R15 (Memory quota vastly exceeded)");
    hsup.interrupt();
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_one_off_dyno_has_the_limits_of_its_release() {
    let host = Host::new();
    host.install("test-escape");
    let driver = host.driver();
    let control = limited(&host, 0);
    let output = host.run_with("exec test-escape hold 200", |command| {
        command.arg("--control-dir").arg(&control);
    });
    assert_eq!(output.status.code(), Some(137), "{output:?}");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_fork_bomb_stays_in_its_dyno() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let bomb = "f() { sleep 1000 & f; }; echo begun; f 2>/dev/null; sleep 1000";
    let mut bad = caller.start("bad", bomb);
    bad.wait_for("begun");
    let full = || (caller.stats("bad").pids.unwrap_or(0) >= 250).then_some(());
    assert!(hsup_tests::deadline::poll(full).is_some());
    let pids = caller.stats("bad").pids;
    assert!(pids.unwrap() <= 257, "{pids:?}");
    let (said, status) = caller.output("good", "for i in 1 2 3; do (echo $i); done", |_| ());
    assert_eq!((&*said, &*how(&status)), ("1\n2\n3\n", "0"));
    bad.end();
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_limit_on_processes_is_the_dynos_own() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let line = "n=0; while [ $n -lt 60 ]; do sleep 1000 & n=$((n+1)); done; wait";
    let few = |request: &mut hsup_proto::driver::StartRequest| {
        request.limits = Some(Limits {
            pids: 20,
            ..Limits::default()
        });
    };
    // It is the same user's wherever that is counted: one dyno's must not be another's.
    let mut one = caller
        .try_start("a", "sleep 1000 & sleep 1000 & echo up; wait", few)
        .unwrap();
    one.wait_for("up");
    let begun = caller.try_start("b", line, few).unwrap();
    let full = || (caller.stats("b").pids.unwrap_or(0) >= 15).then_some(());
    assert!(hsup_tests::deadline::poll(full).is_some());
    let pids = caller.stats("b").pids.unwrap();
    assert!(pids <= 22, "{pids}");
    begun.end();
    one.end();
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_dyno_that_fills_its_tmp_is_told_so_and_others_go_on() {
    let host = Host::new();
    let driver = host.driver_with(|command| {
        command.args(["--tmp-size", "8m"]);
    });
    let caller = Caller::new(&host.socket());
    let fill = "for at in /tmp /var/tmp; do \
                dd if=/dev/zero of=$at/file bs=1M count=20 2>&1; done; echo full; read _";
    let mut bad = caller.start("bad", fill);
    let said = bad.wait_for("full");
    assert_eq!(said.matches("No space left on device").count(), 2, "{said}");
    let good = "dd if=/dev/zero of=/tmp/file bs=1M count=6 2>/dev/null && echo well";
    assert_eq!(caller.output("good", good, |_| ()).0, "well\n");
    bad.end();
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_limit_on_cpu_time_holds() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let mut dyno = caller
        .try_start("a", "echo up; while :; do :; done", |request| {
            request.limits = Some(Limits {
                cpu_millis: 100,
                ..Limits::default()
            });
        })
        .unwrap();
    dyno.wait_for("up");
    let used = || {
        let stats = caller.stats("a");
        (stats.at_unix_ms, stats.cpu_ns.unwrap())
    };
    let (begin, before) = used();
    // That it gets on, but not far.
    let later = hsup_tests::deadline::poll(|| {
        let (now, after) = used();
        (now - begin >= 2000).then_some((now, after))
    });
    let (end, after) = later.unwrap();
    let share = (after - before) / 1_000 / u64::try_from(end - begin).unwrap();
    assert!((1..200).contains(&share), "{share} thousandths");
    dyno.end();
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn the_resource_limits_are_those_of_heroku() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let line = "ulimit -u; ulimit -n; ulimit -Hn; ulimit -c";
    for (number, (mib, processes)) in [(0, 256), (512, 256), (1024, 512), (2560, 16_384)]
        .into_iter()
        .enumerate()
    {
        let (said, _) = caller.output(&format!("a-{number}"), line, |request| {
            request.limits = (mib > 0).then(|| memory(mib));
        });
        assert_eq!(said, format!("{processes}\n10000\n10000\n0\n"), "{mib} MiB");
    }
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn the_least_and_the_most_that_a_limit_can_be_make_a_dyno() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let limits = [(10, 0), (u32::MAX, 0), (0, 4_194_302)];
    for (number, (cpu_millis, pids)) in limits.into_iter().enumerate() {
        let (said, _) = caller.output(&format!("a-{number}"), "echo well", |request| {
            request.limits = Some(Limits {
                memory_bytes: u64::MAX * u64::from(number == 2),
                cpu_millis,
                pids,
            });
        });
        assert_eq!(said, "well\n", "{cpu_millis} {pids}");
    }
    // One process, and two.
    for (pids, line, expected) in [
        (1, "echo well", "well\n"),
        (2, "(echo one); echo two", "one\ntwo\n"),
    ] {
        let (said, _) = caller.output(&format!("b-{pids}"), line, |request| {
            request.limits = Some(Limits {
                pids,
                ..Limits::default()
            });
        });
        assert_eq!(said, expected);
    }
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_limit_that_no_dyno_can_live_with_is_refused() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let refused = caller.try_start("a", "true", |request| request.limits = Some(memory(1)));
    let status = refused.err().unwrap();
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    crate::caller::says(&status, &["limits.memory_bytes", "4194304"]);
    // Nothing was taken for it.
    assert_eq!(host.names("uids"), [""; 0]);
    driver.end();
    host.is_clean();
}
