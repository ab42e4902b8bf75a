//! The driver: what it is, what it builds, and what each part of it is asked for.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use hsup_driver_kit::{
    CancellationToken, Status, errors,
    proto::{BuildRequest, Capability, Durability, Release, StartRequest},
    serve::Peer,
    service::{BuildLog, Identity, Names, Record, RecoverError, Recovered, Runtime},
};
use hsup_slug::{Fetch, Owner, SlugError, SlugId, Store};
use nix::{
    errno::Errno,
    sys::memfd::{MFdFlags, memfd_create},
    unistd::Pid,
};
use thiserror::Error;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use crate::{
    answers::{Told, mount_status, slug_status, stack_status},
    artifact::Artifact,
    cgroup::{CgroupError, Hierarchies},
    dirs::{self, DirsError, Home, WorkDir},
    dyno::Contained,
    forsaken::Forsaken,
    lease::{
        self, Lease, LeaseError, Leases, Pool, PoolError, SUBNET_VARIABLE, UID_MAX_VARIABLE,
        UID_MIN_VARIABLE, UidError, UidRange,
    },
    life,
    mounted::{ImageId, Mounted},
    mounts::{self, MountError},
    net::{self, NetError, Network},
    seccomp::{self, SeccompError},
    settings::{Settings, SettingsError},
    shim,
    stack::{self, Image, Stack, StackError, Stacks},
};

/// `hsup-init` and `hsup-wait`, built for this machine by the build script.
const INIT: &[u8] = include_bytes!(env!("HSUP_INIT"));
/// How the name of a folder begins in which a driver tries out what the file system can.
pub(crate) const PROBE: &str = "probe-";
/// How often the host's network is looked at again.
const LOOK: Duration = Duration::from_secs(10);

