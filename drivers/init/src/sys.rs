//! System calls, each with a safe face: all that is unsafe here is in this file.

#![expect(
    unsafe_code,
    reason = "raw system calls: this program is too small for a library of them"
)]

use std::{
    env,
    ffi::{CStr, CString, c_char, c_int, c_uint},
    fmt,
    fs::File,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStringExt as _,
    },
    ptr,
    time::Duration,
};

/// The highest signal there is; libc leaves two of the real-time ones for itself.
const LAST_SIGNAL: c_int = 64;
/// Signals that the processor raises: a process that ignores its own faults runs in circles.
const FAULTS: [c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGSYS,
];
const STANDARD: [RawFd; 3] = [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO];

/// An error whose text says what failed.
pub(crate) fn failed(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn check(what: &str, result: c_int) -> io::Result<c_int> {
    if result == -1 {
        return Err(failed(what, &io::Error::last_os_error()));
    }
    Ok(result)
}

/// Says on standard error what is wrong; that nobody can hear it is no reason to stop.
pub(crate) fn complain(name: &str, what: &dyn fmt::Display) {
    let line = format!("{name}: {what}\n");
    // SAFETY: the pointer and the length are those of a string that is there.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
    }
}

/// The command line.
pub(crate) fn arguments() -> io::Result<Vec<CString>> {
    env::args_os()
        .map(|word| CString::new(word.into_vec()).map_err(io::Error::from))
        .collect()
}

/// What `ps` shows: a program that was started by descriptor has no name.
pub(crate) fn set_name(name: &'static CStr) {
    // SAFETY: the kernel copies a string that ends with NUL.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, name.as_ptr());
    }
}

pub(crate) fn forbid_tracing() -> io::Result<()> {
    // SAFETY: no memory is involved.
    check("failed to forbid tracing", unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0)
    })?;
    Ok(())
}

/// Takes a descriptor that the command line names; what is executed later does not get it.
pub(crate) fn take_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    check(&format!("descriptor {number} is of no use"), unsafe {
        libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC)
    })?;
    // SAFETY: it is open, and who started this program left it to it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

pub(crate) fn never_block(file: &File) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check("failed to make reading not wait", unsafe {
        libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK)
    })?;
    Ok(())
}

/// Closes all but standard input, output and error.
pub(crate) fn close_all_but_standard() -> io::Result<()> {
    // SAFETY: called before an exec, after which nothing owns any of these descriptors.
    let result = unsafe { libc::close_range(3, c_uint::MAX, 0) };
    check("failed to close descriptors", result)?;
    Ok(())
}

/// Closes all descriptors but these, the standard ones too: whatever owns them is never used again.
pub(crate) fn close_all_but(mut kept: Vec<RawFd>) {
    kept.sort_unstable();
    let numbers = kept.into_iter().filter_map(|fd| c_uint::try_from(fd).ok());
    let mut next = 0;
    for number in numbers.map(Some).chain([None]) {
        let last = number.map_or(Some(c_uint::MAX), |number| number.checked_sub(1));
        if let Some(last) = last.filter(|last| next <= *last) {
            // SAFETY: nothing of these is used any more, which the caller sees to.
            unsafe { libc::close_range(next, last, 0) };
        }
        next = number.map_or(next, |number| number + 1);
    }
}

/// A new file, which replaces one of that name.
pub(crate) fn create_in(directory: &File, name: &CStr) -> io::Result<File> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    let directory = directory.as_raw_fd();
    // SAFETY: the name is a string that ends with NUL.
    let descriptor = check("failed to create a file", unsafe {
        libc::unlinkat(directory, name.as_ptr(), 0);
        libc::openat(directory, name.as_ptr(), flags, 0o600)
    })?;
    // SAFETY: the call has just opened it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

pub(crate) fn rename_in(directory: &File, from: &CStr, to: &CStr) -> io::Result<()> {
    let directory = directory.as_raw_fd();
    // SAFETY: both names are strings that end with NUL.
    check("failed to rename a file", unsafe {
        libc::renameat(directory, from.as_ptr(), directory, to.as_ptr())
    })?;
    Ok(())
}

fn all_signals() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the whole set.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}

pub(crate) fn block_all_signals() -> io::Result<()> {
    // SAFETY: the set is there, and nobody wants the old one.
    let result = unsafe { libc::sigprocmask(libc::SIG_SETMASK, &all_signals(), ptr::null_mut()) };
    check("failed to block signals", result)?;
    Ok(())
}

/// Waits for the next of the signals, all of which are blocked.
pub(crate) fn next_signal() -> c_int {
    loop {
        // SAFETY: the set is there, and nobody wants to know more about the signal.
        let signal = unsafe { libc::sigwaitinfo(&all_signals(), ptr::null_mut()) };
        if signal > 0 {
            return signal;
        }
    }
}

/// Sends a signal to every process of the pid namespace but PID 1.
pub(crate) fn signal_everybody(signal: c_int) {
    // SAFETY: no memory is involved.
    unsafe {
        libc::kill(-1, signal);
    }
}

