//! How long the kernel takes for one RCU grace period.

use std::io;

use nix::{errno::Errno, libc};

use super::super::clock;

/// Waits for one, as whoever enters a cgroup does: `membarrier(2)` to all processes is
/// `synchronize_rcu` in the kernel, and nothing else. In nanoseconds.
#[expect(unsafe_code, reason = "membarrier(2) has no wrapper")]
pub(super) fn grace_period() -> io::Result<u64> {
    let begun = clock::now();
    // SAFETY: it takes numbers, and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    let taken = clock::now() - begun;
    Errno::result(result)?;
    Ok(taken)
}
