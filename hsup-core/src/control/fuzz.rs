//! Whether both faces answer whatever they are asked, and what of it gets to the supervisor.

use axum::{
    Router,
    body::{Body, Bytes},
    http::{Request, StatusCode},
};
use hsup_proto::control::supervisor_server;
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::{CancellationToken, fake::Fake, grpc, http};
use crate::name::Selector;

/// A path in the first line, and the body of a POST to it: a stop never means all dynos, and is
/// answered with names that were asked for.
pub fn control_http(data: &[u8]) {
    let (path, body) = parted(data);
    let fake = Fake::default();
    let routes = http::routes(fake.clone()).fallback(http::not_found);
    let Some((status, answer)) = answer(routes, &path, "application/json", body.to_vec()) else {
        return;
    };
    assert!(matches!(status.as_u16(), 200 | 404 | 405 | 500), "{status}");
    let stops = fake.stops.lock().expect("nobody panics");
    for stop in &*stops {
        let [name] = &stop.select[..] else {
            panic!("{stop:?}")
        };
        assert!(name.parse::<Selector>().is_ok());
        assert!(stop.no_wait);
    }
    if path == "/control/stop" && status == StatusCode::OK {
        let answer: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
        let stopped = answer["StoppedProcesses"].as_array().expect("a list");
        assert!(stopped.len() <= stops.len());
    }
}

/// The name of a call in the first line, and its message.
pub fn control_grpc(data: &[u8]) {
    let (call, message) = parted(data);
    let path = format!("/{}/{call}", supervisor_server::SERVICE_NAME);
    let shutdown = CancellationToken::new();
    // Streams end at once.
    shutdown.cancel();
    let routes = grpc::routes(Fake::default(), shutdown).expect("reflection");
    let length = u32::try_from(message.len()).expect("not that long");
    let body = [&[0], &length.to_be_bytes()[..], message].concat();
    if let Some((status, _)) = answer(routes, &path, "application/grpc", body) {
        assert_eq!(status, StatusCode::OK);
    }
}

fn parted(data: &[u8]) -> (String, &[u8]) {
    let end = memchr::memchr(b'\n', data).unwrap_or(data.len());
    let path = String::from_utf8_lossy(&data[..end]).into_owned();
    (path, data.get(end + 1..).unwrap_or_default())
}

/// The status and the first 64 KiB of the answer; none to what is no request.
fn answer(routes: Router, path: &str, kind: &str, body: Vec<u8>) -> Option<(StatusCode, Bytes)> {
    let request = Request::post(path).header("content-type", kind);
    let request = request.body(Body::from(body)).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let response = routes.oneshot(request).await.expect("no error");
        let status = response.status();
        let mut body = response.into_body();
        let mut answer = Vec::new();
        while answer.len() < 64 << 10
            && let Some(Ok(frame)) = body.frame().await
        {
            answer.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
        Some((status, answer.into()))
    })
}
