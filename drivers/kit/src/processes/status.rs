//! How a process ended, in the protocol's words, and who has.

use hsup_proto::driver::{ExitStatus, exit_status::How};
use nix::unistd::Pid;

use crate::{clock::now_unix_ms, signal::Signal};

/// Reaps one child that has ended, if there is one.
///
/// Not with nix: for an end by a real-time signal, which it has no word for, its `waitpid`
/// answers an error when the child is reaped already, and nobody would ever know.
#[expect(
    unsafe_code,
    reason = "nix loses children that a real-time signal killed"
)]
pub(super) fn reap() -> Option<(Pid, ExitStatus)> {
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then(|| (Pid::from_raw(pid), of(status)))
}

/// What waitpid(2) said.
fn of(status: i32) -> ExitStatus {
    if libc::WIFEXITED(status) {
        code(libc::WEXITSTATUS(status))
    } else if libc::WIFSIGNALED(status)
        && let Some(signal) = Signal::from_number(libc::WTERMSIG(status))
    {
        now(How::Signal(signal.to_string()))
    } else {
        lost(&format!("waitpid answered {status:#x}"))
    }
}

/// It exited with `code`.
pub(super) fn code(code: i32) -> ExitStatus {
    now(How::Code(code))
}

/// Nobody knows.
pub(super) fn lost(why: &str) -> ExitStatus {
    now(How::Lost(why.to_owned()))
}

fn now(how: How) -> ExitStatus {
    ExitStatus {
        how: Some(how),
        oom_killed: false,
        exited_at_unix_ms: now_unix_ms(),
    }
}
