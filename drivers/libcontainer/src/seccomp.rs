//! Which system calls a dyno may make: a seccomp filter (seccomp(2)), compiled once.
//!
//! Three filters, of which the strictest answer counts, and of several errors that of the last:
//! the first lets pass what programs use, and of anything else says that there is no such call
//! (ENOSYS), which is what makes a C library fall back to an older one. The second refuses by
//! name (EPERM) what could lead out of the dyno or to its neighbours, the third what could with
//! some arguments; and it kills who makes calls of another architecture. `clone3` and `openat2`,
//! whose flags a filter cannot see, do not exist in a dyno; `clone` makes no namespaces.
//!
//! Who installs a filter waits until the kernel has tried it out with every number there is. So
//! those that go by the number alone are trees (`numbers.rs`), which take a millisecond less at
//! each start than a comparison with one number after the other; what looks at arguments is
//! compiled by `seccompiler`, in pure Rust. libcontainer could be given a profile too, and would
//! compile it at each start with a C library, which takes longer than all the rest.

mod calls;
mod numbers;

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};
use thiserror::Error;

use self::calls::{ALLOWED, REFUSED};

/// The namespaces that `clone` could make: `CLONE_NEW*` of sched.h.
const NEW_NAMESPACES: &[i32] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];
/// Families of sockets that are the host's, whatever the network namespace.
const HOST_FAMILIES: &[i32] = &[libc::AF_VSOCK, libc::AF_ALG];
/// Typing for others into a terminal (`ioctl_tty(2)`).
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

/// What of `O_TMPFILE` is its own: the rest is `O_DIRECTORY`.
const UNNAMED: i32 = libc::O_TMPFILE & !libc::O_DIRECTORY;

/// The filters could not be made.
#[derive(Debug, Error)]
pub(crate) enum SeccompError {
    #[error("there is no seccomp filter for this architecture")]
    Architecture(#[source] seccompiler::BackendError),
    #[error("failed to compile the seccomp filter")]
    Compile(#[source] seccompiler::BackendError),
}

/// The programs, in the order in which they are installed, as bytes.
///
/// # Errors
/// On a machine whose system calls are not listed here.
pub(crate) fn programs() -> Result<[Vec<u8>; 3], SeccompError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(SeccompError::Architecture)?;
    let known = numbers::program(ALLOWED, libc::SECCOMP_RET_ALLOW, error(libc::ENOSYS));
    let refused = numbers::program(REFUSED, error(libc::EPERM), libc::SECCOMP_RET_ALLOW);
    let conditional = SeccompFilter::new(
        conditional()?,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        arch,
    )
    .and_then(BpfProgram::try_from)
    .map_err(SeccompError::Compile)?;
    Ok([bytes(&known), bytes(&refused), bytes(&conditional)])
}

/// The answer of a filter that a call fails with this error.
fn error(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | (errno.unsigned_abs() & libc::SECCOMP_RET_DATA)
}

/// What is refused with some arguments.
fn conditional() -> Result<BTreeMap<i64, Vec<SeccompRule>>, SeccompError> {
    let mut refused: BTreeMap<_, _> = set_user_id()?.into_iter().collect();
    refused.insert(
        libc::SYS_clone,
        NEW_NAMESPACES
            .iter()
            .map(|flag| {
                let flag = u64::from(flag.unsigned_abs());
                rule(0, Len::Qword, Op::MaskedEq(flag), flag)
            })
            .collect::<Result<_, _>>()?,
    );
    refused.insert(
        libc::SYS_socket,
        HOST_FAMILIES
            .iter()
            .map(|family| rule(0, Len::Dword, Op::Eq, u64::from(family.unsigned_abs())))
            .collect::<Result<_, _>>()?,
    );
    refused.insert(
        libc::SYS_ioctl,
        [TIOCSTI, TIOCLINUX]
            .into_iter()
            .map(|request| rule(1, Len::Dword, Op::Eq, request))
            .collect::<Result<_, _>>()?,
    );
    Ok(refused)
}

/// Giving a file the set-user-ID bit, by which somebody else on the host could become the dyno's
/// user, outside of all this. In the dyno the bit has no effect.
fn set_user_id() -> Result<Vec<(i64, Vec<SeccompRule>)>, SeccompError> {
    let bit = u64::from(libc::S_ISUID);
    let has_bit = |argument| condition(argument, Len::Dword, Op::MaskedEq(bit), bit);
    let rule = |conditions| SeccompRule::new(conditions).map_err(SeccompError::Compile);
    // Without one of these flags the mode is anything. A file that O_TMPFILE makes gets a name by
    // linkat.
    let creates = |flags: u8| {
        [libc::O_CREAT, UNNAMED]
            .map(|flag| u64::from(flag.unsigned_abs()))
            .into_iter()
            .map(|flag| {
                let makes = condition(flags, Len::Dword, Op::MaskedEq(flag), flag)?;
                rule(vec![makes, has_bit(flags + 1)?])
            })
            .collect::<Result<Vec<_>, _>>()
    };
    let mut rules = vec![
        (libc::SYS_fchmod, vec![rule(vec![has_bit(1)?])?]),
        (libc::SYS_fchmodat, vec![rule(vec![has_bit(2)?])?]),
        (libc::SYS_mknodat, vec![rule(vec![has_bit(2)?])?]),
        (libc::SYS_openat, creates(2)?),
    ];
    #[cfg(target_arch = "x86_64")]
    rules.extend([
        (libc::SYS_chmod, vec![rule(vec![has_bit(1)?])?]),
        (libc::SYS_fchmodat2, vec![rule(vec![has_bit(2)?])?]),
        (libc::SYS_creat, vec![rule(vec![has_bit(1)?])?]),
        (libc::SYS_mknod, vec![rule(vec![has_bit(1)?])?]),
        (libc::SYS_open, creates(1)?),
    ]);
    Ok(rules)
}

fn condition(argument: u8, len: Len, op: Op, value: u64) -> Result<SeccompCondition, SeccompError> {
    SeccompCondition::new(argument, len, op, value).map_err(SeccompError::Compile)
}

fn rule(argument: u8, len: Len, op: Op, value: u64) -> Result<SeccompRule, SeccompError> {
    SeccompRule::new(vec![condition(argument, len, op, value)?]).map_err(SeccompError::Compile)
}

fn bytes(program: &BpfProgram) -> Vec<u8> {
    let instruction = |filter: &sock_filter| {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&filter.code.to_ne_bytes());
        bytes[2] = filter.jt;
        bytes[3] = filter.jf;
        bytes[4..].copy_from_slice(&filter.k.to_ne_bytes());
        bytes
    };
    program.iter().flat_map(instruction).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_fit_the_kernel() {
        for program in programs().unwrap() {
            assert_eq!(program.len() % 8, 0);
            // BPF_MAXINSNS
            assert!((1..=4096).contains(&(program.len() / 8)));
        }
    }

    #[test]
    fn what_is_refused_passes_the_first_filter() {
        for refused in REFUSED {
            assert!(ALLOWED.contains(refused), "{refused}");
        }
    }

    #[test]
    fn clone3_does_not_exist() {
        assert!(!ALLOWED.contains(&libc::SYS_clone3));
    }
}
