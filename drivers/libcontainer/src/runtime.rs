//! The driver: what it is, and what each part of it is asked for.

mod build;
mod open;

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hsup_driver_kit::{
    CancellationToken, Status, errors,
    proto::{BuildRequest, Capability, Durability, StartRequest},
    serve::Peer,
    service::{BuildLog, Identity, Names, Record, RecoverError, Recovered, Runtime},
};
use hsup_slug::Store;
use nix::unistd::Pid;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use crate::{
    answers::{mount_status, slug_status},
    artifact::Artifact,
    cgroup::Hierarchies,
    dirs::{Home, WorkDir},
    dyno::Contained,
    forsaken::Forsaken,
    lease::{Lease, LeaseError, Leases},
    life,
    mounted::{ImageId, Mounted},
    mounts,
    net::{NetError, Network},
    settings::Settings,
    stack::{self, Image, Stack, Stacks},
    start::Opening,
};

/// How the name of a folder begins in which a driver tries out what the file system can.
pub(crate) const PROBE: &str = "probe-";
/// How often the host's network is looked at again.
const LOOK: Duration = Duration::from_secs(10);

/// How long what a dyno held may take to be freed; it is some ten milliseconds.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// The driver. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Libcontainer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    work_dir: WorkDir,
    home: Home,
    leases: Leases,
    network: Network,
    stacks: Stacks,
    slugs: Store,
    hierarchies: Arc<Hierarchies>,
    init: OwnedFd,
    seccomp: OwnedFd,
    /// More at a time are no faster, and hold more.
    turns: Semaphore,
    /// How many that is.
    most: usize,
    /// The kernel keeps whoever enters a cgroup waiting.
    enters_slowly: bool,
    /// What callers have named, and is being opened.
    opening: Opening,
    /// Images that are mounted.
    mounted: Mutex<Mounted>,
    /// What the network said last.
    ready: Mutex<Result<(), String>>,
}

impl Libcontainer {
    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(crate) fn work_dir(&self) -> &WorkDir {
        &self.0.work_dir
    }

    pub(crate) fn home(&self) -> &Home {
        &self.0.home
    }

    pub(crate) fn leases(&self) -> &Leases {
        &self.0.leases
    }

    pub(crate) fn network(&self) -> &Network {
        &self.0.network
    }

    pub(crate) fn stacks(&self) -> &Stacks {
        &self.0.stacks
    }

    pub(crate) fn slugs(&self) -> &Store {
        &self.0.slugs
    }

    pub(crate) fn hierarchies(&self) -> &Arc<Hierarchies> {
        &self.0.hierarchies
    }

    pub(crate) fn opening(&self) -> &Opening {
        &self.0.opening
    }

    pub(crate) fn init(&self) -> &OwnedFd {
        &self.0.init
    }

    pub(crate) fn seccomp(&self) -> &OwnedFd {
        &self.0.seccomp
    }

    /// Waits until another start may begin.
    pub(crate) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.0.turns.acquire().await.ok()
    }

    /// Lets the wait for entering a cgroup begin, if the dyno of this shim is the first in a
    /// while to do so. A start that is not helped is only slower.
    pub(crate) fn enter_soon(&self, shim: Pid) {
        let is_first = self.0.turns.available_permits() + 1 == self.0.most;
        if self.0.enters_slowly && is_first {
            let hierarchies = Arc::clone(&self.0.hierarchies);
            tokio::task::spawn_blocking(move || {
                if let Err(error) = hierarchies.begin_to_enter(shim) {
                    tracing::debug!(%error, "a cgroup is entered without preparation");
                }
            });
        }
    }

    /// A user and an address for the dyno of this directory. Where all are taken, waits for one
    /// of a dyno that has ended already.
    pub(crate) async fn lease(&self, dir: &Path) -> Result<Lease, Status> {
        let end = Instant::now() + LEAVES_WITHIN;
        loop {
            let error = match self.take_lease(dir).await? {
                Ok(lease) => return Ok(lease),
                Err(error) => error,
            };
            let text = errors::chain(&error);
            if !error.is_exhausted() {
                return Err(Status::internal(text));
            }
            let leaving = self.home().dynos().unwrap_or_default();
            let leaving = leaving.iter().find_map(|dir| life::leaving(dir));
            let left = match leaving {
                Some(leaving) => timeout_at(end, leaving.closed()).await.is_ok(),
                None => false,
            };
            if !left {
                return Err(Status::resource_exhausted(text));
            }
        }
    }

    /// Frees what was leased for a dyno of which nothing else is there.
    pub(crate) async fn give_back(&self, lease: Lease, dir: &Path) {
        let (driver, dir) = (self.clone(), dir.to_owned());
        let freeing = tokio::task::spawn_blocking(move || {
            Leases::free(driver.work_dir().path(), &lease, &dir)
        });
        if let Ok(Err(error)) = freeing.await {
            let error = errors::chain(&error);
            tracing::error!(error, "a user and an address were not freed");
        }
    }

    async fn take_lease(&self, dir: &Path) -> Result<Result<Lease, LeaseError>, Status> {
        let (driver, dir) = (self.clone(), dir.to_owned());
        // It may wait for another driver.
        let taking = tokio::task::spawn_blocking(move || {
            let network = driver.network();
            driver.leases().take(&dir, |subnet| network.is_free(subnet))
        });
        taking
            .await
            .map_err(|error| Status::internal(format!("failed to take a lease: {error}")))
    }

    /// Where the root file system of a stack is.
    pub(crate) fn mounted(&self, stack: &Stack) -> Result<PathBuf, Status> {
        let name = format!("{}@{}", stack.name, stack.version);
        let Image::File { path, .. } = &stack.image else {
            let mounted = stack::mount(stack, Path::new("/"));
            return mounted.map_err(|error| mount_status(&error));
        };
        let at = |image: ImageId| self.home().mount_point(&format!("{name}.{image}"));
        let mounted = self
            .mounts()
            .of(path, |image| stack::mount(stack, &at(image)));
        mounted.map_err(|error| mount_status(&error))
    }

    /// Unmounts images that were replaced or removed, unless a start is under way, which may be
    /// about to use one. Dynos have mounts of their own.
    fn unmount_unused(&self) {
        let most = u32::try_from(self.0.most).unwrap_or(u32::MAX);
        if let Ok(_no_start) = self.0.turns.try_acquire_many(most) {
            for at in self.mounts().take_stale() {
                mounts::detach(&at);
                drop(fs::remove_dir(&at));
            }
        }
    }

    fn mounts(&self) -> MutexGuard<'_, Mounted> {
        self.0
            .mounted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whom a slug is fetched as.
