//! A dyno as `hsupctl` shows it: the wire's message with its open ends tied up.
//!
//! The names of the fields are what `-o json` prints; they do not change.

use std::net::IpAddr;

use hsup_core::lifecycle::words;
use hsup_proto::control::{self, DynoState, exit_status::How};
use serde::{Serialize, Serializer};

use crate::look::{Colour, Look, ordinal, rfc3339};

/// One dyno.
#[derive(Clone, Debug, Serialize)]
pub struct DynoReport {
    pub name: String,
    pub process_type: String,
    pub number: u32,
    #[serde(serialize_with = "as_word")]
    pub state: DynoState,
    pub since: Option<String>,
    pub ready: bool,
    pub release: u64,
    pub command: String,
    pub restarts: u32,
    pub last_exit: Option<ExitReport>,
    pub retry_at: Option<String>,
    pub crashes_in_a_row: u32,
    pub dyno_id: Option<String>,
    pub ip: Option<String>,
    pub port: Option<u32>,
    pub cpu_ns: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub pids: Option<u32>,
    pub pid: Option<u32>,
    /// Which machine it is on; none: the driver's own, or not known.
    pub node: Option<String>,
    pub crash: Option<ExitReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub last_lines: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub crash_lines: Vec<String>,
    #[serde(skip)]
    pub since_ms: i64,
    #[serde(skip)]
    pub retry_at_ms: Option<i64>,
}

/// How a dyno ended. Exactly one of `code`, `signal`, `lost` and `not_started` is there,
/// unless a newer hsup knows a fifth way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExitReport {
    pub code: Option<i32>,
    pub signal: Option<String>,
    pub lost: Option<String>,
    pub not_started: Option<String>,
    pub oom_killed: bool,
    pub at: Option<String>,
    #[serde(skip)]
    pub at_ms: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn as_word<S: Serializer>(state: &DynoState, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(words::heroku(*state))
}

fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl From<control::Dyno> for DynoReport {
    fn from(dyno: control::Dyno) -> Self {
        Self {
            state: dyno.state(),
            since: rfc3339(dyno.since_unix_ms),
            ready: dyno.ready,
            release: dyno.release,
            restarts: dyno.restarts,
            last_exit: dyno.last_exit.map(Into::into),
            retry_at: dyno.retry_at_unix_ms.and_then(rfc3339),
            crashes_in_a_row: dyno.crashes_in_a_row,
            dyno_id: given(dyno.dyno_id),
            ip: given(dyno.ip),
            port: (dyno.port != 0).then_some(dyno.port),
            cpu_ns: dyno.cpu_ns,
            memory_bytes: dyno.memory_bytes,
            pids: dyno.pids,
            pid: dyno.pid,
            node: given(dyno.node),
            crash: dyno.crash.map(Into::into),
            last_lines: dyno.last_lines,
            crash_lines: dyno.crash_lines,
            since_ms: dyno.since_unix_ms,
            retry_at_ms: dyno.retry_at_unix_ms,
            name: dyno.name,
            process_type: dyno.process_type,
            number: dyno.number,
            command: dyno.command,
        }
    }
}

impl From<control::ExitStatus> for ExitReport {
    fn from(status: control::ExitStatus) -> Self {
        let mut report = Self {
            code: None,
            signal: None,
            lost: None,
            not_started: None,
            oom_killed: status.oom_killed,
            at: rfc3339(status.at_unix_ms),
            at_ms: status.at_unix_ms,
        };
        match status.how {
            Some(How::Code(code)) => report.code = Some(code),
            Some(How::Signal(signal)) => report.signal = Some(signal),
            Some(How::Lost(why)) => report.lost = Some(why),
            Some(How::NotStarted(why)) => report.not_started = Some(why),
            None => {}
        }
        report
    }
}

impl ExitReport {
    /// `exited with code 1`, `killed by SIGKILL, out of memory`.
    pub fn sentence(&self) -> String {
        let mut text = match self {
            Self {
                code: Some(code), ..
            } => format!("exited with code {code}"),
            Self {
                signal: Some(signal),
                ..
            } => format!("killed by {signal}"),
            Self {
                not_started: Some(why),
                ..
            } => format!("could not be started: {why}"),
            Self {
                lost: Some(why), ..
            } => format!("ended in an unknown way: {why}"),
            _ => "ended in a way that this hsupctl does not know".to_owned(),
        };
        if self.oom_killed {
            text.push_str(", out of memory");
        }
        text
    }

    /// `(code=exited, status=1)`, `(code=killed, signal=KILL)`, as systemctl has it.
    pub fn systemd(&self) -> String {
        let oom = if self.oom_killed {
            ", out of memory"
        } else {
            ""
        };
        match self {
            Self {
                code: Some(code), ..
            } => format!("(code=exited, status={code}{oom})"),
            Self {
                signal: Some(signal),
                ..
            } => {
                let signal = signal.strip_prefix("SIG").unwrap_or(signal);
                format!("(code=killed, signal={signal}{oom})")
            }
            _ => format!("({})", self.sentence()),
        }
    }

    /// `1`, `KILL`, `lost`, for a column.
    pub fn word(&self) -> String {
        match self {
            _ if self.oom_killed => "OOM".to_owned(),
            Self {
                code: Some(code), ..
            } => code.to_string(),
            Self {
                signal: Some(signal),
                ..
            } => signal.strip_prefix("SIG").unwrap_or(signal).to_owned(),
            Self {
                not_started: Some(_),
                ..
            } => "not-started".to_owned(),
            _ => "lost".to_owned(),
        }
    }
}

