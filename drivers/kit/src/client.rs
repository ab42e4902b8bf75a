//! The supervisor's side of the protocol: a connection to a driver.
//!
//! A [`Connection`] is one HTTP/2 connection over one unix socket and is never
//! repaired: when it ends, [`Connection::closed`] says so at once, and its owner
//! makes another and reconciles (docs/driver-rules.md §7). A client that reconnects by
//! itself would hide that the driver may have restarted in between.

mod http2;

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
};

use hsup_proto::driver::dyno_driver_client::DynoDriverClient;
use nix::unistd::Uid;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::codegen::http;

pub use http2::{Answer, Http2};

/// The generated client over a [`Connection`]'s stream. Cheap to clone.
pub type Client = DynoDriverClient<Http2>;

/// A driver's socket could not be connected to, or must not be trusted.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Nothing answers at the path (yet).
    #[error("failed to connect to the driver socket `{}`", path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The process behind the socket is of another user: it would be handed the app's config vars.
    #[error(
        "the driver socket `{}` belongs to uid {uid}, which is neither yours ({own}) nor root: \
         not handing it the app's config vars",
        path.display()
    )]
    Stranger {
        /// The socket's path.
        path: PathBuf,
        /// Who serves it.
        uid: u32,
        /// Who we are.
        own: u32,
    },
    /// HTTP/2 did not come up over the socket.
    #[error("failed to speak HTTP/2 on the driver socket `{}`", path.display())]
    Handshake {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        source: h2::Error,
    },
}

/// One live connection to a driver.
#[derive(Clone, Debug)]
pub struct Connection {
    client: Client,
    closed: CancellationToken,
    pid: Option<i32>,
}

impl Connection {
    /// Connects to the driver that serves `path`, which must be ours or root's.
    ///
    /// # Errors
    /// When nobody serves it, somebody else does, or it does not speak HTTP/2.
    pub async fn open(path: &Path) -> Result<Self, ConnectError> {
        let failed = |source| ConnectError::Connect {
            path: path.to_owned(),
            source,
        };
        let stream = UnixStream::connect(path).await.map_err(failed)?;
        let peer = stream.peer_cred().map_err(failed)?;
        let own = Uid::effective().as_raw();
        if peer.uid() != own && peer.uid() != 0 {
            return Err(ConnectError::Stranger {
                path: path.to_owned(),
                uid: peer.uid(),
                own,
            });
        }
        let pid = peer.pid();
        Self::over(stream, pid)
            .await
            .map_err(|source| ConnectError::Handshake {
                path: path.to_owned(),
                source,
            })
    }

    /// Speaks the protocol over a stream that is connected already.
    ///
    /// # Errors
    /// When the other end does not speak HTTP/2.
    pub async fn over(stream: UnixStream, pid: Option<i32>) -> Result<Self, h2::Error> {
        let (transport, connection) = http2::handshake(stream).await?;
        let closed = CancellationToken::new();
        let guard = closed.clone().drop_guard();
        tokio::spawn(drive(connection, guard));
        // A driver written with gRPC's C core, or one that checks the authority, wants a host
        // name here: never the socket's path (docs/driver-rules.md §0).
        let origin = http::Uri::from_static("http://localhost");
        Ok(Self {
            client: Client::with_origin(transport, origin),
            closed,
            pid,
        })
    }

    /// A client to call the driver with.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Resolves when the connection has ended.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// The process that serves the socket, as the kernel knows it; for one that a unit
    /// listens for, that is whoever made the socket.
    pub const fn pid(&self) -> Option<i32> {
        self.pid
    }
}

/// Moves the connection's bytes until it ends; dropping the guard says that it has.
async fn drive(connection: h2::client::Connection<UnixStream>, guard: DropGuard) {
    if let Err(error) = connection.await {
        tracing::debug!(%error, "driver connection ended with an error");
    }
    drop(guard);
}

/// The capabilities a driver declares that this hsup knows.
///
/// The set is open: a number from a newer driver is ignored (docs/driver-rules.md §10).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(HashSet<i32>);

impl Capabilities {
    /// Reads them from a driver's answer.
    pub fn of(info: &hsup_proto::driver::GetInfoResponse) -> Self {
        Self(info.capabilities.iter().copied().collect())
    }

    /// Whether the driver declares `capability`.
    pub fn has(&self, capability: hsup_proto::driver::Capability) -> bool {
        self.0.contains(&(capability as i32))
    }
}
