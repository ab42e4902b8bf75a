//! Trees of real processes, held together by a cgroup each where this machine lets us.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like one")]

mod trees;

use std::{fs, io};

use hsup_driver_kit::processes::Processes;
use hsup_proto::driver::exit_status::How;

use crate::trees::{driver, ended, shell, within};

/// How the tests begin.
fn start() -> io::Result<Processes> {
    Processes::start_in_cgroups()
}

#[test]
fn a_dyno_is_in_a_cgroup_of_its_own_where_there_is_one() {
    driver(async |processes: Processes| {
        let script = "cat /proc/self/cgroup; exec sleep 1000";
        let (process, mut output) = shell(&processes, "in-cgroup", script);
        // The line of cgroup v2 is the last.
        while !output.line().await.starts_with("0::") {}
        let own = fs::read_to_string(format!("/proc/{}/cgroup", process.pid().unwrap())).unwrap();
        let folder = own
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .unwrap();
        assert_eq!(
            folder.ends_with("/in-cgroup"),
            processes.have_cgroups(),
            "{own}"
        );
        within("kill", process.kill()).await;
        assert_eq!(ended(&process).await, How::Signal("SIGKILL".to_owned()));
    });
}
