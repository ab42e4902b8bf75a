//! One dyno's processes, from the outside: waiting, signals, the end.

use std::{sync::Arc, time::Duration};

use hsup_proto::driver;
use nix::unistd::Pid;
use tokio::{sync::watch, time::timeout};

use super::{
    Shared,
    census::{self, Taken},
    cgroup::Cgroup,
    lock, status,
};
use crate::{pty::Terminal, signal::Signal};

/// One dyno's processes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Process {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    /// Of the dynos of this driver's life, the how manieth.
    pub(super) number: u32,
    /// 0: it never ran.
    pub(super) pid: i32,
    pub(super) cgroup: Option<Cgroup>,
    pub(super) terminal: Option<Terminal>,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) shared: Arc<Shared>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Phase {
    Running,
    /// The first process has ended; others may be left.
    Ending,
    /// Nobody is left. How the first process ended.
    Ended(driver::ExitStatus),
}

/// When a dyno that does not end at once is killed again: then, and twice as late each time,
/// for a process that hangs in the kernel hangs long.
const KILL_AGAIN: Duration = Duration::from_millis(2);
const MAX_PAUSE: Duration = Duration::from_secs(1);

impl Drop for Inner {
    fn drop(&mut self) {
        lock(&self.shared.kept).forget(self.number);
    }
}

impl Inner {
    pub(super) fn is_running(&self) -> bool {
        *self.phase.borrow() == Phase::Running
    }
}

impl Process {
    /// The first process, as long as it runs.
    pub fn pid(&self) -> Option<Pid> {
        let running = self.inner.is_running();
        running.then(|| Pid::from_raw(self.inner.pid))
    }

    /// How it ended, once nobody is left.
    pub fn status(&self) -> Option<driver::ExitStatus> {
        match &*self.inner.phase.borrow() {
            Phase::Ended(status) => Some(status.clone()),
            Phase::Running | Phase::Ending => None,
        }
    }

    /// Waits until nobody is left; how the first process ended. Any number may wait, and the
    /// answer stays the same.
    pub async fn wait(&self) -> driver::ExitStatus {
        let mut phase = self.inner.phase.subscribe();
        let ended = phase
            .wait_for(|phase| matches!(phase, Phase::Ended(_)))
            .await;
        match ended.as_deref() {
            Ok(Phase::Ended(status)) => status.clone(),
            // We hold the sender.
            _ => status::lost("the driver has lost sight of it"),
        }
    }

    /// Sends `signal` to every process of the dyno.
    pub async fn signal(&self, signal: Signal) {
        let census = self.census().await;
        let Some(first) = self.pid() else {
            // Whoever is left is being killed.
            return;
        };
        let Ok(census) = census else {
            // Nobody can look. So at least the first process, and those that stayed with it.
            let _ = signal.send_to_group(first);
            return;
        };
        let members = census.of(self.inner.number).iter().map(|member| member.pid);
        let others = members.filter(|pid| *pid != first);
        for pid in std::iter::once(first).chain(others) {
            // It may have ended.
            let _ = signal.send(pid);
        }
    }

    /// Kills every process of the dyno until nobody is left.
    pub async fn kill(&self) {
        let mut pause = KILL_AGAIN;
        loop {
            // Before anybody is killed: whose child was whose is not to be seen afterwards.
            let census = self.census().await;
            self.kill_cgroup();
            let members = census
                .iter()
                .flat_map(|census| census.of(self.inner.number));
            let first = self.pid();
            for pid in members.map(|member| member.pid).chain(first) {
                // It may have ended.
                let _ = Signal::KILL.send(pid);
            }
            if timeout(pause, self.wait()).await.is_ok() {
                return;
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    pub(super) fn kill_cgroup(&self) {
        if let (Some(root), Some(cgroup)) = (&self.inner.shared.cgroups, &self.inner.cgroup)
            && let Err(error) = root.kill(cgroup)
        {
            tracing::debug!(%error, "cgroup not killed");
        }
    }

    /// What it uses, as far as this machine tells; `None` once it has ended.
    pub async fn stats(&self) -> Option<driver::StatsResponse> {
        let census = self.census().await;
        let first = self.pid()?;
        let members = census
            .iter()
            .flat_map(|census| census.of(self.inner.number));
        Some(driver::StatsResponse {
            pid: u32::try_from(first.as_raw()).ok(),
            ..crate::stats::of(members.map(|member| member.stat))
        })
    }

    /// Its terminal, if it has one.
    pub fn terminal(&self) -> Option<&Terminal> {
        self.inner.terminal.as_ref()
    }

    async fn census(&self) -> Taken {
        census::ask(&self.inner.shared.takers).await
    }
}
