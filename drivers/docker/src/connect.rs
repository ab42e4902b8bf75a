//! Connections to the engine, whatever they go through: its socket, a network with or without
//! TLS, or `ssh`, in the way in which the `docker` command does it.
//!
//! One way for all calls and for the streams of dynos, so that what reaches an engine with one
//! reaches it with the other.

mod ssh;

use std::{
    error,
    fmt::{self, Debug},
    fs, io, iter,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bollard::{BollardRequest, ClientVersion, Docker, errors::Error};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use hsup_driver_kit::errors;
use http_body_util::{Either, Full, StreamBody};
use hyper::{
    Response,
    body::{Frame, Incoming},
    header::HeaderValue,
};
use hyper_util::{
    client::legacy::{
        self, Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo},
};
use nix::{
    sys::socket::{
        setsockopt,
        sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval},
    },
    unistd::{Gid, Group},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;
use tower_service::Service;

use crate::context::{Host, Ssh};

/// How long a call may take before its answer begins, in seconds.
pub(crate) const TIMEOUT: u64 = 55;
/// Where credentials for a registry are.
const LOGIN: &str = "X-Registry-Auth";
/// How many connections wait for the next call, where making one takes long.
const IDLE: usize = 8;

/// After how many seconds of silence the other end of a connection is asked whether it is there, and
/// how often it may fail to answer.
const SILENCE: u32 = 20;
const SILENCES: u32 = 3;

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
            Way::Tcp(address) => Box::new(tcp(address).await?),
            Way::Tls {
                address,
                name,
                connector,
            } => {
                let tcp = tcp(address).await?;
                Box::new(connector.connect(name.clone(), tcp).await?)
            }
            Way::Ssh(to) => ssh::dial(to)?,
        })
    }

    /// What makes calls on its connections.
    pub(crate) fn caller(&self) -> Caller {
        let is_dear = matches!(&*self.0, Way::Tls { .. } | Way::Ssh(_));
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(if is_dear { IDLE } else { 0 })
            .build(self.clone());
        Caller(client)
    }
}

/// A connection over a network. A dyno is waited for in silence, for days: what is between must not
/// forget the connection, and one that is gone must not be waited for.
async fn tcp(address: &str) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    setsockopt(&tcp, KeepAlive, &true)?;
    setsockopt(&tcp, TcpKeepIdle, &SILENCE)?;
    setsockopt(&tcp, TcpKeepInterval, &SILENCE)?;
    setsockopt(&tcp, TcpKeepCount, &SILENCES)?;
    Ok(tcp)
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

/// Makes calls to one engine, which need not be there. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Caller(Client<Connector, Body>);

/// What is sent with a call, as the client library has it.
type Body = Either<Full<Bytes>, StreamBody<BoxStream<'static, io::Result<Frame<Bytes>>>>>;

impl Caller {
    /// Makes one call.
    pub(crate) async fn call(
        &self,
        mut request: BollardRequest,
    ) -> Result<Response<Incoming>, Error> {
        if let Some(login) = request.headers_mut().get_mut(LOGIN) {
            *login = in_an_engines_digits(login);
        }
        self.0.request(request).await.map_err(failure)
    }

    /// The client library, with these connections.
    pub(crate) fn docker(&self, version: &ClientVersion) -> Result<Docker, Error> {
        let caller = self.clone();
        let transport = move |request: BollardRequest| {
            let caller = caller.clone();
            async move { caller.call(request).await }
        };
        // The name stands in requests, and nobody looks it up.
        let name = Some("http://docker");
        Docker::connect_with_custom_transport(transport, name, TIMEOUT, version)
    }
}

/// What became of a call. A connection that cannot be made is told in the words of who tried.
fn failure(error: legacy::Error) -> Error {
    let mut causes = iter::successors(error::Error::source(&error), |cause| cause.source());
    if let Some(ended) = causes.find_map(|cause| {
        let cause: &io::Error = cause.downcast_ref()?;
        cause.get_ref()?.downcast_ref::<ssh::Ended>()
    }) {
        return io::Error::other(ended.to_string()).into();
    }
    let cause = error::Error::source(&error).and_then(<dyn error::Error>::downcast_ref);
    match cause {
        Some(cause) if error.is_connect() => {
            let cause: &io::Error = cause;
            io::Error::new(cause.kind(), errors::chain(cause)).into()
        }
        _ => error.into(),
    }
}

/// Engines read the base64 of URLs, and the client library writes the other, of which an engine
/// takes only what is the same in both.
fn in_an_engines_digits(text: &HeaderValue) -> HeaderValue {
    let digit = |byte: &u8| match byte {
        b'+' => b'-',
        b'/' => b'_',
        byte => *byte,
    };
    let bytes: Vec<_> = text.as_bytes().iter().map(digit).collect();
    let mut text = HeaderValue::from_bytes(&bytes).unwrap_or_else(|_| text.clone());
    text.set_sensitive(true);
    text
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

/// The name of a machine that is reached by `ssh`.
pub(crate) async fn machine(to: &crate::context::Ssh) -> io::Result<String> {
    ssh::machine(to).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use nix::sys::socket::getsockopt;

    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_of_no_use_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let connector = Connector::new(&Host::Unix(path.clone())).unwrap();
        let caller = connector.caller();
        let said = async || errors::chain(&crate::api::greet(&caller).await.unwrap_err());
        let text = said().await;
        assert!(text.starts_with("there is no socket"), "{text}");
        drop(UnixListener::bind(&path).unwrap());
        // What another test spawns meanwhile holds it too, until its `exec`.
        while std::os::unix::net::UnixStream::connect(&path).is_ok() {}
        let text = said().await;
        assert!(text.starts_with("nobody serves"), "{text}");
    }

    #[tokio::test]
    async fn a_silent_connection_is_looked_after() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let tcp = tcp(&address).await.unwrap();
        assert!(getsockopt(&tcp, KeepAlive).unwrap());
        assert_eq!(getsockopt(&tcp, TcpKeepIdle).unwrap(), SILENCE);
        assert_eq!(getsockopt(&tcp, TcpKeepInterval).unwrap(), SILENCE);
        assert_eq!(getsockopt(&tcp, TcpKeepCount).unwrap(), SILENCES);
    }

    #[test]
    fn credentials_are_in_the_digits_that_engines_read() {
        let text = in_an_engines_digits(&HeaderValue::from_static("ab+/=="));
        assert_eq!(text, "ab-_==");
        assert_eq!(format!("{text:?}"), "Sensitive");
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
