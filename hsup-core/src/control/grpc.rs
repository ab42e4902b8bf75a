//! The gRPC face: hands each call to [`Control`], and says errors in gRPC's codes.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use hsup_proto::control::{
    ApplyReleaseRequest, ApplyReleaseResponse, EventsRequest, EventsResponse, GetDriverRequest,
    GetDriverResponse, GetStatusRequest, GetStatusResponse, ListReleasesRequest,
    ListReleasesResponse, LogsRequest, LogsResponse, PlanReleaseRequest, PlanReleaseResponse,
    RestartRequest, RestartResponse, RollbackRequest, RollbackResponse, ScaleRequest,
    ScaleResponse, ShutdownRequest, ShutdownResponse, StartRequest, StartResponse, StopRequest,
    StopResponse,
    supervisor_server::{Supervisor, SupervisorServer},
};
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Request, Response, Status, codegen::BoxStream, service::Routes};

use super::{Control, ControlError};
use crate::source::control_file;

/// Status messages travel in a header, whose size clients limit.
const MESSAGE_MAX: usize = 4096;

/// What a request may have beside the largest release that a file may be.
const AROUND_A_RELEASE: usize = 64 * 1024;

/// The services: the supervisor, and server reflection in both its versions.
pub(super) fn routes<C: Control>(
    control: C,
    shutdown: CancellationToken,
) -> Result<axum::Router, tonic_reflection::server::Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(hsup_proto::FILE_DESCRIPTOR_SET)
            .with_service_name("hsup.control.v1.Supervisor")
    };
    let request_max = usize::try_from(control_file::MAX_SIZE)
        .unwrap_or(usize::MAX)
        .saturating_add(AROUND_A_RELEASE);
    let supervisor =
        SupervisorServer::new(Service { control, shutdown }).max_decoding_message_size(request_max);
    Ok(Routes::new(supervisor)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .into_axum_router())
}

struct Service<C> {
    control: C,
    shutdown: CancellationToken,
}

type Answered<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl<C: Control> Supervisor for Service<C> {
    async fn get_status(&self, request: Request<GetStatusRequest>) -> Answered<GetStatusResponse> {
        answered(self.control.status(request.into_inner()).await)
    }

    async fn scale(&self, request: Request<ScaleRequest>) -> Answered<ScaleResponse> {
        answered(self.control.scale(request.into_inner()).await)
    }

    async fn start(&self, request: Request<StartRequest>) -> Answered<StartResponse> {
        answered(self.control.start(request.into_inner()).await)
    }

    async fn stop(&self, request: Request<StopRequest>) -> Answered<StopResponse> {
        answered(self.control.stop(request.into_inner()).await)
    }

    async fn restart(&self, request: Request<RestartRequest>) -> Answered<RestartResponse> {
        answered(self.control.restart(request.into_inner()).await)
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Answered<BoxStream<LogsResponse>> {
        let stream = self.control.logs(request.into_inner()).await?;
        Ok(Response::new(self.until_shutdown(stream)))
    }

    async fn events(&self, _: Request<EventsRequest>) -> Answered<BoxStream<EventsResponse>> {
        let stream = self.control.events();
        Ok(Response::new(self.until_shutdown(stream)))
    }

    async fn list_releases(
        &self,
        _: Request<ListReleasesRequest>,
    ) -> Answered<ListReleasesResponse> {
        answered(self.control.list_releases().await)
    }

    async fn apply_release(
        &self,
        request: Request<ApplyReleaseRequest>,
    ) -> Answered<ApplyReleaseResponse> {
        answered(self.control.apply(request.into_inner()).await)
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Answered<RollbackResponse> {
        answered(self.control.rollback(request.into_inner()).await)
    }

    async fn plan_release(
        &self,
        request: Request<PlanReleaseRequest>,
    ) -> Answered<PlanReleaseResponse> {
        answered(self.control.plan(request.into_inner()).await)
    }

    async fn get_driver(&self, _: Request<GetDriverRequest>) -> Answered<GetDriverResponse> {
        answered(self.control.driver().await)
    }

    async fn shutdown(&self, request: Request<ShutdownRequest>) -> Answered<ShutdownResponse> {
        let result = self.control.shutdown(request.into_inner()).await;
        answered(result.map(|()| ShutdownResponse {}))
    }
}

impl<C> Service<C> {
    fn until_shutdown<T: 'static>(
        &self,
        stream: impl Stream<Item = T> + Send + 'static,
    ) -> BoxStream<T> {
        Box::pin(UntilShutdown {
            stream: Box::pin(stream),
            shutdown: Box::pin(self.shutdown.clone().cancelled_owned()),
        })
    }
}

fn answered<T>(result: Result<T, ControlError>) -> Answered<T> {
    Ok(Response::new(result?))
}

impl From<ControlError> for Status {
    fn from(error: ControlError) -> Self {
        let message = shortened(error.to_string());
        match error {
            ControlError::Invalid(_) => Self::invalid_argument(message),
            ControlError::NotFound(_) => Self::not_found(message),
            ControlError::Rejected(_) => Self::failed_precondition(message),
            ControlError::ShuttingDown | ControlError::Driver(_) => Self::unavailable(message),
        }
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > MESSAGE_MAX {
        text.truncate(text.floor_char_boundary(MESSAGE_MAX));
        text.push('…');
    }
    text
}

/// A stream that gives what it has, and ends when the server does.
struct UntilShutdown<S> {
    stream: Pin<Box<S>>,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<T, S: Stream<Item = T>> Stream for UntilShutdown<S> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(item) = self.stream.as_mut().poll_next(cx) {
            return Poll::Ready(item.map(Ok));
        }
        self.shutdown.as_mut().poll(cx).map(|()| None)
    }
}
