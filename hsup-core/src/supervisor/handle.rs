//! The front of the supervisor: what the control server calls.
//!
//! Requests go through the supervisor's inbox, so that they see and change one consistent
//! state. What takes a driver's or the logs' time is done here, outside of it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{
    StreamExt as _,
    stream::{self, unfold},
};
use hsup_proto::{
    control::{
        self, ApplyReleaseRequest, ApplyReleaseResponse, EventsResponse, GetDriverResponse,
        GetStatusRequest, GetStatusResponse, ListReleasesResponse, LogsRequest, LogsResponse,
        PlanReleaseRequest, PlanReleaseResponse, RestartRequest, RestartResponse, RollbackRequest,
        RollbackResponse, ScaleRequest, ScaleResponse, ShutdownRequest, StartRequest,
        StartResponse, StopRequest, StopResponse, events_response,
    },
    driver::{Capability, StatsRequest},
};
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::timeout,
};
use tokio_stream::Stream;

use super::{restarts::Settled, status};
use crate::{
    control::{Answer, Control, ControlError},
    driver::Link,
    dyno::Shared,
    logs::{self, Filter, Source},
    releases::Id,
    time::now_unix_ms,
};

/// How long a driver may take to measure its dynos for a status.
const STATS_WITHIN: Duration = Duration::from_secs(2);
/// How many of them it measures at once: each is a call with its memory, and a thousand would
/// be more than all else that hsup keeps of them.
const STATS_IN_FLIGHT: usize = 100;
/// How many last lines a log request means that names no number.
const LOG_LINES_DEFAULT: usize = 100;
/// And at most: whoever asks may read none of them.
const LOG_LINES_MAX: usize = 10_000;
/// How many last lines of each dyno a status has at most.
const STATUS_LINES_MAX: usize = 1000;

/// What an asker gets: the answer at once, or what to wait for first.
pub(super) type Reply<T> = oneshot::Sender<Result<T, ControlError>>;

/// A request to the supervisor.
#[derive(Debug)]
pub(super) enum Request {
    Status(GetStatusRequest, Reply<GetStatusResponse>),
    Scale(ScaleRequest, Reply<ScaleResponse>),
    /// Answers the dynos and, unless nobody wants to wait, what tells which did not come up.
    Start(StartRequest, Reply<(StartResponse, Option<Settled>)>),
    /// Answers the dynos and, unless nobody wants to wait, what tells that they are down.
    Stop(
        StopRequest,
        Reply<(StopResponse, Option<oneshot::Receiver<()>>)>,
    ),
    /// The same.
    Restart(RestartRequest, Reply<(RestartResponse, Option<Settled>)>),
    Releases(Reply<ListReleasesResponse>),
    /// The memory, in bytes, that each dyno with a limit may use, by name.
    Quotas(Reply<BTreeMap<String, u64>>),
    Apply(ApplyReleaseRequest, Reply<Applied>),
    Rollback(RollbackRequest, Reply<Applied>),
    /// How an applied release stands.
    Release(Id, Reply<control::Release>),
    Plan(PlanReleaseRequest, Reply<PlanReleaseResponse>),
    Shutdown(ShutdownRequest, Reply<()>),
    /// hsup is about to end and leave its dynos: what the disk had no room for is written if it can
    /// be. Refused where they are being stopped.
    Leave(Reply<()>),
}

/// An applied release, and what tells that it is decided.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) response: ApplyReleaseResponse,
    pub(super) decided: Option<(Id, oneshot::Receiver<()>)>,
}

impl Request {
    /// Answers that hsup is not there for it now, and why.
    pub(super) fn refuse(self, why: &ControlError) {
        fn answer<T>(reply: Reply<T>, why: &ControlError) {
            // Whoever asked may have gone.
            drop(reply.send(Err(why.clone())));
        }
        match self {
            Self::Status(_, reply) => answer(reply, why),
            Self::Scale(_, reply) => answer(reply, why),
            Self::Start(_, reply) => answer(reply, why),
            Self::Stop(_, reply) => answer(reply, why),
            Self::Restart(_, reply) => answer(reply, why),
            Self::Releases(reply) => answer(reply, why),
            Self::Quotas(reply) => answer(reply, why),
            Self::Apply(_, reply) => answer(reply, why),
            Self::Rollback(_, reply) => answer(reply, why),
            Self::Release(_, reply) => answer(reply, why),
            Self::Plan(_, reply) => answer(reply, why),
            Self::Shutdown(_, reply) | Self::Leave(reply) => answer(reply, why),
        }
    }
}

/// Drives a supervisor. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SupervisorHandle {
    requests: mpsc::Sender<Request>,
    events: broadcast::Sender<EventsResponse>,
    shared: Arc<Shared>,
    link: watch::Receiver<Link>,
}

