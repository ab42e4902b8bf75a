//! Where the engine is: `DOCKER_HOST`, else the current Docker context, else the usual socket.
//!
//! The same order as that of the `docker` command, so that a dyno runs where `docker ps` looks.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use hsup_driver_kit::hex;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::docker_files::{self, FileError};

/// The socket that an engine has unless it is told otherwise.
const DEFAULT: &str = "/var/run/docker.sock";

/// How an engine is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
    /// The same, and the folder with `ca.pem`, `cert.pem` and `key.pem`.
    Tls {
        address: String,
        certificates: PathBuf,
    },
    Ssh(Ssh),
}

/// A machine that is reached by `ssh`, as it calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ssh {
    pub(crate) user: Option<String>,
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
}

/// It is not told, or cannot be reached in that way.
#[derive(Debug, Error)]
pub(crate) enum HostError {
    #[error(
        "the engine's address `{0}` is none of unix://PATH, tcp://HOST:PORT and ssh://[USER@]HOST[:PORT]"
    )]
    Unsupported(String),
    #[error(
        "the engine's address asks for TLS, and nobody says where its certificates are: set \
         DOCKER_CERT_PATH"
    )]
    NoCertificates,
    #[error(
        "the Docker context `{0}` asks for TLS that verifies nothing, which this driver does not \
         do: give it the engine's ca.pem"
    )]
    NotVerified(String),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the Docker context `{0}` has no endpoint")]
    NoEndpoint(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) | Self::Tls { address, .. } => write!(f, "tcp://{address}"),
            Self::Ssh(Ssh { user, host, port }) => {
                f.write_str("ssh://")?;
                if let Some(user) = user {
                    write!(f, "{user}@")?;
                }
                f.write_str(host)?;
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
        }
    }
}

impl Host {
    /// The engine that these variables and the files of this home mean; `given` goes before
    /// `DOCKER_HOST`.
    pub(crate) fn find(
        given: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, HostError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let config = docker_files::folder(variable);
        if let Some(host) = given.map(str::to_owned).or_else(|| variable("DOCKER_HOST")) {
            // The Go hsup took a folder of certificates alone for the wish, which the `docker`
            // command does not: a connection without TLS is what nobody means by it.
            let certificates = match variable("DOCKER_CERT_PATH") {
                Some(certificates) => Some(certificates.into()),
                None if variable("DOCKER_TLS_VERIFY").is_none() => None,
                None => Some(config.ok_or(HostError::NoCertificates)?),
            };
            return Self::parse(&host, certificates);
        }
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

    /// An address as `DOCKER_HOST` has it, with TLS where there are certificates.
    pub(crate) fn parse(text: &str, certificates: Option<PathBuf>) -> Result<Self, HostError> {
        let unsupported = || HostError::Unsupported(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(unsupported)?;
        let rest = match scheme {
            "unix" => rest,
            _ => rest.trim_end_matches('/'),
        };
        match scheme {
            "unix" if rest.starts_with('/') => Ok(Self::Unix(rest.into())),
            "https" if certificates.is_none() => Err(HostError::NoCertificates),
            "tcp" | "http" | "https" if !rest.is_empty() => Ok(match certificates {
                Some(certificates) => Self::Tls {
                    address: with_port(rest, 2376),
                    certificates,
                },
                None => Self::Tcp(with_port(rest, 2375)),
            }),
            // A path would be that of another socket there.
            "ssh" if !rest.contains('/') => Ssh::parse(rest).map(Self::Ssh).ok_or_else(unsupported),
            _ => Err(unsupported()),
        }
    }
}

impl Ssh {
    /// `[USER@]HOST[:PORT]`. What begins with a dash would be an option of ssh.
    fn parse(text: &str) -> Option<Self> {
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) => (Some(user.to_owned()), rest),
            None => (None, text),
        };
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, Some(port.parse().ok()?))
            }
            _ => (rest, None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_good = |name: &str| !name.is_empty() && !name.starts_with('-');
        let is_all_good = is_good(host) && user.as_deref().is_none_or(is_good);
        is_all_good.then(|| Self {
            user,
            host: host.to_owned(),
            port,
        })
    }
}

