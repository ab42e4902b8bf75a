//! The control socket: how people and programs drive a running hsup.
//!
//! One unix socket has two faces. gRPC, `hsup.control.v1`, is for hsupctl and for
//! programs in any language, which find it out by server reflection. HTTP/1.1 with
//! JSON is the original hsup's and stays as it was. Both end in one [`Control`], and
//! its messages are the generated ones, so that no field can get lost on the way.
//!
//! Who may connect may do everything: the socket's mode is the only door.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fake;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod grpc;
mod http;
mod incoming;
mod link;
mod listener;
mod metrics;

use std::{io, path::Path, time::Duration};

use hsup_proto::control::{
    ApplyReleaseRequest, ApplyReleaseResponse, EventsResponse, GetDriverResponse, GetStatusRequest,
    GetStatusResponse, ListReleasesResponse, LogsRequest, LogsResponse, PlanReleaseRequest,
    PlanReleaseResponse, RestartRequest, RestartResponse, RollbackRequest, RollbackResponse,
    ScaleRequest, ScaleResponse, ShutdownRequest, StartRequest, StartResponse, StopRequest,
    StopResponse,
};
use thiserror::Error;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

use self::incoming::Incoming;
pub(crate) use self::link::lead_to;
pub use self::listener::{BindError, ControlListener};
use crate::{errors::chain, logs::DrainStatus};

/// How long answers that are on their way may take once hsup wants to end: a client that
/// has stopped reading must not keep it.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// How long a connection that was taken from a socket that outlives hsup has to bring its request:
/// in the queue it would have waited for the next hsup.
const LAST_REQUESTS: Duration = Duration::from_millis(100);

/// How often to look whether the control socket is still there.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What can be asked of a supervisor. See `control.proto` for what each call means.
///
/// Dropping a returned future gives up waiting, not what was asked for.
pub trait Control: Clone + Send + Sync + 'static {
    fn status(&self, request: GetStatusRequest) -> impl Answer<GetStatusResponse>;
    fn scale(&self, request: ScaleRequest) -> impl Answer<ScaleResponse>;
    fn start(&self, request: StartRequest) -> impl Answer<StartResponse>;
    fn stop(&self, request: StopRequest) -> impl Answer<StopResponse>;
    fn restart(&self, request: RestartRequest) -> impl Answer<RestartResponse>;
    fn list_releases(&self) -> impl Answer<ListReleasesResponse>;
    fn apply(&self, request: ApplyReleaseRequest) -> impl Answer<ApplyReleaseResponse>;
    fn rollback(&self, request: RollbackRequest) -> impl Answer<RollbackResponse>;
    fn plan(&self, request: PlanReleaseRequest) -> impl Answer<PlanReleaseResponse>;
    fn driver(&self) -> impl Answer<GetDriverResponse>;
    /// Answers once everything has stopped; the caller of [`serve`] then ends it.
    fn shutdown(&self, request: ShutdownRequest) -> impl Answer<()>;
    /// Ends by itself unless `follow` is set.
    fn logs(
        &self,
        request: LogsRequest,
    ) -> impl Future<
        Output = Result<impl Stream<Item = LogsResponse> + Send + 'static, ControlError>,
    > + Send;
    /// How its log drains stand; none where there are none.
    fn drains(&self) -> Vec<DrainStatus> {
        Vec::new()
    }
    /// The first message is a snapshot.
    fn events(&self) -> impl Stream<Item = EventsResponse> + Send + 'static;
}

/// A future that one call of [`Control`] returns.
pub trait Answer<T>: Future<Output = Result<T, ControlError>> + Send {}

impl<T, F: Future<Output = Result<T, ControlError>> + Send> Answer<T> for F {}

/// A call that could not be carried out. The text is for people and holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ControlError {
    /// A request that can never work.
    #[error("{0}")]
    Invalid(String),

    /// There is no such dyno, process type or release.
    #[error("{0}")]
    NotFound(String),

    /// The release was rejected, a dyno did not come up, or the request does not fit what runs.
    #[error("{0}")]
    Rejected(String),

    #[error("hsup is shutting down")]
    ShuttingDown,

    /// The driver could not be asked, or failed.
    #[error("driver: {0}")]
    Driver(String),
}

