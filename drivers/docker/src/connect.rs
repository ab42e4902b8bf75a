//! Connections to the engine, whatever they go through: its socket, a network with or without
//! TLS, or `ssh`, in the way in which the `docker` command does it.
//!
//! One way for all calls and for the streams of dynos, so that what reaches an engine with one
//! reaches it with the other.

use std::{
    fmt::{self, Debug},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    process::Stdio,
    sync::Arc,
    task::{Context, Poll},
};

use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker, errors::Error};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo},
};
use nix::unistd::{Gid, Group};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, join},
    net::{TcpStream, UnixStream},
    process::Command,
};
use tokio_rustls::TlsConnector;
use tower_service::Service;

use crate::context::{Host, Ssh};

/// How long a call may take before its answer begins, in seconds.
const TIMEOUT: u64 = 55;
/// How many connections wait for the next call, where making one takes long.
const IDLE: usize = 8;

/// A connection, whatever it goes through.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Debug + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Debug + Send + Unpin> Duplex for T {}

/// What TLS needs is not there.
#[derive(Debug, Error)]
pub(crate) enum TlsError {
    #[error("failed to read `{}`, which the engine's address asks for", path.display())]
    Pem {
        path: PathBuf,
        source: rustls::pki_types::pem::Error,
    },
    #[error("the certificates in `{}` are of no use", directory.display())]
    Useless {
        directory: PathBuf,
        source: rustls::Error,
    },
    #[error("the engine's address `{0}` has no name that a certificate could have")]
    Name(String),
}

/// Makes connections to one engine. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connector(Arc<Way>);

enum Way {
    Unix(PathBuf),
    Tcp(String),
    Tls {
        address: String,
        name: ServerName<'static>,
        connector: TlsConnector,
    },
    Ssh(Ssh),
}

impl Connector {
    pub(crate) fn new(host: &Host) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(match host {
            Host::Unix(path) => Way::Unix(path.clone()),
            Host::Tcp(address) => Way::Tcp(address.clone()),
            Host::Tls {
                address,
                certificates,
            } => Way::Tls {
                address: address.clone(),
                name: server_name(address)?,
                connector: TlsConnector::from(Arc::new(tls(certificates)?)),
            },
            Host::Ssh(ssh) => Way::Ssh(ssh.clone()),
        })))
    }

    /// Makes one.
    pub(crate) async fn connect(&self) -> io::Result<Box<dyn Duplex>> {
        Ok(match &*self.0 {
            Way::Unix(path) => Box::new(
                UnixStream::connect(path)
                    .await
                    .map_err(|error| socket_error(path, &error))?,
            ),
            Way::Tcp(address) => Box::new(TcpStream::connect(address).await?),
            Way::Tls {
                address,
                name,
                connector,
            } => {
                let tcp = TcpStream::connect(address).await?;
                Box::new(connector.connect(name.clone(), tcp).await?)
            }
            Way::Ssh(ssh) => dial(ssh)?,
        })
    }

    /// A client of the engine, which need not be there.
    pub(crate) fn client(&self) -> Result<Docker, Error> {
        let is_dear = matches!(&*self.0, Way::Tls { .. } | Way::Ssh(_));
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(if is_dear { IDLE } else { 0 })
            .build(self.clone());
        let transport = move |request: BollardRequest| {
            let answer = client.request(request);
            async move { answer.await.map_err(Error::from) }
        };
        // The name stands in requests, and nobody looks it up.
        let name = Some("http://docker");
        Docker::connect_with_custom_transport(transport, name, TIMEOUT, API_DEFAULT_VERSION)
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

/// As the client library wants it.
#[derive(Debug)]
pub(crate) struct Stream(TokioIo<Box<dyn Duplex>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Service<hyper::Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: hyper::Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { Ok(Stream(TokioIo::new(connector.connect().await?))) })
    }
}

