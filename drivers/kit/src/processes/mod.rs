//! The processes of dynos, whole trees of them.
//!
//! A dyno is its first process and whatever that brought forth. Three things hold them
//! together, none of which needs a privilege:
//!
//! - its own *session*: a signal to the process group reaches what did not leave it;
//! - the driver is a *subreaper* (prctl(2)): who loses its parent becomes the driver's child,
//!   so nobody gets away and nobody stays a zombie;
//! - a *mark* tells whose an orphan is: the soft limit `RLIMIT_LOCKS`, which Linux has not
//!   enforced since 2.4.25 (setrlimit(2)), which every descendant inherits, and which the
//!   driver reads with prlimit(2). A session is left with `setsid`; the mark stays.
//!
//! Where the machine gives us a cgroup v2 to write to, the kernel keeps the books: see
//! `cgroup.rs`.
//!
//! One census of the machine serves everybody who asks at the same time: a thousand
//! dynos that are stopped together cost one look at `/proc`, not a thousand.

mod census;
mod cgroup;
mod exec;
mod orphans;
mod status;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hsup_proto::driver;
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use thiserror::Error;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::sleep,
};

use self::{
    census::{Census, Takers},
    cgroup::{Cgroup, Root},
    exec::Resolved,
};
use crate::{
    pty::{self, Terminal},
    spawn::{Spawn, Ties},
};

/// A process could not be started, for a reason that is the machine's and not the command's.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// Too many processes, descriptors, or too little memory.
    #[error("this machine has no room for another process")]
    Exhausted(#[source] io::Error),
    /// An argument or a variable with a NUL byte.
    #[error("arguments and environment must not hold NUL bytes")]
    NulByte,
    /// Anything else that is not the command's fault.
    #[error("failed to start a process")]
    Other(#[source] io::Error),
}

/// Where a process reads and writes.
#[derive(Debug)]
pub enum Stdio {
    /// Descriptors that were opened for it.
    Fds {
        /// Its standard input.
        stdin: OwnedFd,
        /// Its standard output.
        stdout: OwnedFd,
        /// Its standard error.
        stderr: OwnedFd,
    },
    /// A terminal of its own.
    Terminal,
}

/// What to run.
#[derive(Debug)]
pub struct Command<'a> {
    /// Unique among our processes; names its cgroup.
    pub name: &'a str,
    /// Executed as it is; `argv[0]` is looked up in the PATH of `env`.
    pub argv: &'a [String],
    /// The whole environment.
    pub env: &'a BTreeMap<String, String>,
    /// The working directory.
    pub cwd: &'a Path,
    /// Where it reads and writes.
    pub stdio: Stdio,
}

/// Everything that this driver process has started. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Processes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// First processes by their pid, until their end has been reaped.
    running: Mutex<HashMap<i32, Process>>,
    takers: mpsc::UnboundedSender<census::Taker>,
    /// Marks are this and what follows.
    first_mark: u64,
    next_mark: Mutex<u64>,
    cgroups: Option<Root>,
}

/// One dyno's processes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Process {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// 0: it never ran.
    pid: i32,
    mark: u64,
    cgroup: Option<Cgroup>,
    terminal: Option<Terminal>,
    phase: watch::Sender<Phase>,
    shared: Arc<Shared>,
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    Running,
    /// The first process has ended so; others may be left.
    Ending(driver::ExitStatus),
    /// Nobody is left.
    Ended(driver::ExitStatus),
}

/// How often a tree that does not want to end is killed again.
const KILL_AGAIN: Duration = Duration::from_millis(2);

