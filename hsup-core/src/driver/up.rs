//! A driver that answers, and what waits for one.

use std::{path::PathBuf, sync::Arc, time::Duration};

use hsup_driver_kit::client::{Capabilities, Client, Connection};
use hsup_proto::driver::{
    self, Capability, Durability, GetInfoResponse, ListRequest, RemoveRequest, StopRequest,
    remove_request::What,
};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};

use crate::lifecycle::Stop;

/// Deadlines: of calls that are answered at once, and of a Stop beyond its grace.
pub(crate) const QUICK_WITHIN: Duration = Duration::from_secs(5);
pub(crate) const STOP_BEYOND_GRACE: Duration = Duration::from_secs(10);
/// How long a driver may remove what it has made of a release: it may be a folder of many files.
const ARTIFACT_WITHIN: Duration = Duration::from_mins(1);

/// What hsup knows of its driver.
#[derive(Clone, Debug)]
pub enum Link {
    /// Not connected; why, for people.
    Down {
        /// What went wrong last.
        why: String,
        /// It never came up and trying again is pointless: the operator must act.
        hopeless: bool,
        /// The driver that was there last has ended, and its dynos with it.
        dynos_ended: bool,
        /// What the driver that was there last said of itself.
        last: Option<Arc<GetInfoResponse>>,
    },
    /// Connected.
    Up(Arc<Up>),
}

impl Link {
    /// What the driver says of itself; while it is away, what it said last.
    pub fn info(&self) -> Option<&GetInfoResponse> {
        match self {
            Self::Up(up) => Some(&up.info),
            Self::Down { last, .. } => last.as_deref(),
        }
    }

    /// Whether every dyno has its own address; while the driver is away, whether it was so.
    pub fn has_own_network(&self) -> bool {
        match self {
            Self::Up(up) => up.has_own_network(),
            Self::Down { last, .. } => last
                .as_ref()
                .is_some_and(|info| Capabilities::of(info).has(Capability::OwnNetwork)),
        }
    }
}

/// A driver that answers.
#[derive(Clone, Debug)]
pub struct Up {
    /// What it says of itself.
    pub info: GetInfoResponse,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Where it listens.
    pub socket: PathBuf,
    /// Whether hsup started it, now or in an earlier life.
    pub child: bool,
    /// It has not answered its last health checks.
    pub silent: bool,
    pub(super) child_pid: Option<i32>,
    pub(super) control: Connection,
    pub(super) waits: Connection,
    /// Cancelled when it is no longer the driver that it was: its connection has ended, or
    /// another instance answers on it.
    pub(super) gone: CancellationToken,
}

impl Up {
    /// For calls that are answered at once.
    pub fn client(&self) -> Client {
        self.control.client()
    }

    /// For Wait, Logs and Attach, whose streams stay open: they have a connection of their own,
    /// so that a driver's limit on streams can never keep a Stop from getting through.
    pub fn waits(&self) -> Client {
        self.waits.client()
    }

