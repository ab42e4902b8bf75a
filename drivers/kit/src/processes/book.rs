//! Which dynos there are, and whose a process is.

use std::collections::{HashMap, HashSet};

use nix::{
    errno::Errno,
    sys::signal::kill,
    unistd::{Pid, getsid},
};

use super::{Process, Shared};
use crate::marks;

/// The dynos of which somebody is left, as far as is known.
#[derive(Debug, Default)]
pub(super) struct Book {
    dynos: HashMap<u32, Process>,
    /// First processes by their pid, also those that have ended, until nobody is left.
    leaders: HashMap<i32, u32>,
    /// Who was seen in a dyno's tree and would not give itself away alone, by pid: when it
    /// was started, and the dyno.
    seen: HashMap<i32, (u64, u32)>,
    /// Children of ours of whom nobody can tell whose they are.
    strangers: HashSet<i32>,
}

impl Book {
    pub(super) fn enter(&mut self, dyno: &Process) {
        let (number, leader) = (dyno.inner.number, dyno.inner.pid);
        self.dynos.insert(number, dyno.clone());
        // Another one had this pid before, if it is here: of that one only orphans are left.
        self.leaders.insert(leader, number);
    }

    /// Strikes out a dyno of which nobody is left.
    pub(super) fn close(&mut self, dyno: &Process) {
        let (number, leader) = (dyno.inner.number, dyno.inner.pid);
        self.dynos.remove(&number);
        if self.leaders.get(&leader) == Some(&number) {
            self.leaders.remove(&leader);
        }
    }

    /// The dyno whose first process, not reaped yet, this is.
    pub(super) fn led_by(&self, pid: i32) -> Option<&Process> {
        let dyno = self.dynos.get(self.leaders.get(&pid)?)?;
        dyno.inner.is_running().then_some(dyno)
    }

    /// A child was reaped: its pid may come again.
    pub(super) fn reaped(&mut self, pid: i32) {
        self.strangers.remove(&pid);
    }

    /// Notes that nobody can tell whose a child of ours is, and says so once.
    pub(super) fn note_stranger(&mut self, pid: i32) {
        if self.strangers.insert(pid) {
            tracing::warn!(
                pid,
                "a process that is of no dyno was left to this driver; it is killed when the driver ends"
            );
        }
    }

    /// Remembers whom a census saw in a dyno's tree, each with its start time and its dyno, and
    /// who would not be recognised once it has lost its parent.
    pub(super) fn see(&mut self, seen: HashMap<i32, (u64, u32)>) {
        self.seen = seen;
    }

    /// The number of the dyno that a process is of: where it was seen before, or as it gives
    /// itself away. Whoever descends from it is of the same.
    ///
    /// # Errors
    /// When nobody could look.
    pub(super) fn recognise(&self, shared: &Shared, pid: i32) -> nix::Result<Option<u32>> {
        if let Some(&(started, dyno)) = self.seen.get(&pid)
            && self.dynos.contains_key(&dyno)
            && let Some(stat) = shared.procfs.stat(pid)?
            && stat.started == started
        {
            return Ok(Some(dyno));
        }
        self.recognise_by_itself(shared, pid)
    }

    /// The number of the dyno that a process gives itself away to be of: by its mark, its
    /// session or its cgroup.
    ///
    /// # Errors
    /// When nobody could look.
    pub(super) fn recognise_by_itself(
        &self,
        shared: &Shared,
        pid: i32,
    ) -> nix::Result<Option<u32>> {
        if let Some(marks) = &shared.marks
            && let Some(carried) = marks::of(&shared.procfs, pid)?
            && let Some(dyno) = marks
                .dynos(carried)
                .find(|dyno| self.dynos.contains_key(dyno))
        {
            return Ok(Some(dyno));
        }
        if let Ok(session) = getsid(Some(Pid::from_raw(pid)))
            && let Some(dyno) = self.of_session(session.as_raw())
        {
            return Ok(Some(dyno));
        }
        match &shared.cgroups {
            Some(root) => {
                let dyno = root.dyno_of(&shared.procfs, pid)?;
                Ok(dyno.filter(|dyno| self.dynos.contains_key(dyno)))
            }
            None => Ok(None),
        }
    }

    /// The dyno whose first process began this session.
    fn of_session(&self, leader: i32) -> Option<u32> {
        let number = *self.leaders.get(&leader)?;
        let running = self.dynos.get(&number)?.inner.is_running();
        // The kernel gives a pid to nobody else while there is a session of that number. So if
        // the first process has been reaped and there is such a process, its session is another.
        let is_its = running || kill(Pid::from_raw(leader), None) == Err(Errno::ESRCH);
        is_its.then_some(number)
    }
}
