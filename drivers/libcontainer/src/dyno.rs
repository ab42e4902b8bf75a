//! A dyno in a container, as the driver sees it: from outside, by its files and a descriptor of
//! its first process.

use std::{
    fs,
    io::{self, Write as _},
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use hsup_driver_kit::{
    Signal, Status,
    clock::now_unix_ms,
    errors,
    proto::{ExitStatus, IpInfoResponse, StatsResponse, exit_status::How},
    pty,
    service::Dyno,
};
use nix::{
    errno::Errno,
    sys::{
        signal,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{
    cgroup::{self, Hierarchies},
    life::{self, Watch},
    order::Life,
    shim, sweep,
};

/// In a dyno's directory: what the driver knows of it besides.
const KNOWN: &str = "dyno.json";

/// What the driver needs to know of a dyno again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) cgroup: String,
    pub(crate) ip: Ipv4Addr,
    /// What its environment says, if that is a port.
    pub(crate) port: Option<u16>,
}

impl Known {
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        fs::File::create(dir.join(KNOWN))?.write_all(&serde_json::to_vec(self)?)
    }

    fn read(dir: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(dir.join(KNOWN))?)?)
    }
}

/// The two FIFOs of a dyno.
#[derive(Debug)]
pub(crate) struct Watches {
    pub(crate) life: Watch,
    pub(crate) left: Watch,
}

/// A dyno that was started. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Contained(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    watches: Watches,
    known: Known,
    hierarchies: Arc<Hierarchies>,
    life: Life,
    /// Its waiter is a child of this process.
    is_child: bool,
    /// Its first process; none of a dyno that had ended when it was looked for.
    init: Option<OwnedFd>,
    terminal: Option<pty::Terminal>,
}

impl Contained {
    /// One that the shim has just started; `terminal` is the master of its terminal.
    pub(crate) fn started(
        dir: PathBuf,
        watches: Watches,
        known: Known,
        hierarchies: &Arc<Hierarchies>,
        life: Life,
        terminal: Option<OwnedFd>,
    ) -> io::Result<Self> {
        Ok(Self(Arc::new(Inner {
            init: first_process(&life, &watches)?,
            terminal: terminal.map(pty::Terminal::from_master).transpose()?,
            dir,
            watches,
            known,
            hierarchies: Arc::clone(hierarchies),
            life,
            is_child: true,
        })))
    }

    /// One that another process of this driver started.
    pub(crate) fn found(dir: PathBuf, hierarchies: &Arc<Hierarchies>) -> io::Result<Self> {
        let watches = Watches {
            life: Watch::open(&dir, life::LIFE)?,
            left: Watch::open(&dir, life::LEFT)?,
        };
        let life: Life = serde_json::from_slice(&fs::read(dir.join(shim::LIFE))?)?;
        let init = first_process(&life, &watches)?;
        let terminal = match life.terminal {
            Some(fd) if init.is_some() => take_terminal(life.waiter, fd, &watches)?,
            _ => None,
        };
        Ok(Self(Arc::new(Inner {
            known: Known::read(&dir)?,
            dir,
            watches,
            hierarchies: Arc::clone(hierarchies),
            life,
            is_child: false,
            init,
            terminal,
        })))
    }

    /// Whether its first process is gone.
    pub(crate) fn has_ended(&self) -> bool {
        !self.0.watches.life.is_held()
    }

    fn folders(&self) -> Vec<PathBuf> {
        self.0.hierarchies.folders(&self.0.known.cgroup)
    }

    /// The process of the dyno's command, as the host numbers it.
    fn command_pid(&self) -> Option<u32> {
        let init = self.0.life.init;
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).ok()?;
        let command = children.split_ascii_whitespace().next()?.parse().ok()?;
        // Only then was the number still that of the dyno.
        self.0.watches.life.is_held().then_some(command)
    }

    /// Frees what the dyno held, if nobody else does or has.
    async fn sweep(&self) {
        let dir = self.0.dir.clone();
        let swept = tokio::task::spawn_blocking(move || sweep::run(&dir)).await;
        if let Ok(Err(error)) = swept {
            let error = errors::chain(&error);
            tracing::error!(dir = %self.0.dir.display(), error, "something of a dyno is left");
        }
    }
}

impl Dyno for Contained {
    type Terminal = pty::Terminal;

    async fn wait(&self) -> ExitStatus {
        let Inner { dir, watches, .. } = &*self.0;
        watches.life.closed().await;
        if let Some(status) = life::exit_status(dir) {
            return status;
        }
        // Who waited for it was killed. What it waited for may live on.
        self.sweep().await;
        ExitStatus {
            how: Some(How::Lost(
                "the process that waited for it was killed".into(),
            )),
            oom_killed: false,
            exited_at_unix_ms: now_unix_ms(),
        }
    }

