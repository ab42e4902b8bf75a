//! Batches over a connection that nothing comes back on: TCP, TLS or a unix socket.
//!
//! A batch counts as sent when the kernel has taken all of it, for syslog has no answer that
//! would tell more. A batch whose write fails is sent again as a whole over a new connection, so
//! its first lines may come twice. Before each batch we look whether the other end has closed
//! the connection, since what is written to it then goes nowhere.

use std::{io, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use rustls::{ClientConfig, pki_types::ServerName};
use rustls_platform_verifier::ConfigVerifierExt as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    task::yield_now,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{batch::Batch, retry::Answer, target::Peer};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const TAKE_WITHIN: Duration = Duration::from_secs(15);

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection to a drain, made when it is needed.
pub(super) struct Stream {
    peer: Peer,
    tls: Option<TlsConnector>,
    connection: Option<Box<dyn Io>>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl Stream {
    pub(super) const fn new(peer: Peer) -> Self {
        Self {
            peer,
            tls: None,
            connection: None,
        }
    }

    pub(super) async fn deliver(&mut self, batch: &Batch) -> Answer {
        match self.write(batch).await {
            Ok(()) => Answer::Taken,
            Err(error) => {
                self.connection = None;
                Answer::Broken(error.to_string())
            }
        }
    }

    /// Says goodbye.
    pub(super) async fn close(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            // Whoever does not hear it sees the end.
            drop(timeout(CONNECT_WITHIN, connection.shutdown()).await);
        }
    }

    async fn write(&mut self, batch: &Batch) -> io::Result<()> {
        if let Some(connection) = &mut self.connection
            && is_closed(connection).await
        {
            self.connection = None;
        }
        if self.connection.is_none() {
            self.connection = Some(within(CONNECT_WITHIN, self.connect()).await?);
        }
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        within(TAKE_WITHIN, async {
            connection.write_all(&batch.body).await?;
            connection.flush().await
        })
        .await
    }

    async fn connect(&mut self) -> io::Result<Box<dyn Io>> {
        Ok(match &self.peer {
            Peer::Tcp { host, port } => Box::new(tcp(host, *port).await?),
            Peer::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Peer::Tls { host, port } => {
                let stream = tcp(host, *port).await?;
                let name = ServerName::try_from(bare(host).to_owned())
                    .map_err(|_| io::Error::other("no certificate is for such a host"))?;
                let tls = match &self.tls {
                    Some(tls) => tls.clone(),
                    None => self.tls.insert(connector()?).clone(),
                };
                Box::new(tls.connect(name, stream).await?)
            }
        })
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((bare(host), port)).await?;
    // A batch is one write: nothing is gained by waiting for more.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A literal IPv6 address without its brackets.
fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

/// TLS that trusts whom this machine trusts, or `SSL_CERT_FILE`.
fn connector() -> io::Result<TlsConnector> {
    // Refused where there is one already, which is the same one.
    drop(rustls::crypto::ring::default_provider().install_default());
    let config = ClientConfig::with_platform_verifier().map_err(io::Error::other)?;
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Whether the other end has said that it reads no more.
async fn is_closed(connection: &mut Box<dyn Io>) -> bool {
    // What has arrived is seen once the runtime has had a look.
    yield_now().await;
    let mut word = [0; 512];
    loop {
        match connection.read(&mut word).now_or_never() {
            None => return false,
            Some(Ok(0) | Err(_)) => return true,
            // Nothing that it says is of interest.
            Some(Ok(_)) => {}
        }
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it takes nothing")),
    }
}