/// The control server could not be run.
#[derive(Debug, Error)]
pub enum ServeError {
    #[error("failed to listen on the control socket")]
    Listen(#[source] io::Error),

    #[error("failed to set up server reflection")]
    Reflection(#[source] tonic_reflection::server::Error),

    #[error("the control server failed")]
    Server(#[source] tonic::transport::Error),
}

/// Serves both faces until `shutdown`, then lets answers and streams end, for a second at
/// most, and removes the socket.
///
/// # Errors
/// When the server cannot be set up. Bad clients and a lack of file descriptors are no
/// errors.
pub async fn serve<C: Control>(
    listener: ControlListener,
    control: C,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let last_requests = if listener.outlives_hsup() {
        LAST_REQUESTS
    } else {
        Duration::ZERO
    };
    let (guard, socket) = listener.into_parts().map_err(ServeError::Listen)?;
    let routes = grpc::routes(control.clone(), shutdown.clone())
        .map_err(ServeError::Reflection)?
        .merge(http::routes(control))
        .fallback(http::not_found);
    let server = tonic::transport::Server::builder()
        .accept_http1(true)
        .serve_with_incoming_shutdown(
            routes,
            Incoming::new(socket, shutdown.clone().cancelled_owned()),
            async {
                shutdown.cancelled().await;
                tokio::time::sleep(last_requests).await;
            },
        );
    let deadline = async {
        shutdown.cancelled().await;
        tokio::time::sleep(last_requests + LAST_ANSWERS).await;
    };
    let result = tokio::select! {
        result = server => result.map_err(ServeError::Server),
        () = deadline => {
            tracing::debug!("control clients left behind");
            Ok(())
        }
    };
    drop(guard);
    result
}

/// Makes the control socket again, in a folder that it may have to make first; or says why not.
pub(crate) type Again = Box<dyn Fn() -> Result<ControlListener, String> + Send>;

/// As [`serve`], also where somebody removes the socket meanwhile, as logind does with a user's
/// whole runtime directory at a logout: `again` makes another one, and `tell` is told. Whoever is
/// connected stays so.
///
/// # Errors
/// As [`serve`].
pub(crate) async fn serve_on<C: Control>(
    listener: ControlListener,
    control: C,
    shutdown: CancellationToken,
    again: Again,
    tell: impl Fn(&str),
) -> Result<(), ServeError> {
    // One that was handed down is for whoever made it to make again.
    let mut place = listener.place();
    let mut complaint = String::new();
    let mut servers = JoinSet::new();
    servers.spawn(serve(listener, control.clone(), shutdown.clone()));
    let mut look = interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = servers.join_next() => match ended {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) if servers.is_empty() => return Err(error),
                // Its socket is gone with it, and is made again.
                Some(Ok(Err(error))) => {
                    let error = chain(&error);
                    tracing::warn!(error, "a control socket is not served");
                }
                Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                None => return Ok(()),
            },
            _ = look.tick(), if place.is_some() => {
                // Whoever ends removes it.
                let gone = place
                    .as_ref()
                    .filter(|place| place.is_empty() && !shutdown.is_cancelled());
                match gone.map(|gone| gone.listen_again(&again)) {
                    None => {}
                    Some(Ok(listener)) => {
                        if let Some(path) = listener.path().map(Path::display) {
                            tell(&format!("The control socket was removed: it is at {path} again"));
                        }
                        place = listener.place();
                        complaint.clear();
                        servers.spawn(serve(listener, control.clone(), shutdown.clone()));
                    }
                    Some(Err(why)) if why == complaint => {}
                    Some(Err(why)) => {
                        tell(&format!(
                            "The control socket was removed, and cannot be made again: {why}"
                        ));
                        complaint = why;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