/// Says what to do about a socket that cannot be connected to.
fn socket_error(path: &Path, error: &io::Error) -> io::Error {
    let shown = path.display();
    let text = match error.kind() {
        io::ErrorKind::NotFound => format!("there is no socket `{shown}`: is the engine running?"),
        io::ErrorKind::ConnectionRefused => {
            format!("nobody serves `{shown}`: is the engine running?")
        }
        io::ErrorKind::PermissionDenied => {
            let owner = fs::metadata(path).ok().map(|found| found.gid());
            let group = owner.and_then(|gid| Group::from_gid(Gid::from_raw(gid)).ok().flatten());
            match group {
                Some(group) => format!(
                    "this user may not use `{shown}`: its group is `{}` \
                     (`sudo usermod -aG {} USER`, and log in anew)",
                    group.name, group.name
                ),
                None => format!("this user may not use `{shown}`"),
            }
        }
        _ => format!("failed to connect to `{shown}`: {error}"),
    };
    io::Error::new(error.kind(), text)
}

/// The name that the engine's certificate must have.
fn server_name(address: &str) -> Result<ServerName<'static>, TlsError> {
    let name = address.rsplit_once(':').map_or(address, |(name, _)| name);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(address.to_owned()))
}

/// The files are those of the `docker` command: `ca.pem`, and `cert.pem` and `key.pem` where the
/// engine asks who calls.
fn tls(directory: &Path) -> Result<ClientConfig, TlsError> {
    let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let path = directory.join(name);
        CertificateDer::pem_file_iter(&path)
            .and_then(Iterator::collect)
            .map_err(|source| TlsError::Pem { path, source })
    };
    let useless = |source| TlsError::Useless {
        directory: directory.to_owned(),
        source,
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca.pem")? {
        roots.add(certificate).map_err(useless)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(useless)?
        .with_root_certificates(roots);
    if !directory.join("cert.pem").exists() {
        return Ok(config.with_no_client_auth());
    }
    let path = directory.join("key.pem");
    let key = PrivateKeyDer::from_pem_file(&path);
    let key = key.map_err(|source| TlsError::Pem { path, source })?;
    let chain = certificates("cert.pem")?;
    config.with_client_auth_cert(chain, key).map_err(useless)
}

/// What `docker` does with an address of ssh: its other half on that machine passes on bytes.
fn dial(to: &Ssh) -> io::Result<Box<dyn Duplex>> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a program of this machine, and no dyno"
    )]
    let mut ssh = Command::new("ssh");
    // Nobody is there to be asked.
    ssh.args(["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30"]);
    if let Some(user) = &to.user {
        ssh.args(["-l", user]);
    }
    if let Some(port) = to.port {
        ssh.args(["-p", &port.to_string()]);
    }
    ssh.args(["--", &to.host, "docker", "system", "dial-stdio"]);
    let mut child = ssh
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("failed to start ssh: {error}")))?;
    let ends = child.stdout.take().zip(child.stdin.take());
    let (reads, writes) = ends.ok_or_else(|| io::Error::other("ssh has no pipes"))?;
    Ok(Box::new(Dialled {
        streams: join(reads, writes),
        _ssh: child,
    }))
}

/// The streams of an `ssh`, which ends with them.
#[derive(Debug)]
struct Dialled {
    streams: tokio::io::Join<tokio::process::ChildStdout, tokio::process::ChildStdin>,
    _ssh: tokio::process::Child,
}

impl AsyncRead for Dialled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.streams).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.streams).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.streams).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.streams).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_of_no_use_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let connector = Connector::new(&Host::Unix(path.clone())).unwrap();
        let said = async || connector.connect().await.unwrap_err().to_string();
        assert!(said().await.contains("there is no socket"));
        drop(UnixListener::bind(&path).unwrap());
        assert!(said().await.contains("nobody serves"));
    }

    #[test]
    fn who_may_not_use_a_socket_is_told_its_group() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let gid = Gid::from_raw(file.as_file().metadata().unwrap().gid());
        let group = Group::from_gid(gid).unwrap().unwrap().name;
        let error = io::Error::from(io::ErrorKind::PermissionDenied);
        let said = socket_error(file.path(), &error).to_string();
        assert!(
            said.contains(&format!("usermod -aG {group} USER")),
            "{said}"
        );
    }

    #[test]
    fn certificates_that_are_not_there_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::Tls {
            address: "box:2376".to_owned(),
            certificates: folder.path().to_owned(),
        };
        let error = Connector::new(&host).unwrap_err().to_string();
        assert!(error.contains("ca.pem"), "{error}");
    }
}
