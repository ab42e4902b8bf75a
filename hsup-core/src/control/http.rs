//! The HTTP/JSON face, which is the original hsup's: paths, keys, words and status codes.
//!
//! | | |
//! |---|---|
//! | `GET /health` | `OK` |
//! | `GET /status` | `{"Processes":{KEY:{"Status":…,"IPAddress":…,"Port":…}}}` |
//! | `GET /metrics` | how hsup stands, for Prometheus; not the original's |
//! | `POST /control/stop` | `{"Processes":["web"]}` → `{"StoppedProcesses":["web"]}` |
//!
//! The original had one entry for each process type; its dynos overwrote one another
//! and the last one stayed. That KEY is kept, and every dyno has one of its own besides.
//! A body that is not JSON is answered with 500, because it was.

use std::{borrow::Cow, collections::BTreeMap};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use hsup_proto::control::{Dyno, DynoState, GetStatusRequest, StopRequest};
use serde::Serialize;
use serde_json::{Map, Value};
use tonic::Status;

use super::{Control, ControlError, metrics};
use crate::name::Selector;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct StatusAnswer<'a> {
    processes: BTreeMap<Cow<'a, str>, ProcessStatus<'a>>,
}

#[derive(Clone, Copy, Serialize)]
struct ProcessStatus<'a> {
    #[serde(rename = "Status")]
    status: &'static str,
    #[serde(rename = "IPAddress")]
    ip_address: &'a str,
    #[serde(rename = "Port")]
    port: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct StopAnswer {
    stopped_processes: Vec<String>,
}

/// The original's paths. A wrong method is answered with 405 and the right ones.
pub(super) fn routes<C: Control>(control: C) -> Router {
    Router::new()
        .route("/health", get(async || "OK"))
        .route("/status", get(status::<C>))
        .route("/metrics", get(metrics_page::<C>))
        .route("/control/stop", post(stop::<C>))
        .with_state(control)
}

/// The answer to every other path, in the words of who asks.
pub(super) async fn not_found(headers: HeaderMap) -> Response {
    let grpc = headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        Status::unimplemented("no such service or method").into_http::<Body>()
    } else {
        (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
    }
}

async fn status<C: Control>(State(control): State<C>) -> Response {
    match control.status(GetStatusRequest::default()).await {
        Ok(status) => json(&StatusAnswer {
            processes: processes(&status.dynos),
        }),
        Err(error) => failed(&error),
    }
}

async fn metrics_page<C: Control>(State(control): State<C>) -> Response {
    let request = GetStatusRequest {
        stats: true,
        ..GetStatusRequest::default()
    };
    let status = match control.status(request).await {
        Ok(status) => status,
        Err(error) => return failed(&error),
    };
    // Who has no releases has none to count.
    let releases = control.list_releases().await.unwrap_or_default().releases;
    let text = metrics::render(&status, &releases, &control.drains());
    let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
    ([(CONTENT_TYPE, kind)], text).into_response()
}

async fn stop<C: Control>(State(control): State<C>, body: Bytes) -> Response {
    let wanted = match wanted(&body) {
        Ok(wanted) => wanted,
        Err(why) => return internal(&why),
    };
    let mut stopped_processes = Vec::new();
    for name in wanted {
        // Never an empty selection, which would mean everything.
        if name.parse::<Selector>().is_err() {
            continue;
        }
        let request = StopRequest {
            select: vec![name.clone()],
            no_wait: true,
            ..Default::default()
        };
        match control.stop(request).await {
            Ok(_) => stopped_processes.push(name),
            // The original left out what it did not know.
            Err(ControlError::NotFound(_) | ControlError::Invalid(_)) => {}
            Err(error) => return failed(&error),
        }
    }
    json(&StopAnswer { stopped_processes })
}

/// The names in the body of a stop, read as the original's decoder did: an object or nothing,
/// its key in any case, and of several the last.
fn wanted(body: &[u8]) -> Result<Vec<String>, String> {
    let mut values = serde_json::Deserializer::from_slice(body).into_iter();
    let object: Option<Map<String, Value>> = match values.next() {
        Some(value) => value.map_err(|error| error.to_string())?,
        None => return Err("EOF".to_owned()),
    };
    let mut wanted = None;
    for (key, value) in object.unwrap_or_default() {
        if key.eq_ignore_ascii_case("Processes") {
            wanted = serde_json::from_value::<Option<Vec<String>>>(value)
                .map_err(|error| format!("Processes: {error}"))?;
        }
    }
    Ok(wanted.unwrap_or_default())
}