impl SupervisorHandle {
    pub(super) const fn new(
        requests: mpsc::Sender<Request>,
        events: broadcast::Sender<EventsResponse>,
        shared: Arc<Shared>,
        link: watch::Receiver<Link>,
    ) -> Self {
        Self {
            requests,
            events,
            shared,
            link,
        }
    }

    /// Says something of hsup's own about a dyno.
    pub(super) fn note(&self, dyno: &str, text: &str) {
        self.shared.logs.note(dyno, text);
    }

    /// Whether hsup may end and leave its dynos as they are; what they need is written down then.
    ///
    /// # Errors
    /// When they are being stopped.
    pub(crate) async fn leave(&self) -> Result<(), ControlError> {
        self.ask(Request::Leave).await
    }

    pub(super) async fn ask<T>(
        &self,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(request(reply))
            .await
            .map_err(|_| ControlError::ShuttingDown)?;
        answer.await.map_err(|_| ControlError::ShuttingDown)?
    }

    /// The answer to whoever applied a release, once it is decided if that is waited for.
    async fn when_decided(&self, applied: Applied) -> Result<ApplyReleaseResponse, ControlError> {
        let Applied {
            mut response,
            decided,
        } = applied;
        if let Some((id, decided)) = decided {
            decided.await.map_err(|_| ControlError::ShuttingDown)?;
            let release = self.ask(|reply| Request::Release(id, reply)).await?;
            if release.state() == control::ReleaseState::Rejected {
                return Err(ControlError::Rejected(format!(
                    "release v{} was rejected: {}",
                    release.version, release.reason
                )));
            }
            response.release = Some(release);
        }
        Ok(response)
    }

    async fn snapshot(&self) -> EventsResponse {
        let status = self.ask(|reply| Request::Status(GetStatusRequest::default(), reply));
        EventsResponse {
            at_unix_ms: now_unix_ms(),
            event: status.await.ok().map(events_response::Event::Snapshot),
        }
    }

    /// Asks the driver for what each dyno uses. What it does not tell in time is absent.
    async fn measure(&self, dynos: &mut [control::Dyno]) {
        let link = self.link.borrow().clone();
        let Link::Up(up) = link else {
            return;
        };
        if !up.capabilities.has(Capability::Stats) {
            return;
        }
        let measured = dynos.iter_mut().filter(|dyno| !dyno.dyno_id.is_empty());
        let all = stream::iter(measured).for_each_concurrent(STATS_IN_FLIGHT, |dyno| {
            let request = StatsRequest {
                dyno_id: dyno.dyno_id.clone(),
            };
            let mut client = up.client();
            async move {
                if let Ok(stats) = client.stats(request).await {
                    let stats = stats.into_inner();
                    dyno.cpu_ns = stats.cpu_ns;
                    dyno.memory_bytes = stats.memory_bytes;
                    dyno.pids = stats.pids;
                    dyno.pid = stats.pid;
                }
            }
        });
        if timeout(STATS_WITHIN, all).await.is_err() {
            tracing::debug!("the driver measures slowly");
        }
    }

    /// A name that nothing has or had would be waited for in silence.
    async fn check_has_lines(&self, name: &str) -> Result<(), ControlError> {
        let of_hsup = [logs::SYSTEM, logs::API].contains(&name);
        if of_hsup || !self.shared.logs.tail(&Filter::dyno(name), 1).is_empty() {
            return Ok(());
        }
        // It may be wanted, and have said nothing yet.
        let request = GetStatusRequest {
            select: vec![name.to_owned()],
            ..GetStatusRequest::default()
        };
        match self.ask(|reply| Request::Status(request, reply)).await {
            Err(error @ (ControlError::NotFound(_) | ControlError::Invalid(_))) => Err(error),
            // A supervisor that is not there for it now knows no better.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn add_lines(&self, dynos: &mut [control::Dyno], lines: usize) {
        let lines = lines.min(STATUS_LINES_MAX);
        for dyno in dynos {
            let filter = Filter::dyno(&dyno.name);
            dyno.last_lines = self.shared.logs.report(&filter, lines).to_vec();
        }
    }
}

impl Control for SupervisorHandle {
    fn drains(&self) -> Vec<logs::DrainStatus> {
        self.shared.logs.drains_status()
    }

    fn status(&self, request: GetStatusRequest) -> impl Answer<GetStatusResponse> {
        let this = self.clone();
        async move {
            let (stats, lines) = (request.stats, request.last_lines as usize);
            let mut status = this.ask(|reply| Request::Status(request, reply)).await?;
            if stats {
                this.measure(&mut status.dynos).await;
            }
            if lines > 0 {
                this.add_lines(&mut status.dynos, lines);
            }
            Ok(status)
        }
    }

    fn scale(&self, request: ScaleRequest) -> impl Answer<ScaleResponse> {
        let this = self.clone();
        async move { this.ask(|reply| Request::Scale(request, reply)).await }
    }