impl Processes {
    /// Makes this process a subreaper and begins to reap. To be called once in a process,
    /// inside its runtime.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start() -> io::Result<Self> {
        crate::orphans::become_subreaper()?;
        let children = signal(SignalKind::child())?;
        let (takers, requests) = mpsc::unbounded_channel();
        // The upper half tells drivers apart; below the usual hard limit, which is infinity.
        let first_mark = (getrandom::u64().map_err(io::Error::other)? >> 2) & !0xffff_ffff;
        let shared = Arc::new(Shared {
            running: Mutex::default(),
            takers,
            first_mark,
            next_mark: Mutex::new(first_mark),
            cgroups: Root::make(),
        });
        tokio::spawn(census::serve(Takers(requests)));
        tokio::spawn(reap(children, Arc::downgrade(&shared)));
        Ok(Self { shared })
    }

    /// Whether dynos have a cgroup each.
    pub fn have_cgroups(&self) -> bool {
        self.shared.cgroups.is_some()
    }

    /// Starts a process. A command that is not found is a process that has exited with 127,
    /// one that cannot be executed one with 126, as in a shell.
    ///
    /// To be called on a thread that lives as long as the driver: its end kills the process.
    ///
    /// # Errors
    /// When the machine has no room for it.
    pub fn spawn(&self, command: Command<'_>) -> Result<Process, SpawnError> {
        let resolved = match exec::resolve(command.argv, command.env, command.cwd) {
            Ok(resolved) => resolved,
            Err(exec::Refused::NulByte) => return Err(SpawnError::NulByte),
            Err(exec::Refused::Cannot { code, why }) => {
                exec::complain(&command.stdio, &why);
                return Ok(self.never_ran(code));
            }
        };
        let mark = self.mark();
        let cgroup = self
            .shared
            .cgroups
            .as_ref()
            .and_then(|root| root.child(command.name));
        // Held until the new process is entered: it may end before that.
        let mut running = lock(&self.shared.running);
        let (terminal, spawned) = match command.stdio {
            Stdio::Fds {
                stdin,
                stdout,
                stderr,
            } => {
                let fds = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
                (
                    None,
                    start(&resolved, &fds, Ties::DiesWithUs, mark, cgroup.as_ref()),
                )
            }
            Stdio::Terminal => {
                let (terminal, slave) = pty::open().map_err(SpawnError::Exhausted)?;
                let fds = [slave.as_fd(), slave.as_fd(), slave.as_fd()];
                let spawned = start(&resolved, &fds, Ties::Terminal, mark, cgroup.as_ref());
                (Some(terminal), spawned)
            }
        };
        let pid = match spawned {
            Ok(pid) => pid,
            Err(error) => {
                drop(running);
                if let Some(cgroup) = cgroup {
                    cgroup.remove();
                }
                return match exec::code_of(&error) {
                    Some(code) => Ok(self.never_ran(code)),
                    None => Err(exec::sorted(error)),
                };
            }
        };
        let process = Process {
            inner: Arc::new(Inner {
                pid: pid.as_raw(),
                mark,
                cgroup,
                terminal,
                phase: watch::Sender::new(Phase::Running),
                shared: Arc::clone(&self.shared),
            }),
        };
        running.insert(pid.as_raw(), process.clone());
        Ok(process)
    }

    /// To be called when every process has ended: removes what the machine has of us.
    pub fn end(&self) {
        if let Some(cgroups) = &self.shared.cgroups {
            cgroups.remove();
        }
    }

    fn mark(&self) -> u64 {
        let mut next = lock(&self.shared.next_mark);
        *next += 1;
        *next
    }

    fn never_ran(&self, code: i32) -> Process {
        Process {
            inner: Arc::new(Inner {
                pid: 0,
                mark: self.shared.first_mark,
                cgroup: None,
                terminal: None,
                phase: watch::Sender::new(Phase::Ended(status::code(code))),
                shared: Arc::clone(&self.shared),
            }),
        }
    }
}

