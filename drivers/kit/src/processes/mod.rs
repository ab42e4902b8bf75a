//! The processes of dynos, whole trees of them.
//!
//! A dyno is its first process and whatever that brought forth. What holds them together needs
//! no privilege:
//!
//! - its own *session*: a signal to the process group reaches what did not leave it;
//! - the driver is a *subreaper* (prctl(2)): who loses its parent becomes the driver's child,
//!   so nobody gets away and nobody stays a zombie;
//! - a *mark* tells whose an orphan is, session or not: see `marks.rs`;
//! - where the machine lets us make one, a *cgroup* for each dyno besides, and the kernel keeps
//!   the books, even of processes that changed all of that: see `cgroup.rs`.
//!
//! Whoever descends from one of the dyno is of the dyno (`census.rs`). One look at the machine
//! serves everybody who asks at the same time: a thousand dynos that are stopped together cost
//! one census, not a thousand.

mod book;
mod census;
mod cgroup;
mod exec;
mod kept;
mod left;
mod process;
mod reaper;
mod status;

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit};
use thiserror::Error;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::yield_now,
    time::{Instant, sleep, timeout},
};

pub(crate) use self::cgroup::dead;
use self::{
    book::Book,
    cgroup::{Cgroup, Root},
    kept::Shelf,
    process::{Inner, Phase},
};
pub use self::{kept::Kept, process::Process};
use crate::{
    errors::is_exhaustion,
    log,
    marks::{Marks, Tag},
    open_files, orphans,
    procfs::Procfs,
    pty::{self, Terminal, WindowSize},
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

impl SpawnError {
    /// What an I/O error on the way to a process is.
    pub fn of(error: io::Error) -> Self {
        if is_exhaustion(&error) {
            Self::Exhausted(error)
        } else {
            Self::Other(error)
        }
    }
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
        /// Keeps what it writes until somebody reads it, or it is forgotten.
        kept: Option<Kept>,
    },
    /// A terminal of its own, whose window has this size.
    Terminal(WindowSize),
}

/// What to run.
#[derive(Debug)]
pub struct Command<'a> {
    /// For people: it is in the name of its cgroup.
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

/// How the processes of dynos are held together, besides by what all of them inherit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// A cgroup for each dyno, where this machine lets us make one.
    WherePossible,
    /// None.
    Never,
}

/// Everything that this driver process has started. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Processes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// When others were last let in between two spawns, and how often that was.
    breath: Mutex<(Instant, u64)>,
    book: Mutex<Book>,
    started: AtomicU32,
    takers: mpsc::UnboundedSender<census::Taker>,
    procfs: Procfs,
    kept: Mutex<Shelf>,
    /// None where there is no room for them.
    marks: Option<Marks>,
    cgroups: Option<Root>,
    /// Those of dynos that are gone, to be removed when there is time, and how often that was
    /// tried.
    discarded: Mutex<Vec<(Cgroup, u32)>>,
}

/// How long after a dyno's end its cgroup is removed: whoever waits for the end comes first, and
/// dynos that are started do not wait for the kernel to clear away others.
const TIDY_AFTER: Duration = Duration::from_millis(500);
/// How often that is tried: somebody from elsewhere may have moved in.
const TIDY_ATTEMPTS: u32 = 10;
/// How long spawns may follow one another with nobody answered in between. Each answer on its
/// own would cost more than all of them together.
const SPAWNING: Duration = Duration::from_millis(20);
/// How long the end of everything may take.
const END_WITHIN: Duration = Duration::from_secs(5);