/// Where a dyno is reached: `10.0.0.1:5000`, `[fd00::1]:5000`.
pub fn address(ip: &str, port: u32) -> String {
    match ip.parse() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        _ => format!("{ip}:{port}"),
    }
}

impl DynoReport {
    pub fn colour(&self) -> Colour {
        match self.state {
            DynoState::Up => Colour::Green,
            DynoState::Crashed => Colour::Red,
            DynoState::Down | DynoState::Complete => Colour::Grey,
            DynoState::Starting | DynoState::Stopping | DynoState::Unspecified => Colour::Yellow,
        }
    }

    /// Whether it is not meant to run: it was stopped by hand, or was to run once and has.
    pub fn is_down(&self) -> bool {
        matches!(self.state, DynoState::Down | DynoState::Complete)
    }

    /// `exited with code 1, starting again in 12s (4th crash)`: why it is not up.
    pub fn trouble(&self, look: &Look) -> Option<String> {
        if self.state != DynoState::Crashed {
            return None;
        }
        let cause = self.crash.as_ref().or(self.last_exit.as_ref());
        let cause = cause.map_or_else(|| "crashed".to_owned(), ExitReport::sentence);
        let next = match self.retry_at_ms.map(|at| look.seconds_until(at)) {
            Some(0) => ", starting again now".to_owned(),
            Some(seconds) => format!(", starting again in {seconds}s"),
            None => String::new(),
        };
        let count = match self.crashes_in_a_row {
            0 => String::new(),
            count => format!(" ({} crash)", ordinal(count)),
        };
        Some(format!("{cause}{next}{count}"))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use hsup_proto::control::{Dyno, ExitStatus};
    use test_case::test_case;

    use super::*;
    use crate::look::tests::{NOW, plain};

    pub(in crate::ctl) fn exit(how: How) -> ExitStatus {
        ExitStatus {
            how: Some(how),
            oom_killed: false,
            at_unix_ms: NOW - 3_000,
        }
    }

    /// `web.1`, up for an hour, as hsup answers.
    pub(in crate::ctl) fn web(number: u32) -> Dyno {
        Dyno {
            name: format!("web.{number}"),
            process_type: "web".to_owned(),
            number,
            state: DynoState::Up.into(),
            since_unix_ms: NOW - 3_600_000,
            ready: true,
            release: 7,
            command: "python3 app.py".to_owned(),
            dyno_id: format!("web.{number}.a1"),
            ip: "127.0.0.1".to_owned(),
            port: 4999 + number,
            ..Dyno::default()
        }
    }

    /// `web.2`, crashed for the fourth time three seconds ago.
    pub(in crate::ctl) fn crashed() -> Dyno {
        Dyno {
            state: DynoState::Crashed.into(),
            since_unix_ms: NOW - 3_000,
            ready: false,
            restarts: 3,
            last_exit: Some(exit(How::Code(1))),
            crash: Some(exit(How::Code(1))),
            retry_at_unix_ms: Some(NOW + 11_200),
            crashes_in_a_row: 4,
            ..web(2)
        }
    }

    #[test_case(How::Code(1) => ("exited with code 1".into(), "(code=exited, status=1)".into(), "1".into()))]
    #[test_case(How::Signal("SIGKILL".into()) => ("killed by SIGKILL".into(), "(code=killed, signal=KILL)".into(), "KILL".into()))]
    #[test_case(How::NotStarted("no bash".into()) => ("could not be started: no bash".into(), "(could not be started: no bash)".into(), "not-started".into()))]
    #[test_case(How::Lost("driver died".into()) => ("ended in an unknown way: driver died".into(), "(ended in an unknown way: driver died)".into(), "lost".into()))]
    fn an_exit_in_words(how: How) -> (String, String, String) {
        let report = ExitReport::from(exit(how));
        (report.sentence(), report.systemd(), report.word())
    }

    #[test]
    fn running_out_of_memory_is_said() {
        let status = ExitStatus {
            oom_killed: true,
            ..exit(How::Signal("SIGKILL".to_owned()))
        };
        let report = ExitReport::from(status);
        assert_eq!(report.sentence(), "killed by SIGKILL, out of memory");
        assert_eq!(report.word(), "OOM");
    }

    #[test]
    fn a_crash_says_why_and_what_comes_next() {
        let report = DynoReport::from(crashed());
        let text = "exited with code 1, starting again in 12s (4th crash)";
        assert_eq!(report.trouble(&plain()).as_deref(), Some(text));
        assert_eq!(DynoReport::from(web(1)).trouble(&plain()), None);
    }

    #[test]
    fn json_names_are_stable() {
        let json = serde_json::to_value(DynoReport::from(crashed())).unwrap();
        let names: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        let expected = "name process_type number state since ready release command restarts \
            last_exit retry_at crashes_in_a_row dyno_id ip port cpu_ns memory_bytes pids pid node crash";
        assert_eq!(names.join(" "), expected);
        assert_eq!(json["last_exit"]["code"], 1);
        assert_eq!(json["last_exit"]["at"], "2026-11-23T19:42:07.000Z");
    }
}
