//! What a dead driver left: processes that are now ours, because a subreaper inherits them.
//!
//! See `PR_SET_CHILD_SUBREAPER` in prctl(2). A driver of durability NONE takes its dynos with
//! it; what of them survives nobody would ever stop.

use std::{fs, time::Duration};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpid},
};

use crate::stat::Stat;

/// Makes this process inherit the orphans among its descendants.
pub fn become_subreaper() -> Result<(), Errno> {
    nix::sys::prctl::set_child_subreaper(true)
}

/// Reaps every child that has ended: who and how.
pub fn reap() -> Vec<(i32, WaitStatus)> {
    let mut ended = Vec::new();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => return ended,
            Ok(status) => {
                if let Some(pid) = status.pid() {
                    ended.push((pid.as_raw(), status));
                }
            }
        }
    }
}

/// Kills all our descendants until none is left; how many there were.
///
/// The children of what is killed become ours in turn, so this goes round until the kernel
/// knows of no child. Only for a process whose children are all to die.
pub async fn kill_all() -> usize {
    let mut killed = 0;
    let mut pause = Duration::from_millis(1);
    loop {
        reap();
        let left = children(getpid());
        if left.is_empty() {
            return killed;
        }
        for pid in left {
            if kill(pid, Signal::SIGKILL).is_ok() {
                killed += 1;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// The processes whose parent is `parent` and that have not ended.
pub fn children(parent: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/stat"))
                .ok()
                .and_then(|line| Stat::parse(&line))
                .is_some_and(|stat| stat.parent == parent.as_raw() && !stat.zombie)
        })
        .map(Pid::from_raw)
        .collect()
}
