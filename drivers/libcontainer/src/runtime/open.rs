//! Beginning: what lies in the directories is taken, and the host is looked at and prepared.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

use hsup_driver_kit::errors;
use hsup_slug::{SlugError, Store};
use nix::{
    errno::Errno,
    sys::memfd::{MFdFlags, memfd_create},
};
use thiserror::Error;
use tokio::sync::Semaphore;

use super::{Inner, Libcontainer, PROBE, look, said, tell};
use crate::{
    cgroup::{self, CgroupError, Hierarchies},
    dirs::{self, DirsError, Home, WorkDir},
    lease::{
        self, LeaseError, Leases, Pool, PoolError, SUBNET_VARIABLE, UID_MAX_VARIABLE,
        UID_MIN_VARIABLE, UidError, UidRange,
    },
    mounts::{self, MountError},
    net::{self, NetError, Network},
    seccomp::{self, SeccompError},
    settings::{Settings, SettingsError},
    shim,
    stack::{StackError, Stacks},
    start::Opening,
};

/// `hsup-init` and `hsup-wait`, built for this machine by the build script, drivers/init/embed.rs.
const INIT: &[u8] = include_bytes!(env!("HSUP_INIT"));

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
        let (uids, pool, named) = users(callers)?;
        let hierarchies = Arc::new(Hierarchies::detect()?);
        let moved = hierarchies.enable_controllers()?;
        if moved > 0 {
            tracing::info!(
                moved,
                "the processes of this container are in a cgroup of their own, beside dynos'"
            );
        }
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
        let strangers = leases.pass_over(named)?;
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
        tidy(slugs.clone());
        let most = 2 * thread::available_parallelism().map_or(1, usize::from);
        let enters_slowly = warn_of_host(&hierarchies);
        let init = in_memory(c"hsup-init", |file| io::Write::write_all(file, INIT))
            .map_err(OpenError::Init)?;
        let filters = seccomp::programs()?;
        let seccomp = in_memory(c"seccomp", |file| shim::write_filters(file, &filters))
            .map_err(OpenError::Init)?;
        let ready = said(network.ready().await);
        tell(&Ok(()), &ready);
        let inner = Inner {
            init,
            seccomp,
            ready: Mutex::new(ready),
            turns: Semaphore::new(most),
            most,
            enters_slowly,
            opening: Opening::default(),
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
}

/// The users that dynos may be, the addresses they may have, and the users that the host names.
fn users(callers: impl Iterator<Item = u32>) -> Result<(UidRange, Pool, Vec<u32>), OpenError> {
    let uids = UidRange::parse(
        variable(UID_MIN_VARIABLE).as_deref(),
        variable(UID_MAX_VARIABLE).as_deref(),
    )?;
    // A host without the file names nobody.
    let named = lease::named(&fs::read_to_string("/etc/passwd").unwrap_or_default());
    uids.check(callers, &named)?;
    let pool = Pool::new(variable(SUBNET_VARIABLE).as_deref(), uids)?;
    let named = named.into_iter().map(|(uid, _)| uid).collect();
    Ok((uids, pool, named))
}

/// Says what of this host is not as dynos would have it; whether they enter their cgroups slowly.
fn warn_of_host(hierarchies: &Hierarchies) -> bool {
    let enters_slowly = Hierarchies::enters_slowly();
    if enters_slowly {
        tracing::info!(
            "every start takes an RCU grace period, 10 to 20 ms; \
             `mount -o remount,favordynmods -t cgroup2 none CGROUP2_MOUNT` \
             or 1 in /sys/kernel/rcu_expedited spares it"
        );
    }
    if cgroup::host_swaps() && !hierarchies.counts_swap() {
        tracing::warn!(
            "this kernel does not count what is in swap: a limit on memory does not keep a dyno \
             from swapping (swapaccount=1 on the kernel's command line does)"
        );
    }
    enters_slowly
}

/// Removes what is left of slugs while the driver serves: it may be a lot, and is in nobody's way.
/// What cannot be removed is told.
fn tidy(slugs: Store) {
    // A thread that the end of the driver does not wait for: the next one goes on.
    let tidying = thread::Builder::new().name("tidy".to_owned());
    let tidying = tidying.spawn(move || {
        if let Err(error) = slugs.tidy() {
            let error = errors::chain(&error);
            tracing::error!(error, "what is left of slugs cannot be removed");
        }
    });
    if let Err(error) = tidying {
        tracing::error!(%error, "what is left of slugs is left to the next driver");
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
