//! A process that is born in its cgroup: `clone3` with `CLONE_INTO_CGROUP` (Linux 5.7).
//!
//! A process that moves there itself makes the kernel wait until no thread of the machine
//! forks or ends, which a thousand starts feel. C libraries have no function for the system
//! call that would let the child begin on a stack of its own, so this says it in assembly, on
//! the machine that it could be tested on; elsewhere the child moves.

use std::{
    ffi::{c_int, c_void},
    os::fd::{AsRawFd as _, BorrowedFd},
};

use libc::pid_t;
use nix::errno::Errno;

/// What a child begins with. It does not return.
pub(super) type Begin = extern "C" fn(*mut c_void) -> c_int;

/// Starts a process in the cgroup whose folder `cgroup` is, on `stack`, with our
/// memory, our table of descriptors and with this thread suspended. `None`: not here, not that cgroup, or none was named; another way may succeed.
///
/// # Safety
/// As for `clone(CLONE_VM | CLONE_FILES | CLONE_VFORK)`: `begin` makes plain system calls only and does not
/// return, all signals are blocked, and nobody else uses the stack, whose end is aligned to 16.
#[expect(unsafe_code, reason = "there is no safe way to say clone3(2)")]
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn clone(
    cgroup: Option<BorrowedFd<'_>>,
    stack: &mut [u8],
    begin: Begin,
    argument: *mut c_void,
) -> Option<Result<pid_t, Errno>> {
    /// `CLONE_VM | CLONE_FILES | CLONE_VFORK | CLONE_INTO_CGROUP`, of which the last needs 64 bits.
    const FLAGS: u64 = 0x100 | 0x400 | 0x4000 | 0x2_0000_0000;

    let mut arguments = libc::clone_args {
        flags: FLAGS,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD.cast_unsigned().into(),
        stack: stack.as_mut_ptr().expose_provenance() as u64,
        stack_size: stack.len() as u64,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: u64::try_from(cgroup?.as_raw_fd()).ok()?,
    };
    let result: i64;
    // SAFETY: the kernel reads `arguments`. In the parent the call returns here with nothing
    // changed but what is named below. The child has its stack pointer at the end of `stack`
    // and everything else as we have it; it calls `begin`, as a function is called in this
    // ABI, and never gets further.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw mut arguments,
            in("rsi") size_of_val(&arguments),
            in("r12") argument,
            in("r13") begin,
            out("rcx") _,
            out("r11") _,
        );
    }
    match i32::try_from(result) {
        Ok(pid) if pid > 0 => Some(Ok(pid)),
        // Too many processes, here or in that cgroup: there is no other way around that.
        Ok(error) if error == -libc::EAGAIN || error == -libc::ENOMEM => {
            Some(Err(Errno::from_raw(-error)))
        }
        // An old kernel, a filter that does not know the call, a cgroup that we may not write.
        _ => None,
    }
}

/// As above, where it has not been written.
///
/// # Safety
/// None is needed.
#[expect(unsafe_code, reason = "the same as above")]
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn clone(
    _cgroup: Option<BorrowedFd<'_>>,
    _stack: &mut [u8],
    _begin: Begin,
    _argument: *mut c_void,
) -> Option<Result<pid_t, Errno>> {
    None
}