/// The signal state of a new program: nothing ignored, nothing blocked.
pub(crate) fn reset_signals() -> io::Result<()> {
    // Of the kernel, for the C library will not touch two signals that it uses itself; and to
    // ignore them may be inherited. All zeroes is the default action, without any flag.
    let default = [0_u64; 4];
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: the kernel reads a sigaction whose mask is of 8 bytes, for which there are
        // enough. That of SIGKILL and SIGSTOP cannot be set, and needs not.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                size_of::<u64>(),
            );
        }
    }
    let mut none = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set that sigprocmask reads.
    let result = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut())
    };
    check("failed to unblock signals", result)?;
    Ok(())
}

/// Waits so long for one of the signals, all of which are blocked, and takes it.
pub(crate) fn next_signal_within(pause: Duration) {
    let pause = libc::timespec {
        tv_sec: 0,
        tv_nsec: pause.subsec_nanos().into(),
    };
    // SAFETY: set and time are there, and nobody wants to know more about the signal.
    unsafe {
        libc::sigtimedwait(&all_signals(), ptr::null_mut(), &raw const pause);
    }
}

/// Sends a signal to a process. Who is gone, or another user's by now, does not get it.
pub(crate) fn signal(pid: i32, signal: c_int) {
    // SAFETY: no memory is involved.
    unsafe {
        libc::kill(pid, signal);
    }
}

/// Whoever of this process's descendants loses its parent becomes its child.
pub(crate) fn become_subreaper() -> io::Result<()> {
    // SAFETY: no memory is involved.
    check("failed to become a subreaper", unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
    })?;
    Ok(())
}

/// Has the kernel send a signal to this process when its parent ends.
pub(crate) fn signal_when_parent_ends(signal: c_int) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check("failed to tie this process to its parent", unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, signal)
    })?;
    Ok(())
}

/// How many bytes there are to be read.
pub(crate) fn unread(file: &File) -> usize {
    let mut count: c_int = 0;
    // SAFETY: the kernel writes one number, for which there is room.
    unsafe {
        libc::ioctl(file.as_raw_fd(), libc::FIONREAD, &raw mut count);
    }
    usize::try_from(count).unwrap_or(0)
}

/// Makes a file standard input, output and error of this process.
pub(crate) fn become_standard(file: &File) {
    for standard in STANDARD {
        // SAFETY: no memory is involved, and nobody owns the standard descriptors.
        unsafe {
            libc::dup2(file.as_raw_fd(), standard);
        }
    }
}

/// Makes a FIFO; an error if there is anything of that name.
pub(crate) fn make_fifo(path: &CStr) -> io::Result<()> {
    // SAFETY: the path is a string that ends with NUL.
    if unsafe { libc::mkfifo(path.as_ptr(), 0o600) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Who ignores SIGCHLD never learns how a child ended, and that may be inherited.
pub(crate) fn do_not_ignore_children() {
    // SAFETY: no handler is set.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
}

/// Ignores all signals that can be sent to it to end or stop it, but for SIGKILL and SIGSTOP.
pub(crate) fn ignore_signals() {
    let signals = (1..=LAST_SIGNAL).filter(|signal| !FAULTS.contains(signal));
    for signal in signals {
        // Who ignores SIGCHLD never learns how a child ended.
        let action = if signal == libc::SIGCHLD {
            libc::SIG_DFL
        } else {
            libc::SIG_IGN
        };
        // SAFETY: no handler is set.
        unsafe {
            libc::signal(signal, action);
        }
    }
}

#[derive(Debug)]
pub(crate) enum Fork {
    Parent(i32),
    Child,
}

pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: this program has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Ends a child that has not become another program, without its parent's last words.
pub(crate) fn exit_at_once(status: u8) -> ! {
    // SAFETY: nothing is left to be done.
    unsafe { libc::_exit(i32::from(status)) }
}

/// A child that has ended, and its wait status; it is gone then.
pub(crate) fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: the kernel writes one number, for which there is room.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Whether there is a child, running or not.
pub(crate) fn has_children() -> bool {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the kernel writes a siginfo, for which there is room.
    unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), how) == 0 }
}

/// Waits until a child has ended, and leaves it to be reaped. Returns its wait status.
pub(crate) fn wait_for(child: i32) -> io::Result<i32> {
    let id = libc::id_t::try_from(child).map_err(io::Error::other)?;
    loop {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        let how = libc::WEXITED | libc::WNOWAIT;
        // SAFETY: the kernel writes a siginfo, for which there is room.
        if unsafe { libc::waitid(libc::P_PID, id, info.as_mut_ptr(), how) } == -1 {
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            }
        }
        // SAFETY: waitid succeeded, so it is a siginfo of SIGCHLD, which has a status.
        let (code, status) = unsafe {
            let info = info.assume_init();
            (info.si_code, info.si_status())
        };
        return Ok(match code {
            libc::CLD_EXITED => (status & 0xff) << 8,
            _ => status,
        });
    }
}

