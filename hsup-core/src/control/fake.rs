//! A supervisor that only pretends, for the tests of both faces.

use std::sync::{Arc, Mutex};

use hsup_proto::control::{Dyno, DynoState, LogLine, events_response::Event};
use tokio_stream::StreamExt as _;

use super::*;

/// Knows a `web` of two dynos and a `worker`; refuses the rest, each call in its own way.
#[derive(Clone, Default)]
pub(crate) struct Fake {
    pub(super) stops: Arc<Mutex<Vec<StopRequest>>>,
    is_hung: bool,
}

#[cfg(test)]
impl Fake {
    /// One whose task does not get to anything.
    pub(crate) fn hung() -> Self {
        Self {
            is_hung: true,
            ..Self::default()
        }
    }
}

fn dyno(process_type: &str, number: u32) -> Dyno {
    Dyno {
        name: format!("{process_type}.{number}"),
        process_type: process_type.to_owned(),
        number,
        state: DynoState::Up.into(),
        ip: "127.0.0.1".to_owned(),
        port: 4999 + number,
        ..Default::default()
    }
}

pub(super) fn snapshot() -> GetStatusResponse {
    GetStatusResponse {
        app: "shop".to_owned(),
        dynos: vec![dyno("web", 1), dyno("web", 2), dyno("worker", 1)],
        ..Default::default()
    }
}

impl Control for Fake {
    async fn status(&self, _: GetStatusRequest) -> Result<GetStatusResponse, ControlError> {
        if self.is_hung {
            std::future::pending::<()>().await;
        }
        Ok(snapshot())
    }

    async fn scale(&self, _: ScaleRequest) -> Result<ScaleResponse, ControlError> {
        Err(ControlError::Invalid(
            "no process type `x`; known: web".to_owned(),
        ))
    }

    async fn start(&self, _: StartRequest) -> Result<StartResponse, ControlError> {
        Err(ControlError::ShuttingDown)
    }

    async fn stop(&self, request: StopRequest) -> Result<StopResponse, ControlError> {
        let known = |name: &String| {
            snapshot()
                .dynos
                .iter()
                .any(|dyno| [&dyno.name, &dyno.process_type].contains(&name))
        };
        self.stops
            .lock()
            .expect("nobody panics")
            .push(request.clone());
        if !request.select.iter().all(known) {
            return Err(ControlError::NotFound("no such dyno".to_owned()));
        }
        Ok(StopResponse::default())
    }

    async fn restart(&self, _: RestartRequest) -> Result<RestartResponse, ControlError> {
        Err(ControlError::Driver("gone".to_owned()))
    }

    async fn list_releases(&self) -> Result<ListReleasesResponse, ControlError> {
        Err(ControlError::NotFound("x".repeat(100_000)))
    }

    async fn apply(&self, _: ApplyReleaseRequest) -> Result<ApplyReleaseResponse, ControlError> {
        Err(ControlError::Rejected("web.1 did not come up".to_owned()))
    }

    async fn rollback(&self, _: RollbackRequest) -> Result<RollbackResponse, ControlError> {
        Err(ControlError::NotFound("no release v9".to_owned()))
    }

    async fn plan(&self, _: PlanReleaseRequest) -> Result<PlanReleaseResponse, ControlError> {
        Ok(PlanReleaseResponse::default())
    }

    async fn driver(&self) -> Result<GetDriverResponse, ControlError> {
        Ok(GetDriverResponse::default())
    }

    async fn shutdown(&self, _: ShutdownRequest) -> Result<(), ControlError> {
        Ok(())
    }

    /// A flood that never ends.
    async fn logs(
        &self,
        request: LogsRequest,
    ) -> Result<impl Stream<Item = LogsResponse> + Send + 'static, ControlError> {
        if request.source == "nobody" {
            return Err(ControlError::Invalid("no source `nobody`".to_owned()));
        }
        let lines = vec![LogLine {
            line: vec![b'x'; 1000],
            ..Default::default()
        }];
        Ok(tokio_stream::iter(std::iter::repeat(LogsResponse {
            lines,
            dropped: 0,
        })))
    }

    fn events(&self) -> impl Stream<Item = EventsResponse> + Send + 'static {
        let first = EventsResponse {
            at_unix_ms: 1,
            event: Some(Event::Snapshot(snapshot())),
        };
        tokio_stream::once(first).chain(tokio_stream::pending())
    }
}
