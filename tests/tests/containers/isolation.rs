//! What a dyno cannot do to the host, to its neighbours and to itself.

use std::{
    collections::BTreeMap,
    fs,
    net::{TcpListener, TcpStream},
    os::{
        fd::AsRawFd as _,
        unix::{fs::PermissionsExt as _, process::CommandExt as _},
    },
    process::Command,
};

use hsup_tests::deadline::poll;
use nix::unistd::{Gid, setgroups};

use crate::{
    caller::{Caller, how},
    host::Host,
    machine::{Link, left_out},
};

#[test]
#[ignore = "needs root: it makes containers"]
fn system_calls_that_could_lead_out_are_refused() {
    let host = Host::new();
    host.install("test-escape");
    let driver = host.driver();
    let said = host.says("test-escape calls");
    let tried: BTreeMap<_, _> = said
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    assert!(tried.len() > 60, "{said}");
    // What the kernel lets pass because there is nothing in it, or tells in its own way.
    let otherwise = |name: &str| match name {
        "clone3" | "x32-getpid" => "ENOSYS",
        // Taken back, it stays what it is.
        "new-privileges" => "EINVAL",
        "setpriority" => "EACCES",
        _ => "EPERM",
    };
    let wrong: Vec<_> = tried
        .iter()
        .filter(|(name, result)| **result != otherwise(name))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_dyno_has_no_right_and_nothing_that_it_was_not_given() {
    let host = Host::new();
    host.install("test-escape");
    let stack = host.path("work/stacks/test-1");
    // Root's, with the bit that makes whoever runs it root.
    let program = stack.join("bin/test-escape");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).unwrap();
    // As a root that logs in may have them.
    let driver = host.driver_with(|command| with_groups(command, [0, 4, 27]));
    let status = host.says("cat /proc/self/status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("no {name} in {status}"))[name.len()..].trim()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("SigBlk:"), "0000000000000000");
    assert_eq!(field("SigIgn:"), "0000000000000000");
    let uid = host.first_uid();
    let users = host.says("test-escape users; id -G");
    let mut users = users.split_whitespace().map(str::parse::<u32>);
    assert!(
        users.all(|user| (uid..uid + 63).contains(&user.unwrap())),
        "{users:?}"
    );
    // The last is that of who lists them.
    assert_eq!(host.says("ls /proc/self/fd"), "0\n1\n2\n3\n");
    assert_eq!(host.says("yes | head -n 1"), "y\n");
    driver.end();
    host.is_clean();
}

#[expect(unsafe_code, reason = "the groups are the process's own")]
fn with_groups(command: &mut Command, groups: [u32; 3]) {
    let groups = groups.map(Gid::from_raw);
    // SAFETY: setgroups(2) is all that is called after the fork.
    unsafe { command.pre_exec(move || Ok(setgroups(&groups)?)) };
}

#[test]
#[ignore = "needs root: it makes containers"]
fn descriptors_that_the_driver_was_handed_reach_no_dyno() {
    let host = Host::new();
    host.write("handed", "");
    let handed = fs::File::open(host.path("handed")).unwrap();
    let driver = host.driver_with(|command| {
        command.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "a:b");
        with_descriptors(command, &handed);
    });
    let has_it = |pid: String| {
        let folder = format!("/proc/{pid}/fd");
        let entries = fs::read_dir(&folder).unwrap().flatten();
        let mut targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.any(|target| target == host.path("handed"))
    };
    assert!(has_it(driver.pid().to_string()), "it was not handed");
    let caller = Caller::new(&host.socket());
    let mut dyno = caller.start("a", "env; echo up; read _");
    dyno.wait_for("up");
    assert!(!dyno.said().contains("LISTEN_"), "{}", dyno.said());
    let command = caller.stats("a").pid.unwrap();
    let first = parent(command);
    let waiting = poll(|| host.processes("hsup-wait").first().copied()).unwrap();
    assert!(!has_it(command.to_string()), "the command");
    assert!(!has_it(first), "the first process");
    assert!(!has_it(waiting.to_string()), "who waits for it");
    dyno.end();
    driver.end();
    host.is_clean();
}