pub(crate) fn new_session() -> io::Result<()> {
    // SAFETY: no memory is involved.
    check("failed to begin a session", unsafe { libc::setsid() })?;
    Ok(())
}

/// Gives up the terminal of this session, which begins no other.
pub(crate) fn give_up_terminal() -> io::Result<()> {
    // SAFETY: no memory is involved.
    let result = unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCNOTTY) };
    match result {
        // It was never that of this session.
        -1 if io::Error::last_os_error().raw_os_error() == Some(libc::ENOTTY) => return Ok(()),
        _ => check("failed to give up the terminal", result)?,
    };
    // The kernel tells who gives it up that it is gone. Both are blocked, and not for the dyno.
    let mut told = MaybeUninit::uninit();
    let at_once = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: sigemptyset initialises the set; nobody wants to know more about a signal.
    unsafe {
        libc::sigemptyset(told.as_mut_ptr());
        libc::sigaddset(told.as_mut_ptr(), libc::SIGHUP);
        libc::sigaddset(told.as_mut_ptr(), libc::SIGCONT);
        while libc::sigtimedwait(told.as_ptr(), ptr::null_mut(), &raw const at_once) > 0 {}
    }
    Ok(())
}

/// Takes a variable out of the environment.
pub(crate) fn unset(name: &CStr) {
    // SAFETY: this program has one thread, and the name is a string that ends with NUL.
    unsafe {
        libc::unsetenv(name.as_ptr());
    }
}

/// Makes a terminal standard input, output and error, and that of this session.
pub(crate) fn become_terminal_of_session(terminal: OwnedFd) -> io::Result<()> {
    for standard in STANDARD {
        // SAFETY: no memory is involved, and nobody owns the standard descriptors.
        let result = unsafe { libc::dup2(terminal.as_raw_fd(), standard) };
        check("failed to give the command its terminal", result)?;
    }
    drop(terminal);
    // SAFETY: no memory is involved.
    let result = unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) };
    check("failed to make the terminal that of the session", result)?;
    Ok(())
}

/// Opens the other end of a terminal by its master: there is no name that could be another's.
pub(crate) fn open_terminal_slave(master: &OwnedFd) -> io::Result<OwnedFd> {
    let unlocked: c_int = 0;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    let master = master.as_raw_fd();
    // SAFETY: the kernel reads one number, which is there.
    let result = unsafe { libc::ioctl(master, libc::TIOCSPTLCK, &raw const unlocked) };
    check("failed to unlock it", result)?;
    // SAFETY: no memory is involved.
    let slave = unsafe { libc::ioctl(master, libc::TIOCGPTPEER, flags) };
    let slave = check("failed to open it", slave)?;
    // SAFETY: the call has just opened it.
    Ok(unsafe { OwnedFd::from_raw_fd(slave) })
}

pub(crate) fn set_terminal_size(terminal: &OwnedFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel reads a whole winsize, which is there.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    check("the kernel refuses it", result)?;
    Ok(())
}

/// Sends one byte, and with it a descriptor.
pub(crate) fn send_descriptor(socket: &OwnedFd, sent: &OwnedFd) -> io::Result<()> {
    let mut byte = 0_u8;
    let mut data = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let size = c_uint::try_from(size_of::<RawFd>()).map_err(io::Error::other)?;
    // Numbers, for these are aligned as the kernel's header must be.
    let mut control = [0_u64; 4];
    // SAFETY: CMSG_SPACE is arithmetic.
    let space = unsafe { libc::CMSG_SPACE(size) } as usize;
    debug_assert!(space <= size_of_val(&control), "the buffer is too small");
    // SAFETY: a msghdr of zeroes is one without anything.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = space as _;
    // SAFETY: the buffer has room for one header and one descriptor, and all that the message
    // points to is there until sendmsg has returned.
    let sent = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size) as _;
        libc::CMSG_DATA(header)
            .cast::<RawFd>()
            .write_unaligned(sent.as_raw_fd());
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    };
    if sent == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether there is such a program.
pub(crate) fn may_execute(path: &CStr) -> bool {
    // SAFETY: the path is a string that ends with NUL.
    unsafe { libc::access(path.as_ptr(), libc::X_OK) == 0 }
}

/// Becomes a program, with this one's environment. Returns why it has not.
pub(crate) fn execute(path: &CStr, words: &[CString]) -> io::Error {
    let words = pointers(words);
    // SAFETY: the path is a string that ends with NUL, the words an array of such that ends with
    // a null pointer.
    unsafe {
        libc::execv(path.as_ptr(), words.as_ptr());
    }
    io::Error::last_os_error()
}

/// The same with a program that has no name.
pub(crate) fn execute_descriptor(program: &OwnedFd, words: &[CString]) -> io::Error {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    let words = pointers(words);
    // SAFETY: as above; and one thread alone reads the environment, which nobody changes.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            words.as_ptr(),
            environ,
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

fn pointers(words: &[CString]) -> Vec<*const c_char> {
    let words = words.iter().map(|word| word.as_ptr());
    words.chain([ptr::null()]).collect()
}
