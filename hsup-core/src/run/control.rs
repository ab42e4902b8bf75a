//! The control socket of `run`: one dyno to be seen and stopped.

use std::{sync::Arc, time::Duration};

use hsup_proto::control::{
    ApplyReleaseRequest, ApplyReleaseResponse, Dyno, DynoState, EventsResponse, GetDriverResponse,
    GetStatusRequest, GetStatusResponse, ListReleasesResponse, LogsRequest, LogsResponse,
    PlanReleaseRequest, PlanReleaseResponse, RestartRequest, RestartResponse, ScaleRequest,
    ScaleResponse, ShutdownRequest, StartRequest, StartResponse, StopRequest, StopResponse,
    events_response,
};
use tokio_stream::Stream;

use crate::{
    control::{Answer, Control, ControlError},
    driver::Up,
    name::{DynoId, DynoName, Selector},
    ports,
    release::Release,
    supervisor::describe_driver,
    time::now_unix_ms,
};

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct OneOff {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    app: String,
    name: DynoName,
    dyno_id: DynoId,
    dyno: Dyno,
    up: Arc<Up>,
    grace: Duration,
    started_at_unix_ms: i64,
}

impl OneOff {
    pub(super) fn new(
        release: &Release,
        name: &DynoName,
        line: &str,
        dyno_id: &DynoId,
        up: Arc<Up>,
        grace: Duration,
    ) -> Self {
        let now = now_unix_ms();
        let dyno = Dyno {
            name: name.to_string(),
            process_type: name.process_type.to_string(),
            number: name.number.get(),
            state: DynoState::Up.into(),
            since_unix_ms: now,
            ready: true,
            release: release.version,
            command: line.to_owned(),
            dyno_id: dyno_id.to_string(),
            ip: "127.0.0.1".to_owned(),
            port: ports::base(&release.config).map_or(0, u32::from),
            ..Dyno::default()
        };
        Self {
            shared: Arc::new(Shared {
                app: release.app.clone(),
                name: name.clone(),
                dyno_id: dyno_id.clone(),
                dyno,
                up,
                grace,
                started_at_unix_ms: now,
            }),
        }
    }

    fn selects(&self, select: &[String]) -> Result<(), ControlError> {
        let selected = |text: &String| {
            text.parse::<Selector>()
                .is_ok_and(|selector| selector.matches(&self.shared.name))
        };
        match select.iter().find(|text| !selected(text)) {
            Some(text) => Err(ControlError::NotFound(format!(
                "no dyno or process type `{text}`: there is {}",
                self.shared.name
            ))),
            None => Ok(()),
        }
    }

    fn current(&self) -> GetStatusResponse {
        let shared = &self.shared;
        GetStatusResponse {
            app: shared.app.clone(),
            dynos: vec![shared.dyno.clone()],
            driver: shared.up.info.name.clone(),
            driver_ready: shared.up.info.ready,
            hsup_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at_unix_ms: shared.started_at_unix_ms,
            all_up: true,
            pid: std::process::id(),
            ..GetStatusResponse::default()
        }
    }

    fn end(&self, grace: Duration) {
        super::company::stop(&self.shared.up, &self.shared.dyno_id, "SIGTERM", grace);
    }
}

/// What only `start` can do.
fn not_here<T>() -> Result<T, ControlError> {
    Err(ControlError::Rejected(
        "this is `hsup run`: it has one dyno, which can be seen and stopped".to_owned(),
    ))
}

impl Control for OneOff {
    fn status(&self, request: GetStatusRequest) -> impl Answer<GetStatusResponse> {
        let answer = self.selects(&request.select).map(|()| self.current());
        async { answer }
    }

    fn stop(&self, request: StopRequest) -> impl Answer<StopResponse> {
        let this = self.clone();
        async move {
            this.selects(&request.select)?;
            let grace = match request.grace_ms {
                _ if request.force => Duration::ZERO,
                Some(ms) => Duration::from_millis(ms.into()),
                None => this.shared.grace,
            };
            this.end(grace);
            Ok(StopResponse {
                dynos: vec![this.shared.name.to_string()],
            })
        }
    }

    fn shutdown(&self, request: ShutdownRequest) -> impl Answer<()> {
        let grace = request.grace_ms.map(|ms| Duration::from_millis(ms.into()));
        self.end(grace.unwrap_or(self.shared.grace));
        async { Ok(()) }
    }

    fn driver(&self) -> impl Answer<GetDriverResponse> {
        let answer = describe_driver(&self.shared.up);
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
        async { Ok(ListReleasesResponse::default()) }
    }

    fn apply(&self, _: ApplyReleaseRequest) -> impl Answer<ApplyReleaseResponse> {
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
        // Its output is its caller's.
        Ok(tokio_stream::empty())
    }

    fn events(&self) -> impl Stream<Item = EventsResponse> + Send + 'static {
        tokio_stream::once(EventsResponse {
            at_unix_ms: now_unix_ms(),
            event: Some(events_response::Event::Snapshot(self.current())),
        })
    }
}
