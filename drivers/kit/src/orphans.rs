//! What a dead driver left: processes that are now ours, because a subreaper inherits them.
//!
//! See `PR_SET_CHILD_SUBREAPER` in prctl(2). A driver of durability NONE takes its dynos with
//! it; what of them survives nobody would ever stop.

use std::time::Duration;

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::{Pid, getpid},
};

use crate::procfs::Procfs;

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
/// knows of no child, or of none that we may kill. Only for a process whose children are all
/// to die.
pub async fn kill_all() -> usize {
    let mut killed = 0;
    let mut pause = Duration::from_millis(1);
    loop {
        reap();
        if !have_children() {
            return killed;
        }
        // Where nobody can look, there may be somebody all the same: another look follows.
        if let Ok(left) = children(getpid()) {
            let mut refused = 0;
            for pid in &left {
                match kill(*pid, Signal::SIGKILL) {
                    Ok(()) => killed += 1,
                    Err(Errno::EPERM) => refused += 1,
                    Err(_) => {}
                }
            }
            if refused > 0 && refused == left.len() {
                tracing::warn!(refused, "processes of another user are left");
                return killed;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Whether we have a child, be it a zombie; this takes no look at `/proc`.
fn have_children() -> bool {
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT | WaitPidFlag::WEXITED;
    waitid(Id::All, flags) != Err(Errno::ECHILD)
}

/// The processes whose parent is `parent` and that have not ended.
fn children(parent: Pid) -> nix::Result<Vec<Pid>> {
    let procfs = Procfs::open()?;
    let mut children = Vec::new();
    for pid in procfs.pids()? {
        if let Some(stat) = procfs.stat(pid)?
            && stat.parent == parent.as_raw()
            && !stat.zombie
        {
            children.push(Pid::from_raw(pid));
        }
    }
    Ok(children)
}
