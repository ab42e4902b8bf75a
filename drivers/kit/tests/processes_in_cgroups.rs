//! Trees of real processes, held together by a cgroup each where the machine lets us.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like one")]

mod trees;

use std::{fs, io, os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration};

use hsup_driver_kit::{
    orphans,
    processes::{Cgroups, Processes},
};
use hsup_proto::driver::exit_status::How;
use nix::sys::signal::{Signal, kill};
use tokio::time::sleep;

use crate::trees::{driver, ended, exists, shell, within};

/// How the tests begin.
fn start() -> io::Result<Processes> {
    Processes::start(None, Cgroups::WherePossible)
}

/// Where this machine has cgroups v2, if it does.
fn mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts
        .lines()
        .find_map(|line| line.strip_prefix("cgroup2 "))?;
    Some(mount.split(' ').next().unwrap().into())
}

/// What a `/proc/PID/cgroup` has after the slash of the line of v2.
fn v2_path(line: &str) -> Option<&str> {
    line.strip_prefix("0::/")
}

/// Whether this user may make a cgroup below our own.
fn may_make_cgroups() -> bool {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let attempt = mount()
        .zip(own.lines().find_map(v2_path))
        .map(|(mount, own)| mount.join(own).join(format!("test-{}", std::process::id())));
    attempt.is_some_and(|attempt| {
        let made = fs::create_dir(&attempt).is_ok();
        made && fs::remove_dir(&attempt).is_ok()
    })
}

#[test]
fn dynos_have_cgroups_where_their_user_may_make_them() {
    driver(async |processes: Processes| {
        assert_eq!(processes.have_cgroups(), may_make_cgroups());
    });
}

#[test]
#[ignore = "needs cgroups v2, and root to make some"]
fn a_dyno_is_in_a_cgroup_of_its_own_as_long_as_it_lives() {
    driver(async |processes: Processes| {
        let script = "cat /proc/self/cgroup; exec sleep 1000";
        let (process, mut output) = shell(&processes, "in-cgroup", script);
        let folder = loop {
            if let Some(folder) = v2_path(&output.line().await) {
                break mount().unwrap().join(folder);
            }
        };
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("in-cgroup."), "{name}");
        assert!(folder.exists());
        within("kill", process.kill()).await;
        assert_eq!(ended(&process).await, How::Signal("SIGKILL".to_owned()));
        let removed = async {
            while folder.exists() {
                sleep(Duration::from_millis(2)).await;
            }
        };
        within("the removal of the cgroup", removed).await;
    });
}

#[test]
#[ignore = "needs cgroups v2, and root to make some"]
fn a_dead_drivers_folder_is_removed() {
    driver(async |_processes: Processes| {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = mount()
            .unwrap()
            .join(own.lines().find_map(v2_path).unwrap());
        let namespace = fs::metadata("/proc/self/ns/pid").unwrap().ino();
        // As of a process that had our pid long ago, and of one in another namespace.
        let pid = std::process::id();
        let dead = own.join(format!("hsup-{namespace}-{pid}-1"));
        let elsewhere = own.join(format!("hsup-{}-{pid}-1", namespace + 1));
        for folder in [&dead, &elsewhere] {
            fs::create_dir(folder).unwrap();
        }
        let socket = tempfile::tempdir().unwrap();
        orphans::kill_left_by(&socket.path().join("driver.sock")).await;
        assert!(!dead.exists());
        fs::remove_dir(elsewhere).unwrap();
    });
}

/// A process in another session without a parent and without a mark, which says its pid.
fn escaped(first: &str) -> String {
    format!(
        "bash -c 'ulimit -x 5; {first}; setsid sh -c \"trap \\\"\\\" TERM HUP; echo \\$\\$; \
         while :; do sleep 1000; done\" &'; exec sleep 1000"
    )
}

#[test]
#[ignore = "needs cgroups v2, and root to make some"]
fn an_orphan_that_changed_all_it_inherits_is_known_by_its_cgroup() {
    driver(async |processes: Processes| {
        let (process, mut output) = shell(&processes, "by-cgroup", &escaped(":"));
        let escaped = output.line().await;
        assert!(exists(&escaped));
        kill(process.pid().unwrap(), Signal::SIGTERM).unwrap();
        assert_eq!(ended(&process).await, How::Signal("SIGTERM".to_owned()));
        assert!(!exists(&escaped), "it got away");
    });
}

#[test]
#[ignore = "needs cgroups v2, and root to make some"]
fn an_orphan_that_left_its_cgroup_is_known_by_its_mark() {
    driver(async |processes: Processes| {
        let root = mount().unwrap().join("cgroup.procs");
        let script = escaped(&format!("echo 0 >{}", root.display())).replace("ulimit -x 5; ", "");
        let (process, mut output) = shell(&processes, "moved", &script);
        let escaped = output.line().await;
        let cgroup = fs::read_to_string(format!("/proc/{escaped}/cgroup")).unwrap();
        assert!(!cgroup.contains("/moved."), "{cgroup}");
        within("kill", process.kill()).await;
        assert!(!exists(&escaped), "it got away");
    });
}
