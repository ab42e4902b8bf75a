//! The shim of one dyno: makes its container, starts it, and becomes the one who waits for it.
//!
//! ```text
//!   driver ──order──▶ shim: mounts, libcontainer build() and start() ──▶ exec hsup-wait
//!                       └─ libcontainer's helper, gone by then                │ exit.json
//!                       └─ hsup-init, PID 1 of the dyno                       ▼
//!                            └─ the command                              exec `sweep`
//! ```
//!
//! A process of its own, with one thread, because libcontainer forks and goes on in Rust, changes
//! the working directory of its process, and makes it the parent whom the dyno's end is told to.
//! All three are harmless here and wrong in a server. The dyno, this process, and with it the
//! exit status outlive the driver.

mod executor;
mod waiter;

use std::{
    ffi::OsString,
    fs,
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use libcontainer::{
    container::{Container, builder::ContainerBuilder},
    syscall::syscall::SyscallType,
};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        resource::{Resource, getrlimit},
        signal::{SigSet, SigmaskHow, pthread_sigmask},
        socket::{AddressFamily, SockFlag, SockType, socketpair},
    },
    unistd::{Gid, pipe2, setgroups},
};
use thiserror::Error;
use tokio::time::Instant;

pub(crate) use self::executor::write_filters;
use self::{
    executor::{ExecInit, TerminalPair},
    waiter::Started,
};
use crate::{
    binds::Bind,
    mounts::{self, App, Mapped, MountError, Slug},
    order::{self, Answer, Handed, Life, Order},
    spec, sweep,
};

/// What the driver's program is called in this role.
pub(crate) const ROLE: &str = "shim";
/// In a dyno's directory: how the dyno is known, once it is.
pub(crate) const LIFE: &str = "life.json";
/// How often it is said that a slug is still being copied.
const SAYS_EVERY: Duration = Duration::from_secs(1);

/// The container could not be made or started.
#[derive(Debug, Error)]
enum ShimError {
    #[error("failed to receive the order")]
    Order(#[source] io::Error),
    #[error("failed to {doing}")]
    Prepare {
        doing: &'static str,
        source: io::Error,
    },
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("failed to write the container's specification")]
    Spec(#[from] libcontainer::oci_spec::OciSpecError),
    #[error("failed to make the container")]
    Create(#[source] libcontainer::error::LibcontainerError),
    #[error("failed to start the container")]
    Start(#[source] libcontainer::error::LibcontainerError),
    #[error("libcontainer did not say which process it made")]
    NoPid,
    #[error("the driver that wanted the dyno is gone")]
    Abandoned(#[source] io::Error),
    #[error("the dyno ended before it had a terminal")]
    NoTerminal,
}

/// What the kernel answered, at the bottom of an error.
fn errno_of(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut error = Some(error);
    while let Some(cause) = error {
        if let Some(found) = cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            return Some(found);
        }
        error = cause.source();
    }
    None
}

fn preparing<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> ShimError {
    move |error| ShimError::Prepare {
        doing,
        source: error.into(),
    }
}

/// Makes the dyno whose directory is the first argument. Descriptor 0 is the driver's socket.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let Some(dir) = args.first().map(PathBuf::from) else {
        return ExitCode::from(2);
    };
    let Some(driver) = driver() else {
        return ExitCode::from(2);
    };
    match begin(&dir, &driver) {
        Ok((dyno, answer)) => {
            say(&driver, &dir, &answer, dyno.terminal.as_ref());
            drop(driver);
            let error = dyno.wait(&dir);
            // Nobody waits for the dyno now: that is the driver's to find out.
            tracing::error!(%error, "failed to execute hsup-wait");
            ExitCode::FAILURE
        }
        // Nothing is ours yet: the driver found out that the dyno cannot be, or it is gone.
        Err(ShimError::Order(error)) => {
            tracing::debug!(dir = %dir.display(), %error, "a shim is not needed");
            ExitCode::FAILURE
        }
        Err(error) => {
            let text = hsup_driver_kit::errors::chain(&error);
            let errno = errno_of(&error);
            sweep::of_failed(&dir);
            say(&driver, &dir, &Answer::Failed(text, errno), None);
            ExitCode::FAILURE
        }
    }
}

/// Descriptor 0, which is made `/dev/null` in its place: whoever comes later finds it taken.
#[expect(
    unsafe_code,
    reason = "a descriptor known by its number alone is adopted"
)]
fn driver() -> Option<UnixStream> {
    let null = fs::File::open("/dev/null").ok()?;
    // SAFETY: descriptor 0 is ours by the convention between driver and shim, and nobody has
    // taken it yet; the copy is new.
    let (given, mut stdin) = unsafe { (libc::dup(0), OwnedFd::from_raw_fd(0)) };
    nix::unistd::dup2(&null, &mut stdin).ok()?;
    std::mem::forget(stdin);
    if given < 0 {
        return None;
    }
    // SAFETY: dup(2) has just made it.
    let socket = unsafe { OwnedFd::from_raw_fd(given) };
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    Some(UnixStream::from(socket))
}