    fn start(&self, request: StartRequest) -> impl Answer<StartResponse> {
        let this = self.clone();
        async move {
            let (response, settled) = this.ask(|reply| Request::Start(request, reply)).await?;
            all_up(settled).await?;
            Ok(response)
        }
    }

    fn stop(&self, request: StopRequest) -> impl Answer<StopResponse> {
        let this = self.clone();
        async move {
            let (response, down) = this.ask(|reply| Request::Stop(request, reply)).await?;
            if let Some(down) = down {
                down.await.map_err(|_| ControlError::ShuttingDown)?;
            }
            Ok(response)
        }
    }

    fn restart(&self, request: RestartRequest) -> impl Answer<RestartResponse> {
        let this = self.clone();
        async move {
            let (response, settled) = this.ask(|reply| Request::Restart(request, reply)).await?;
            all_up(settled).await?;
            Ok(response)
        }
    }

    fn list_releases(&self) -> impl Answer<ListReleasesResponse> {
        let this = self.clone();
        async move { this.ask(Request::Releases).await }
    }

    fn apply(&self, request: ApplyReleaseRequest) -> impl Answer<ApplyReleaseResponse> {
        let this = self.clone();
        async move {
            let applied = this.ask(|reply| Request::Apply(request, reply)).await?;
            this.when_decided(applied).await
        }
    }

    fn rollback(&self, request: RollbackRequest) -> impl Answer<RollbackResponse> {
        let this = self.clone();
        async move {
            let applied = this.ask(|reply| Request::Rollback(request, reply)).await?;
            let applied = this.when_decided(applied).await?;
            Ok(RollbackResponse {
                release: applied.release,
                warnings: applied.warnings,
                unchanged: applied.unchanged,
            })
        }
    }

    fn plan(&self, request: PlanReleaseRequest) -> impl Answer<PlanReleaseResponse> {
        let this = self.clone();
        async move { this.ask(|reply| Request::Plan(request, reply)).await }
    }

    fn driver(&self) -> impl Answer<GetDriverResponse> {
        let answer = status::link(&self.link.borrow());
        async { Ok(answer) }
    }

    fn shutdown(&self, request: ShutdownRequest) -> impl Answer<()> {
        let this = self.clone();
        async move { this.ask(|reply| Request::Shutdown(request, reply)).await }
    }

    async fn logs(
        &self,
        request: LogsRequest,
    ) -> Result<impl Stream<Item = LogsResponse> + Send + 'static, ControlError> {
        let filter = filter(&request)?;
        for name in &filter.select {
            self.check_has_lines(name).await?;
        }
        let lines = request.lines.map_or(LOG_LINES_DEFAULT, |n| n as usize);
        let lines = lines.min(LOG_LINES_MAX);
        let subscription = self.shared.logs.subscribe(filter, lines, request.follow);
        Ok(log_stream(subscription))
    }

    fn events(&self) -> impl Stream<Item = EventsResponse> + Send + 'static {
        let this = self.clone();
        // Subscribed before the snapshot is taken: nothing can fall between them.
        let events = self.events.subscribe();
        let state = (this, events, true);
        unfold(state, |(this, mut events, fresh)| async move {
            if fresh {
                let snapshot = this.snapshot().await;
                return Some((snapshot, (this, events, false)));
            }
            match events.recv().await {
                Ok(event) => Some((event, (this, events, false))),
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    let snapshot = this.snapshot().await;
                    Some((snapshot, (this, events, false)))
                }
                Err(broadcast::error::RecvError::Closed) => None,
            }
        })
    }
}

fn filter(request: &LogsRequest) -> Result<Filter, ControlError> {
    let source = match request.source.as_str() {
        "" => None,
        "app" => Some(Source::App),
        "heroku" => Some(Source::Heroku),
        other => {
            return Err(ControlError::Invalid(format!(
                "no log source `{other}`: there is app (what the dynos write, and api: releases \
                 and scaling) and heroku (what hsup says of the dynos)"
            )));
        }
    };
    Ok(Filter {
        select: request.select.clone(),
        source,
    })
}

/// Waits until all are up that somebody waits for; fails when one does not come up.
async fn all_up(settled: Option<Settled>) -> Result<(), ControlError> {
    let Some(settled) = settled else {
        return Ok(());
    };
    let not_up = settled.await.map_err(|_| ControlError::ShuttingDown)?;
    if not_up.is_empty() {
        Ok(())
    } else {
        let sentences: Vec<_> = not_up.iter().map(ToString::to_string).collect();
        Err(ControlError::Rejected(sentences.join("; ")))
    }
}

fn log_stream(
    subscription: logs::Subscription,
) -> impl Stream<Item = LogsResponse> + Send + 'static {
    unfold(subscription, |mut subscription| async move {
        let batch = subscription.next().await?;
        let response = LogsResponse {
            lines: batch.lines.into_iter().map(Into::into).collect(),
            dropped: batch.dropped,
        };
        Some((response, subscription))
    })
}