    /// Makes a call: no longer than its deadline, and no longer than the driver is the one
    /// that was called.
    ///
    /// # Errors
    /// What the driver answers; `DEADLINE_EXCEEDED` after `within`, and UNAVAILABLE once it is
    /// gone.
    pub fn call<'a, T: 'a>(
        &'a self,
        within: Duration,
        call: impl Future<Output = Result<Response<T>, Status>> + Send + 'a,
    ) -> impl Future<Output = Result<T, Status>> + Send + 'a {
        // Boxed before anything is built around it: a call is large, every future around it
        // would hold it twice, and every dyno has one under way.
        let call = Box::pin(call);
        let late = move |_| Status::deadline_exceeded(format!("no answer within {within:.0?}"));
        let call = async move { timeout(within, call).await.map_err(late)? };
        async move { self.while_there(call).await.map(Response::into_inner) }
    }

    /// What the driver has of that supervisor.
    ///
    /// # Errors
    /// As [`Up::call`].
    pub async fn list(&self, supervisor_id: &str) -> Result<Vec<driver::Dyno>, Status> {
        let request = ListRequest {
            supervisor_id: supervisor_id.to_owned(),
        };
        let mut client = self.client();
        let list = self.call(QUICK_WITHIN, client.list(request)).await?;
        Ok(list.dynos)
    }

    /// Has the driver end a dyno, and all its offspring.
    ///
    /// # Errors
    /// As [`Up::call`].
    pub async fn stop(&self, dyno_id: &str, how: Stop) -> Result<(), Status> {
        let (force, grace) = match how {
            Stop::Immediately => (true, Duration::ZERO),
            // 0 would mean the default on the wire.
            Stop::Gracefully { grace } => (false, grace.max(Duration::from_millis(1))),
        };
        let request = StopRequest {
            dyno_id: dyno_id.to_owned(),
            signal: String::new(),
            grace_ms: u32::try_from(grace.as_millis()).unwrap_or(u32::MAX),
            force,
        };
        let mut client = self.client();
        let within = grace + STOP_BEYOND_GRACE;
        self.call(within, client.stop(request)).await.map(|_| ())
    }

    /// Has the driver forget a dyno.
    ///
    /// # Errors
    /// As [`Up::call`].
    pub async fn remove(&self, dyno_id: &str) -> Result<(), Status> {
        self.remove_this(What::DynoId(dyno_id.to_owned()), QUICK_WITHIN)
            .await
    }

    /// Has the driver remove what it has made of a release.
    ///
    /// # Errors
    /// As [`Up::call`].
    pub async fn remove_artifact(&self, artifact: &str) -> Result<(), Status> {
        let what = What::Artifact(artifact.to_owned());
        self.remove_this(what, ARTIFACT_WITHIN).await
    }

    async fn remove_this(&self, what: What, within: Duration) -> Result<(), Status> {
        let request = RemoveRequest { what: Some(what) };
        let mut client = self.client();
        let removed = self.call(within, client.remove(request));
        removed.await.map(|_| ())
    }

    /// Does something that needs the driver for as long as it is the one that it was.
    ///
    /// # Errors
    /// What the work fails with; UNAVAILABLE once the driver is gone.
    pub async fn while_there<T, E: From<Status>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::select! {
            biased;
            result = work => result,
            () = self.gone.cancelled() => {
                Err(Status::unavailable("the driver went away").into())
            }
        }
    }

    /// Whether its dynos go on without it, and are known to the next one.
    pub fn dynos_outlive_it(&self) -> bool {
        self.info.durability() != Durability::None
    }

    /// Whether it is no longer there.
    pub fn is_gone(&self) -> bool {
        self.gone.is_cancelled() || self.control.is_closed() || self.waits.is_closed()
    }

    /// The process that serves the socket, if it is known: hsup's own child, or whom the
    /// kernel tells. It tells who made the socket, which for a socket of ours is nobody else.
    pub fn pid(&self) -> Option<i32> {
        let own = std::process::id().cast_signed();
        self.child_pid
            .or_else(|| self.control.pid().filter(|pid| !self.child && *pid != own))
    }

    /// Whether it can be worked with, and if not, why.
    ///
    /// # Errors
    /// What a person is told of it.
    pub fn fitness(&self) -> Result<(), String> {
        if self.silent {
            Err("it does not answer its health checks".to_owned())
        } else if self.info.ready {
            Ok(())
        } else {
            Err(self.info.message.clone())
        }
    }

    /// Whether every dyno has its own address.
    pub fn has_own_network(&self) -> bool {
        self.capabilities.has(Capability::OwnNetwork)
    }
}

/// Waits until the driver is connected.
pub async fn up(state: &mut watch::Receiver<Link>) -> Arc<Up> {
    until(state, |_| true).await
}

/// Waits until the driver is connected and can run dynos.
pub async fn ready(state: &mut watch::Receiver<Link>) -> Arc<Up> {
    until(state, |up| up.info.ready).await
}

/// Waits until the driver is connected, for somebody who has asked it for a dyno before.
///
/// # Errors
/// Why there is no such dyno any more: it has ended with the driver.
pub async fn up_again(state: &mut watch::Receiver<Link>) -> Result<Arc<Up>, String> {
    loop {
        match &*state.borrow_and_update() {
            Link::Up(up) if !up.is_gone() => return Ok(Arc::clone(up)),
            Link::Down {
                why,
                dynos_ended: true,
                ..
            } => return Err(why.clone()),
            Link::Up(_) | Link::Down { .. } => {}
        }
        changed(state).await;
    }
}

async fn until(state: &mut watch::Receiver<Link>, will_do: impl Fn(&Up) -> bool) -> Arc<Up> {
    loop {
        if let Link::Up(up) = &*state.borrow_and_update()
            && !up.is_gone()
            && will_do(up)
        {
            return Arc::clone(up);
        }
        changed(state).await;
    }
}

async fn changed(state: &mut watch::Receiver<Link>) {
    if state.changed().await.is_err() {
        // The link's task ends with the process only.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use hsup_proto::driver::dyno_driver_server::DynoDriver;

    use super::*;
    use crate::driver::fake;

    struct Idle;

    #[tonic::async_trait]
    impl DynoDriver for Idle {}

    #[test]
    fn what_the_driver_gives_its_dynos_is_known_while_it_is_away() {
        let away = |capabilities: Option<&[Capability]>| Link::Down {
            why: "the driver ended".to_owned(),
            hopeless: false,
            dynos_ended: false,
            last: capabilities.map(|capabilities| {
                Arc::new(GetInfoResponse {
                    capabilities: capabilities.iter().map(|it| *it as i32).collect(),
                    ..GetInfoResponse::default()
                })
            }),
        };
        assert!(away(Some(&[Capability::OwnNetwork])).has_own_network());
        assert!(!away(Some(&[])).has_own_network());
        assert!(!away(None).has_own_network());
    }

    #[tokio::test]
    async fn a_driver_that_falls_silent_is_not_ready_whatever_it_said_last() {
        let mut up = Up::clone(&*fake::serve(Idle).await);
        assert_eq!(up.fitness(), Ok(()));
        up.silent = true;
        assert_eq!(
            up.fitness().unwrap_err(),
            "it does not answer its health checks"
        );
        up.silent = false;
        up.info.ready = false;
        up.info.message = "warming up".to_owned();
        assert_eq!(up.fitness().unwrap_err(), "warming up");
    }
}