/// Tells the driver. If it is gone, the next one finds the dyno without.
fn say(mut driver: &UnixStream, dir: &Path, answer: &Answer, terminal: Option<&OwnedFd>) {
    let result = serde_json::to_vec(answer)
        .map_err(io::Error::from)
        .and_then(|mut line| {
            line.push(b'\n');
            let terminal: Vec<_> = terminal.iter().map(|fd| fd.as_raw_fd()).collect();
            order::send_fds(driver, &terminal)?;
            driver.write_all(&line)
        });
    if let Err(error) = result {
        tracing::debug!(dir = %dir.display(), %error, "failed to answer the driver");
    }
}

fn begin(dir: &Path, driver: &UnixStream) -> Result<(Started, Answer), ShimError> {
    let (order, handed) = order::receive(driver).map_err(ShimError::Order)?;
    setgroups(&[] as &[Gid]).map_err(preparing("drop the supplementary groups"))?;
    new_keyring().map_err(preparing("leave the session keyring"))?;
    mounts::leave_host().map_err(preparing("make a mount namespace"))?;
    let places = Places::new(dir);
    mounts::root(&places.skeleton, &order.stack, &places.root)?;
    let slug = order.slug.as_ref().map(|slug| Slug {
        path: &slug.path,
        owner: slug.owner,
    });
    let app = App {
        slug,
        own: &order.own,
        lower: &places.slug,
        at: &places.app,
        uid: order.uid,
    };
    let mapped = mounts::app(&app, &mut says_copying(driver))?;
    let mut binds = Vec::new();
    for (number, (dyno_path, writable)) in order.binds.iter().enumerate() {
        let source = places.bind(number);
        if let Some(fd) = handed.binds.get(number) {
            mounts::bind(fd, &source)?;
        }
        binds.push(Bind {
            source,
            dyno_path: dyno_path.clone(),
            writable: *writable,
        });
    }
    let spec = spec::Container {
        root: &places.root,
        app: &places.app,
        uid: order.uid,
        hostname: &order.hostname,
        netns: format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            handed.netns.as_raw_fd()
        )
        .into(),
        cgroup: &order.cgroup,
        unified: order.unified,
        limits: order.limits,
        most_processes: most_processes(),
        tmp_size: order.tmp_size,
        binds: &binds,
    }
    .spec()?;
    spec.save(dir.join("config.json"))?;
    create(dir, driver, order, handed, mapped)
}

/// Tells the driver that the slug is still being copied, and finds out when it is gone: then nobody
/// wants the copy.
fn says_copying(driver: &UnixStream) -> impl FnMut() -> io::Result<()> {
    let mut said: Option<Instant> = None;
    move || {
        if said.is_some_and(|said| said.elapsed() < SAYS_EVERY) {
            return Ok(());
        }
        said = Some(Instant::now());
        order::say_copying(driver)
    }
}

/// Makes the container and starts it.
fn create(
    dir: &Path,
    driver: &UnixStream,
    order: Order,
    handed: Handed,
    mapped: Mapped,
) -> Result<(Started, Answer), ShimError> {
    let Handed {
        stdin,
        stdout,
        stderr,
        life,
        left,
        init,
        seccomp,
        outputs,
        kept,
        ..
    } = handed;
    let (status, status_writer) =
        pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(preparing("make a pipe"))?;
    let terminal = match order.tty {
        None => None,
        Some(size) => {
            let pair = socketpair(
                AddressFamily::Unix,
                SockType::Stream,
                None,
                SockFlag::SOCK_CLOEXEC,
            );
            Some((size, pair.map_err(preparing("make a socket"))?))
        }
    };
    // PID 1 of a namespace loses a signal that it has no handler for, unless it is blocked; so
    // that none is lost before hsup-init takes them, they are blocked from its birth on.
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)
        .map_err(preparing("block signals"))?;
    let executor = ExecInit::new(&order, &init, &seccomp, &status_writer, terminal.as_ref())?;
    let state = dir.join("state");
    let mut container = ContainerBuilder::new(order.id.clone(), SyscallType::Linux)
        .with_root_path(&state)
        .map_err(ShimError::Create)?
        .with_stdin(stdin)
        .with_stdout(stdout)
        .with_stderr(stderr)
        .with_executor(executor)
        .as_init(dir)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(ShimError::Create)?;
    let started = bring_up(
        dir,
        driver,
        &order,
        &mut container,
        mapped,
        status_writer,
        terminal,
    );
    let (dyno_life, terminal) = match started {
        Ok(started) => started,
        Err(error) => {
            // It kills what there is; the sweep does the rest.
            drop(container.delete(true));
            return Err(error);
        }
    };
    // Short of memory, the kernel must not kill the process that tells how the dyno ended instead
    // of the dyno. Where it cannot be told so (in a container, perhaps), that is no reason to fail.
    drop(fs::File::create("/proc/self/oom_score_adj").and_then(|mut file| file.write_all(b"-900")));
    let oom = order.oom_file.and_then(|path| fs::File::open(path).ok());
    let mut held = kept;
    held.push(left);
    let dyno = Started {
        init: dyno_life.init,
        status,
        life,
        outputs,
        oom,
        program: init,
        terminal,
        held,
    };
    Ok((dyno, Answer::Started(dyno_life)))
}

