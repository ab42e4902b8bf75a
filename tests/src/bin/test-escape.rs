//! `test-escape`: tries, from inside a dyno, what could lead out of it, and prints what came of it.
//!
//! Each attempt is a line: its name, and `ok` or the name of the error. System calls are made by
//! their numbers, as what wants out does; none of them would do harm if it worked.

#![expect(
    unsafe_code,
    reason = "system calls by their numbers are what this is for"
)]
#![expect(clippy::print_stdout, reason = "its output is the result")]

use std::{
    ffi::c_long,
    fs::File,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::ExitCode,
    ptr,
    time::Duration,
};

use nix::errno::Errno;

const USAGE: &str = "\
usage: test-escape calls                 make system calls that a dyno has no use for
       test-escape connect ADDRESS...    connect to each within a second
       test-escape listen PORT           accept connections for ever
       test-escape hold MIB              use that much memory, and say so
       test-escape users                 print real, effective and saved user";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["calls"] => calls(),
        ["connect", ref addresses @ ..] => addresses.iter().for_each(|address| connect(address)),
        ["listen", port] => listen(port),
        ["hold", mib] => hold(mib),
        ["users"] => users(),
        _ => {
            println!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn connect(address: &str) {
    let wanted: SocketAddr = match address.parse() {
        Ok(address) => address,
        Err(error) => return println!("{address} {error}"),
    };
    match TcpStream::connect_timeout(&wanted, Duration::from_secs(1)) {
        Ok(_) => println!("{address} ok"),
        Err(error) => println!("{address} {:?}", error.kind()),
    }
}

fn listen(port: &str) {
    let port = port.parse().unwrap_or(5000);
    match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => {
            println!("listening");
            for stream in listener.incoming() {
                drop(stream);
            }
        }
        Err(error) => println!("{error}"),
    }
}

fn hold(mib: &str) {
    let size = mib.parse::<usize>().unwrap_or(0) << 20;
    let mut memory = vec![0_u8; size];
    for page in memory.chunks_mut(4096) {
        page[0] = 1;
    }
    println!(
        "held {}",
        memory.iter().map(|byte| usize::from(*byte)).sum::<usize>()
    );
}

fn users() {
    let (mut real, mut effective, mut saved) = (0, 0, 0);
    // SAFETY: it writes three numbers to where they are to be.
    unsafe { libc::getresuid(&raw mut real, &raw mut effective, &raw mut saved) };
    println!("{real} {effective} {saved}");
}

/// Makes one system call, and tells of it.
fn attempt(name: &str, number: c_long, arguments: &[usize]) {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    Errno::clear();
    // SAFETY: whoever calls this passes numbers, and pointers to what lives long enough.
    let result = unsafe { libc::syscall(number, all[0], all[1], all[2], all[3], all[4], all[5]) };
    match Errno::result(result) {
        Ok(_) => println!("{name} ok"),
        Err(errno) => println!("{name} {errno:?}"),
    }
}

fn text(text: &'static std::ffi::CStr) -> usize {
    text.as_ptr().addr()
}

const fn flags(flags: i32) -> usize {
    flags.unsigned_abs() as usize
}

#[expect(
    clippy::cast_sign_loss,
    reason = "-1 is what the kernel takes for none"
)]
const fn number(number: i32) -> usize {
    number as isize as usize
}

