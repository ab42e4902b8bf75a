//! Serving the protocol: connections in, calls to a service, until told to end.
//!
//! Decided here: who may connect, that nothing which goes wrong with one connection
//! touches another, and when a driver ends.

mod calls;
mod charge;
mod quota;

use std::{
    io::{self, IsTerminal as _},
    pin::pin,
    time::Duration,
};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::unistd::{Pid, Uid, getppid};
use thiserror::Error;
use tokio::{
    net::UnixStream,
    signal::unix::{SignalKind, signal},
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::quota::Limits;
pub(crate) use self::{
    calls::{Asked, Calls, malformed},
    charge::Charge,
    quota::{Pass, Quota, is_stranger},
};
use crate::{
    listen::Listener,
    service::{IdentityError, RecoverError, Runtime, Service},
};

/// Every dyno has a Wait open; hyper's own limit of 200 would hold up the calls behind them.
const MAX_STREAMS: u32 = 100_000;
/// What one stream may have in flight towards us, and from us.
const STREAM_WINDOW: u32 = 256 << 10;
/// How long a driver that ends gives its connections to take their last answers.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long callers wait for the dynos of an earlier process to be found, before they are told that
/// this takes longer.
const RECOVERY: Duration = Duration::from_secs(5);

/// So much longer than another idle one waits a driver for its first connection.
const FIRST_CALLER: u32 = 4;

/// How long the next attempt to accept a connection waits when one has failed.
const FIRST_BACKOFF: Duration = Duration::from_millis(1);
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// Who is behind a connection, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The user: owner of its dynos and artifacts.
    pub uid: Uid,
    /// Its group when it connected.
    pub gid: nix::unistd::Gid,
    /// The connection, by number.
    pub(crate) connection: u64,
}

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// The users who may connect, besides our own and root.
    pub allow: Vec<Uid>,
    /// When it ends by itself.
    pub end: End,
    /// The grace period of the dynos when SIGTERM ends the driver; if they outlive it, of those
    /// starts that are under way.
    pub grace: Duration,
    /// What each user may have at most who is neither root nor our own.
    pub limits: Limits,
}

/// When a driver ends by itself: nobody tells one that was started as a child, when its parent
/// is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Only when it is told to.
    WhenTold,
    /// When there has been no connection, no running dyno, and no exited one whose supervisor
    /// may still come back (`linger_ms`), for so long.
    WhenIdle(Duration),
    /// The same, but not as long as the process that started it is there.
    WhenOrphaned(Duration, Pid),
}

/// A driver could not serve.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The runtime promises what this kit cannot keep.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The dynos of an earlier process of the driver could not be found.
    #[error("failed to find the dynos of an earlier process again")]
    Recover(#[source] RecoverError),
    /// Signals could not be received.
    #[error("failed to receive signals")]
    Signals(#[from] io::Error),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            end: End::WhenTold,
            grace: Duration::from_secs(10),
            limits: Limits::default(),
        }
    }
}

/// Serves `runtime` on `listener` until SIGTERM (SIGINT, at a terminal), or until idle if the options say so.
///
/// First the runtime finds the dynos again that an earlier process left, if they outlive it; who
/// connects meanwhile waits. Where that takes long, because what the runtime asks is away, callers
/// are told that the driver is not ready, and UNAVAILABLE of all dynos. On SIGTERM no connection is taken any more; the dynos are stopped,
/// unless they outlive the driver; callers that wait for them still get their answer.
///
/// # Errors
///
/// When the runtime promises what the kit cannot keep, cannot find its dynos again, or signal
/// handlers cannot be installed.
pub async fn serve<R: Runtime>(
    listener: Listener,
    runtime: R,
    options: Options,
) -> Result<(), ServeError> {
    let service = Service::limited(runtime, options.limits.dynos)?;
    let mut terminate = signal(SignalKind::terminate())?;
    // Ctrl-C is for a driver that somebody runs at a terminal. A supervisor's child is not
    // its to end: hsup decides what its own Ctrl-C means.
    let at_terminal = io::stdin().is_terminal();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut told_to_end = async move || loop {
        tokio::select! {
            _ = terminate.recv() => return,
            _ = interrupt.recv() => if at_terminal { return },
        }
    };
    let _hangup = signal(SignalKind::hangup())?;
    let mut recovering = pin!(service.recover());
    let mut is_recovered = false;
    tokio::select! {
        // What is there at once is not given up for a signal.
        biased;
        recovered = &mut recovering => {
            recovered.map_err(ServeError::Recover)?;
            is_recovered = true;
        }
        () = told_to_end() => return Ok(()),
        () = time::sleep(RECOVERY) => {}
    }
    let connections = TaskTracker::new();
    let closing = CancellationToken::new();
    {
        let mut accepting = pin!(accept(
            &listener,
            &service,
            &options,
            &connections,
            &closing
        ));
        let mut idle = pin!(idle(&service, options.end));
        loop {
            tokio::select! {
                recovered = &mut recovering, if !is_recovered => {
                    recovered.map_err(ServeError::Recover)?;
                    is_recovered = true;
                }
                () = &mut accepting => break,
                () = &mut idle => break,
                () = told_to_end() => break,
            }
        }
    }
    // The name goes first, so that nobody connects to a driver that is going.
    drop(listener);
    {
        let mut stopping = pin!(service.wind_up(options.grace));
        tokio::select! {
            () = &mut stopping => {}
            () = told_to_end() => {
                service.wind_up(Duration::ZERO).await;
            }
        }
    }
    service.end().await;
    closing.cancel();
    connections.close();
    let _ = time::timeout(FAREWELL, connections.wait()).await;
    Ok(())
}

