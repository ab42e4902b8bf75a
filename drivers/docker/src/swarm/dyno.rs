//! A dyno on the Swarm, as the driver sees it: through the manager.

use std::sync::Arc;

use hsup_driver_kit::{
    CancellationToken, Signal, Status,
    proto::{ExitStatus, IpInfoResponse, StatsResponse},
    service::Dyno,
};
use nix::sys::signal::Signal as Standard;
use tokio::{sync::watch, time};

use super::{
    fate::Fate,
    network::Membership,
    stop::{self, Change},
};
use crate::{dyno::Writing, life, logs::Copying, runtime::DockerDriver};

/// How long Remove waits for a manager that is away: callers wait 5 s.
const REMOVAL: std::time::Duration = std::time::Duration::from_secs(4);
/// The signals that say that a dyno is to end. A Swarm has one way to do that, and no other signal.
const ENDING: [Standard; 4] = [
    Standard::SIGTERM,
    Standard::SIGINT,
    Standard::SIGQUIT,
    Standard::SIGKILL,
];

/// A dyno that was started on the Swarm. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Placed(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    /// Its task has ended.
    ended: CancellationToken,
    /// Somebody waits for its end.
    stopped: CancellationToken,
    /// Nobody will ask for it any more.
    gone: CancellationToken,
    status: watch::Sender<Option<ExitStatus>>,
    _kept: Option<[std::os::fd::OwnedFd; 2]>,
}

/// What a dyno is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) driver: DockerDriver,
    /// The service's id.
    pub(crate) service: String,
    pub(crate) membership: Membership,
    /// Whether its node publishes a port of it.
    pub(crate) has_port: bool,
}

impl Placed {
    /// Watches a dyno that was started, and passes on what it writes.
    pub(crate) fn watch(parts: Parts, writing: Writing) -> Self {
        let gone = CancellationToken::new();
        let ended = CancellationToken::new();
        let copying = Copying::begin(writing.copies, writing.passed, &ended);
        let dyno = Self(Arc::new(Inner {
            parts,
            ended,
            stopped: CancellationToken::new(),
            gone,
            status: watch::Sender::new(None),
            _kept: writing.kept,
        }));
        let watched = dyno.clone();
        let hold = dyno.0.parts.driver.cluster().hold();
        drop(tokio::spawn(async move {
            // Also when it has ended: it may be asked where it was. Not for what a manager that is
            // away has yet to remove.
            let _until_gone = hold;
            let gone = watched.0.gone.clone();
            gone.run_until_cancelled(watched.until_ended(copying)).await;
            gone.cancelled().await;
        }));
        dyno
    }

    async fn until_ended(&self, mut copying: Copying) {
        let Inner {
            parts,
            ended,
            stopped,
            status,
            ..
        } = &*self.0;
        let found = self.end().await;
        ended.cancel();
        // Of a node that is away nobody gets what was written there.
        let settled = tokio::select! {
            is_read = copying.settle(stopped) => is_read,
            () = self.until_its_node_is_down() => false,
        };
        if !settled {
            let service = &parts.service;
            tracing::info!(
                service,
                "a dyno has ended, and what it wrote is not all read"
            );
        }
        status.send_replace(Some(found));
        copying.rest().await;
    }

    /// How the dyno ended, once it has.
    async fn end(&self) -> ExitStatus {
        let Parts {
            driver, service, ..
        } = &self.0.parts;
        let mut views = driver.cluster().views();
        loop {
            let fate = views.borrow_and_update().fate(service);
            match fate {
                Some(Fate::Ended(status)) => return status,
                Some(Fate::Refused(why)) => return life::lost(&why),
                Some(Fate::Coming { .. } | Fate::Running) => {}
                Some(Fate::Changed) => {
                    tracing::warn!(service, "somebody else changed the service of a dyno");
                    // What the Swarm began in its place would be the twin of what hsup starts.
                    let silence = stop::silence(driver.engine(), driver.cluster(), service);
                    Box::pin(silence).await;
                    return life::lost("its service was changed by somebody else");
                }
                // It was there when it started, or was found again.
                None => return life::lost("its service was removed by somebody else"),
            }
            if views.changed().await.is_err() {
                return life::lost("nobody looks at the Swarm any more");
            }
        }
    }

    async fn until_its_node_is_down(&self) {
        let Parts {
            driver, service, ..
        } = &self.0.parts;
        let mut views = driver.cluster().views();
        loop {
            let is_down = match views.borrow_and_update().node(service) {
                Some(node) => node.is_down(),
                // Its service is gone.
                None => true,
            };
            if is_down || views.changed().await.is_err() {
                return;
            }
        }
    }

    /// Has the Swarm end it. It has the grace that it was started with.
    async fn stop(&self) {
        self.0.stopped.cancel();
        let Parts {
            driver, service, ..
        } = &self.0.parts;
        let haste = driver.cluster().hurry();
        let ended = self.0.ended.clone();
        let gone = self.0.gone.clone();
        drop(tokio::spawn(async move {
            let _until_then = haste;
            gone.run_until_cancelled(ended.cancelled()).await
        }));
        let stopping = stop::until(driver.engine(), service, Change::Stop);
        self.0.ended.run_until_cancelled(stopping).await;
    }

    /// Removes the service, however long that takes.
    async fn until_removed(&self) {
        let Parts {
            driver,
            service,
            membership,
            ..
        } = &self.0.parts;
        stop::until(driver.engine(), service, Change::Remove).await;
        driver.cursors().forget(service);
        membership.end();
    }
}

impl Dyno for Placed {
    type Terminal = std::convert::Infallible;

    async fn wait(&self) -> ExitStatus {
        let mut status = self.0.status.subscribe();
        let found = status.wait_for(Option::is_some).await;
        let found = found.ok().and_then(|status| status.clone());
        found.unwrap_or_else(|| life::lost("nobody waits for it any more"))
    }

    async fn signal(&self, signal: Signal) {
        if ENDING
            .iter()
            .any(|ending| *ending as i32 == signal.number())
        {
            self.stop().await;
            return;
        }
        let service = &self.0.parts.service;
        tracing::warn!(service, %signal, "a Swarm sends dynos no signal but the one to end");
    }

    async fn kill(&self) {
        self.stop().await;
        // It may be killed only when its grace is over.
        self.0.ended.cancelled().await;
    }

    fn ip_info(&self) -> Result<IpInfoResponse, Status> {
        let Parts {
            driver,
            service,
            has_port,
            ..
        } = &self.0.parts;
        let view = driver.cluster().view();
        let node = view
            .node(service)
            .ok_or_else(|| Status::failed_precondition("the dyno is on no node"))?;
        let port = view.port(service).filter(|_| *has_port);
        Ok(IpInfoResponse {
            ip: node.address().to_owned(),
            port: port.unwrap_or_default().into(),
            node: node.name().to_owned(),
        })
    }

    async fn stats(&self) -> Result<StatsResponse, Status> {
        let view = self.0.parts.driver.cluster().view();
        let node = view.node(&self.0.parts.service);
        let node = node.map_or("of the Swarm", |node| node.name());
        Err(Status::failed_precondition(format!(
            "what the dyno uses is measured by its node, {node}, and told there alone"
        )))
    }

    fn terminal(&self) -> Option<std::convert::Infallible> {
        None
    }

    async fn remove(&self) {
        let removed = time::timeout(REMOVAL, self.until_removed()).await;
        self.0.gone.cancel();
        if removed.is_err() {
            let dyno = self.clone();
            drop(tokio::spawn(async move { dyno.until_removed().await }));
        }
    }
}
