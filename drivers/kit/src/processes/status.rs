//! How a process ended, in the protocol's words.

use std::time::{SystemTime, UNIX_EPOCH};

use hsup_proto::driver::{ExitStatus, exit_status::How};
use nix::sys::wait::WaitStatus;

/// What waitpid(2) said.
pub(super) fn of(ended: WaitStatus) -> ExitStatus {
    match ended {
        WaitStatus::Exited(_, code) => self::code(code),
        WaitStatus::Signaled(_, signal, _) => now(How::Signal(signal.as_str().to_owned())),
        other => lost(&format!("waitpid answered {other:?}")),
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
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let ms = since.unwrap_or_default().as_millis();
    ExitStatus {
        how: Some(how),
        oom_killed: false,
        exited_at_unix_ms: i64::try_from(ms).unwrap_or(i64::MAX),
    }
}