    async fn signal(&self, signal: Signal) {
        let Some(init) = &self.0.init else {
            return;
        };
        if signal.number() != libc::SIGSTOP {
            // The first process hands it on to every other; SIGKILL is the end of all.
            send(init, signal.number());
            return;
        }
        // It would be the first process that stops, and nothing else.
        for pid in cgroup::members(&self.folders()) {
            if pid != self.0.life.init {
                // It may have ended.
                let _ = signal::kill(Pid::from_raw(pid), signal::Signal::SIGSTOP);
            }
        }
    }

    async fn kill(&self) {
        match &self.0.init {
            Some(init) => send(init, libc::SIGKILL),
            None => {
                for pid in cgroup::members(&self.folders()) {
                    let _ = signal::kill(Pid::from_raw(pid), signal::Signal::SIGKILL);
                }
            }
        }
    }

    fn ip_info(&self) -> Result<IpInfoResponse, Status> {
        let port = self.0.known.port.ok_or_else(|| {
            Status::failed_precondition(
                "PORT in the dyno's environment is missing, or no number from 1 to 65535",
            )
        })?;
        Ok(IpInfoResponse {
            ip: self.0.known.ip.to_string(),
            port: port.into(),
            node: String::new(),
        })
    }

    async fn stats(&self) -> Result<StatsResponse, Status> {
        let usage = self.0.hierarchies.usage(&self.0.known.cgroup);
        if usage.pids.is_none() {
            return Err(Status::failed_precondition("the dyno has exited"));
        }
        Ok(StatsResponse {
            at_unix_ms: now_unix_ms(),
            cpu_ns: usage.cpu_ns,
            memory_bytes: usage.memory,
            memory_peak_bytes: usage.memory_peak,
            // The first is ours.
            pids: usage
                .pids
                .map(|pids| u32::try_from(pids.saturating_sub(1)).unwrap_or(u32::MAX)),
            pid: self.command_pid(),
        })
    }

    fn terminal(&self) -> Option<pty::Terminal> {
        self.0.terminal.clone()
    }

    async fn remove(&self) {
        let Inner {
            dir,
            watches,
            life,
            is_child,
            ..
        } = &*self.0;
        watches.left.closed().await;
        if *is_child {
            // It has closed everything, and is ours to reap; the second time there is none.
            let _ = waitpid(Pid::from_raw(life.waiter), Some(WaitPidFlag::__WALL));
        }
        if sweep::is_due(dir) {
            self.sweep().await;
        }
        if let Err(error) = fs::remove_dir_all(dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(dir = %dir.display(), %error, "failed to forget a dyno");
        }
    }
}

/// A descriptor of a process, which never is another's.
#[expect(unsafe_code, reason = "pidfd_open(2) has no wrapper")]
fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: it takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    owned(fd)
}

/// A descriptor of the dyno's first process; none if it has ended.
fn first_process(life: &Life, watches: &Watches) -> io::Result<Option<OwnedFd>> {
    match pidfd_open(life.init) {
        // As long as that is held nobody has reaped it, and the number is no other's.
        Ok(init) => Ok(watches.life.is_held().then_some(init)),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A copy of the waiter's descriptor of the terminal; none if the dyno has ended meanwhile.
#[expect(unsafe_code, reason = "pidfd_getfd(2) has no wrapper")]
fn take_terminal(waiter: i32, fd: RawFd, watches: &Watches) -> io::Result<Option<pty::Terminal>> {
    let taken = pidfd_open(waiter).and_then(|waiter| {
        if !watches.life.is_held() {
            return Ok(None);
        }
        // SAFETY: it takes three numbers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, waiter.as_raw_fd(), fd, 0) };
        pty::Terminal::from_master(owned(fd)?).map(Some)
    });
    match taken {
        Err(_) if !watches.life.is_held() => Ok(None),
        taken => taken,
    }
}

#[expect(unsafe_code, reason = "the kernel hands descriptors over as numbers")]
fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = Errno::result(fd)?;
    let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[expect(unsafe_code, reason = "pidfd_send_signal(2) has no wrapper")]
fn send(to: &OwnedFd, signal: i32) {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: without more about the signal the kernel says what kill(2) would.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, to.as_raw_fd(), signal, info, 0) };
    if let Err(error) = Errno::result(result)
        && error != Errno::ESRCH
    {
        tracing::error!(%error, "failed to signal a dyno");
    }
}
