//! The control socket of `run`: one dyno to be seen and stopped.
//!
//! It decides nothing. What is shown is what the command's task tells of itself, and a stop is
//! a wish that it hears as it hears a signal.

use std::{sync::Arc, time::Duration};

use futures_util::stream::unfold;
use hsup_proto::control::{
    self, ApplyReleaseRequest, ApplyReleaseResponse, Dyno, EventsResponse, GetDriverResponse,
    GetStatusRequest, GetStatusResponse, ListReleasesResponse, LogsRequest, LogsResponse,
    PlanReleaseRequest, PlanReleaseResponse, RestartRequest, RestartResponse, RollbackRequest,
    RollbackResponse, ScaleRequest, ScaleResponse, ShutdownRequest, StartRequest, StartResponse,
    StopRequest, StopResponse, events_response,
};
use tokio::sync::watch;
use tokio_stream::Stream;

use super::{
    RunCommandError,
    progress::{Phase, Standing},
    signals::{Origin, Wish, Wisher},
};
use crate::{
    control::{Answer, Control, ControlError},
    driver::Link,
    exit::Ending,
    name::{DynoId, DynoName, Selector},
    release::Release,
    source,
    state::{ReleaseRecord, ReleaseState},
    supervisor::{describe_link, describe_release},
    time::now_unix_ms,
};

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct OneOff {
    shown: Arc<Shown>,
    started_at_unix_ms: i64,
}

/// The command that is shown.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) app: String,
    pub(super) release: Release,
    /// Where that is from.
    pub(super) origin: source::Origin,
    pub(super) port: u16,
    pub(super) name: DynoName,
    pub(super) line: String,
    pub(super) dyno_id: DynoId,
    /// Between SIGTERM and SIGKILL.
    pub(super) grace: Duration,
    pub(super) standing: watch::Receiver<Standing>,
    pub(super) link: watch::Receiver<Link>,
    pub(super) wisher: Wisher,
}

impl OneOff {
    pub(super) fn new(shown: Shown) -> Self {
        Self {
            shown: Arc::new(shown),
            started_at_unix_ms: now_unix_ms(),
        }
    }

    fn selects(&self, select: &[String]) -> Result<(), ControlError> {
        let selected = |text: &String| {
            text.parse::<Selector>()
                .is_ok_and(|selector| selector.matches(&self.shown.name))
        };
        match select.iter().find(|text| !selected(text)) {
            Some(text) => Err(ControlError::NotFound(format!(
                "no dyno or process type `{text}`: there is {}",
                self.shown.name
            ))),
            None => Ok(()),
        }
    }

    fn status_at(&self, standing: &Standing) -> GetStatusResponse {
        let shown = &self.shown;
        let driver = describe_link(&shown.link.borrow());
        GetStatusResponse {
            app: shown.app.clone(),
            release: Some(self.release()),
            dynos: vec![self.dyno_at(standing)],
            driver: driver.name,
            driver_ready: driver.ready,
            driver_message: driver.message,
            hsup_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at_unix_ms: self.started_at_unix_ms,
            all_up: standing.phase == Phase::Up,
            pid: std::process::id(),
            ..GetStatusResponse::default()
        }
    }

    /// The only one that it ever runs in.
    fn release(&self) -> control::Release {
        let shown = &self.shown;
        let (release, origin) = (shown.release.clone(), shown.origin.to_string());
        describe_release(&ReleaseRecord {
            state: ReleaseState::Current,
            ..ReleaseRecord::new(1, release, origin, self.started_at_unix_ms)
        })
    }

    fn dyno_at(&self, standing: &Standing) -> Dyno {
        let shown = &self.shown;
        let last_exit = match &standing.phase {
            Phase::Complete(Some(status)) => Some(status.into()),
            _ => None,
        };
        let (mut dyno_id, mut ip) = (String::new(), String::new());
        if let Some(up) = &standing.on {
            dyno_id = shown.dyno_id.to_string();
            if !up.has_own_network() {
                "127.0.0.1".clone_into(&mut ip);
            }
        }
        Dyno {
            name: shown.name.to_string(),
            process_type: shown.name.process_type.to_string(),
            number: shown.name.number.get(),
            state: standing.phase.state().into(),
            since_unix_ms: standing.since_unix_ms,
            ready: standing.phase == Phase::Up,
            release: shown.release.version,
            command: shown.line.clone(),
            last_exit,
            dyno_id,
            ip,
            port: shown.port.into(),
            node: standing.node.clone(),
            ..Dyno::default()
        }
    }