fn as_peer(peer: Peer) -> hsup_slug::Peer {
    hsup_slug::Peer::of_uid(peer.uid.as_raw(), peer.gid.as_raw())
}

/// Looks now and then at the network, at images that are used no more, and at what drivers left
/// that are away, as long as the driver is there.
async fn look(driver: std::sync::Weak<Inner>) {
    let mut forsaken = Forsaken::default();
    loop {
        if let Some(driver) = driver.upgrade() {
            forsaken.look(&Libcontainer(driver)).await;
        }
        tokio::time::sleep(LOOK).await;
        let Some(driver) = driver.upgrade() else {
            return;
        };
        Libcontainer(Arc::clone(&driver)).unmount_unused();
        let ready = said(driver.network.ready().await);
        let mut last = driver.ready.lock().unwrap_or_else(PoisonError::into_inner);
        tell(&last, &ready);
        *last = ready;
    }
}

/// What is wrong, for people.
fn said(ready: Result<(), NetError>) -> Result<(), String> {
    ready.map_err(|error| errors::chain(&error))
}

/// Tells whoever runs the driver when it becomes fit to start dynos or ceases to be, and why.
fn tell(before: &Result<(), String>, now: &Result<(), String>) {
    match now {
        Err(why) if before != now => tracing::warn!(why, "no dyno can be started"),
        Ok(()) if before.is_err() => tracing::info!("dynos can be started again"),
        _ => {}
    }
}

/// What this driver is, and so what it is handed.
pub(crate) const IDENTITY: Identity = Identity {
    name: "libcontainer",
    version: env!("CARGO_PKG_VERSION"),
    capabilities: &[
        Capability::StdioFifo,
        Capability::Signal,
        Capability::Stats,
        Capability::Attach,
        Capability::OwnNetwork,
        Capability::Binds,
        Capability::Limits,
    ],
    durability: Durability::Exact,
    options: &[],
    images: false,
    names: Names::Strict,
};

impl Runtime for Libcontainer {
    type Dyno = Contained;

    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn ready(&self) -> Result<(), String> {
        self.0
            .ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn recover(&self) -> Result<Vec<Recovered<Contained>>, RecoverError> {
        self.recover_dynos().await
    }

    async fn slug_changed(&self, peer: Peer, path: &Path) -> Option<Vec<u8>> {
        hsup_slug::state(&hsup_slug::Program::default(), &as_peer(peer), path).await
    }

    async fn build(
        &self,
        peer: Peer,
        request: BuildRequest,
        log: BuildLog,
    ) -> Result<String, Status> {
        self.build_release(peer, request.release.unwrap_or_default(), &log)
            .await
    }

    fn has_artifact(&self, peer: Peer, artifact: &str) -> bool {
        let Ok(artifact) = artifact.parse::<Artifact>() else {
            return false;
        };
        // What cannot be found out now is not gone: a Start says what is wrong.
        let stack = self.stacks().find(&artifact.stack, &artifact.version);
        let uid = peer.uid.as_raw();
        !matches!(stack, Ok(None))
            && artifact
                .slug
                .is_none_or(|slug| !matches!(self.slugs().get(uid, &slug), Ok(None)))
    }

    async fn remove_artifact(&self, peer: Peer, artifact: &str) -> Result<(), Status> {
        let Ok(Artifact {
            slug: Some(slug), ..
        }) = artifact.parse()
        else {
            // A stack is the operator's.
            return Ok(());
        };
        let removed = self.slugs().remove(peer.uid.as_raw(), &slug).await;
        removed.map_err(|error| slug_status(&error))
    }

    async fn start(
        &self,
        peer: Peer,
        request: StartRequest,
        record: Record,
        cancelled: CancellationToken,
    ) -> Result<Contained, Status> {
        self.start_dyno(peer, request, &record, &cancelled).await
    }

    async fn end(&self) {
        self.home().tidy();
    }
}
