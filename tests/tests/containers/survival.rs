//! What is killed is taken over or cleared away, by whoever comes next.

use std::{
    collections::BTreeSet,
    fs,
    io::{Seek as _, SeekFrom, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use hsup_proto::driver::State;
use hsup_tests::deadline::poll;
use nix::{
    sys::{
        resource::{Resource, setrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use crate::{
    caller::{Caller, how},
    host::Host,
    running::Running,
};

fn kill_9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// The process that waits for the host's dyno; it becomes that once it has told of the start.
fn waiter(host: &Host) -> i32 {
    let waiting = || host.processes("hsup-wait").first().copied();
    poll(waiting).expect("somebody waits for the dyno")
}

/// The processes that keep what dynos wrote.
fn keepers(host: &Host) -> Vec<i32> {
    let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let mut all = host.processes("hsup-wait");
    all.retain(|pid| name(pid) == "hsup-wait keeps\n");
    all
}

fn wait_for_no_keeper(host: &Host) {
    let none = poll(|| keepers(host).is_empty().then_some(()));
    assert!(none.is_some(), "{:?}", keepers(host));
}

/// Waits until nobody of the host's dynos holds a user any more.
fn wait_for_no_user(host: &Host) {
    let free = poll(|| host.names("uids").is_empty().then_some(()));
    assert!(free.is_some(), "still taken: {:?}", host.names("uids"));
}

#[test]
#[ignore = "needs root: it makes containers"]
fn the_dynos_of_a_killed_driver_are_the_next_ones() {
    let host = Host::new();
    let driver = host.driver();
    let hsup = Running::start(&host, |_| ());
    let before = hsup.wait_up(&["worker.1"]);
    let waiting = waiter(&host);
    driver.kill();
    let driver = host.driver();
    hsup.wait_for("the driver found again", || {
        driver.log().contains("found dynos again").then_some(())
    });
    assert_eq!(hsup.wait_up(&["worker.1"]), before);
    assert_eq!(waiter(&host), waiting);
    hsup.interrupt();
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn what_ended_while_no_driver_ran_is_told_by_the_next_one() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let mut code = caller.start("code", "read _; exit 42");
    let mut signal = caller.start("signal", "read _; kill -USR1 $$");
    driver.kill();
    code.close();
    signal.close();
    // Nothing of them is left but the news.
    wait_for_no_user(&host);
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    assert_eq!(caller.ids(), ["code", "signal"]);
    assert_eq!(how(&caller.wait("code")), "42");
    assert_eq!(how(&caller.wait("signal")), "SIGUSR1");
    caller.remove_all();
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn the_last_words_of_a_dyno_outlive_all_that_it_held() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let mut dyno = caller.start("a", "read _; echo last; echo words >&2; exit 3");
    dyno.let_go();
    assert_eq!(how(&caller.wait("a")), "3");
    driver.end();
    wait_for_no_user(&host);
    let swept = poll(|| {
        host.processes("hsup-driver-libcontainer sweep")
            .is_empty()
            .then_some(())
    });
    assert!(swept.is_some(), "the sweep does not end");
    dyno.take_up();
    assert_eq!(dyno.said(), "last\nwords\n");
    // Nobody keeps what has been read.
    wait_for_no_keeper(&host);
    drop(dyno);

    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    caller.remove_all();
    // Nor what nobody can ask for any more.
    let mut dyno = caller.start("b", "read _; echo last words");
    dyno.let_go();
    assert_eq!(how(&caller.wait("b")), "0");
    let keeper = poll(|| keepers(&host).first().copied());
    assert!(keeper.is_some(), "nobody keeps them");
    caller.remove("b");
    wait_for_no_keeper(&host);
    drop(dyno);
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn dynos_that_a_driver_has_no_descriptors_for_go_on() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let ids: Vec<_> = (10..50).map(|number| format!("a-{number}")).collect();
    let mut dynos: Vec<_> = ids
        .iter()
        .map(|id| caller.start(id, "read _; exit 3"))
        .collect();
    driver.kill();
    // Enough to begin with, and for some of the dynos: each takes two or three.
    let said = host.driver_fails_at(&host.socket(), |command| with_open_files(command, 60));
    assert!(said.contains("LimitNOFILE"), "{said}");
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let running = caller.list();
    assert_eq!(caller.ids(), ids);
    let all_run = running.iter().all(|dyno| dyno.state() == State::Running);
    assert!(all_run, "{running:?}");
    for dyno in &mut dynos {
        dyno.close();
    }
    for id in &ids {
        assert_eq!(how(&caller.wait(id)), "3");
    }
    caller.remove_all();
    driver.end();
    host.is_clean();
}

#[expect(unsafe_code, reason = "a limit is set between fork and exec")]
fn with_open_files(command: &mut Command, most: u64) {
    let limit = move || Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?);
    // SAFETY: setrlimit(2) may be called there.
    unsafe { command.pre_exec(limit) };
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_dyno_of_a_driver_that_wrote_in_another_format_goes_on() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let mut dyno = caller.start("a", "read _; exit 3");
    driver.kill();
    let record = host.dynos().join("0.a/record");
    let kept = fs::read(&record).unwrap();
    // The first field, as protobuf has it.
    let of_format = |format: u8| {
        let mut file = fs::File::options().write(true).open(&record).unwrap();
        file.seek(SeekFrom::Start(1)).unwrap();
        file.write_all(&[format]).unwrap();
    };
    of_format(kept[1] + 1);
    let said = host.driver_fails_at(&host.socket(), |_| ());
    assert!(said.contains("the version that started it"), "{said}");
    let waiting = waiter(&host);
    assert!(said.contains("kill -9"), "{said}");
    of_format(kept[1]);
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    assert_eq!(waiter(&host), waiting);
    dyno.close();
    assert_eq!(how(&caller.wait("a")), "3");
    caller.remove("a");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_driver_that_is_told_to_end_leaves_its_dynos() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let mut dyno = caller.start("a", "trap 'echo term' TERM; echo up; read _; exit 3");
    dyno.wait_for("up");
    driver.end();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let listed = caller.list();
    assert_eq!(listed[0].state(), State::Running, "{listed:?}");
    dyno.close();
    assert_eq!(how(&caller.wait("a")), "3");
    assert!(!dyno.said().contains("term"), "{}", dyno.said());
    caller.remove_all();
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_dyno_that_nobody_waits_for_any_more_is_lost_and_leaves_nothing() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let mut dyno = caller.start("a", "echo up; sleep 1000 & wait");
    dyno.wait_for("up");
    let pid = caller.stats("a").pid.unwrap();
    kill_9(waiter(&host));
    assert_eq!(how(&caller.wait("a")), "lost");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    caller.remove("a");
    // The same while no driver runs.
    let mut dyno = caller.start("b", "echo up; sleep 1000 & wait");
    dyno.wait_for("up");
    let pid = caller.stats("b").pid.unwrap();
    driver.kill();
    kill_9(waiter(&host));
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    assert_eq!(how(&caller.wait("b")), "lost");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    caller.remove("b");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn shims_that_are_killed_in_the_middle_leave_nothing() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let done = AtomicBool::new(false);
    let killed = thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut killed = BTreeSet::new();
            // A shim is killed at once, or later and later, up to when it usually is done.
            let mut wait = 0;
            while !done.load(Ordering::Relaxed) {
                for pid in host.processes("hsup-driver-libcontainer shim") {
                    if killed.insert(pid) {
                        thread::sleep(Duration::from_millis(wait));
                        wait = (wait + 3) % 45;
                        // It may be done, or gone.
                        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                    }
                }
            }
            killed.len()
        });
        let mut refused = 0;
        for number in 0..30 {
            let id = format!("a-{number}");
            match caller.try_start(&id, "sleep 1000", |_| ()) {
                Ok(dyno) => dyno.end(),
                Err(_) => refused += 1,
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(refused > 0, "no start was hit");
        killer.join().unwrap()
    });
    assert!(killed > 0);
    wait_for_no_user(&host);
    assert_eq!(caller.output("b", "echo well", |_| ()).0, "well\n");
    assert!(caller.list().is_empty());
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_driver_that_is_killed_in_the_middle_of_starts_leaves_what_the_next_one_can_use() {
    let host = Host::new();
    let driver = host.driver();
    // As many connections as starts, opened before.
    let callers: Vec<_> = (0..20).map(|_| Caller::new(&host.socket())).collect();
    let killed = AtomicBool::new(false);
    let some = thread::scope(|scope| {
        for (number, caller) in callers.into_iter().enumerate() {
            let killed = &killed;
            scope.spawn(move || {
                // Whether it comes about is not known to whoever asked. Until the driver is gone
                // it has a stdin, and reads.
                let started = caller.try_start(&format!("a-{number}"), "read _", |_| ());
                while !killed.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(1));
                }
                drop(started.map(|dyno| dyno.id));
            });
        }
        let some = poll(|| (host.processes("hsup-wait").len() >= 4).then_some(()));
        driver.kill();
        killed.store(true, Ordering::Relaxed);
        some
    });
    assert!(some.is_some(), "no four dynos ran at once");
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let log = driver.log();
    let running = caller.list();
    assert!(running.len() >= 4, "{running:?}\n{log}");
    for dyno in &running {
        let status = caller.wait(&dyno.dyno_id);
        assert_eq!(how(&status), "1", "its stdin is closed: {dyno:?}\n{log}");
    }
    caller.remove_all();
    assert_eq!(caller.output("b", "echo well", |_| ()).0, "well\n");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn what_a_reboot_leaves_is_freed() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let mut dyno = caller.start("a", "echo left >file; mkdir -m 0 closed; echo up; read _");
    dyno.wait_for("up");
    // A machine that goes down leaves what is on the disk.
    let folders = ["uids", "subnets", "containers"];
    let saved = host.path("saved");
    for folder in folders {
        copy(&host.path("work").join(folder), &saved.join(folder));
    }
    dyno.end();
    driver.end();
    fs::remove_dir_all(host.run_dir()).unwrap_or_default();
    for folder in folders {
        copy(&saved.join(folder), &host.path("work").join(folder));
        assert_eq!(host.names(folder).len(), 1);
    }
    let driver = host.driver();
    let freed = || folders.iter().all(|folder| host.names(folder).is_empty());
    assert!(poll(|| freed().then_some(())).is_some(), "{}", driver.log());
    driver.end();
    host.is_clean();
}

/// Copies a tree of folders and files.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

#[test]
#[ignore = "needs root: it makes containers"]
fn two_drivers_on_one_work_directory_share_it() {
    let host = Host::new();
    let other = host.path("socket/other.sock");
    let (first, second) = (host.driver(), host.driver_at(&other, |_| ()));
    let (one, two) = (Caller::new(&host.socket()), Caller::new(&other));
    for number in 0..4 {
        one.start(&format!("a-{number}"), "read _ <&2");
        two.start(&format!("b-{number}"), "read _ <&2");
    }
    let addresses = |caller: &Caller| -> Vec<_> {
        let ids = caller.ids();
        ids.iter().map(|id| caller.ip(id)).collect()
    };
    let all: BTreeSet<_> = addresses(&one).into_iter().chain(addresses(&two)).collect();
    assert_eq!(all.len(), 8, "{all:?}");
    assert_eq!(host.names("uids").len(), 8);
    let mine = addresses(&two);
    second.kill();
    let second = host.driver_at(&other, |_| ());
    let two = Caller::new(&other);
    assert_eq!(two.ids(), ["b-0", "b-1", "b-2", "b-3"]);
    assert_eq!(addresses(&two), mine);
    // The first is asked no more, and its dynos are nobody's while it is away.
    first.kill();
    second.end();
    let second = host.driver_at(&other, |_| ());
    let two = Caller::new(&other);
    assert_eq!(two.ids(), ["b-0", "b-1", "b-2", "b-3"]);
    two.remove_all();
    assert_eq!(host.names("uids").len(), 4);
    assert!(host.has_table(), "the other's dynos need it");
    let first = host.driver();
    let one = Caller::new(&host.socket());
    assert_eq!(one.ids(), ["a-0", "a-1", "a-2", "a-3"]);
    one.remove_all();
    // It stays for a moment, for whoever starts the next.
    let gone = poll(|| (!host.has_table()).then_some(()));
    assert!(gone.is_some(), "nobody needs it");
    first.end();
    second.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_terminal_goes_on_with_the_next_driver() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let line = "while read word; do echo \"got $word\"; done";
    let dyno = caller.try_start("a", line, |request| request.tty = true);
    drop(dyno.unwrap());
    caller.at_terminal("a", "one\n", "got one");
    driver.kill();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    caller.at_terminal("a", "two\n", "got two");
    // Who leaves a terminal hangs up.
    drop(caller);
    let caller = Caller::new(&host.socket());
    assert_eq!(how(&caller.wait("a")), "SIGHUP");
    caller.remove("a");
    driver.end();
    host.is_clean();
}
