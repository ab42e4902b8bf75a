//! How a process ended, in the supervisor's own words.
//!
//! A driver reports a code, a signal, or that it does not know. The supervisor
//! adds one more way to end: never to have started. Nothing here ever invents a
//! code: a lost status stays lost until somebody must leave with a number.

use std::{fmt, str::FromStr as _};

use hsup_proto::{control, driver};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

/// How one attempt to run a dyno ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    pub how: Ending,
    /// Killed because it had used up its memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// When it ended, in milliseconds since the Unix epoch.
    pub at_unix_ms: i64,
}

/// The way it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It left with this code.
    Code(i32),
    /// A signal killed it, by name: `SIGKILL`.
    Signal(String),
    /// Nobody knows; says why.
    Lost(String),
    /// The driver could not start it; says why.
    NotStarted(String),
}

impl ExitStatus {
    /// It left with `code`.
    pub const fn code(code: i32, at_unix_ms: i64) -> Self {
        Self::new(Ending::Code(code), at_unix_ms)
    }

    /// Its status is not known, for the reason given.
    pub fn lost(why: impl Into<String>, at_unix_ms: i64) -> Self {
        Self::new(Ending::Lost(why.into()), at_unix_ms)
    }

    /// It could not be started, for the reason given.
    pub fn not_started(why: impl Into<String>, at_unix_ms: i64) -> Self {
        Self::new(Ending::NotStarted(why.into()), at_unix_ms)
    }

    const fn new(how: Ending, at_unix_ms: i64) -> Self {
        Self {
            how,
            oom_killed: false,
            at_unix_ms,
        }
    }

    /// The number a shell would show: the code, or 128 + n for signal n.
    ///
    /// 1 when the status is lost or the dyno never started, which are failures of
    /// hsup or its driver; 255 for a code that does not fit, so that 256 is never
    /// taken for success; 128 for a signal that this system does not have.
    pub fn exit_code(&self) -> u8 {
        match &self.how {
            Ending::Code(code) => u8::try_from(*code).unwrap_or(u8::MAX),
            Ending::Signal(name) => signal_number(name)
                .and_then(|number| u8::try_from(number).ok())
                .and_then(|number| number.checked_add(128))
                .unwrap_or(128),
            Ending::Lost(_) | Ending::NotStarted(_) => 1,
        }
    }

    /// Whether nobody knows how it ended.
    pub const fn is_lost(&self) -> bool {
        matches!(self.how, Ending::Lost(_))
    }

    /// Whether a process ran, and it is known how that ended.
    pub const fn is_known(&self) -> bool {
        matches!(self.how, Ending::Code(_) | Ending::Signal(_))
    }

    /// Whether it left with code 0.
    pub fn success(&self) -> bool {
        self.how == Ending::Code(0)
    }
}

/// The line Heroku writes: `Process exited with status 143`.
impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            Ending::Code(_) | Ending::Signal(_) => {
                write!(f, "Process exited with status {}", self.exit_code())
            }
            Ending::Lost(why) => write!(f, "Process exited with unknown status: {why}"),
            Ending::NotStarted(why) => write!(f, "Process could not be started: {why}"),
        }
    }
}

impl From<driver::ExitStatus> for ExitStatus {
    fn from(message: driver::ExitStatus) -> Self {
        use driver::exit_status::How;
        let how = match message.how {
            Some(How::Code(code)) => Ending::Code(code),
            Some(How::Signal(name)) => Ending::Signal(name),
            Some(How::Lost(why)) => Ending::Lost(why),
            None => Ending::Lost("the driver reported an exit without a status".to_owned()),
        };
        Self {
            how,
            oom_killed: message.oom_killed,
            at_unix_ms: message.exited_at_unix_ms,
        }
    }
}

impl From<&ExitStatus> for control::ExitStatus {
    fn from(status: &ExitStatus) -> Self {
        use control::exit_status::How;
        let how = match status.how.clone() {
            Ending::Code(code) => How::Code(code),
            Ending::Signal(name) => How::Signal(name),
            Ending::Lost(why) => How::Lost(why),
            Ending::NotStarted(why) => How::NotStarted(why),
        };
        Self {
            how: Some(how),
            oom_killed: status.oom_killed,
            at_unix_ms: status.at_unix_ms,
        }
    }
}

/// The number of a signal on this system. Real-time signals are `SIGRTMIN+n`.
fn signal_number(name: &str) -> Option<i32> {
    if let Ok(signal) = Signal::from_str(name) {
        return Some(signal as i32);
    }
    let offset: i32 = match name.strip_prefix("SIGRTMIN")? {
        "" => 0,
        rest => rest.strip_prefix('+')?.parse().ok()?,
    };
    let number = libc::SIGRTMIN().checked_add(offset)?;
    (offset >= 0 && number <= libc::SIGRTMAX()).then_some(number)
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn ended(how: Ending) -> ExitStatus {
        ExitStatus::new(how, 1)
    }

    #[test_case(Ending::Code(0), 0)]
    #[test_case(Ending::Code(7), 7)]
    #[test_case(Ending::Code(255), 255)]
    #[test_case(Ending::Code(256), 255; "a code that would wrap to success")]
    #[test_case(Ending::Code(-1), 255)]
    #[test_case(Ending::Signal("SIGTERM".into()), 143)]
    #[test_case(Ending::Signal("SIGKILL".into()), 137)]
    #[test_case(Ending::Signal("SIGRTMIN+2".into()), 128 + 36)]
    #[test_case(Ending::Signal("SIGNONSENSE".into()), 128)]
    #[test_case(Ending::Lost("driver died".into()), 1)]
    #[test_case(Ending::NotStarted("no bash".into()), 1)]
    fn exit_code(how: Ending, code: u8) {
        assert_eq!(ended(how).exit_code(), code);
    }

    #[test_case(Ending::Code(1), "Process exited with status 1")]
    #[test_case(Ending::Signal("SIGTERM".into()), "Process exited with status 143")]
    #[test_case(Ending::Lost("x".into()), "Process exited with unknown status: x")]
    #[test_case(Ending::NotStarted("x".into()), "Process could not be started: x")]
    fn wording(how: Ending, text: &str) {
        assert_eq!(ended(how).to_string(), text);
    }

    #[test]
    fn a_status_from_the_driver_reaches_the_control_socket_whole() {
        let message = driver::ExitStatus {
            how: Some(driver::exit_status::How::Signal("SIGKILL".into())),
            oom_killed: true,
            exited_at_unix_ms: 42,
        };
        assert_eq!(
            control::ExitStatus::from(&ExitStatus::from(message)),
            control::ExitStatus {
                how: Some(control::exit_status::How::Signal("SIGKILL".into())),
                oom_killed: true,
                at_unix_ms: 42,
            }
        );
    }

    #[test]
    fn a_status_without_a_way_is_lost_not_zero() {
        let status = ExitStatus::from(driver::ExitStatus::default());
        assert!(matches!(status.how, Ending::Lost(_)), "{status:?}");
        assert!(!status.success());
    }

    #[test]
    fn a_status_survives_the_journal() {
        for how in [
            Ending::Code(3),
            Ending::Signal("SIGTERM".into()),
            Ending::Lost("l".into()),
            Ending::NotStarted("n".into()),
        ] {
            let status = ended(how);
            let text = serde_json::to_string(&status).unwrap();
            assert_eq!(serde_json::from_str::<ExitStatus>(&text).unwrap(), status);
        }
    }
}
