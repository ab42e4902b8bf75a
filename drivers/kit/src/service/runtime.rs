//! What a driver's author writes: how one dyno runs. Every rule of the protocol's calls is
//! the [`Service`](super::Service)'s.

use std::{io, path::Path, time::SystemTime};

use hsup_proto::driver::{
    BuildRequest, BuildResponse, Capability, Durability, ExitStatus, IpInfoResponse, Progress,
    StartRequest, StatsResponse, build_response::Event,
};
use thiserror::Error;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::build::Told;
use crate::{
    pty::{self, WindowSize},
    serve::Peer,
    signal::Signal,
};

/// What a driver is. Fixed for its life.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// `simple`, or a reversed domain for a driver from elsewhere.
    pub name: &'static str,
    /// The driver's own version.
    pub version: &'static str,
    /// What it can do besides the core calls. Stats, Signal and Attach are answered only if
    /// they are here. It must have `STDIO_FIFO`, and cannot have LOGS: this kit does not serve
    /// it.
    pub capabilities: &'static [Capability],
    /// What becomes of dynos when the driver's process ends. It must be NONE: this kit finds no
    /// dyno again.
    pub durability: Durability,
    /// The keys it understands in `options`.
    pub options: &'static [&'static str],
    /// Whether it runs images, which may bring their own command: then `argv` may be empty.
    pub images: bool,
}

/// A driver promises what this kit cannot keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// LOGS: nothing would answer the call.
    #[error("the driver declares LOGS, which this kit does not serve")]
    Logs,
    /// Nobody could read what dynos write.
    #[error("the driver declares neither STDIO_FIFO nor LOGS: a driver must have one of them")]
    NoOutput,
    /// SURVIVES, EXACT, or none at all.
    #[error("the driver claims {}, and with this kit dynos end with it: it must be NONE", .0.as_str_name())]
    Durability(Durability),
}

impl Identity {
    /// Whether the kit can keep what it promises.
    pub(super) fn check(&self) -> Result<(), IdentityError> {
        if self.capabilities.contains(&Capability::Logs) {
            return Err(IdentityError::Logs);
        }
        if !self.capabilities.contains(&Capability::StdioFifo) {
            return Err(IdentityError::NoOutput);
        }
        match self.durability {
            Durability::None => Ok(()),
            other => Err(IdentityError::Durability(other)),
        }
    }
}

/// How a driver builds artifacts and starts dynos.
///
/// A call that panics is answered with INTERNAL, and what it was about is given up.
///
/// The messages it gets have passed the protocol's checks. A [`Status`] it returns has one
/// of the codes of the protocol's §9.
pub trait Runtime: Send + Sync + 'static {
    /// A dyno of this driver.
    type Dyno: Dyno;

    /// Who the driver is.
    fn identity(&self) -> Identity;

    /// Whether it can run dynos now; if not, why. Must not block.
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    /// When the file or directory of a `file://` slug last changed, and its size: a Build of
    /// it is new when that is. A driver with more rights than its peer looks as the peer.
    fn slug_changed(&self, _peer: Peer, path: &Path) -> Option<(u64, SystemTime)> {
        let file = std::fs::metadata(path).ok()?;
        Some((file.len(), file.modified().ok()?))
    }

    /// Makes an artifact. The service joins equal builds, and goes on when the caller is gone.
    fn build(
        &self,
        peer: Peer,
        request: BuildRequest,
        log: BuildLog,
    ) -> impl Future<Output = Result<String, Status>> + Send;

    /// Whether there is such an artifact, and the peer may use it. Must not block for long.
    fn has_artifact(&self, peer: Peer, artifact: &str) -> bool;

    /// Removes an artifact that no dyno uses; one that is not there is removed.
    fn remove_artifact(
        &self,
        peer: Peer,
        artifact: &str,
    ) -> impl Future<Output = Result<(), Status>> + Send;

    /// Starts a dyno; returns once its first process exists. What goes wrong undoes itself.
    ///
    /// `cancelled` says that the dyno is to be stopped already: a start that takes long may
    /// then give up. It need not: a dyno that started all the same is stopped.
    fn start(
        &self,
        peer: Peer,
        request: StartRequest,
        cancelled: CancellationToken,
    ) -> impl Future<Output = Result<Self::Dyno, Status>> + Send;

    /// The driver ends: its dynos have been stopped.
    fn end(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// A dyno that was started. Cheap to clone.
pub trait Dyno: Clone + Send + Sync + 'static {
    /// The dyno's terminal, if the driver offers ATTACH.
    type Terminal: Terminal;

    /// Waits until every process of the dyno is gone.
    fn wait(&self) -> impl Future<Output = ExitStatus> + Send;

    /// Sends a signal to every process of the dyno.
    fn signal(&self, signal: Signal) -> impl Future<Output = ()> + Send;

    /// Kills every process of the dyno.
    fn kill(&self) -> impl Future<Output = ()> + Send;

    /// Where the dyno is reached. Must not block.
    fn ip_info(&self) -> Result<IpInfoResponse, Status>;

    /// What the dyno uses.
    fn stats(&self) -> impl Future<Output = Result<StatsResponse, Status>> + Send;

    /// The terminal of a dyno that was started with one.
    fn terminal(&self) -> Option<Self::Terminal>;
}

/// The driver's end of a dyno's terminal.
pub trait Terminal: Send + Sync + 'static {
    /// Reads what the dyno wrote; an empty answer is the end. Nothing is lost when the
    /// reading is given up.
    fn read(&self) -> impl Future<Output = Vec<u8>> + Send;

    /// Writes what the dyno reads.
    fn write(&self, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// Says that there is no more to read, as Ctrl-D does.
    fn end_input(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Sets the size of the window.
    fn resize(&self, size: WindowSize) -> io::Result<()>;
}

/// A terminal as the kit makes it.
impl Terminal for pty::Terminal {
    async fn read(&self) -> Vec<u8> {
        Self::read(self).await
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        Self::write(self, bytes).await
    }

    async fn end_input(&self) -> io::Result<()> {
        Self::end_input(self).await
    }

    fn resize(&self, size: WindowSize) -> io::Result<()> {
        Self::resize(self, size)
    }
}

/// For a driver without ATTACH: it has no terminals.
impl Terminal for std::convert::Infallible {
    async fn read(&self) -> Vec<u8> {
        match *self {}
    }

    async fn end_input(&self) -> io::Result<()> {
        match *self {}
    }

    async fn write(&self, _bytes: &[u8]) -> io::Result<()> {
        match *self {}
    }

    fn resize(&self, _size: WindowSize) -> io::Result<()> {
        match *self {}
    }
}

/// Where a build tells how it goes.
#[derive(Clone, Debug)]
pub struct BuildLog(pub(super) broadcast::Sender<Told>);

impl BuildLog {
    /// Longest log chunk: a message has to stay well below 4 MiB.
    const CHUNK: usize = 64 << 10;

    /// Tells people something; for text, with its line feed.
    pub fn log(&self, bytes: &[u8]) {
        for chunk in bytes.chunks(Self::CHUNK) {
            self.tell(Event::Log(chunk.to_vec()));
        }
    }

    /// Says how far a step has come.
    pub fn progress(&self, progress: Progress) {
        self.tell(Event::Progress(progress));
    }

    fn tell(&self, event: Event) {
        // Nobody listening any more does not end the build.
        drop(
            self.0
                .send(Told::Event(BuildResponse { event: Some(event) })),
        );
    }
}