/// Brings a container's first process to life: how the dyno is known, and its terminal.
fn bring_up(
    dir: &Path,
    driver: &UnixStream,
    order: &Order,
    container: &mut Container,
    mapped: Mapped,
    status_writer: OwnedFd,
    terminal: Option<TerminalPair>,
) -> Result<(Life, Option<OwnedFd>), ShimError> {
    let mut dyno = Life {
        init: container.pid().ok_or(ShimError::NoPid)?.as_raw(),
        waiter: std::process::id().cast_signed(),
        terminal: None,
        copied: mapped == Mapped::Copied,
    };
    // hsup-init has its own by now, and the pipe is to end with that.
    drop(status_writer);
    let terminal = terminal.map(|(_, (ours, theirs))| {
        drop(theirs);
        UnixStream::from(ours)
    });
    if let Some(limit) = &order.swap {
        limit
            .set()
            .map_err(preparing("keep the dyno from swapping"))?;
    }
    start(dir, driver, container, &dyno)?;
    let terminal = match terminal {
        None => None,
        Some(socket) => Some(receive_terminal(&socket)?),
    };
    if let Some(fd) = &terminal {
        dyno.terminal = Some(fd.as_raw_fd());
        write_life(dir, &dyno)?;
    }
    Ok((dyno, terminal))
}

/// Lets the container's first process go, if anybody still wants it.
fn start(
    dir: &Path,
    driver: &UnixStream,
    container: &mut Container,
    life: &Life,
) -> Result<(), ShimError> {
    is_there(driver).map_err(ShimError::Abandoned)?;
    // Whoever takes the place of a driver that is killed from here on finds a dyno that runs.
    write_life(dir, life)?;
    container.start().map_err(ShimError::Start)
}

/// Whether the driver still has its end of the socket: it says nothing more, but goes.
fn is_there(driver: &UnixStream) -> io::Result<()> {
    use nix::sys::socket::{MsgFlags, recv};
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
    match recv(driver.as_raw_fd(), &mut [0], flags) {
        Ok(0) => Err(io::ErrorKind::BrokenPipe.into()),
        Ok(_) | Err(nix::errno::Errno::EAGAIN) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn write_life(dir: &Path, life: &Life) -> Result<(), ShimError> {
    let new = dir.join("life.json.new");
    let write = || {
        fs::File::create(&new)?.write_all(&serde_json::to_vec(life)?)?;
        fs::rename(&new, dir.join(LIFE))
    };
    write().map_err(preparing("write down the dyno's process"))
}

fn receive_terminal(socket: &UnixStream) -> Result<OwnedFd, ShimError> {
    let mut fds = order::receive_fds(socket).map_err(preparing("receive the dyno's terminal"))?;
    fds.pop().ok_or(ShimError::NoTerminal)
}

/// The places in a dyno's directory that the driver has made.
#[derive(Debug)]
pub(crate) struct Places {
    /// The upper layer of its root.
    pub(crate) skeleton: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) slug: PathBuf,
    pub(crate) app: PathBuf,
    pub(crate) binds: PathBuf,
}

impl Places {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            skeleton: dir.join("skeleton"),
            root: dir.join("root"),
            slug: dir.join("slug"),
            app: dir.join("app"),
            binds: dir.join("binds"),
        }
    }

    pub(crate) fn bind(&self, number: usize) -> PathBuf {
        self.binds.join(number.to_string())
    }
}

/// How many processes a user may be allowed: who may not raise limits keeps its own.
fn most_processes() -> u64 {
    /// `CAP_SYS_RESOURCE` of `capabilities(7)`.
    const RAISES_LIMITS: u32 = 24;
    let (_, own) = getrlimit(Resource::RLIMIT_NPROC).unwrap_or((0, libc::RLIM_INFINITY));
    let status = || fs::read_to_string("/proc/self/status").unwrap_or_default();
    let may_raise = |status: String| {
        let mut lines = status.lines();
        let effective = lines.find_map(|line| line.strip_prefix("CapEff:"))?;
        let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
        Some(effective >> RAISES_LIMITS & 1 == 1)
    };
    if own == libc::RLIM_INFINITY || may_raise(status()).unwrap_or(false) {
        return u64::MAX;
    }
    own
}

/// A session keyring of our own, or dynos would share the driver's (keyrings(7)).
#[expect(unsafe_code, reason = "keyctl(2) has no wrapper")]
fn new_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: no name is given: the keyring has none.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, none) };
    match nix::errno::Errno::result(result) {
        // A kernel without keys has nothing to share.
        Ok(_) | Err(nix::errno::Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
