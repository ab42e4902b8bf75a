//! Calls on their way to the service, and what the gRPC library answers before it is asked.
//!
//! A message that cannot be decoded, or is too large, never gets to the service: the library
//! answers INTERNAL or `OUT_OF_RANGE`, and the protocol wants `INVALID_ARGUMENT` (§9), for it is
//! the caller's mistake and INTERNAL would be counted as a failed start.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hsup_proto::driver::dyno_driver_server::{DynoDriver, DynoDriverServer};
use hyper::body::Incoming;
use tonic::{
    Code, Status,
    body::Body,
    codegen::{BoxFuture, http},
};
use tower::Service as _;

use super::Peer;
use crate::service::{Runtime, Service};

/// The largest message either way (driver protocol §12, R9).
const MAX_MESSAGE: usize = 4 << 20;

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
pub(super) struct Calls<R: Runtime> {
    server: DynoDriverServer<Service<R>>,
    peer: Peer,
}

impl<R: Runtime> Calls<R> {
    pub(super) fn new(service: Service<R>, peer: Peer) -> Self {
        Self {
            server: DynoDriverServer::new(service)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
            peer,
        }
    }
}

impl<R: Runtime> hyper::service::Service<http::Request<Incoming>> for Calls<R>
where
    Service<R>: DynoDriver,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn call(&self, mut request: http::Request<Incoming>) -> Self::Future {
        let asked = Asked::default();
        request.extensions_mut().insert(self.peer);
        request.extensions_mut().insert(asked.clone());
        let answer = self.server.clone().call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if asked.0.load(Ordering::Relaxed) {
                return Ok(answer);
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
