//! Calls on their way to the service, and what the gRPC library answers before it is asked.
//!
//! A message that cannot be decoded, or is too large, never gets to the service: the library
//! answers INTERNAL or `OUT_OF_RANGE`, and the protocol wants `INVALID_ARGUMENT`
//! (docs/driver-rules.md §9), for it is the caller's mistake and INTERNAL would be counted as a
//! failed start.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use hsup_proto::driver::dyno_driver_server::{DynoDriver, DynoDriverServer};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{BoxFuture, StdError, http},
};
use tower::Service as _;

use super::{
    Peer,
    charge::{Charge, Charged},
    quota::{Pass, Quota},
};
use crate::service::{Runtime, Service};

/// The largest message either way (docs/driver-rules.md §12, R9).
pub(super) const MAX_MESSAGE: usize = 4 << 20;

/// The call that is answered before the dynos of an earlier process are known.
const GET_INFO: &str = "/hsup.driver.v1.DynoDriver/GetInfo";

/// Whether the service was asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked(Arc<AtomicBool>);

impl Asked {
    /// It is.
    pub(crate) fn yes(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The generated server behind hyper's idea of a service, which says who calls.
#[derive(Debug)]
pub(crate) struct Calls<R: Runtime> {
    service: Service<R>,
    server: DynoDriverServer<Service<R>>,
    peer: Peer,
    /// How many may be in flight.
    quota: Quota,
    /// How many bytes their requests may hold.
    bytes: Quota,
}

/// The body of an answer, which is a call in flight as long as it goes on.
#[derive(Debug)]
struct InFlight {
    body: Body,
    _pass: Pass,
}

impl http_body::Body for InFlight {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

impl<R: Runtime> Calls<R> {
    pub(crate) fn new(service: Service<R>, peer: Peer, quota: Quota, bytes: Quota) -> Self {
        Self {
            service: service.clone(),
            server: DynoDriverServer::new(service)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
            peer,
            quota,
            bytes,
        }
    }
}

impl<R: Runtime, B> hyper::service::Service<http::Request<B>> for Calls<R>
where
    Service<R>: DynoDriver,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<StdError>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn call(&self, mut request: http::Request<B>) -> Self::Future {
        let Some(pass) = self.quota.take(self.peer.uid) else {
            let text = format!(
                "this user has {} calls in flight already",
                self.quota.most()
            );
            let refused = Status::resource_exhausted(text).into_http();
            return Box::pin(std::future::ready(Ok(refused)));
        };
        // Whatever was said of a dyno now would have it started a second time.
        if request.uri().path() != GET_INFO
            && let Some(why) = self.service.is_looking()
        {
            let text = format!("its dynos are not known yet: {why}");
            let refused = Status::unavailable(text).into_http();
            return Box::pin(std::future::ready(Ok(refused)));
        }
        let asked = Asked::default();
        request.extensions_mut().insert(self.peer);
        request.extensions_mut().insert(asked.clone());
        let charge = Charge::new(&self.bytes, self.peer.uid);
        request.extensions_mut().insert(charge.clone());
        let request = request.map(|body| Charged::new(body, charge.clone()));
        let answer = self.server.clone().call(request);
        Box::pin(async move {
            let answer = charge.hold(answer).await?;
            if asked.0.load(Ordering::Relaxed) {
                return Ok(answer.map(|body| Body::new(InFlight { body, _pass: pass })));
            }
            Ok(match Status::from_header_map(answer.headers()) {
                Some(status) => malformed(status).into_http(),
                None => answer,
            })
        })
    }
}

/// What the library says of a message, in the protocol's words.
pub(crate) fn malformed(status: Status) -> Status {
    match status.code() {
        // The message tells the limit.
        Code::Internal | Code::OutOfRange => Status::invalid_argument(status.message()),
        _ => status,
    }
}