/// Has a file at the places where a service manager puts sockets.
#[expect(unsafe_code, reason = "descriptors are placed between fork and exec")]
fn with_descriptors(command: &mut Command, file: &fs::File) {
    let file = file.as_raw_fd();
    let place = move || {
        // SAFETY: fcntl(2) and dup2(2) may be called there, and who is at these places is gone with
        // the exec.
        let placed = unsafe {
            // It may be at one of them itself.
            let file = libc::fcntl(file, libc::F_DUPFD_CLOEXEC, 10);
            [libc::dup2(file, 3), libc::dup2(file, 4)]
        };
        if placed == [3, 4] {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: as it says above.
    unsafe { command.pre_exec(place) };
}

/// The process whose child it is.
fn parent(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.unwrap().trim().to_owned()
}

#[test]
#[ignore = "needs root: it makes containers"]
fn short_of_memory_the_kernel_takes_the_dyno_and_not_who_waits_for_it() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let mut dyno = caller.start("a", "echo up; read _");
    dyno.wait_for("up");
    let score = |pid: String| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    let command = caller.stats("a").pid.unwrap();
    let waiting = poll(|| host.processes("hsup-wait").first().copied()).unwrap();
    assert_eq!(score(command.to_string()), "0\n");
    assert_eq!(score(parent(command)), "0\n");
    if may_spare() {
        assert_eq!(score(waiting.to_string()), "-900\n");
    } else {
        left_out("whom the kernel spares: this machine gives root no CAP_SYS_RESOURCE");
    }
    dyno.end();
    driver.end();
    host.is_clean();
}

/// Whether root may have the kernel spare a process, as it may but in some containers.
fn may_spare() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let effective = lines.find_map(|line| line.strip_prefix("CapEff:"));
    let effective = u64::from_str_radix(effective.unwrap().trim(), 16).unwrap();
    effective >> CAP_SYS_RESOURCE & 1 == 1
}

