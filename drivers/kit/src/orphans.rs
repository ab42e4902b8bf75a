//! What a dead driver left: processes that nobody else would ever stop.
//!
//! A driver of durability NONE takes its dynos' first processes with it, for they are tied to
//! it. Whom those leave behind are ours if the driver was our child, because a subreaper
//! inherits them (`PR_SET_CHILD_SUBREAPER` in prctl(2)). Otherwise they went to somebody who
//! knows nothing of them, and are found by the mark that a driver of that socket gave them, or
//! by its cgroups.
//!
//! Not every child is one of those: `sidecar & exec hsup start` makes a child of what nobody
//! here has started. Who was there when this process became a subreaper is left alone, and so
//! is whoever is of the session of such a one. Nothing that we start can be in there: every
//! driver and every dyno begins a session of its own.

use std::{collections::HashSet, path::Path, sync::OnceLock, time::Duration};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::{Pid, getpid},
};

use tokio::time::{Instant, sleep};

use crate::{
    marks::{self, Tag},
    processes::dead,
    procfs::Procfs,
    stat::Stat,
};

/// How long it is tried to kill what cannot be seen to end.
const KILL_WITHIN: Duration = Duration::from_secs(5);

/// The children that this process had before it started any, if it had some.
static FOUND: OnceLock<Found> = OnceLock::new();

#[derive(Debug)]
struct Found {
    /// Pid and start time: a pid may come again.
    children: HashSet<(i32, u64)>,
    sessions: HashSet<i32>,
}

impl Found {
    fn look() -> Result<Self, Errno> {
        let children = children(getpid())?;
        Ok(Self {
            sessions: children.iter().map(|(_, stat)| stat.session).collect(),
            children: children
                .into_iter()
                .map(|(pid, stat)| (pid.as_raw(), stat.started))
                .collect(),
        })
    }

    fn has(&self, pid: Pid, stat: &Stat) -> bool {
        let is_one = self.children.contains(&(pid.as_raw(), stat.started));
        is_one || self.sessions.contains(&stat.session)
    }
}

/// Whether a child is none of those that we started, nor left by one.
pub(crate) fn is_found(pid: Pid, stat: &Stat) -> bool {
    FOUND.get().is_some_and(|found| found.has(pid, stat))
}

/// Makes this process inherit the orphans among its descendants. Children that it has already
/// are nobody's here, and are never killed: to be called before the first is started.
///
/// # Errors
/// When the kernel refuses, or does not tell which children there are.
pub fn become_subreaper() -> Result<(), Errno> {
    // As a rule there is none, and it takes no look at `/proc`.
    if FOUND.get().is_none() && have_children() {
        // The first word counts.
        drop(FOUND.set(Found::look()?));
    }
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

/// Kills all our descendants until none is left, but for who was there before we started any
/// (see [`become_subreaper`]); how many there were.
///
/// The children of what is killed become ours in turn, so this goes round until the kernel
/// knows of no child, or of none that we may kill. Only for a process whose other children are
/// all to die.
pub async fn kill_all() -> usize {
    let mut killed = 0;
    let mut pause = Duration::from_millis(1);
    let mut seen_nobody = false;
    loop {
        reap();
        if !have_children() {
            return killed;
        }
        // Where nobody can look, there may be somebody all the same: another look follows.
        if let Ok(children) = children(getpid()) {
            let ours = children
                .into_iter()
                .filter(|(pid, stat)| !is_found(*pid, stat));
            let left: Vec<Pid> = ours.map(|(pid, _)| pid).collect();
            // Who loses a parent while we look may be missed, once.
            if left.is_empty() && seen_nobody {
                return killed;
            }
            seen_nobody = left.is_empty();
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
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Kills what a driver left that was killed while it served `socket`, until nobody is left; how
/// many there were.
///
/// For whoever serves that socket now, or is about to have it served, and has no dyno yet. The
/// dynos of a driver that still is ending there get no grace any more.
pub async fn kill_left_by(socket: &Path) -> usize {
    let Ok(procfs) = Procfs::open() else {
        tracing::warn!("failed to look for what an earlier driver left");
        return 0;
    };
    let killed = match Tag::of(socket) {
        Ok(tag) => kill_marked(&procfs, tag).await,
        Err(error) => {
            tracing::debug!(%error, socket = %socket.display(), "no driver can have left anything");
            0
        }
    };
    dead::bury(&procfs).await;
    if killed > 0 {
        tracing::info!(killed, "killed what an earlier driver left");
    }
    killed
}

async fn kill_marked(procfs: &Procfs, tag: Tag) -> usize {
    let mut killed = HashSet::new();
    let mut pause = Duration::from_millis(1);
    let give_up = Instant::now() + KILL_WITHIN;
    loop {
        let left = marked(procfs, tag);
        if left.as_ref().is_ok_and(Vec::is_empty) {
            return killed.len();
        }
        if Instant::now() >= give_up {
            tracing::warn!(?left, "an earlier driver's processes do not end");
            return killed.len();
        }
        for pid in left.into_iter().flatten() {
            if kill(pid, Signal::SIGKILL).is_ok() {
                killed.insert(pid);
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Who has that mark and can be killed by us.
fn marked(procfs: &Procfs, tag: Tag) -> nix::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for pid in procfs.pids()? {
        let process = Pid::from_raw(pid);
        if process != getpid()
            && kill(process, None).is_ok()
            && marks::of(procfs, pid)?.is_some_and(|carried| tag.is_on(carried))
            && procfs.stat(pid)?.is_some_and(|stat| !stat.zombie)
        {
            found.push(process);
        }
    }
    Ok(found)
}

/// Whether we have a child, be it a zombie; this takes no look at `/proc`.
pub(crate) fn have_children() -> bool {
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT | WaitPidFlag::WEXITED;
    waitid(Id::All, flags) != Err(Errno::ECHILD)
}

/// The processes whose parent is `parent` and that have not ended.
fn children(parent: Pid) -> nix::Result<Vec<(Pid, Stat)>> {
    let procfs = Procfs::open()?;
    let mut children = Vec::new();
    for pid in procfs.pids()? {
        if let Some(stat) = procfs.stat(pid)?
            && stat.parent == parent.as_raw()
            && !stat.zombie
        {
            children.push((Pid::from_raw(pid), stat));
        }
    }
    Ok(children)
}
