//! The process table, looked at in the plainest way: every entry of /proc, each time.

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{Pid, getpid},
};

/// A process that is alive, or a zombie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) pid: i32,
    parent: i32,
    pub(crate) cpu_ticks: u64,
    pub(crate) pages: u64,
}

fn processes() -> Vec<Seen> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name may hold anything, so the fields are counted from its closing bracket.
            let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            let field = |n: usize| fields.get(n)?.parse::<u64>().ok();
            Some(Seen {
                pid,
                parent: fields.get(1)?.parse().ok()?,
                cpu_ticks: field(11)? + field(12)?,
                pages: field(21)?,
            })
        })
        .collect()
}

/// The process `root`, if it is there, and everything below it, parents first.
pub(crate) fn tree(root: Pid) -> Vec<Seen> {
    let all = processes();
    let mut found: Vec<_> = all
        .iter()
        .copied()
        .filter(|p| p.pid == root.as_raw())
        .collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|parent| parent.pid) {
        found.extend(all.iter().filter(|process| process.parent == parent));
        next += 1;
    }
    found
}

/// Sends `signal` to `root` and everything below it.
pub(crate) fn signal_tree(root: Pid, signal: Signal) {
    for process in tree(root) {
        // It may be gone already.
        _ = kill(Pid::from_raw(process.pid), signal);
    }
}

/// The first processes of dynos, so that what else becomes a child of the driver is known for
/// what a dyno has left behind: the driver is its subreaper.
#[derive(Debug, Default)]
pub(crate) struct Family {
    first: Mutex<BTreeSet<i32>>,
    begun: AtomicU64,
    done: Mutex<u64>,
}

impl Family {
    /// Held while a process is made and made known.
    pub(crate) fn first(&self) -> MutexGuard<'_, BTreeSet<i32>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills and reaps what dynos that have ended left, until nothing is left of it.
    ///
    /// One look at the table does for everybody who waited for it.
    pub(crate) fn clear(&self) {
        let enough = self.begun.load(Ordering::SeqCst) + 1;
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if *done >= enough {
            return;
        }
        let this = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        while self.kill_left() {
            thread::sleep(Duration::from_millis(1));
        }
        *done = this;
    }

    fn kill_left(&self) -> bool {
        let first = self.first();
        let driver = getpid().as_raw();
        let children = processes().into_iter().filter(|p| p.parent == driver);
        let mut left = false;
        for stray in children.filter(|p| !first.contains(&p.pid)) {
            left = true;
            let stray = Pid::from_raw(stray.pid);
            // Somebody else may have done either.
            _ = kill(stray, Signal::SIGKILL);
            _ = waitpid(stray, None);
        }
        left
    }
}
