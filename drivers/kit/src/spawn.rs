//! Spawning a process without copying this one.
//!
//! `fork` would copy the driver's page tables for every dyno; `posix_spawn` does not, but
//! cannot give the child a session *and* a controlling terminal *and* a resource limit
//! *and* a parent-death signal. So this does what `posix_spawn` does, and that besides:
//! `clone(CLONE_VM | CLONE_VFORK)` on a stack of its own. The child shares our memory, and
//! the calling thread sleeps until it has called `execve` or ended.
//!
//! What follows from sharing memory: between `clone` and `execve` the child makes plain
//! system calls only, allocates nothing, and no signal handler of ours may run in it, so
//! signals are blocked around the whole and set to their defaults before they are unblocked
//! (glibc's `posix_spawn` does the same).

mod into_cgroup;
pub(crate) mod low;

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    io,
    os::fd::{BorrowedFd, RawFd},
    ptr,
    sync::{Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    sys::signal::{SigSet, SigmaskHow, pthread_sigmask},
    unistd::Pid,
};

pub use crate::marks::Mark;

/// A process to spawn. All paths are resolved and all strings made beforehand: the child
/// must not allocate.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The file to execute.
    pub program: &'a CStr,
    /// `argv[0]` first.
    pub argv: &'a [CString],
    /// `NAME=value`, the whole environment.
    pub env: &'a [CString],
    /// Its working directory; `None`: ours.
    pub cwd: Option<&'a CStr>,
    /// Its descriptors 0, 1, 2 and, where there is one, 3.
    pub fds: &'a [BorrowedFd<'a>],
    /// What its life is tied to.
    pub ties: Ties,
    /// How it and its descendants are to be known (`marks.rs`).
    pub mark: Option<Mark>,
    /// Its open-file limits (soft, hard), where they differ from ours.
    pub open_files: Option<(u64, u64)>,
    /// The folder of the cgroup to enter. Where that fails it stays in ours.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// What else becomes of a process before it executes its program. It always leads a session
/// of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ties {
    /// Nothing.
    None,
    /// The kernel kills it when the calling *thread* ends (`PR_SET_PDEATHSIG`).
    DiesWithUs,
    /// As [`Ties::DiesWithUs`], and its descriptor 0 is its controlling terminal.
    Terminal,
}

/// A process that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spawned {
    /// Which.
    pub pid: Pid,
    /// It is in the cgroup that it was to enter, and has been since before its program began.
    pub in_cgroup: bool,
    /// It has the mark that it was to get.
    pub marked: bool,
}

/// Enough for the child's few calls; glibc's `posix_spawn` uses 32 KiB.
const STACK_SIZE: usize = 64 * 1024;

/// The stack that children begin on, used by one at a time: a child has left it when
/// `clone` returns here.
static STACK: Mutex<Stack> = Mutex::new(Stack([0; STACK_SIZE]));

#[repr(align(64))]
struct Stack([u8; STACK_SIZE]);

/// What the child needs, and where it leaves its error.
struct Child {
    program: *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
    cwd: *const c_char,
    fds: [RawFd; 4],
    fd_count: usize,
    ties: Ties,
    mark: Option<Mark>,
    marked: bool,
    open_files: Option<(u64, u64)>,
    cgroup: RawFd,
    in_cgroup: bool,
    parent: libc::pid_t,
    error: c_int,
}

impl Spawn<'_> {
    /// Starts the process.
    ///
    /// With [`Ties`] other than none, call it on a thread that lives as long as this process.
    ///
    /// # Errors
    /// What the failing call answered: `ENOENT`, `EACCES` or `ENOEXEC` from `execve`, say.
    /// There is then no process.
    #[expect(unsafe_code, reason = "there is no safe way to say clone(2)")]
    pub fn spawn(&self) -> io::Result<Spawned> {
        let argv = pointers(self.argv);
        let env = pointers(self.env);
        let mut fds = [-1; 4];
        if self.fds.len() > fds.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut lent = low::Lent::begin();
        for (slot, fd) in fds.iter_mut().zip(self.fds) {
            *slot = lent.lend(*fd)?;
        }
        let cgroup = self.cgroup.map_or(Ok(-1), |fd| lent.lend(fd))?;
        let mut child = Child {
            program: self.program.as_ptr(),
            argv: argv.as_ptr(),
            env: env.as_ptr(),
            cwd: self.cwd.map_or(ptr::null(), CStr::as_ptr),
            fds,
            fd_count: self.fds.len(),
            ties: self.ties,
            mark: self.mark,
            marked: false,
            open_files: self.open_files,
            cgroup,
            // Unless it is told otherwise, it was born there.
            in_cgroup: true,
            parent: Pid::this().as_raw(),
            error: 0,
        };
        let mut stack = STACK.lock().unwrap_or_else(PoisonError::into_inner);
        let before = block_signals()?;
        // SAFETY: the stack is ours until the lock is dropped, and the child is off it when
        // clone returns, for CLONE_VFORK suspends this thread until then. `child` outlives the
        // call for the same reason, and `begin` keeps to what its own comment promises.
        let cloned = unsafe {
            let argument = (&raw mut child).cast::<c_void>();
            let born = into_cgroup::clone(self.cgroup, &mut stack.0, begin, argument);
            born.unwrap_or_else(|| {
                (*argument.cast::<Child>()).in_cgroup = false;
                // It grows down from its end, which is aligned.
                let top = stack.0.as_mut_ptr().add(STACK_SIZE).cast::<c_void>();
                let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_VFORK | libc::SIGCHLD;
                Errno::result(libc::clone(begin, top, flags, argument))
            })
        };
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
        drop((stack, lent));
        let pid = Pid::from_raw(cloned?);
        // SAFETY: `child` was written by the other process, behind the compiler's back.
        let (error, in_cgroup, marked) = unsafe {
            (
                ptr::read_volatile(&raw const child.error),
                ptr::read_volatile(&raw const child.in_cgroup),
                ptr::read_volatile(&raw const child.marked),
            )
        };
        if error == 0 {
            return Ok(Spawned {
                pid,
                in_cgroup,
                marked,
            });
        }
        // It has ended already; nobody else knows of it.
        while nix::sys::wait::waitpid(pid, None) == Err(Errno::EINTR) {}
        Err(io::Error::from_raw_os_error(error))
    }
}