impl Processes {
    /// Makes this process a subreaper and begins to reap. To be called once in a process,
    /// inside its runtime.
    ///
    /// `socket` is where the driver is reached: what it leaves when it is killed is found by
    /// that (see [`orphans::kill_left_by`]).
    ///
    /// # Errors
    /// When the kernel refuses anything but the cgroups and the marks.
    pub fn start(socket: Option<&Path>, cgroups: Cgroups) -> io::Result<Self> {
        orphans::become_subreaper()?;
        let children = signal(SignalKind::child())?;
        let (takers, requests) = mpsc::unbounded_channel();
        let tag = socket.and_then(|socket| Tag::of(socket).ok());
        let marks = Marks::new(tag)
            .inspect_err(|error| {
                tracing::warn!(
                    %error,
                    "dynos get no marks, for the hard limit on file locks is too low (prlimit --locks): \
                     who leaves its session is known by its cgroup only, if there is one"
                );
            })
            .ok();
        let procfs = Procfs::open()?;
        let (open_files, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let cgroups = match cgroups {
            Cgroups::WherePossible => Root::make(&procfs),
            Cgroups::Never => None,
        };
        let shared = Arc::new(Shared {
            breath: Mutex::new((Instant::now(), 0)),
            book: Mutex::default(),
            started: AtomicU32::new(0),
            takers,
            procfs,
            kept: Mutex::new(Shelf::below(open_files)),
            marks,
            cgroups,
            discarded: Mutex::default(),
        });
        tokio::spawn(census::serve(Arc::downgrade(&shared), requests));
        tokio::spawn(reaper::run(children, Arc::downgrade(&shared)));
        Ok(Self { shared })
    }

    /// Whether dynos have a cgroup each.
    pub fn have_cgroups(&self) -> bool {
        let root = self.shared.cgroups.as_ref();
        root.is_some_and(|root| !root.is_closed())
    }

    /// To be waited for before each spawn, by a driver that serves its calls on the thread it
    /// spawns on: that takes about a millisecond, and when many follow one another the calls
    /// that came meanwhile are answered now and then.
    pub async fn turn(&self) {
        let breath = || lock(&self.shared.breath);
        loop {
            let (at, count) = *breath();
            if at.elapsed() < SPAWNING {
                return;
            }
            yield_now().await;
            let mut breath = breath();
            // Whoever is first after the break ends it.
            if breath.1 == count {
                *breath = (Instant::now(), count + 1);
            }
        }
    }

    /// Starts a process. A command that is not found is a process that has exited with 127,
    /// one that cannot be executed one with 126, as in a shell.
    ///
    /// To be called on a thread that lives as long as the driver: its end kills the process.
    ///
    /// # Errors
    /// When the machine has no room for it.
    pub fn spawn(&self, command: Command<'_>) -> Result<Process, SpawnError> {
        let (terminal, fds, kept) = match command.stdio {
            Stdio::Fds {
                stdin,
                stdout,
                stderr,
                kept,
            } => (None, [stdin, stdout, stderr], kept),
            Stdio::Terminal(size) => {
                let (terminal, slave) = pty::open(size).map_err(SpawnError::of)?;
                let twin = || slave.try_clone().map_err(SpawnError::of);
                (Some(terminal), [twin()?, twin()?, slave], None)
            }
        };
        if kept.is_some() {
            self.shared.make_room_to_keep()?;
        }
        let refuse = |refused, terminal, kept| match refused {
            exec::Refused::NulByte => Err(SpawnError::NulByte),
            exec::Refused::Cannot { code, why } => {
                // On the dyno's own standard error, where its user looks.
                log::say(fds[2].as_fd(), &why);
                Ok(self.never_ran(code, terminal, kept))
            }
        };
        let resolved = match exec::resolve(command.argv, command.env, command.cwd) {
            Ok(resolved) => resolved,
            Err(refused) => return refuse(refused, terminal, kept),
        };
        let shared = &self.shared;
        let number = shared.started.fetch_add(1, Ordering::Relaxed);
        let mark = shared.marks.as_ref().map(|marks| marks.of(number));
        let root = shared.cgroups.as_ref();
        let (mut cgroup, folder) = root
            .and_then(|root| root.child(command.name, number))
            .unzip();
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
            mark,
            open_files: open_files::given(),
            cgroup: folder.as_ref().map(OwnedFd::as_fd),
        };
        // Held until the new process is entered: it may end before that.
        let mut book = lock(&shared.book);
        let spawned = spawn.spawn();
        if !spawned.as_ref().is_ok_and(|spawned| spawned.in_cgroup)
            && let (Some(root), Some(cgroup)) = (root, cgroup.take())
        {
            shared.discard(vec![cgroup]);
            if spawned.is_ok() {
                root.close();
            }
        }
        let spawned = match spawned {
            Ok(spawned) => spawned,
            Err(error) => {
                drop(book);
                return match exec::refused(command.argv, &error) {
                    Some(refused) => refuse(refused, terminal, kept),
                    None => Err(SpawnError::of(error)),
                };
            }
        };
        if mark.is_some() && !spawned.marked {
            tracing::warn!(
                pid = spawned.pid.as_raw(),
                "a dyno got no mark: somebody lowered the hard limit on file locks"
            );
        }
        let process = Process {
            inner: Arc::new(Inner {
                number,
                pid: spawned.pid.as_raw(),
                cgroup,
                terminal,
                phase: watch::Sender::new(Phase::Running),
                shared: Arc::clone(shared),
            }),
        };
        if let Some(kept) = kept {
            lock(&shared.kept).put(number, kept);
        }
        book.enter(&process);
        Ok(process)
    }

