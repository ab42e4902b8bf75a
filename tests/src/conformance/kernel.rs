//! What is asked of the kernel and needs `unsafe`: bytes in a FIFO, waiting for one, whether a
//! signal is ignored, and a child's own session.

#![expect(
    unsafe_code,
    reason = "FIONREAD, AsyncFd, asking sigaction and pre_exec have no safe form in nix, tokio or std"
)]

use std::{
    fs::File,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    ptr,
};

use nix::{
    errno::Errno,
    sys::{
        prctl::set_pdeathsig,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigHandler, SigSet, Signal, raise, signal},
    },
    unistd::{getpid, getppid, setsid},
};
use tokio::io::unix::AsyncFd;

/// Makes `file` one that a task can wait for.
pub(crate) fn waitable(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` owns its descriptor, returns the same one always, and closes it only
    // when dropped, which `AsyncFd` does after it has deregistered it.
    let registered = unsafe { AsyncFd::register(file) };
    registered.map_err(|error| error.into_parts().1)
}

/// How many bytes wait to be read.
pub(crate) fn readable_bytes(file: &File) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and FIONREAD writes
    // one int to where `count` is.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if done == -1 {
        return 0;
    }
    usize::try_from(count).unwrap_or(0)
}

/// Whether this process ignores `signal`.
pub(crate) fn is_ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action nothing is changed, and the old one is written to `action`.
    let asked = unsafe { libc::sigaction(signal as i32, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: the call has succeeded, and so has written it.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Ends this process by `signal`, as if it had never been caught.
pub(crate) fn die_of(caught: Signal) {
    // SAFETY: SIG_DFL installs no handler.
    if unsafe { signal(caught, SigHandler::SigDfl) }.is_ok() {
        // It cannot fail for a signal that exists.
        _ = raise(caught);
    }
}

/// The limits on open files: what this process was started with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenFiles {
    soft: u64,
    hard: u64,
}

/// Raises this process's own limit on open files, for the FIFOs of 300 dynos at once.
pub(crate) fn raise_open_files() -> io::Result<OpenFiles> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(65536).max(soft), hard)?;
    Ok(OpenFiles { soft, hard })
}

/// Has `command` start in a session of its own, with the limits that this process was given,
/// with default signals, and with no descriptors but the standard ones and `listener`, as 3. It
/// is killed when the thread that starts it ends, so that a suite that is killed leaves none.
pub(crate) fn detach(command: &mut Command, limits: OpenFiles, listener: Option<RawFd>) {
    let suite = getpid();
    let prepare = move || {
        setsid()?;
        set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != suite {
            // It was killed before it could be watched.
            return Err(Errno::ESRCH.into());
        }
        // A shell's background jobs ignore SIGINT and SIGQUIT: whether a driver passes that on
        // must not hang on how this suite was started.
        for standard in Signal::iterator() {
            if !matches!(standard, Signal::SIGKILL | Signal::SIGSTOP) {
                // SAFETY: SIG_DFL installs no handler.
                unsafe { signal(standard, SigHandler::SigDfl) }?;
            }
        }
        SigSet::empty().thread_set_mask()?;
        // Whatever this process was given and did not ask for is not the driver's either. It is
        // closed by exec, not now: std still needs the pipe that reports a failed exec.
        // SAFETY: the call takes numbers only, and marks descriptors of this child alone.
        let marked = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        if marked == -1 {
            return Err(io::Error::last_os_error());
        }
        setrlimit(Resource::RLIMIT_NOFILE, limits.soft, limits.hard)?;
        if let Some(listener) = listener {
            // SAFETY: `listener` stays open in the parent until spawn has returned, and
            // descriptor 3 belongs to nobody yet in this child. dup2 clears close-on-exec, but
            // not of a descriptor that is 3 already.
            let handed =
                unsafe { libc::dup2(listener, 3) != -1 && libc::fcntl(3, libc::F_SETFD, 0) != -1 };
            if !handed {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec and makes system calls only: it neither
    // allocates nor takes a lock.
    unsafe { command.pre_exec(prepare) };
}
