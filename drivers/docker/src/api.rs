//! Calls that the client library does not make, or whose answers it does not take.
//!
//! The library refuses an answer with a container state that Docker's engine does not have, and
//! Podman has some more. Of an answer only what is used here is read.

use std::{collections::HashMap, time::Duration};

use bollard::{ClientVersion, body_full, errors::Error};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{HeaderMap, Request, StatusCode};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use tokio::time;

use crate::{
    connect::{Caller, TIMEOUT},
    engine,
    swarm::{Node, Task},
};

/// Longer than any answer.
const LONGEST: usize = 64 << 20;

/// The engine's API, in a version of it that the engine has. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    caller: Caller,
    version: String,
}

/// What an engine says of itself at the door.
#[derive(Debug)]
pub(crate) struct Greeting {
    /// The newest version of the API that it has, if it is one.
    pub(crate) version: Option<ClientVersion>,
    pub(crate) is_podman: bool,
}

/// A container, as far as it matters here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) state: State,
    pub(crate) config: Config,
    pub(crate) network_settings: Network,
}

/// How far it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct State {
    /// One word for it; which there are is for the engine to say.
    pub(crate) status: String,
    pub(crate) running: bool,
    pub(crate) restarting: bool,
    #[serde(rename = "OOMKilled")]
    pub(crate) oom_killed: bool,
    pub(crate) exit_code: Option<i64>,
    pub(crate) started_at: Option<String>,
    pub(crate) finished_at: Option<String>,
}

/// What it was made with.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Config {
    #[serde(deserialize_with = "or_none")]
    pub(crate) labels: HashMap<String, String>,
    pub(crate) tty: bool,
}

/// Where it is reached.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Network {
    #[serde(deserialize_with = "or_none")]
    pub(crate) ports: HashMap<String, Option<Vec<Binding>>>,
    #[serde(deserialize_with = "or_none")]
    pub(crate) networks: HashMap<String, Endpoint>,
}

/// A port of the host.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Binding {
    pub(crate) host_ip: String,
    pub(crate) host_port: String,
}

/// A place in a network.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Endpoint {
    #[serde(rename = "IPAddress")]
    pub(crate) ip_address: String,
}

/// What an engine says when it does not do what it was asked for.
#[derive(Default, Deserialize)]
struct Refusal {
    message: String,
}

/// A network of the engine.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Made {
    created: Option<String>,
}

/// One of a list.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
}

impl Api {
    pub(crate) fn new(caller: Caller, version: &ClientVersion) -> Self {
        let version = version.to_string();
        Self { caller, version }
    }

    /// A container, by its id or name.
    pub(crate) async fn inspect(&self, container: &str) -> Result<Container, Error> {
        self.get(&format!("/containers/{container}/json")).await
    }

    /// The ids of the containers that have a label with this value, whatever has become of them.
    pub(crate) async fn labelled(&self, label: &str, value: &str) -> Result<Vec<String>, Error> {
        let filters = serde_json::json!({ "label": [format!("{label}={value}")] });
        let filters = encode(&filters.to_string());
        let path = format!("/containers/json?all=1&filters={filters}");
        let found: Vec<Listed> = self.get(&path).await?;
        Ok(found.into_iter().map(|container| container.id).collect())
    }

