//! What a driver's author writes: how one dyno runs. Every rule of the protocol's calls is
//! the [`Service`](super::Service)'s.

use std::{error::Error, io, path::Path, time::SystemTime};

use hsup_proto::driver::{
    BuildRequest, BuildResponse, Capability, Durability, ExitStatus, IpInfoResponse, Progress,
    Release, StartRequest, StatsResponse, build_response::Event,
};
use thiserror::Error;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{build::Told, check, record::Record};
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
    /// What becomes of dynos when the driver's process ends. With SURVIVES and EXACT the driver
    /// leaves them running when it is told to end, and [`Runtime::recover`] finds them again;
    /// with EXACT it knows too how those ended that did meanwhile.
    pub durability: Durability,
    /// The keys it understands in `options`.
    pub options: &'static [&'static str],
    /// Whether it runs images, which may bring their own command: then `argv` may be empty.
    pub images: bool,
    /// What it accepts as names.
    pub names: Names,
}

/// What a driver accepts as the name of an app, a process type, a stack or an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Any text without a NUL byte. For a driver that puts none of them into a path.
    Any,
    /// Only what can do no harm in a path, or as the name of a cgroup (docs/driver-rules.md §12,
    /// R4): letters, digits and `.`, `_`, `-` (in an artifact also `:`, `@`, `+`, `=`), beginning with
    /// a letter or a digit. For a driver with more rights than its callers.
    Strict,
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
    /// It does not say.
    #[error(
        "the driver does not say what becomes of dynos when it ends: its durability must be NONE, SURVIVES or EXACT"
    )]
    Durability,
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
            Durability::None | Durability::Survives | Durability::Exact => Ok(()),
            Durability::Unspecified => Err(IdentityError::Durability),
        }
    }

    /// Whether a Build is one that such a driver is handed. Its release, if so.
    ///
    /// # Errors
    ///
    /// What the caller is told.
    pub fn check_build<'a>(&self, request: &'a BuildRequest) -> Result<&'a Release, Status> {
        check::build(request, self)
    }

    /// Whether a Start is one that such a driver is handed.
    ///
    /// # Errors
    ///
    /// What the caller is told.
    pub fn check_start(&self, request: &StartRequest) -> Result<(), Status> {
        check::start(request, self)
    }

    /// Whether dynos go on when the driver's process ends.
    pub(super) const fn outlives(&self) -> bool {
        matches!(self.durability, Durability::Survives | Durability::Exact)
    }
}

/// A dyno that was found again: as it was kept, and as it is now.
#[derive(Clone, Debug)]
pub struct Recovered<D> {
    /// What [`Runtime::start`] was given.
    pub record: Record,
    /// The dyno. If it has ended, its `wait` says at once how.
    pub dyno: D,
}

/// The driver could not find its dynos again.
pub type RecoverError = Box<dyn Error + Send + Sync>;

/// How a driver builds artifacts and starts dynos.
///
/// A call that panics is answered with INTERNAL, and what it was about is given up.
///
/// The messages it gets have passed the protocol's checks. A [`Status`] it returns has one
/// of the codes of docs/driver-rules.md §9.
pub trait Runtime: Send + Sync + 'static {
    /// A dyno of this driver.
    type Dyno: Dyno;

    /// Who the driver is.
    fn identity(&self) -> Identity;

    /// Whether it can run dynos now; if not, why. Must not block.
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    /// Finds the dynos of an earlier process of this driver again, those too that have ended
    /// and were not removed. Called once, before the first call is answered. A driver of
    /// durability NONE has none.
    ///
    /// A dyno whose record cannot be read is nobody's: the driver stops it, and says so. Or it
    /// fails, and says what is to be done; then it ends, and the dynos go on.
    fn recover(
        &self,
    ) -> impl Future<Output = Result<Vec<Recovered<Self::Dyno>>, RecoverError>> + Send {
        std::future::ready(Ok(Vec::new()))
    }

    /// What tells one state of the file or directory of a `file://` slug from another, in bytes
    /// of the driver's choice: a Build of it is new when they are. Here its size, and when it
    /// last changed. A driver with more rights than its peer looks as the peer. The Build's first
    /// answer waits for this, and callers wait 30 s for that.
    fn slug_changed(
        &self,
        _peer: Peer,
        path: &Path,
    ) -> impl Future<Output = Option<Vec<u8>>> + Send {
        std::future::ready(size_and_time(path))
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
    /// `record` is what [`recover`](Self::recover) gives back with it. It is to be kept before
    /// the first process exists: a driver that is killed in between must not have a dyno that
    /// it does not know.
    ///
    /// `cancelled` says that the dyno is to be stopped already: a start that takes long may
    /// then give up. It need not: a dyno that started all the same is stopped.
    fn start(
        &self,
        peer: Peer,
        request: StartRequest,
        record: Record,
        cancelled: CancellationToken,
    ) -> impl Future<Output = Result<Self::Dyno, Status>> + Send;

    /// The driver ends: its dynos have been stopped, or are to go on if they outlive it.
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

    /// Where the dyno is reached. Must not block. Port 0 is for one of which only the node is
    /// known, the machine that it is on.
    fn ip_info(&self) -> Result<IpInfoResponse, Status>;

    /// What the dyno uses.
    fn stats(&self) -> impl Future<Output = Result<StatsResponse, Status>> + Send;

    /// The terminal of a dyno that was started with one.
    fn terminal(&self) -> Option<Self::Terminal>;

    /// Forgets a dyno that has ended, or could not be killed: frees what was kept of it, so that
    /// [`Runtime::recover`] does not find it again. Remove answers after that, and it may be
    /// called more than once.
    fn remove(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
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

/// The size of a file, and when it last changed.
fn size_and_time(path: &Path) -> Option<Vec<u8>> {
    let file = std::fs::metadata(path).ok()?;
    let since = file.modified().ok()?;
    let since = since
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut state = file.len().to_le_bytes().to_vec();
    state.extend(since.as_nanos().to_le_bytes());
    Some(state)
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