fn start(
    resolved: &Resolved,
    fds: &[std::os::fd::BorrowedFd<'_>],
    ties: Ties,
    mark: u64,
    cgroup: Option<&Cgroup>,
) -> io::Result<Pid> {
    Spawn {
        program: &resolved.program,
        argv: &resolved.argv,
        env: &resolved.env,
        cwd: Some(&resolved.cwd),
        fds,
        ties,
        mark: Some(mark),
        open_files: None,
        cgroup: cgroup.map(Cgroup::procs),
    }
    .spawn()
}

impl Process {
    /// The first process, as long as it runs.
    pub fn pid(&self) -> Option<Pid> {
        let running = *self.inner.phase.borrow() == Phase::Running;
        running.then(|| Pid::from_raw(self.inner.pid))
    }

    /// How it ended, once nobody is left.
    pub fn status(&self) -> Option<driver::ExitStatus> {
        match &*self.inner.phase.borrow() {
            Phase::Ended(status) => Some(status.clone()),
            Phase::Running | Phase::Ending(_) => None,
        }
    }

    /// Waits until nobody is left; how the first process ended. Any number may wait, and the
    /// answer stays the same.
    pub async fn wait(&self) -> driver::ExitStatus {
        let mut phase = self.inner.phase.subscribe();
        let ended = phase
            .wait_for(|phase| matches!(phase, Phase::Ended(_)))
            .await;
        match ended.as_deref() {
            Ok(Phase::Ended(status)) => status.clone(),
            // We hold the sender.
            _ => status::lost("the driver has lost sight of it"),
        }
    }

    /// Sends `signal` to every process of the dyno.
    pub async fn signal(&self, signal: Signal) {
        for pid in self.members().await {
            // It may have ended.
            let _ = kill(pid, signal);
        }
    }

    /// Kills every process of the dyno until nobody is left.
    pub async fn kill(&self) {
        while self.status().is_none() {
            self.kill_once().await;
            let ended = self.wait();
            drop(tokio::time::timeout(KILL_AGAIN, ended).await);
        }
    }

    /// What it uses, as far as this machine tells.
    pub async fn stats(&self) -> Option<driver::StatsResponse> {
        let members = self.members().await;
        (self.status().is_none()).then(|| crate::stats::of(&members))
    }

    /// Its terminal, if it has one.
    pub fn terminal(&self) -> Option<&Terminal> {
        self.inner.terminal.as_ref()
    }

    /// Every process of the dyno that has not ended.
    async fn members(&self) -> Vec<Pid> {
        if self.inner.pid == 0 {
            return Vec::new();
        }
        let mut members = self.census().await.of(self.inner.pid, self.inner.mark);
        if let Some(cgroup) = &self.inner.cgroup {
            members.extend(cgroup.members());
            members.sort_unstable();
            members.dedup();
        }
        members
    }

    async fn census(&self) -> Arc<Census> {
        census::ask(&self.inner.shared.takers).await
    }

    async fn kill_once(&self) -> bool {
        if let Some(cgroup) = &self.inner.cgroup {
            cgroup.kill();
        }
        let members = self.members().await;
        for pid in &members {
            // It may have ended.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        !members.is_empty()
    }

    /// After the first process has ended: kills what it leaves, and says when nobody is left.
    async fn bury(self, status: driver::ExitStatus) {
        let mut pause = Duration::from_micros(200);
        while self.kill_once().await {
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        if let Some(cgroup) = &self.inner.cgroup {
            cgroup.remove();
        }
        self.inner.phase.send_replace(Phase::Ended(status));
    }
}

impl Process {
    /// The first process has ended, and left nobody.
    fn ended_alone(&self, status: driver::ExitStatus) {
        if let Some(cgroup) = &self.inner.cgroup {
            cgroup.remove();
        }
        self.inner.phase.send_replace(Phase::Ended(status));
    }
}

/// Reaps first processes and orphans for as long as somebody holds the [`Processes`].
async fn reap(mut children: tokio::signal::unix::Signal, shared: std::sync::Weak<Shared>) {
    loop {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let ended = reap_now(&shared);
        // One look for all of them: a census for each exit is felt at a thousand dynos.
        let alone = !ended.is_empty() && orphans::none(&lock(&shared.running));
        for (process, status) in ended {
            if alone {
                process.ended_alone(status);
                continue;
            }
            process
                .inner
                .phase
                .send_replace(Phase::Ending(status.clone()));
            tokio::spawn(process.bury(status));
        }
        drop(shared);
        if children.recv().await.is_none() {
            return;
        }
    }
}

/// Reaps who has ended; the first processes among them.
fn reap_now(shared: &Shared) -> Vec<(Process, driver::ExitStatus)> {
    // The lock keeps a process that is being started from being reaped unknown.
    let mut running = lock(&shared.running);
    let mut ended = Vec::new();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => return ended,
            Ok(how) => {
                let process = how.pid().and_then(|pid| running.remove(&pid.as_raw()));
                ended.extend(process.map(|process| (process, status::of(how))));
            }
        }
    }
}

/// A panic elsewhere leaves them in order: they are changed by single calls.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