fn with_port(address: &str, default: u16) -> String {
    let has_port = address
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if has_port {
        address.to_owned()
    } else {
        format!("{address}:{default}")
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
    #[serde(default, rename = "SkipTLSVerify")]
    skip_tls_verify: bool,
}

/// What `docker context use` has set.
fn current_context(config: &Path) -> Result<Option<String>, HostError> {
    let path = config.join(docker_files::CONFIG);
    let read = fs::read(&path);
    match docker_files::parse::<Config>(path, read) {
        Ok(config) => Ok(config.current_context),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The endpoint of a context, which is in a folder that has the hash of its name for its own.
fn of_context(config: &Path, name: &str) -> Result<Host, HostError> {
    let hash = hex::encode(&Sha256::digest(name.as_bytes()));
    let contexts = config.join("contexts");
    let path = contexts.join("meta").join(&hash).join("meta.json");
    let read = fs::read(&path);
    let meta: Meta = docker_files::parse(path, read)?;
    let endpoint = meta.endpoints.docker;
    let endpoint = endpoint.ok_or_else(|| HostError::NoEndpoint(name.to_owned()))?;
    let certificates = contexts.join("tls").join(&hash).join("docker");
    let certificates = certificates.exists().then_some(certificates);
    if certificates.is_some() && endpoint.skip_tls_verify {
        return Err(HostError::NotVerified(name.to_owned()));
    }
    Host::parse(&endpoint.host, certificates)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use test_case::test_case;

    use super::*;

    fn find(variables: &[(&str, &str)]) -> Result<Host, HostError> {
        Host::find(None, |name| {
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
    #[test_case("ssh://box", "ssh://box")]
    #[test_case("ssh://me@box:2222/", "ssh://me@box:2222")]
    fn the_variable_says_it(host: &str, expected: &str) {
        let found = find(&[("DOCKER_HOST", host)]).unwrap();
        assert_eq!(found.to_string(), expected);
    }

    #[test_case("ssh://")]
    #[test_case("ssh://-oProxyCommand=x")]
    #[test_case("ssh://-l@box")]
    #[test_case("ssh://box:x")]
    #[test_case("ssh://box/run/docker.sock")]
    #[test_case("npipe:////./pipe/docker_engine")]
    #[test_case("/var/run/docker.sock")]
    #[test_case("unix://relative")]
    #[test_case("tcp://")]
    fn what_is_not_spoken_is_refused(host: &str) {
        let error = find(&[("DOCKER_HOST", host)]).unwrap_err();
        assert!(matches!(error, HostError::Unsupported(_)), "{error}");
    }

    #[test]
    fn tls_is_had_by_certificates_or_the_variable_that_asks_for_it() {
        let verify = ("DOCKER_TLS_VERIFY", "1");
        let tls = |address: &str, certificates: &str| Host::Tls {
            address: address.to_owned(),
            certificates: certificates.into(),
        };
        let host = ("DOCKER_HOST", "tcp://box");
        let found = find(&[host, verify, ("DOCKER_CERT_PATH", "/certs")]).unwrap();
        assert_eq!(found, tls("box:2376", "/certs"));
        let found = find(&[host, verify, ("HOME", "/home/me")]).unwrap();
        assert_eq!(found, tls("box:2376", "/home/me/.docker"));
        let found = find(&[host, ("DOCKER_CERT_PATH", "/certs")]).unwrap();
        assert_eq!(found, tls("box:2376", "/certs"));
        let found = find(&[host, ("HOME", "/home/me")]).unwrap();
        assert_eq!(found, Host::Tcp("box:2375".to_owned()));
        let unix = ("DOCKER_HOST", "unix:///x");
        let found = find(&[unix, ("DOCKER_CERT_PATH", "/certs")]).unwrap();
        assert_eq!(found, Host::Unix("/x".into()));
        // Never without it where it is asked for.
        let without = find(&[host, verify]);
        assert!(matches!(without, Err(HostError::NoCertificates)));
        let without = find(&[("DOCKER_HOST", "https://box")]);
        assert!(matches!(without, Err(HostError::NoCertificates)));
    }

    #[test]
    fn a_context_has_certificates_of_its_own() {
        let home = home("tcp://box:2376");
        let hash = hex::encode(&Sha256::digest(b"remote"));
        let tls = home.path().join(".docker/contexts/tls").join(hash);
        write(&tls.join("docker/ca.pem"), "");
        let found = find(&[("HOME", home.path().to_str().unwrap())]).unwrap();
        let expected = Host::Tls {
            address: "box:2376".to_owned(),
            certificates: tls.join("docker"),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_given_goes_first() {
        let variables = [("DOCKER_HOST", "tcp://box")];
        let found = Host::find(Some("unix:///x"), |name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        });
        assert_eq!(found.unwrap(), Host::Unix("/x".into()));
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
        assert!(
            matches!(error, HostError::File(FileError::Read { .. })),
            "{error}"
        );
    }

    #[test]
    fn without_anything_it_is_the_usual_socket() {
        assert_eq!(find(&[]).unwrap(), Host::usual());
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_str().unwrap();
        assert_eq!(find(&[("HOME", path)]).unwrap(), Host::usual());
    }
}
