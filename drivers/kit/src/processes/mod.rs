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
//! A driver that asks for it has a cgroup for each dyno besides, where the machine gives it a
//! cgroup v2 to write to, and the kernel keeps the books: see `cgroup.rs`. That knows processes
//! of other users too, and costs every start a tenth of a millisecond and more (the example
//! `spawn_rate` tells how much): so it is not the rule.
//!
//! One census of the machine serves everybody who asks at the same time: a thousand
//! dynos that are stopped together cost one look at `/proc`, not a thousand.

mod census;
mod cgroup;
mod exec;
mod left;
mod status;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hsup_proto::driver;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use thiserror::Error;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::sleep,
};

use self::{
    census::Takers,
    cgroup::{Cgroup, Root},
};
use crate::{
    log,
    pty::{self, Terminal},
    spawn::{Entered, Spawn, Ties},
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
    /// Who was killed with the cgroup.
    leaving: Mutex<HashSet<Pid>>,
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

/// When a tree that does not end at once is killed again: then, and twice as late each time,
/// for a process that hangs in the kernel hangs long.
const KILL_AGAIN: Duration = Duration::from_millis(2);
const MAX_PAUSE: Duration = Duration::from_millis(50);

impl Processes {
    /// Makes this process a subreaper and begins to reap. To be called once in a process,
    /// inside its runtime.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start() -> io::Result<Self> {
        Self::start_with(None)
    }

    /// As [`Processes::start`], and gives every dyno a cgroup where that can be done.
    ///
    /// # Errors
    /// When the kernel refuses anything but the cgroups.
    pub fn start_in_cgroups() -> io::Result<Self> {
        Self::start_with(Root::make())
    }

    fn start_with(cgroups: Option<Root>) -> io::Result<Self> {
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
            cgroups,
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
        let (terminal, fds) = match command.stdio {
            Stdio::Fds {
                stdin,
                stdout,
                stderr,
            } => (None, [stdin, stdout, stderr]),
            Stdio::Terminal => {
                let (terminal, slave) = pty::open().map_err(exec::sorted)?;
                let twin = || slave.try_clone().map_err(exec::sorted);
                (Some(terminal), [twin()?, twin()?, slave])
            }
        };
        let refuse = |refused, terminal| match refused {
            exec::Refused::NulByte => Err(SpawnError::NulByte),
            exec::Refused::Cannot { code, why } => {
                // On the dyno's own standard error, where its user looks.
                log::say(fds[2].as_fd(), &why);
                Ok(self.never_ran(code, terminal))
            }
        };
        let resolved = match exec::resolve(command.argv, command.env, command.cwd) {
            Ok(resolved) => resolved,
            Err(refused) => return refuse(refused, terminal),
        };
        let mark = self.mark();
        let mut cgroup = self
            .shared
            .cgroups
            .as_ref()
            .and_then(|root| root.child(command.name));
        let folder = cgroup.as_ref().and_then(|cgroup| cgroup.open().ok());
        let spawn = Spawn {
            program: &resolved.program,
            argv: &resolved.argv,
            env: &resolved.env,
            cwd: Some(&resolved.cwd),
            fds: &fds.each_ref().map(OwnedFd::as_fd),
            ties: if terminal.is_some() {
                Ties::Terminal
            } else {
                Ties::DiesWithUs
            },
            mark: Some(mark),
            open_files: None,
            cgroup: folder.as_ref().map(OwnedFd::as_fd),
        };
        // Held until the new process is entered: it may end before that.
        let mut running = lock(&self.shared.running);
        let spawned = spawn.spawn_into();
        if !matches!(spawned, Ok((_, Entered::Yes)))
            && let Some(cgroup) = cgroup.take()
        {
            cgroup.remove();
        }
        let pid = match spawned {
            Ok((pid, _)) => pid,
            Err(error) => {
                drop(running);
                return match exec::refused(command.argv, &error) {
                    Some(refused) => refuse(refused, terminal),
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
                leaving: Mutex::default(),
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

    fn never_ran(&self, code: i32, terminal: Option<Terminal>) -> Process {
        Process {
            inner: Arc::new(Inner {
                pid: 0,
                mark: self.shared.first_mark,
                cgroup: None,
                terminal,
                leaving: Mutex::default(),
                phase: watch::Sender::new(Phase::Ended(status::code(code))),
                shared: Arc::clone(&self.shared),
            }),
        }
    }
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
        let mut pause = KILL_AGAIN;
        while self.status().is_none() {
            self.kill_once().await;
            drop(tokio::time::timeout(pause, self.wait()).await);
            pause = (pause * 2).min(MAX_PAUSE);
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
        // The kernel's books are complete, and cheaper than a look at all processes.
        if let Some(Ok(members)) = self.inner.cgroup.as_ref().map(Cgroup::members) {
            return members;
        }
        let census = census::ask(&self.inner.shared.takers).await;
        census.of(self.inner.pid, self.inner.mark)
    }

    /// Kills whoever there is; whether there was somebody.
    async fn kill_once(&self) -> bool {
        let members = self.members().await;
        if let Some(cgroup) = &self.inner.cgroup {
            lock(&self.inner.leaving).extend(&members);
            if cgroup.kill().is_ok() {
                return true;
            }
        }
        for pid in &members {
            // It may have ended.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        !members.is_empty()
    }

    /// After the first process has ended: kills what it leaves, and says when nobody is left.
    async fn bury(self, status: driver::ExitStatus) {
        let mut pause = Duration::from_micros(200);
        while !self.is_empty().await {
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        self.inner.phase.send_replace(Phase::Ended(status));
    }

    /// Whether nobody is left; who is, is killed.
    async fn is_empty(&self) -> bool {
        let Some(cgroup) = &self.inner.cgroup else {
            return !self.kill_once().await;
        };
        // One call in the usual case: the kernel removes no cgroup that has somebody in it.
        if !cgroup.remove() {
            self.kill_once().await;
            return false;
        }
        // Who leaves a cgroup is not quite gone, nor reaped. Its mark stays to the end.
        let mut leaving = lock(&self.inner.leaving);
        leaving.retain(|pid| census::mark_of(pid.as_raw()) == Some(self.inner.mark));
        leaving.is_empty()
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
        let unsure = ended
            .iter()
            .any(|(process, _)| process.inner.cgroup.is_none());
        let alone = unsure && left::nobody(&lock(&shared.running));
        for (process, status) in ended {
            // Its cgroup knows better, where it has one.
            if alone && process.inner.cgroup.is_none() {
                process.inner.phase.send_replace(Phase::Ended(status));
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
    std::iter::from_fn(status::reap)
        .filter_map(|(pid, status)| Some((running.remove(&pid.as_raw())?, status)))
        .collect()
}

/// A panic elsewhere leaves them in order: they are changed by single calls.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
