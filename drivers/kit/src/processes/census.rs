//! Who lives below this driver, and of which dyno everybody is.
//!
//! The driver is a subreaper, so whatever its dynos brought forth descends from it, in an
//! unbroken line: whoever loses a parent becomes a child of the driver's. So everybody is of
//! the dyno that its parent is of, a first process is of its own, and only an orphan must be
//! recognised (see `Book::recognise`). Who could not be is remembered for when it is one.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use nix::{errno::Errno, unistd::Pid};
use tokio::{
    sync::{mpsc, oneshot},
    task::yield_now,
};

use super::{Shared, lock};
use crate::stat::Stat;

/// What one look came to: not to know is not to see nobody.
pub(super) type Taken = Result<Arc<Census>, Errno>;

/// Wants the next census.
pub(super) type Taker = oneshot::Sender<Taken>;

/// One look at all processes.
#[derive(Debug, Default)]
pub(super) struct Census {
    by_dyno: HashMap<u32, Vec<Member>>,
}

/// A process of a dyno, a zombie too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) pid: Pid,
    pub(super) stat: Stat,
}

impl Census {
    /// Looks at every process.
    pub(super) fn take(shared: &Shared) -> nix::Result<Self> {
        let mut stats = HashMap::new();
        for pid in shared.procfs.pids()? {
            stats.extend(shared.procfs.stat(pid)?.map(|stat| (pid, stat)));
        }
        let own = Pid::this().as_raw();
        let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
        let mut left: Vec<(i32, Option<u32>)> = Vec::new();
        for (&pid, stat) in &stats {
            if stat.parent == own {
                left.push((pid, None));
            } else if stats.contains_key(&stat.parent) {
                children.entry(stat.parent).or_default().push(pid);
            } else if stat.parent != 0 {
                // Its parent ended while we looked: it is an orphan by now, perhaps ours.
                left.push((pid, None));
            }
        }
        // Under the lock there is no process that was started and is not in the book.
        let mut book = lock(&shared.book);
        let mut census = Self::default();
        let mut seen = HashMap::new();
        while let Some((pid, of_parent)) = left.pop() {
            let Some(&stat) = stats.get(&pid).filter(|_| pid != own) else {
                continue;
            };
            let led = book.led_by(pid).map(|led| led.inner.number);
            let dyno = match of_parent.or(led) {
                Some(dyno) => Some(dyno),
                None => book.recognise(shared, pid)?,
            };
            // Of a stranger nobody can tell; whoever is below it may be known.
            if let Some(dyno) = dyno {
                if led.is_none() && book.recognise_by_itself(shared, pid)? != Some(dyno) {
                    seen.insert(pid, (stat.started, dyno));
                }
                let pid = Pid::from_raw(pid);
                let members = census.by_dyno.entry(dyno).or_default();
                members.push(Member { pid, stat });
            }
            let below = children.remove(&pid).unwrap_or_default();
            left.extend(below.into_iter().map(|child| (child, dyno)));
        }
        book.see(seen);
        Ok(census)
    }

    /// The processes of a dyno.
    pub(super) fn of(&self, dyno: u32) -> &[Member] {
        self.by_dyno.get(&dyno).map_or(&[], Vec::as_slice)
    }
}

/// Takes a census for everybody who has asked, whenever somebody has.
pub(super) async fn serve(shared: Weak<Shared>, mut takers: mpsc::UnboundedReceiver<Taker>) {
    let mut failing = false;
    while let Some(first) = takers.recv().await {
        // Whoever is about to ask in this round of the runtime is served, too.
        yield_now().await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let mut waiting = vec![first];
        while let Ok(taker) = takers.try_recv() {
            waiting.push(taker);
        }
        let taken = Census::take(&shared).map(Arc::new);
        match &taken {
            // Once, not with every attempt.
            Err(error) if !failing => {
                tracing::warn!(%error, "failed to look who lives on this machine");
            }
            _ => {}
        }
        failing = taken.is_err();
        for taker in waiting {
            // It may have given up.
            drop(taker.send(taken.clone()));
        }
    }
}

/// Asks for a census that begins after this.
pub(super) async fn ask(takers: &mpsc::UnboundedSender<Taker>) -> Taken {
    let (taker, answer) = oneshot::channel();
    if takers.send(taker).is_err() {
        return Err(Errno::ECANCELED);
    }
    // Without an answer the runtime is going.
    answer.await.unwrap_or(Err(Errno::ECANCELED))
}