/// How long what a dyno held may take to be freed; it is some ten milliseconds.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// The driver cannot begin.
#[derive(Debug, Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Dirs(#[from] DirsError),
    #[error("failed to leave the host's mount namespace (CAP_SYS_ADMIN is needed)")]
    Namespace(#[source] io::Error),
    #[error(
        "`{}` cannot hold what dynos write: name a work directory on ext4, xfs or btrfs, \
         and not in an overlay, as that of a container is", path.display()
    )]
    Overlay { path: PathBuf, source: MountError },
    #[error(transparent)]
    Uids(#[from] UidError),
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Leases(#[from] LeaseError),
    #[error(transparent)]
    Cgroups(#[from] CgroupError),
    #[error(transparent)]
    NetSettings(#[from] net::SettingsError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Stacks(#[from] StackError),
    #[error("failed to open the slugs")]
    Slugs(#[from] SlugError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error("failed to keep hsup-init in memory")]
    Init(#[source] io::Error),
}

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
    /// Images that are mounted.
    mounted: Mutex<Mounted>,
    /// What the network said last.
    ready: Mutex<Result<(), String>>,
}

impl Libcontainer {
    /// Takes what lies in the directories, and prepares the host. `callers` are whom it serves
    /// besides root.
    pub(crate) async fn open(
        settings: Settings,
        callers: impl Iterator<Item = u32>,
        socket: Option<&Path>,
    ) -> Result<Self, OpenError> {
        // Before any other thread: images are mounted for us and our shims alone, and go with us.
        mounts::leave_host().map_err(OpenError::Namespace)?;
        let uids = UidRange::parse(
            variable(UID_MIN_VARIABLE).as_deref(),
            variable(UID_MAX_VARIABLE).as_deref(),
        )?;
        // A host without the file names nobody.
        let named = lease::named(&fs::read_to_string("/etc/passwd").unwrap_or_default());
        uids.check(callers, &named)?;
        let pool = Pool::new(variable(SUBNET_VARIABLE).as_deref(), uids)?;
        let hierarchies = Arc::new(Hierarchies::detect()?);
        let work_dir = WorkDir::open(&settings.work_dir)?;
        let run_dir = settings.run_dir.clone();
        let run_dir = run_dir.unwrap_or_else(dirs::default_run_dir);
        let home = Home::open(&run_dir, &work_dir, socket)?;
        probe(&work_dir).map_err(|source| OpenError::Overlay {
            path: work_dir.path().to_owned(),
            source,
        })?;
        let mut leases = Leases::open(work_dir.path(), uids, pool)?;
        for uid in leases.free_stale()? {
            tracing::info!(uid, "freed a user that a dyno held before a crash");
        }
        let strangers = leases.pass_over(named.into_iter().map(|(uid, _)| uid))?;
        if !strangers.is_empty() {
            tracing::warn!(
                uids = ?strangers,
                "users of this host are among those that dynos may be, and are passed over"
            );
        }
        let net = net::Settings::parse(work_dir.path(), leases.pool().clone(), variable)?;
        let network = Network::open(net).await?;
        for link in network.collect().await? {
            tracing::info!(link, "removed a link that a dyno had before a crash");
        }
        let stacks = Stacks::open(work_dir.path(), settings.stacks_manifest.clone())?;
        // The user after the last dyno's, so that no dyno is it.
        let slugs = Store::open(
            &work_dir.slugs(),
            hsup_slug::Settings {
                keep: settings.keep_slugs,
                ..hsup_slug::Settings::new(uids.unpacker())
            },
        )?;
        let most = 2 * thread::available_parallelism().map_or(1, usize::from);
        let enters_slowly = Hierarchies::enters_slowly();
        if enters_slowly {
            tracing::info!(
                "every start takes an RCU grace period, 10 to 20 ms; \
                 `mount -o remount,favordynmods -t cgroup2 none CGROUP2_MOUNT` \
                 or 1 in /sys/kernel/rcu_expedited spares it"
            );
        }
        let init = in_memory(c"hsup-init", |file| io::Write::write_all(file, INIT))
            .map_err(OpenError::Init)?;
        let inner = Inner {
            init,
            seccomp: {
                let filters = seccomp::programs()?;
                in_memory(c"seccomp", |file| shim::write_filters(file, &filters))
                    .map_err(OpenError::Init)?
            },
            ready: {
                let ready = said(network.ready().await);
                tell(&Ok(()), &ready);
                Mutex::new(ready)
            },
            turns: Semaphore::new(most),
            most,
            enters_slowly,
            mounted: Mutex::default(),
            settings,
            work_dir,
            home,
            leases,
            network,
            stacks,
            slugs,
            hierarchies,
        };
        let driver = Self(Arc::new(inner));
        tokio::spawn(look(Arc::downgrade(&driver.0)));
        Ok(driver)
    }

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

    /// The stack of a release that names none, as that of a Procfile: there must be no choice.
    async fn only_stack(&self) -> Result<String, Status> {
        let names = self.stacks().names().await.map_err(stack_status)?;
        match names.as_slice() {
            [name] => Ok(name.to_string()),
            [] => Err(Status::failed_precondition(
                "the release names no stack, and none is here; \
                 `hsup-driver-libcontainer stack import IMAGE` brings one from a Docker engine",
            )),
            _ => {
                let names: Vec<_> = names.iter().map(ToString::to_string).collect();
                Err(Status::failed_precondition(format!(
                    "the release names no stack, and there are several: {}",
                    names.join(", ")
                )))
            }
        }
    }

    async fn slug(
        &self,
        peer: Peer,
        release: &Release,
        log: &BuildLog,
    ) -> Result<Option<SlugId>, Status> {
        if release.slug_url.is_empty() {
            return Ok(None);
        }
        let checksum = match release.slug_checksum.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|error: hsup_slug::BadId| {
                Status::invalid_argument(format!("release.slug_checksum is wrong: {error}"))
            })?),
        };
        let owner =
            Owner::new(peer.uid.as_raw(), &release.app).map_err(|error| slug_status(&error))?;
        let fetch = Fetch::new(release.slug_url.clone(), checksum, as_peer(peer));
        let id = self.slugs().add(&fetch, &owner, &Told(log)).await;
        let id = id.map_err(|error| slug_status(&error))?;
        Ok(Some(id))
    }
}

/// A variable of ours; what is not UTF-8 in it is malformed in any case.
fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Whether dynos can have a writable folder there.
fn probe(work_dir: &WorkDir) -> Result<(), MountError> {
    let own = work_dir
        .containers()
        .join(format!("{PROBE}{}", std::process::id()));
    let at = own.join("at");
    let result = mounts::probe_at(&own, &at);
    // It is ours alone, and has nothing in it.
    drop(fs::remove_dir_all(&own));
    result
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

/// A file that is nowhere, and that nobody may change.
fn in_memory(
    name: &std::ffi::CStr,
    fill: impl FnOnce(&mut fs::File) -> io::Result<()>,
) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Where the kernel is told not to execute such files (vm.memfd_noexec = 1), unless that is
    // asked for; an older one does not know the flag.
    let executable = MFdFlags::from_bits_retain(libc::MFD_EXEC);
    let made = memfd_create(name, flags | executable).or_else(|errno| match errno {
        Errno::EINVAL => memfd_create(name, flags),
        other => Err(other),
    });
    let mut file = fs::File::from(made?);
    fill(&mut file)?;
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

impl Runtime for Libcontainer {
    type Dyno = Contained;

    fn identity(&self) -> Identity {
        Identity {
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
        }
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
        let (program, peer) = (hsup_slug::Program::default(), as_peer(peer));
        let patience = hsup_slug::Patience::default();
        let changed = hsup_slug::changed(&program, &peer, path, &patience).await;
        // What is wrong with it is what the build will say.
        changed.ok().map(String::into_bytes)
    }

    async fn build(
        &self,
        peer: Peer,
        request: BuildRequest,
        log: BuildLog,
    ) -> Result<String, Status> {
        let release = request.release.unwrap_or_default();
        if release.slug_url.is_empty() && !release.image.is_empty() {
            return Err(Status::failed_precondition(
                "the libcontainer driver runs slugs on stacks, no images; the docker driver does",
            ));
        }
        let name = match release.stack.as_str() {
            "" => self.only_stack().await?,
            name => name.to_owned(),
        };
        let stack = self.stacks().resolve(&name, &Told(&log)).await;
        let stack = stack.map_err(stack_status)?;
        let slug = self.slug(peer, &release, &log).await?;
        // An image that cannot be mounted is found out now.
        self.mounted(&stack)?;
        let artifact = Artifact {
            stack: stack.name.as_str().to_owned(),
            version: stack.version.as_str().to_owned(),
            slug,
        };
        Ok(artifact.to_string())
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