/// An entry for each dyno, and one for each type: that of its highest number.
fn processes(dynos: &[Dyno]) -> BTreeMap<Cow<'_, str>, ProcessStatus<'_>> {
    let mut sorted: Vec<&Dyno> = dynos.iter().collect();
    sorted.sort_by_key(|dyno| dyno.number);
    let mut processes = BTreeMap::new();
    for dyno in sorted {
        let status = ProcessStatus {
            status: word(dyno),
            ip_address: &dyno.ip,
            port: dyno.port,
        };
        processes.insert(Cow::from(&*dyno.process_type), status);
        processes.insert(Cow::from(&*dyno.name), status);
    }
    processes
}

/// The original's word for what a dyno does.
///
/// A dyno that was stopped by hand was `Retired` there, and who asks for a stop may be
/// polling for that word; one that has not run yet was `Stopped`.
fn word(dyno: &Dyno) -> &'static str {
    match dyno.state() {
        DynoState::Starting | DynoState::Up => "Started",
        DynoState::Stopping => "Retiring",
        DynoState::Complete => "Retired",
        DynoState::Down if dyno.last_exit.is_some() => "Retired",
        DynoState::Down | DynoState::Crashed | DynoState::Unspecified => "Stopped",
    }
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(mut text) => {
            text.push('\n');
            let kind = HeaderValue::from_static("application/json");
            ([(CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => internal(&error.to_string()),
    }
}

fn failed(error: &ControlError) -> Response {
    let code = match error {
        ControlError::Invalid(_) => StatusCode::BAD_REQUEST,
        ControlError::NotFound(_) => StatusCode::NOT_FOUND,
        ControlError::Rejected(_) => StatusCode::CONFLICT,
        ControlError::ShuttingDown | ControlError::Driver(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, format!("{error}\n")).into_response()
}

fn internal(message: &str) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{message}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use hsup_proto::control::ExitStatus;
    use test_case::test_case;

    use super::*;

    fn dyno(name: &str, state: DynoState, port: u32) -> Dyno {
        let (process_type, number) = name.split_once('.').unwrap();
        Dyno {
            name: name.into(),
            process_type: process_type.into(),
            number: number.parse().unwrap(),
            state: state.into(),
            ip: "127.0.0.1".into(),
            port,
            ..Default::default()
        }
    }

    #[test]
    fn a_type_shows_its_highest_number_in_the_originals_shape() {
        let dynos = [
            dyno("web.10", DynoState::Up, 5009),
            dyno("web.2", DynoState::Crashed, 5001),
            dyno("worker.1", DynoState::Stopping, 0),
        ];
        let text = serde_json::to_string(&StatusAnswer {
            processes: processes(&dynos),
        });
        let expected = concat!(
            r#"{"Processes":{"#,
            r#""web":{"Status":"Started","IPAddress":"127.0.0.1","Port":5009},"#,
            r#""web.10":{"Status":"Started","IPAddress":"127.0.0.1","Port":5009},"#,
            r#""web.2":{"Status":"Stopped","IPAddress":"127.0.0.1","Port":5001},"#,
            r#""worker":{"Status":"Retiring","IPAddress":"127.0.0.1","Port":0},"#,
            r#""worker.1":{"Status":"Retiring","IPAddress":"127.0.0.1","Port":0}}}"#,
        );
        assert_eq!(text.unwrap(), expected);
    }

    #[test_case(r#"{"Processes":["web"]}"# => Ok(vec!["web".into()]))]
    #[test_case(r#"{"x":1,"PROCESSES":["web"]}"# => Ok(vec!["web".into()]); "in any case")]
    #[test_case(r#"{"Processes":["a"],"processes":["b"]}"# => Ok(vec!["b".into()]); "the last")]
    #[test_case(r#"{"Processes":null}"# => Ok(vec![]))]
    #[test_case("null" => Ok(vec![]))]
    #[test_case(r#"{"Processes":["web"]} more"# => Ok(vec!["web".into()]); "one value is read")]
    #[test_case("" => Err("EOF".into()))]
    #[test_case("[]" => Err("invalid type: sequence, expected a map at line 1 column 0".into()))]
    #[test_case(r#"[["web"]]"# => Err("invalid type: sequence, expected a map at line 1 column 0".into()); "no object")]
    #[test_case(r#"{"Processes":"web"}"# => Err(r#"Processes: invalid type: string "web", expected a sequence"#.into()))]
    fn the_body_of_a_stop(body: &str) -> Result<Vec<String>, String> {
        wanted(body.as_bytes())
    }

    #[test_case(DynoState::Starting, false => "Started")]
    #[test_case(DynoState::Up, true => "Started")]
    #[test_case(DynoState::Crashed, true => "Stopped")]
    #[test_case(DynoState::Stopping, false => "Retiring")]
    #[test_case(DynoState::Down, true => "Retired")]
    #[test_case(DynoState::Down, false => "Stopped")]
    #[test_case(DynoState::Complete, true => "Retired")]
    fn the_originals_word(state: DynoState, ended: bool) -> &'static str {
        let mut dyno = dyno("web.1", state, 0);
        dyno.last_exit = ended.then(ExitStatus::default);
        word(&dyno)
    }
}
