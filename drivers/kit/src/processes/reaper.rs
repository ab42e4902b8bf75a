//! The one task that reaps, and sees dynos off whose first process has ended.
//!
//! The first process of a dyno is the dyno: when it has ended, whoever is left of it is
//! killed, and the end is told when nobody is.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use hsup_proto::driver::ExitStatus;
use tokio::time::sleep;

use super::{
    Shared,
    census::Census,
    left::{self, Left},
    lock,
    process::{Phase, Process},
    status,
};
use crate::signal::Signal;

/// When who is left is killed again: whoever it was may have forked just before. The end of an
/// orphan wakes us anyway, and a process that hangs in the kernel hangs long.
const KILL_AGAIN: Duration = Duration::from_micros(200);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A dyno without its first process.
struct Ending {
    dyno: Process,
    status: ExitStatus,
}

/// Reaps for as long as somebody holds the processes.
pub(super) async fn run(mut children: tokio::signal::unix::Signal, shared: Weak<Shared>) {
    let mut ending = Vec::new();
    let mut pause = KILL_AGAIN;
    loop {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let ended = reap_now(&shared);
        if !ended.is_empty() {
            pause = KILL_AGAIN;
        }
        ending.extend(ended);
        see_off(&shared, &mut ending);
        drop(shared);
        if ending.is_empty() {
            if children.recv().await.is_none() {
                return;
            }
        } else {
            tokio::select! {
                _ = children.recv() => {}
                () = sleep(pause) => pause = (pause * 2).min(MAX_PAUSE),
            }
        }
    }
}

/// Reaps who has ended; the first processes among them.
fn reap_now(shared: &Shared) -> Vec<Ending> {
    // The lock keeps a process that is being started from being reaped unknown.
    let mut book = lock(&shared.book);
    let mut ended = Vec::new();
    while let Some((pid, status)) = status::reap() {
        book.reaped(pid.as_raw());
        if let Some(dyno) = book.led_by(pid.as_raw()).cloned() {
            dyno.inner.phase.send_replace(Phase::Ending);
            ended.push(Ending { dyno, status });
        }
    }
    ended
}

/// Kills who is left of each dyno, and lets go of those of which nobody is.
fn see_off(shared: &Arc<Shared>, ending: &mut Vec<Ending>) {
    if ending.is_empty() {
        return;
    }
    // One look for all of them: one for each is felt at a thousand dynos.
    let Some(mut left) = who_is_left(shared, ending) else {
        // Not to know is not to see nobody: another look follows.
        return;
    };
    let mut gone = Vec::new();
    ending.retain(|Ending { dyno, status }| {
        let Some(orphans) = left.remove(&dyno.inner.number) else {
            gone.push((dyno.clone(), status.clone()));
            return false;
        };
        dyno.kill_cgroup();
        for orphan in orphans {
            // It may have ended.
            let _ = Signal::KILL.send(orphan);
        }
        true
    });
    let mut cgroups = Vec::new();
    for (dyno, status) in gone {
        lock(&shared.book).close(&dyno);
        lock(&shared.kept).ended(dyno.inner.number);
        cgroups.extend(dyno.inner.cgroup.clone());
        dyno.inner.phase.send_replace(Phase::Ended(status));
    }
    shared.discard(cgroups);
}

fn who_is_left(shared: &Shared, ending: &[Ending]) -> Option<Left> {
    if let Some(left) = left::behind(shared).ok()? {
        return Some(left);
    }
    let census = Census::take(shared).ok()?;
    let numbers = ending.iter().map(|ending| ending.dyno.inner.number);
    let members = numbers.map(|dyno| (dyno, census.of(dyno)));
    let left = members.filter(|(_, members)| !members.is_empty());
    Some(
        left.map(|(dyno, members)| (dyno, members.iter().map(|member| member.pid).collect()))
            .collect(),
    )
}
