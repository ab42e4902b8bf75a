//! How far a command is, for whoever looks at it through the control socket.

use std::{convert::Infallible, sync::Arc};

use hsup_proto::control::DynoState;
use tokio::sync::watch;

use crate::{
    driver::{Link, Up},
    dyno::node,
    exit::ExitStatus,
    name::DynoId,
    time::now_unix_ms,
};

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing runs yet.
    Starting,
    /// It runs.
    Up,
    /// It is to end.
    Stopping,
    /// It has ended; how, if it ever ran and that is known.
    Complete(Option<ExitStatus>),
}

impl Phase {
    /// In Heroku's words.
    pub(super) const fn state(&self) -> DynoState {
        match self {
            Self::Starting => DynoState::Starting,
            Self::Up => DynoState::Up,
            Self::Stopping => DynoState::Stopping,
            Self::Complete(_) => DynoState::Complete,
        }
    }

    /// Whether nothing follows.
    pub(super) const fn is_complete(&self) -> bool {
        matches!(self, Self::Complete(_))
    }
}

/// How the command stands.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) phase: Phase,
    /// When that began.
    pub(super) since_unix_ms: i64,
    /// The driver that runs it; none while nothing runs.
    pub(super) on: Option<Arc<Up>>,
    /// Which machine it runs on; empty: the driver's own, or not known.
    pub(super) node: String,
}

/// What the command's own task tells of itself; everybody else watches.
#[derive(Clone, Debug)]
pub(super) struct Progress(watch::Sender<Standing>);

impl Progress {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Standing {
            phase: Phase::Starting,
            since_unix_ms: now_unix_ms(),
            on: None,
            node: String::new(),
        }))
    }

    pub(super) fn watch(&self) -> watch::Receiver<Standing> {
        self.0.subscribe()
    }

    /// It runs, on this driver.
    pub(super) fn up(&self, on: &Arc<Up>) {
        self.enter(Phase::Up, |standing| standing.on = Some(Arc::clone(on)));
    }

    /// It runs on, and this is its driver now.
    pub(super) fn moved(&self, on: &Arc<Up>) {
        self.0.send_if_modified(|standing| {
            let runs = standing.on.is_some();
            if runs {
                standing.on = Some(Arc::clone(on));
            }
            runs
        });
    }

    /// Has the driver tell which machine it runs on; goes on for as long as somebody looks.
    pub(super) async fn locate(self, link: watch::Receiver<Link>, dyno_id: &DynoId) -> Infallible {
        if let Some(node) = node(link, dyno_id).await {
            self.0.send_modify(|standing| standing.node = node);
        }
        std::future::pending().await
    }

    /// Somebody wants it to end.
    pub(super) fn stopping(&self) {
        self.enter(Phase::Stopping, |_| ());
    }

    /// It has ended.
    pub(super) fn complete(&self, status: Option<ExitStatus>) {
        self.enter(Phase::Complete(status), |standing| {
            standing.on = None;
            standing.node.clear();
        });
    }

    /// What has ended stays so, and so does how; what is said twice is no news.
    fn enter(&self, phase: Phase, and: impl FnOnce(&mut Standing)) {
        self.0.send_if_modified(|standing| {
            if standing.phase.is_complete() || standing.phase == phase {
                return false;
            }
            standing.phase = phase;
            standing.since_unix_ms = now_unix_ms();
            and(standing);
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_stays_ended_and_how_it_did() {
        let progress = Progress::new();
        let mut watch = progress.watch();
        progress.stopping();
        assert!(watch.has_changed().unwrap());
        watch.mark_unchanged();
        progress.stopping();
        assert!(!watch.has_changed().unwrap(), "it is no news");
        let status = ExitStatus::code(3, 1);
        progress.complete(Some(status.clone()));
        progress.complete(None);
        progress.stopping();
        assert_eq!(watch.borrow().phase, Phase::Complete(Some(status)));
    }
}