#[test]
#[ignore = "needs root: it makes containers"]
fn the_stack_is_read_only() {
    let host = Host::new();
    fs::create_dir(host.path("work/stacks/test-1/open")).unwrap();
    let open = fs::Permissions::from_mode(0o777);
    for folder in ["open", "etc", "bin"] {
        let folder = host.path("work/stacks/test-1").join(folder);
        fs::set_permissions(folder, open.clone()).unwrap();
    }
    let driver = host.driver();
    let written = host.says(
        "for at in / /open /etc /bin /proc /sys /dev /dev/pts /app /tmp /var/tmp /dev/shm; do \
         (: >$at/new) 2>/dev/null && echo $at; done; true",
    );
    assert_eq!(written, "/app\n/tmp\n/var/tmp\n/dev/shm\n");
    let refused = host.says("(: >/open/new) 2>&1; (: >>/etc/passwd) 2>&1; rm -f /open 2>&1; true");
    let lines: Vec<_> = refused.lines().collect();
    assert!(lines[0].contains("Read-only file system"), "{refused}");
    assert!(!host.path("work/stacks/test-1/open/new").exists());
    assert!(!host.path("work/stacks/test-1/etc/new").exists());
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn the_kernels_files_cannot_be_written_to_and_tell_nothing() {
    let host = Host::new();
    let driver = host.driver();
    let writable = host.says(
        "for file in $(find /proc/sys -type f) /proc/sysrq-trigger /proc/1/oom_score_adj \
         /sys/power/state /sys/kernel/uevent_helper /sys/kernel/mm/ksm/run; do \
         [ -w $file ] && echo $file; done; true",
    );
    assert_eq!(writable, "");
    let read = host.says(
        "for file in kcore keys timer_list sched_debug 1/mem 1/environ; do \
         cat /proc/$file 2>/dev/null | wc -c; done; ls /sys/firmware | wc -l",
    );
    assert_eq!(read, "0\n".repeat(7));
    let devices = host.says("cd /dev; find . -type b; find . -type c | sort");
    let harmless = [
        "full", "null", "ptmx", "pts/ptmx", "random", "tty", "urandom", "zero",
    ];
    for device in devices.lines() {
        let name = device.trim_start_matches("./");
        assert!(harmless.contains(&name), "{devices}");
    }
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn the_first_process_is_not_harmed_from_inside() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    // A shell that begins to read just when it is told hears of that only when it has read.
    let line = "kill -KILL 1; kill -STOP 1; trap 'told=1; echo told' TERM; kill -TERM 1; \
                until [ -n \"$told\" ]; do sleep 0.1; done; read _; echo alive; exit 5";
    let mut dyno = caller.start("a", line);
    dyno.wait_for("told");
    dyno.close();
    assert_eq!(how(&caller.wait("a")), "5", "{}", dyno.said());
    assert!(dyno.said().contains("alive"), "{}", dyno.said());
    caller.remove("a");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn neighbours_are_out_of_reach() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let line = "for at in /app /tmp /var/tmp /dev/shm; do echo secret >$at/file; done; \
                chmod -R 777 /app; echo up; exec sleep 31415";
    let mut one = caller.start("a", line);
    one.wait_for("up");
    let work = host.path("work");
    let run = host.run_dir();
    let look = format!(
        "id -u; cat /app/file /tmp/file /var/tmp/file /dev/shm/file 2>/dev/null; \
         ps | grep -c '[3]1415'; ls -d {} {} 2>/dev/null; \
         ls -d /proc/1/root/home /proc/1/cwd 2>/dev/null",
        work.display(),
        run.display()
    );
    let (seen, _) = caller.output("b", &look, |_| ());
    let uids = host.names("uids");
    let own = seen.lines().next().unwrap_or_default().to_owned();
    assert!(!uids.contains(&own), "{own} in {uids:?}");
    assert_eq!(seen, format!("{own}\n0\n"));
    one.end();
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_dyno_reaches_its_gateway_and_neither_neighbours_nor_the_host() {
    let host = Host::new();
    host.install("test-escape");
    let driver = host.driver();
    // An address of the host that is no dyno's business.
    let link = Link::new(&host);
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let caller = Caller::new(&host.socket());
    let mut one = caller.start("a", "exec test-escape listen 5000");
    one.wait_for("listening");
    let neighbour = format!("{}:5000", caller.ip("a"));
    // That it can be reached at all.
    assert!(poll(|| TcpStream::connect(&neighbour).ok()).is_some());
    let foreign = format!("{}:{port}", link.address());
    assert!(TcpStream::connect(&foreign).is_ok());
    let line = format!(
        "test-escape connect $(ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p'):{port} \
         {neighbour} {foreign} 127.0.0.1:{port}"
    );
    let (said, _) = caller.output("b", &line, |_| ());
    let results: Vec<_> = said
        .lines()
        .filter_map(|line| line.split_once(' ').map(|(_, result)| result))
        .collect();
    assert_eq!(results.len(), 4, "{said}");
    assert_eq!(results[0], "ok", "the gateway: {said}");
    for refused in &results[1..] {
        assert_ne!(*refused, "ok", "{said}");
    }
    one.end();
    drop(link);
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn what_a_dyno_finds_of_its_stack_is_as_it_lies_there() {
    let host = Host::new();
    host.write("app/program", "#!/bin/sh\nid -u\n");
    let program = host.path("app/program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).unwrap();
    let driver = host.driver();
    let said = host.says("id -u; ./program; stat -c %u program; touch program && echo mine");
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 4, "{said}");
    // The slug's files are the dyno's own, whatever bits they had.
    assert_eq!([lines[1], lines[2]], [lines[0]; 2], "{said}");
    assert_eq!(lines[3], "mine");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn every_namespace_of_a_dyno_is_its_own() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
    let look = kinds.map(|kind| format!("readlink /proc/self/ns/{kind}; "));
    let look = format!("{} echo seen; read _", look.concat());
    let mut one = caller.start("a", &look);
    let mut other = caller.start("b", &look);
    let seen = [&mut one, &mut other].map(|dyno| dyno.wait_for("seen"));
    for (at, kind) in kinds.iter().enumerate() {
        let link = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let lines = seen.iter().map(|seen| seen.lines().nth(at).unwrap());
        let mut all: Vec<_> = lines.chain(link.to_str()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 3, "{kind}: {all:?}");
        let are_of_the_kind = all.iter().all(|found| found.starts_with(kind));
        assert!(are_of_the_kind, "{kind}: {all:?}");
    }
    one.end();
    other.end();
    // Where it is among the host's cgroups is not the dyno's to know.
    let (said, _) = caller.output("c", "cat /proc/self/cgroup", |_| ());
    assert!(!said.is_empty());
    assert!(said.lines().all(|line| line.ends_with(":/")), "{said}");
    driver.end();
    host.is_clean();
}