/// Takes connections for ever.
async fn accept<R: Runtime>(
    listener: &Listener,
    service: &Service<R>,
    options: &Options,
    connections: &TaskTracker,
    closing: &CancellationToken,
) {
    let mut backoff = FIRST_BACKOFF;
    let mut next = 0;
    let open = Quota::new(options.limits.connections);
    let calls = Quota::new(options.limits.calls);
    let bytes = Quota::new(options.limits.request_bytes);
    loop {
        match listener.accept().await {
            Ok(stream) => {
                backoff = FIRST_BACKOFF;
                next += 1;
                let Some(peer) = admit(&stream, next, &options.allow) else {
                    continue;
                };
                let Some(pass) = open.take(peer.uid) else {
                    tracing::warn!(uid = %peer.uid, most = open.most(), "refused a connection of a user who has too many");
                    continue;
                };
                let calls = Calls::new(service.clone(), peer, calls.clone(), bytes.clone());
                connections.spawn(connection(
                    stream,
                    peer,
                    pass,
                    service.clone(),
                    calls,
                    closing.clone(),
                ));
            }
            Err(error) => {
                // Out of descriptors or memory: what is open goes on, and newcomers wait.
                // Told once, not with every attempt.
                if backoff == FIRST_BACKOFF {
                    tracing::warn!(%error, "failed to accept a connection");
                }
                time::sleep(backoff).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
        }
    }
}

/// Whether the process behind the stream may call us.
fn admit(stream: &UnixStream, connection: u64, allow: &[Uid]) -> Option<Peer> {
    let credentials = match stream.peer_cred() {
        Ok(credentials) => credentials,
        Err(error) => {
            tracing::warn!(%error, "failed to read the credentials of a peer");
            return None;
        }
    };
    let uid = Uid::from_raw(credentials.uid());
    if uid.is_root() || uid == Uid::effective() || allow.contains(&uid) {
        Some(Peer {
            uid,
            gid: nix::unistd::Gid::from_raw(credentials.gid()),
            connection,
        })
    } else {
        tracing::warn!(%uid, "refused a connection of a user who may not call this driver");
        None
    }
}

/// Serves one connection to its end.
async fn connection<R: Runtime>(
    stream: UnixStream,
    peer: Peer,
    _pass: Pass,
    service: Service<R>,
    calls: Calls<R>,
    closing: CancellationToken,
) {
    service.connected(peer);
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(4 * STREAM_WINDOW)
        .max_send_buf_size(64 << 10)
        .auto_date_header(false);
    let served = async {
        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), calls));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended with an error");
        }
    };
    served.await;
    service.disconnected(peer);
}

/// Resolves when the driver is to end by itself.
async fn idle<R: Runtime>(service: &Service<R>, end: End) {
    let (period, parent) = match end {
        End::WhenTold => return std::future::pending().await,
        End::WhenIdle(period) => (period, None),
        End::WhenOrphaned(period, parent) => (period, Some(parent)),
    };
    // Who starts it connects at once; but on a machine that is busy enough that takes a while, and
    // a driver that has gone by then counts as one that cannot run.
    let mut patience = FIRST_CALLER * period;
    loop {
        service.until_idle(true).await;
        let busy = time::timeout(patience, service.until_idle(false)).await;
        patience = period;
        // A parent that is there will connect again, or end us.
        let is_orphan = parent.is_none_or(|parent| getppid() != parent);
        if busy.is_err() && is_orphan {
            return;
        }
    }
}