    /// To be called when every dyno has ended: kills what is left of our children, whosever it
    /// was (but for those that were there before us), and removes what the machine has of us.
    pub async fn end(&self) {
        let cgroups = self.shared.cgroups.as_ref();
        if orphans::have_children() {
            if let Some(cgroups) = cgroups {
                cgroups.kill_all();
            }
            if timeout(END_WITHIN, orphans::kill_all()).await.is_err() {
                tracing::warn!("processes are left that do not end");
            }
        }
        if let Some(cgroups) = cgroups {
            let discarded = std::mem::take(&mut *lock(&self.shared.discarded));
            cgroups.remove(discarded.into_iter().map(|(cgroup, _)| cgroup));
        }
    }

    fn never_ran(&self, code: i32, terminal: Option<Terminal>, kept: Option<Kept>) -> Process {
        let number = self.shared.started.fetch_add(1, Ordering::Relaxed);
        if let Some(kept) = kept {
            let mut shelf = lock(&self.shared.kept);
            shelf.put(number, kept);
            shelf.ended(number);
        }
        Process {
            inner: Arc::new(Inner {
                number,
                pid: 0,
                cgroup: None,
                terminal,
                phase: watch::Sender::new(Phase::Ended(status::code(code))),
                shared: Arc::clone(&self.shared),
            }),
        }
    }
}

impl Shared {
    /// See [`Shelf::make_room`].
    fn make_room_to_keep(&self) -> Result<(), SpawnError> {
        let lost = lock(&self.kept)
            .make_room()
            .map_err(SpawnError::Exhausted)?;
        if !lost.is_empty() {
            tracing::warn!(
                dynos = lost.len(),
                "the last output of dynos whose supervisor is away was given up: \
                 there are no descriptors to keep it (ulimit -n)"
            );
        }
        Ok(())
    }

    /// Has cgroups removed in which nobody is.
    fn discard(self: &Arc<Self>, cgroups: Vec<Cgroup>) {
        if cgroups.is_empty() {
            return;
        }
        let mut discarded = lock(&self.discarded);
        if discarded.is_empty() {
            tokio::spawn(tidy(Arc::downgrade(self)));
        }
        discarded.extend(cgroups.into_iter().map(|cgroup| (cgroup, 0)));
    }
}

/// Removes what has been discarded, until there is nothing more.
async fn tidy(shared: std::sync::Weak<Shared>) {
    loop {
        sleep(TIDY_AFTER).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let Some(root) = &shared.cgroups else {
            return;
        };
        let mut discarded = lock(&shared.discarded);
        discarded.retain_mut(|(cgroup, attempts)| {
            *attempts += 1;
            !root.remove_child(cgroup) && *attempts < TIDY_ATTEMPTS
        });
        if discarded.is_empty() {
            return;
        }
    }
}

/// A panic elsewhere leaves them in order: they are changed by single calls.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