    /// When the engine began, by its own clock, if there is a sign of it: each time it makes the
    /// network anew that containers have by default, but where some outlived the one before. It has
    /// no word for it. One without that network has none, and Podman has another.
    pub(crate) async fn began(&self) -> Result<Option<String>, Error> {
        match self.get::<Made>("/networks/bridge").await {
            Ok(network) => Ok(network.created),
            Err(error) if engine::is_unknown(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The tasks of a Swarm that have a label with this value.
    pub(crate) async fn tasks(&self, label: &str, value: &str) -> Result<Vec<Task>, Error> {
        let filters = serde_json::json!({ "label": [format!("{label}={value}")] });
        let filters = encode(&filters.to_string());
        self.get(&format!("/tasks?filters={filters}")).await
    }

    /// The nodes of a Swarm.
    pub(crate) async fn nodes(&self) -> Result<Vec<Node>, Error> {
        self.get("/nodes").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let (_, body) = get(&self.caller, &format!("/v{}{path}", self.version)).await?;
        Ok(serde_json::from_slice(&body)?)
    }
}

/// Asks an engine who it is. Every one answers this, in any version, and without having to look.
pub(crate) async fn greet(caller: &Caller) -> Result<Greeting, Error> {
    let (headers, _) = get(caller, "/_ping").await?;
    let version = headers.get("Api-Version");
    Ok(Greeting {
        version: version.and_then(|version| parse(version.to_str().ok()?)),
        is_podman: headers.contains_key("Libpod-Api-Version"),
    })
}

fn parse(version: &str) -> Option<ClientVersion> {
    let (major, minor) = version.split_once('.')?;
    Some(ClientVersion {
        major_version: major.parse().ok()?,
        minor_version: minor.parse().ok()?,
    })
}

async fn get(caller: &Caller, path: &str) -> Result<(HeaderMap, Bytes), Error> {
    // The name is for the request's head alone.
    let request = Request::get(format!("http://docker{path}")).body(body_full(Bytes::new()))?;
    let asking = async {
        let answer = caller.call(request).await?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, LONGEST).collect().await;
        let body = body.map_err(broken)?.to_bytes();
        if head.status == StatusCode::OK {
            return Ok((head.headers, body));
        }
        let refusal = serde_json::from_slice(&body).unwrap_or(Refusal {
            message: String::from_utf8_lossy(&body).into_owned(),
        });
        Err(Error::DockerResponseServerError {
            status_code: head.status.as_u16(),
            message: refusal.message,
        })
    };
    let within = Duration::from_secs(TIMEOUT);
    let answer = time::timeout(within, asking).await;
    answer.map_err(|_| Error::RequestTimeoutError)?
}

/// An answer that broke off, or has no end.
fn broken(error: Box<dyn std::error::Error + Send + Sync>) -> Error {
    if error.is::<LengthLimitError>() {
        return std::io::Error::other("the engine's answer has no end").into();
    }
    match error.downcast::<hyper::Error>() {
        Ok(error) => (*error).into(),
        Err(error) => std::io::Error::other(error).into(),
    }
}

/// Go's word for an empty map is `null`.
pub(crate) fn or_none<'a, D: Deserializer<'a>, T: Default + Deserialize<'a>>(
    from: D,
) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// A text as it may stand in a query.
fn encode(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_may_be_in_a_state_that_nobody_knows() {
        let answer = r#"{
            "Id": "c0ffee",
            "State": {"Status": "stopped", "Running": false, "OOMKilled": true, "ExitCode": 7},
            "Config": {"Labels": null, "Tty": true},
            "NetworkSettings": {"Ports": null, "Networks": {"bridge": {"IPAddress": "10.0.0.2"}}}
        }"#;
        let found: Container = serde_json::from_str(answer).unwrap();
        assert_eq!(found.state.status, "stopped");
        assert_eq!(found.state.exit_code, Some(7));
        assert!(found.state.oom_killed && found.config.tty && found.config.labels.is_empty());
        assert_eq!(
            found.network_settings.networks["bridge"].ip_address,
            "10.0.0.2"
        );
    }

    #[test]
    fn versions_are_two_numbers() {
        let version = parse("1.41").unwrap();
        assert_eq!((version.major_version, version.minor_version), (1, 41));
        for text in ["", "1", "1.x", "v1.41"] {
            assert!(parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_query_has_no_other_meaning() {
        assert_eq!(
            encode(r#"{"a":["b=c"]}"#),
            "%7B%22a%22%3A%5B%22b%3Dc%22%5D%7D"
        );
    }
}