fn calls() {
    let tmp = text(c"/tmp");
    let here = number(libc::AT_FDCWD);
    let net = File::open("/proc/self/ns/net").ok();
    let net = net.as_ref().map_or(0, |file| flags(file.as_raw_fd()));
    let zeros = [0_u64; 32];
    let zeros = ptr::from_ref(&zeros).addr();
    let namespaces = [
        ("user", libc::CLONE_NEWUSER),
        ("mnt", libc::CLONE_NEWNS),
        ("pid", libc::CLONE_NEWPID),
        ("net", libc::CLONE_NEWNET),
        ("ipc", libc::CLONE_NEWIPC),
        ("uts", libc::CLONE_NEWUTS),
        ("cgroup", libc::CLONE_NEWCGROUP),
    ];
    for (name, flag) in namespaces {
        attempt(
            &format!("unshare-{name}"),
            libc::SYS_unshare,
            &[flags(flag)],
        );
        clone(name, flag);
    }
    attempt("clone3", libc::SYS_clone3, &[0, 0]);
    attempt("setns", libc::SYS_setns, &[net, 0]);
    // File systems.
    attempt(
        "mount",
        libc::SYS_mount,
        &[text(c"none"), tmp, text(c"tmpfs"), 0, 0],
    );
    attempt("umount", libc::SYS_umount2, &[text(c"/proc"), 0]);
    attempt("pivot_root", libc::SYS_pivot_root, &[tmp, tmp]);
    attempt("chroot", libc::SYS_chroot, &[tmp]);
    // The set-user-ID bit.
    let (file, suid) = (text(c"/tmp/suid"), 0o4755);
    attempt("suid-chmod", libc::SYS_fchmodat, &[here, tmp, suid]);
    for (name, path, how) in [
        ("suid-open", file, libc::O_CREAT),
        ("suid-tmpfile", tmp, libc::O_TMPFILE),
    ] {
        let how = flags(how | libc::O_WRONLY);
        attempt(name, libc::SYS_openat, &[here, path, how, suid]);
    }
    attempt("fsopen", libc::SYS_fsopen, &[text(c"tmpfs"), 0]);
    let clone = libc::OPEN_TREE_CLONE as usize;
    attempt("open_tree", libc::SYS_open_tree, &[here, tmp, clone]);
    attempt(
        "move_mount",
        libc::SYS_move_mount,
        &[here, tmp, here, tmp, 0],
    );
    attempt(
        "mount_setattr",
        libc::SYS_mount_setattr,
        &[here, tmp, 0, zeros, 32],
    );
    attempt(
        "open_by_handle_at",
        libc::SYS_open_by_handle_at,
        &[here, zeros, 0],
    );
    attempt("quotactl", libc::SYS_quotactl, &[0, 0, 0, 0]);
    attempt("swapon", libc::SYS_swapon, &[text(c"/tmp/none"), 0]);
    attempt("acct", libc::SYS_acct, &[0]);
    let block = libc::S_IFBLK as usize | 0o600;
    let character = libc::S_IFCHR as usize | 0o600;
    attempt(
        "mknod-block",
        libc::SYS_mknodat,
        &[here, text(c"/tmp/block"), block, 0x800],
    );
    attempt(
        "mknod-mem",
        libc::SYS_mknodat,
        &[here, text(c"/tmp/mem"), character, 0x101],
    );
    // Other processes.
    attempt(
        "ptrace",
        libc::SYS_ptrace,
        &[libc::PTRACE_ATTACH as usize, 1],
    );
    attempt(
        "ptrace-seize",
        libc::SYS_ptrace,
        &[libc::PTRACE_SEIZE as usize, 1],
    );
    let mut byte = 0_u8;
    let part = libc::iovec {
        iov_base: ptr::from_mut(&mut byte).cast(),
        iov_len: 1,
    };
    let part = ptr::from_ref(&part).addr();
    attempt(
        "process_vm_readv",
        libc::SYS_process_vm_readv,
        &[1, part, 1, part, 1, 0],
    );
    attempt("kcmp", libc::SYS_kcmp, &[1, 1, 0, 0, 0]);
    // The kernel.
    attempt("keyctl", libc::SYS_keyctl, &[0, number(-3), 0]);
    let key = text(c"user");
    attempt(
        "add_key",
        libc::SYS_add_key,
        &[key, key, key, 4, number(-3)],
    );
    attempt("request_key", libc::SYS_request_key, &[key, key, 0, 0]);
    attempt("bpf", libc::SYS_bpf, &[0, zeros, 128]);
    attempt(
        "perf_event_open",
        libc::SYS_perf_event_open,
        &[zeros, 0, 0, number(-1), 0],
    );
    attempt("userfaultfd", libc::SYS_userfaultfd, &[1]);
    attempt("io_uring_setup", libc::SYS_io_uring_setup, &[1, zeros]);
    attempt("syslog", libc::SYS_syslog, &[10, 0, 0]);
    attempt("init_module", libc::SYS_init_module, &[0, 0, key]);
    attempt(
        "finit_module",
        libc::SYS_finit_module,
        &[number(-1), key, 0],
    );
    attempt(
        "delete_module",
        libc::SYS_delete_module,
        &[text(c"no_such"), 0],
    );
    attempt("kexec_load", libc::SYS_kexec_load, &[0, 0, 0, 0]);
    // Not what would restart the machine: what would let Ctrl-Alt-Del be told.
    attempt("reboot", libc::SYS_reboot, &[0xfee1_dead, 672_274_793, 0]);
    attempt("sethostname", libc::SYS_sethostname, &[key, 4]);
    attempt("settimeofday", libc::SYS_settimeofday, &[0, zeros]);
    #[cfg(target_arch = "x86_64")]
    {
        attempt("iopl", libc::SYS_iopl, &[3]);
        attempt("ioperm", libc::SYS_ioperm, &[0x80, 1, 1]);
        // The same numbers in the ABI of 32-bit pointers.
        attempt("x32-getpid", 0x4000_0000 | libc::SYS_getpid, &[]);
    }
    // Sockets and terminals.
    for (name, family, kind) in [
        ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM),
        ("alg", libc::AF_ALG, libc::SOCK_SEQPACKET),
        ("packet", libc::AF_PACKET, libc::SOCK_RAW),
        ("raw", libc::AF_INET, libc::SOCK_RAW),
    ] {
        let name = format!("socket-{name}");
        attempt(&name, libc::SYS_socket, &[flags(family), flags(kind), 1]);
    }
    let byte = ptr::from_ref(&byte).addr();
    let tiocsti = 0x5412;
    attempt("tiocsti", libc::SYS_ioctl, &[0, tiocsti, byte]);
    // Higher halves, which the kernel does not look at, must not hide the request.
    let hidden = tiocsti | 1 << 32;
    attempt("tiocsti-hidden", libc::SYS_ioctl, &[0, hidden, byte]);
    // Rights.
    attempt("setuid", libc::SYS_setuid, &[0]);
    attempt("setgid", libc::SYS_setgid, &[0]);
    attempt("setgroups", libc::SYS_setgroups, &[1, zeros]);
    let header = [0x2008_0522_u32, 0];
    let all = [u32::MAX; 6];
    let (header, all) = (ptr::from_ref(&header).addr(), ptr::from_ref(&all).addr());
    attempt("capset", libc::SYS_capset, &[header, all]);
    attempt(
        "new-privileges",
        libc::SYS_prctl,
        &[flags(libc::PR_SET_NO_NEW_PRIVS), 0, 0, 0, 0],
    );
    let more = libc::rlimit {
        rlim_cur: 1 << 20,
        rlim_max: 1 << 20,
    };
    let more = ptr::from_ref(&more).addr();
    attempt(
        "setrlimit",
        libc::SYS_prlimit64,
        &[0, libc::RLIMIT_NPROC as usize, more, 0],
    );
    attempt("setpriority", libc::SYS_setpriority, &[0, 0, number(-10)]);
}

/// `clone(2)` with a namespace: a child would end at once.
fn clone(name: &str, flag: i32) {
    Errno::clear();
    // SAFETY: as fork(2), of a process with one thread; the child calls nothing but _exit(2).
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags(flag | libc::SIGCHLD), 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: it takes a number.
        unsafe { libc::_exit(0) };
    }
    match Errno::result(pid) {
        Ok(_) => println!("clone-{name} ok"),
        Err(errno) => println!("clone-{name} {errno:?}"),
    }
}
