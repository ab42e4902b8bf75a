//! How a process ended.

use std::process::ExitCode;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Code(u8),
    Signal(u8),
}

/// In a wait status: the process left a core, or would have.
const CORE: i32 = 0x80;

impl Outcome {
    /// None if a process with this status has not ended.
    pub(crate) fn from_wait_status(status: i32) -> Option<Self> {
        if libc::WIFEXITED(status) {
            return u8::try_from(libc::WEXITSTATUS(status)).ok().map(Self::Code);
        }
        let signal = libc::WTERMSIG(status);
        let ended = libc::WIFSIGNALED(status) && status & !(CORE | 0x7f) == 0;
        u8::try_from(signal)
            .ok()
            .filter(|_| ended)
            .map(Self::Signal)
    }

    pub(crate) fn to_wait_status(self) -> i32 {
        match self {
            Self::Code(code) => i32::from(code) << 8,
            Self::Signal(signal) => i32::from(signal),
        }
    }

    /// As a shell says it.
    pub(crate) fn to_exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 0x80 | signal,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_survives_the_way() {
        let codes = (0..=u8::MAX).map(Outcome::Code);
        for outcome in codes.chain((1..=64).map(Outcome::Signal)) {
            let status = outcome.to_wait_status();
            assert_eq!(Outcome::from_wait_status(status), Some(outcome));
        }
        assert_eq!(
            Outcome::from_wait_status(CORE | libc::SIGSEGV),
            Some(Outcome::Signal(11))
        );
    }

    #[test]
    fn what_is_no_end_is_none() {
        let stopped = libc::SIGTSTP << 8 | 0x7f;
        for status in [stopped, 0xffff, -1, 0x0001_0009] {
            assert_eq!(Outcome::from_wait_status(status), None, "{status:x}");
        }
    }
}
