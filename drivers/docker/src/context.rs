//! Where the engine is: `DOCKER_HOST`, else the current Docker context, else the usual socket.
//!
//! The same order as that of the `docker` command, so that a dyno runs where `docker ps` looks.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use hsup_driver_kit::hex;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// The socket that an engine has unless it is told otherwise.
const DEFAULT: &str = "/var/run/docker.sock";

/// How an engine is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

/// It is not told, or cannot be reached in that way.
#[derive(Debug, Error)]
pub(crate) enum HostError {
    #[error("the engine's address `{0}` is neither unix://PATH nor tcp://HOST:PORT")]
    Unsupported(String),
    #[error(
        "the engine is to be reached over TLS, which this driver does not speak: use its \
         socket, or forward it (`ssh -L`)"
    )]
    Tls,
    #[error("failed to read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` is not what Docker writes", path.display())]
    Parse {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("the Docker context `{0}` has no endpoint")]
    NoEndpoint(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

impl Host {
    /// The engine that these variables and the files of this home mean.
    pub(crate) fn find(variable: impl Fn(&str) -> Option<String>) -> Result<Self, HostError> {
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        if let Some(host) = variable("DOCKER_HOST") {
            let tls = variable("DOCKER_TLS_VERIFY").is_some();
            return Self::parse(&host, tls);
        }
        let config = variable("DOCKER_CONFIG").map(PathBuf::from);
        let config = config.or_else(|| Some(Path::new(&variable("HOME")?).join(".docker")));
        let Some(config) = config else {
            return Ok(Self::usual());
        };
        let context = match variable("DOCKER_CONTEXT") {
            Some(name) => Some(name),
            None => current_context(&config)?,
        };
        match context.as_deref() {
            None | Some("" | "default") => Ok(Self::usual()),
            Some(name) => of_context(&config, name),
        }
    }

    fn usual() -> Self {
        Self::Unix(DEFAULT.into())
    }

    /// An address as `DOCKER_HOST` has it.
    pub(crate) fn parse(text: &str, tls: bool) -> Result<Self, HostError> {
        let unsupported = || HostError::Unsupported(text.to_owned());
        match text.split_once("://").ok_or_else(unsupported)? {
            ("unix", path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            ("https", _) => Err(HostError::Tls),
            ("tcp" | "http", _) if tls => Err(HostError::Tls),
            ("tcp" | "http", address) if !address.is_empty() => {
                let address = address.trim_end_matches('/');
                let has_port = address
                    .rsplit_once(':')
                    .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                Ok(Self::Tcp(if has_port {
                    address.to_owned()
                } else {
                    format!("{address}:2375")
                }))
            }
            _ => Err(unsupported()),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    current_context: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Meta {
    endpoints: Endpoints,
}

#[derive(Deserialize)]
struct Endpoints {
    docker: Option<Endpoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    host: String,
}

/// What `docker context use` has set.
fn current_context(config: &Path) -> Result<Option<String>, HostError> {
    let path = config.join("config.json");
    match fs::read(&path) {
        Ok(bytes) => {
            let config: Config = parse(path, &bytes)?;
            Ok(config.current_context)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HostError::Read { path, source }),
    }
}

/// The endpoint of a context, which is in a folder that has the hash of its name for its own.
fn of_context(config: &Path, name: &str) -> Result<Host, HostError> {
    let hash = hex::encode(&Sha256::digest(name.as_bytes()));
    let contexts = config.join("contexts");
    let path = contexts.join("meta").join(&hash).join("meta.json");
    let bytes = fs::read(&path).map_err(|source| HostError::Read {
        path: path.clone(),
        source,
    })?;
    let meta: Meta = parse(path, &bytes)?;
    let endpoint = meta.endpoints.docker;
    let endpoint = endpoint.ok_or_else(|| HostError::NoEndpoint(name.to_owned()))?;
    let tls = contexts.join("tls").join(&hash).exists();
    Host::parse(&endpoint.host, tls)
}

fn parse<T: for<'de> Deserialize<'de>>(path: PathBuf, bytes: &[u8]) -> Result<T, HostError> {
    serde_json::from_slice(bytes).map_err(|source| HostError::Parse { path, source })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use test_case::test_case;

    use super::*;

    fn find(variables: &[(&str, &str)]) -> Result<Host, HostError> {
        Host::find(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = fs::File::create(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// A home whose current context is `remote`, which is at `host`.
    fn home(host: &str) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        let docker = home.path().join(".docker");
        let config = r#"{"auths":{},"currentContext":"remote"}"#;
        write(&docker.join("config.json"), config);
        let hash = hex::encode(&Sha256::digest(b"remote"));
        let meta = format!(
            r#"{{"Name":"remote","Metadata":{{}},"Endpoints":{{"docker":{{"Host":"{host}","SkipTLSVerify":false}}}}}}"#
        );
        let path = docker.join("contexts/meta").join(hash).join("meta.json");
        write(&path, &meta);
        home
    }

    #[test_case("unix:///run/podman/podman.sock", "unix:///run/podman/podman.sock")]
    #[test_case("tcp://10.0.0.1:2375", "tcp://10.0.0.1:2375")]
    #[test_case("tcp://box", "tcp://box:2375")]
    #[test_case("tcp://box/", "tcp://box:2375")]
    #[test_case("http://[::1]:1234", "tcp://[::1]:1234")]
    fn the_variable_says_it(host: &str, expected: &str) {
        let found = find(&[("DOCKER_HOST", host)]).unwrap();
        assert_eq!(found.to_string(), expected);
    }

    #[test_case("ssh://box")]
    #[test_case("npipe:////./pipe/docker_engine")]
    #[test_case("/var/run/docker.sock")]
    #[test_case("unix://relative")]
    #[test_case("tcp://")]
    fn what_is_not_spoken_is_refused(host: &str) {
        let error = find(&[("DOCKER_HOST", host)]).unwrap_err();
        assert!(matches!(error, HostError::Unsupported(_)), "{error}");
    }

    #[test]
    fn tls_is_refused_rather_than_left_away() {
        let variables = [
            ("DOCKER_HOST", "tcp://box:2376"),
            ("DOCKER_TLS_VERIFY", "1"),
        ];
        assert!(matches!(find(&variables), Err(HostError::Tls)));
    }

    #[test]
    fn the_current_context_says_it() {
        let home = home("tcp://box:2375");
        let path = home.path().to_str().unwrap();
        let found = find(&[("HOME", path)]).unwrap();
        assert_eq!(found, Host::Tcp("box:2375".to_owned()));
        // The variables go first.
        let found = find(&[("HOME", path), ("DOCKER_CONTEXT", "default")]).unwrap();
        assert_eq!(found, Host::usual());
        let unix = ("DOCKER_HOST", "unix:///x");
        let found = find(&[("HOME", path), unix]).unwrap();
        assert_eq!(found, Host::Unix("/x".into()));
    }

    #[test]
    fn a_context_that_is_not_there_is_named() {
        let home = home("tcp://box:2375");
        let path = home.path().to_str().unwrap();
        let error = find(&[("HOME", path), ("DOCKER_CONTEXT", "other")]).unwrap_err();
        assert!(matches!(error, HostError::Read { .. }), "{error}");
    }

    #[test]
    fn without_anything_it_is_the_usual_socket() {
        assert_eq!(find(&[]).unwrap(), Host::usual());
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_str().unwrap();
        assert_eq!(find(&[("HOME", path)]).unwrap(), Host::usual());
    }
}