    /// Whether the end of it is one: a driver that does not stop it in time is waited for no more.
    fn has_ended(&self) -> Result<(), ControlError> {
        if let Phase::Complete(Some(status)) = &self.shown.standing.borrow().phase
            && let Ending::Lost(why) = &status.how
        {
            // In the words of hsup itself, which ends with them.
            return Err(ControlError::Rejected(
                RunCommandError::Lost(why.clone()).to_string(),
            ));
        }
        Ok(())
    }

    /// Resolves once it has ended.
    async fn down(&self) {
        let mut standing = self.shown.standing.clone();
        // A command that tells no more has ended.
        let _: Result<_, watch::error::RecvError> = standing
            .wait_for(|standing| standing.phase.is_complete())
            .await
            .map(|_| ());
    }
}

/// What only `start` can do.
fn not_here<T>() -> Result<T, ControlError> {
    only_start("it has one dyno, which can be seen and stopped")
}

fn only_start<T>(why: &str) -> Result<T, ControlError> {
    Err(ControlError::Rejected(format!("this is `hsup run`: {why}")))
}

impl Control for OneOff {
    fn status(&self, request: GetStatusRequest) -> impl Answer<GetStatusResponse> {
        let standing = self.shown.standing.borrow();
        let answer = self.selects(&request.select);
        let answer = answer.map(|()| self.status_at(&standing));
        async { answer }
    }

    fn stop(&self, request: StopRequest) -> impl Answer<StopResponse> {
        let this = self.clone();
        async move {
            this.selects(&request.select)?;
            let grace = match request.grace_ms {
                _ if request.force => Duration::ZERO,
                Some(ms) => Duration::from_millis(ms.into()),
                None => this.shown.grace,
            };
            this.shown.wisher.send(Wish::terminate(Origin::Stop(grace)));
            if !request.no_wait {
                this.down().await;
            }
            Ok(StopResponse {
                dynos: vec![this.shown.name.to_string()],
            })
        }
    }

    fn shutdown(&self, request: ShutdownRequest) -> impl Answer<()> {
        let this = self.clone();
        async move {
            let grace = request.grace_ms.map(|ms| Duration::from_millis(ms.into()));
            let from = Origin::Shutdown(grace.unwrap_or(this.shown.grace));
            this.shown.wisher.send(Wish::terminate(from));
            this.down().await;
            this.has_ended()
        }
    }

    fn driver(&self) -> impl Answer<GetDriverResponse> {
        let answer = describe_link(&self.shown.link.borrow());
        async { Ok(answer) }
    }

    fn scale(&self, _: ScaleRequest) -> impl Answer<ScaleResponse> {
        async { not_here() }
    }

    fn start(&self, _: StartRequest) -> impl Answer<StartResponse> {
        async { not_here() }
    }

    fn restart(&self, _: RestartRequest) -> impl Answer<RestartResponse> {
        async { not_here() }
    }

    fn list_releases(&self) -> impl Answer<ListReleasesResponse> {
        async { only_start("it runs in one release, and remembers none") }
    }

    fn apply(&self, _: ApplyReleaseRequest) -> impl Answer<ApplyReleaseResponse> {
        async { not_here() }
    }

    fn rollback(&self, _: RollbackRequest) -> impl Answer<RollbackResponse> {
        async { not_here() }
    }

    fn plan(&self, _: PlanReleaseRequest) -> impl Answer<PlanReleaseResponse> {
        async { not_here() }
    }

    async fn logs(
        &self,
        request: LogsRequest,
    ) -> Result<impl Stream<Item = LogsResponse> + Send + 'static, ControlError> {
        self.selects(&request.select)?;
        only_start::<tokio_stream::Empty<_>>(
            "what its dyno writes goes to its own standard output, and nothing of it is kept",
        )
    }

    fn events(&self) -> impl Stream<Item = EventsResponse> + Send + 'static {
        let mut standing = self.shown.standing.clone();
        // The first is told whatever has been.
        standing.mark_changed();
        let state = (self.clone(), standing, true);
        unfold(state, |(this, mut standing, is_first)| async move {
            standing.changed().await.ok()?;
            let now = standing.borrow_and_update().clone();
            let event = if is_first {
                events_response::Event::Snapshot(this.status_at(&now))
            } else {
                events_response::Event::Dyno(this.dyno_at(&now))
            };
            let response = EventsResponse {
                at_unix_ms: now_unix_ms(),
                event: Some(event),
            };
            Some((response, (this, standing, false)))
        })
    }
}
