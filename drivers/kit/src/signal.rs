//! A signal, of those with a name and of the real-time ones, which the C library only counts.

use std::{fmt, str::FromStr};

use nix::{errno::Errno, sys::signal::Signal as Standard, unistd::Pid};
use thiserror::Error;

/// A signal. Its name is `SIGTERM`, `SIGRTMIN+3` (signal(7)), and never without the `SIG`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

/// What is not the name of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not the name of a signal")]
pub struct NotASignal;

impl Signal {
    /// The terminal was closed.
    pub const HUP: Self = Self(libc::SIGHUP);
    /// End now, without being asked.
    pub const KILL: Self = Self(libc::SIGKILL);
    /// Please end.
    pub const TERM: Self = Self(libc::SIGTERM);

    /// The signal with this number.
    pub fn from_number(number: i32) -> Option<Self> {
        (1..=libc::SIGRTMAX())
            .contains(&number)
            .then_some(Self(number))
    }

    /// Its number on this machine.
    pub const fn number(self) -> i32 {
        self.0
    }

    /// Sends it to a process.
    ///
    /// # Errors
    /// When there is no such process, or it is not ours to signal.
    #[expect(unsafe_code, reason = "nix knows no real-time signals")]
    pub fn send(self, pid: Pid) -> nix::Result<()> {
        // SAFETY: the call takes numbers only.
        Errno::result(unsafe { libc::kill(pid.as_raw(), self.0) }).map(drop)
    }

    /// Sends it to the process group that `leader` leads.
    ///
    /// # Errors
    /// As [`Signal::send`].
    pub fn send_to_group(self, leader: Pid) -> nix::Result<()> {
        self.send(Pid::from_raw(-leader.as_raw()))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = libc::SIGRTMIN();
        match Standard::try_from(self.0) {
            Ok(signal) => f.write_str(signal.as_str()),
            Err(_) if self.0 == first => f.write_str("SIGRTMIN"),
            Err(_) if self.0 > first => write!(f, "SIGRTMIN+{}", self.0 - first),
            // The C library keeps these to itself.
            Err(_) => write!(f, "SIG{}", self.0),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Signal {
    type Err = NotASignal;

    fn from_str(name: &str) -> Result<Self, NotASignal> {
        // There are few of them, and each has one name.
        (1..=libc::SIGRTMAX())
            .map(Self)
            .find(|signal| signal.to_string() == name)
            .ok_or(NotASignal)
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test]
    fn every_signal_has_a_name_by_which_it_is_found() {
        for number in 1..=libc::SIGRTMAX() {
            let signal = Signal::from_number(number).unwrap();
            assert_eq!(signal.to_string().parse(), Ok(signal), "{number}");
        }
        let first = libc::SIGRTMIN();
        let name = |number| Signal::from_number(number).unwrap().to_string();
        assert_eq!(name(libc::SIGKILL), "SIGKILL");
        assert_eq!(name(first), "SIGRTMIN");
        assert_eq!(name(first + 6), "SIGRTMIN+6");
        assert_eq!(name(32), "SIG32");
        assert_eq!("SIGTERM".parse(), Ok(Signal::TERM));
    }

    #[test_case("")]
    #[test_case("TERM")]
    #[test_case("15")]
    #[test_case("SIG15"; "a number that has a name")]
    #[test_case("SIGRTMIN+0"; "another name of the first")]
    #[test_case("SIGRTMIN+99")]
    #[test_case("SIG0")]
    #[test_case("SIG99")]
    fn what_is_no_name(name: &str) {
        assert_eq!(name.parse::<Signal>(), Err(NotASignal));
        assert_eq!(Signal::from_number(0), None);
        assert_eq!(Signal::from_number(65), None);
    }
}