fn block_signals() -> nix::Result<SigSet> {
    let mut before = SigSet::empty();
    pthread_sigmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut before),
    )?;
    Ok(before)
}

/// A null-terminated list, as `execve` wants it.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// The child's first and last function of ours.
#[expect(unsafe_code, reason = "raw system calls between clone and execve")]
extern "C" fn begin(argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the `Child` of the thread that waits for us; nobody else touches
    // it. Everything called is async-signal-safe (signal-safety(7)), nothing allocates.
    unsafe {
        let child = argument.cast::<Child>();
        (*child).error = prepare(&mut *child);
        if (*child).error == 0 {
            libc::execve((*child).program, (*child).argv, (*child).env);
            (*child).error = *libc::__errno_location();
        }
        libc::_exit(127)
    }
}

/// Sets the child up; answers the errno of the call that failed, or 0.
///
/// # Safety
/// Only in a child that shares its parent's memory, with all signals blocked.
#[expect(unsafe_code, reason = "raw system calls between clone and execve")]
unsafe fn prepare(child: &mut Child) -> c_int {
    // SAFETY: plain system calls on our own stack and on the parent's suspended memory.
    unsafe {
        let failed = || *libc::__errno_location();
        // Before anything is changed in it: our table of descriptors is still the parent's. Of
        // that, which a thousand dynos make long, only the part is copied that is needed.
        // Before Linux 5.9 all of it is.
        let last = child
            .fds
            .iter()
            .fold(child.cgroup, |last, &fd| last.max(fd));
        let unshared = libc::syscall(
            libc::SYS_close_range,
            libc::c_uint::try_from(last + 1).unwrap_or(0),
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_UNSHARE,
        );
        if unshared < 0 && libc::unshare(libc::CLONE_FILES) < 0 {
            return failed();
        }
        // Handlers are ours, ignored signals (SIGPIPE) would be inherited. Straight to the
        // kernel: glibc keeps 32 and 33 to itself, which somebody above us may ignore. All
        // zeroes are the default action, in the kernel's layout of `struct sigaction`.
        let default = [0u64; 4];
        let set_size = 8usize;
        for signal in 1..=64 {
            // KILL and STOP refuse, and need no change.
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<c_void>(),
                set_size,
            );
        }
        if libc::setsid() < 0 {
            return failed();
        }
        for (target, &fd) in child.fds[..child.fd_count].iter().enumerate() {
            let Ok(target) = c_int::try_from(target) else {
                return libc::EBADF;
            };
            // A descriptor that is in its place already only has to survive execve.
            let result = if fd == target {
                libc::fcntl(fd, libc::F_SETFD, 0)
            } else {
                libc::dup2(fd, target)
            };
            if result < 0 {
                return failed();
            }
        }
        // What whoever started us left open is not the child's. Before Linux 5.11 it is.
        libc::syscall(
            libc::SYS_close_range,
            libc::c_uint::try_from(child.fd_count).unwrap_or(4),
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        if child.cgroup >= 0 && !child.in_cgroup {
            let flags = libc::O_WRONLY | libc::O_CLOEXEC;
            let procs = libc::openat(child.cgroup, c"cgroup.procs".as_ptr(), flags);
            // "0" is the writer itself.
            if procs >= 0 && libc::write(procs, c"0".as_ptr().cast(), 1) == 1 {
                child.in_cgroup = true;
            }
        }
        if child.ties == Ties::Terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
            return failed();
        }
        if child.ties != Ties::None && libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
            return failed();
        }
        // Our parent may have died before it could be tied to.
        if child.ties != Ties::None && libc::getppid() != child.parent {
            return libc::ESRCH;
        }
        if let Some(Mark { soft, hard }) = child.mark {
            let limit = libc::rlimit {
                rlim_cur: soft,
                rlim_max: hard,
            };
            child.marked = libc::setrlimit(libc::RLIMIT_LOCKS, &raw const limit) == 0;
        }
        if let Some((soft, hard)) = child.open_files {
            let limit = libc::rlimit {
                rlim_cur: soft,
                rlim_max: hard,
            };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) < 0 {
                return failed();
            }
        }
        if !child.cwd.is_null() && libc::chdir(child.cwd) < 0 {
            return failed();
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        if libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) < 0 {
            return failed();
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::Read as _,
        os::fd::{AsFd as _, FromRawFd as _, OwnedFd},
    };

    use nix::{
        fcntl::{FcntlArg, OFlag},
        poll::{PollFd, PollFlags, PollTimeout, poll},
        sys::wait::{WaitStatus, waitpid},
    };

    use super::*;

    fn strings(words: &[&str]) -> Vec<CString> {
        words
            .iter()
            .map(|word| CString::new(*word).unwrap())
            .collect()
    }

    fn run(script: &str, mark: Option<Mark>) -> io::Result<WaitStatus> {
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        let argv = strings(&["sh", "-c", script]);
        let pid = Spawn {
            program: c"/bin/sh",
            argv: &argv,
            env: &strings(&["ONLY=this"]),
            cwd: Some(c"/"),
            fds: &[null.as_fd(), null.as_fd(), null.as_fd()],
            ties: Ties::None,
            mark,
            open_files: None,
            cgroup: None,
        }
        .spawn()?
        .pid;
        Ok(waitpid(pid, None)?)
    }

    fn code(status: WaitStatus) -> i32 {
        match status {
            WaitStatus::Exited(_, code) => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_runs_in_its_own_session_with_only_what_it_was_given() {
        let script = r#"test "$ONLY" = this && test -z "$HOME" && test "$PWD" = / &&
            read -r _ _ _ _ pgrp session _ < /proc/self/stat || exit 8
            test "$pgrp" = "$$" && test "$session" = "$$" || exit 9
            exit 42"#;
        assert_eq!(code(run(script, None).unwrap()), 42);
    }

    #[test]
    fn what_has_a_high_number_is_handed_down_and_not_kept() {
        low::reserve().unwrap();
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let high = nix::fcntl::fcntl(&write, FcntlArg::F_DUPFD_CLOEXEC(500)).unwrap();
        #[expect(unsafe_code, reason = "a descriptor that was just made")]
        // SAFETY: it is nobody else's.
        let high = unsafe { OwnedFd::from_raw_fd(high) };
        drop(write);
        let null = File::open("/dev/null").unwrap();
        let spawned = Spawn {
            program: c"/bin/sh",
            argv: &strings(&["sh", "-c", "ls /proc/self/fd | wc -l"]),
            env: &strings(&["PATH=/usr/bin:/bin"]),
            cwd: None,
            fds: &[null.as_fd(), high.as_fd(), null.as_fd()],
            ties: Ties::None,
            mark: None,
            open_files: None,
            cgroup: None,
        }
        .spawn()
        .unwrap();
        drop(high);
        assert_eq!(code(waitpid(spawned.pid, None).unwrap()), 0);
        // What another test spawns at this moment has it too, until its `exec`; we must not.
        let mut polled = [PollFd::new(read.as_fd(), PollFlags::empty())];
        let ready = poll(&mut polled, PollTimeout::from(60_000_u16)).unwrap();
        assert_eq!(ready, 1, "it is kept");
        // Its three, and the folder that is listed; then the end, and not that nothing comes yet.
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "4\n");
    }

    #[test]
    fn signals_are_as_in_a_fresh_process() {
        // Rust ignores SIGPIPE; a dyno must not.
        let script = "grep -q '^SigIgn:[[:space:]]*0*$' /proc/self/status &&
            grep -q '^SigBlk:[[:space:]]*0*$' /proc/self/status";
        assert_eq!(code(run(script, None).unwrap()), 0);
    }

    #[test]
    fn the_mark_is_inherited_over_generations() {
        let mark = Mark {
            soft: 0x1234_5678,
            hard: 0x1234_5679,
        };
        let script =
            "sh -c 'grep -q \"Max file locks *305419896 *305419897 \" /proc/self/limits; exit $?'";
        assert_eq!(code(run(script, Some(mark)).unwrap()), 0);
    }

    #[test]
    fn a_program_that_cannot_be_executed_is_an_error() {
        let null = File::open("/dev/null").unwrap();
        let spawn = |program: &CStr| {
            Spawn {
                program,
                argv: &strings(&["x"]),
                env: &[],
                cwd: None,
                fds: &[null.as_fd()],
                ties: Ties::None,
                mark: None,
                open_files: None,
                cgroup: None,
            }
            .spawn()
            .unwrap_err()
            .raw_os_error()
        };
        assert_eq!(spawn(c"/no/such/program"), Some(libc::ENOENT));
        assert_eq!(spawn(c"/etc/passwd"), Some(libc::EACCES));
    }

    #[test]
    fn many_at_once_do_not_meet() {
        std::thread::scope(|scope| {
            for n in 0..8 {
                scope.spawn(move || {
                    for _ in 0..20 {
                        assert_eq!(code(run(&format!("exit {n}"), None).unwrap()), n);
                    }
                });
            }
        });
    }
}
