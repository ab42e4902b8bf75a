//! The control protocol's messages as programs read them (JSON with stable names) and as
//! people do (Heroku's words).

use hsup_proto::control::{self, DynoState, ExitStatus, ReleaseState, exit_status::How};
use serde::Serialize;

use crate::{
    moment::{Moment, remaining, rfc3339},
    style::{Colour, printable},
};

/// A dyno in JSON. Names are never changed, only added.
#[derive(Clone, Debug, Serialize)]
pub struct DynoView {
    pub name: String,
    pub process_type: String,
    pub number: u32,
    pub state: &'static str,
    pub ready: bool,
    pub since: Option<String>,
    pub release: u64,
    pub command: String,
    pub restarts: u32,
    pub crashes_in_a_row: u32,
    pub retry_at: Option<String>,
    /// How it ended last, whatever the reason; null if it never did.
    pub last_exit: Option<ExitView>,
    /// How it ended last by itself.
    pub crash: Option<ExitView>,
    pub dyno_id: Option<String>,
    pub ip: Option<String>,
    pub port: Option<u32>,
    pub cpu_ns: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub pids: Option<u32>,
}

/// The end of a dyno in JSON: one of the first four is there.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ExitView {
    pub code: Option<i32>,
    pub signal: Option<String>,
    pub lost: Option<String>,
    pub not_started: Option<String>,
    pub oom_killed: bool,
    pub at: Option<String>,
}

impl From<&ExitStatus> for ExitView {
    fn from(status: &ExitStatus) -> Self {
        let mut view = Self {
            oom_killed: status.oom_killed,
            at: rfc3339(status.at_unix_ms),
            ..Self::default()
        };
        match &status.how {
            Some(How::Code(code)) => view.code = Some(*code),
            Some(How::Signal(signal)) => view.signal = Some(signal.clone()),
            Some(How::Lost(why)) => view.lost = Some(why.clone()),
            Some(How::NotStarted(why)) => view.not_started = Some(why.clone()),
            None => {}
        }
        view
    }
}

fn known(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

impl From<&control::Dyno> for DynoView {
    fn from(dyno: &control::Dyno) -> Self {
        Self {
            name: dyno.name.clone(),
            process_type: dyno.process_type.clone(),
            number: dyno.number,
            state: state(dyno),
            ready: dyno.ready,
            since: rfc3339(dyno.since_unix_ms),
            release: dyno.release,
            command: dyno.command.clone(),
            restarts: dyno.restarts,
            crashes_in_a_row: dyno.crashes_in_a_row,
            retry_at: dyno.retry_at_unix_ms.and_then(rfc3339),
            last_exit: dyno.last_exit.as_ref().map(Into::into),
            crash: dyno.crash.as_ref().map(Into::into),
            dyno_id: known(&dyno.dyno_id),
            ip: known(&dyno.ip),
            port: (dyno.port != 0).then_some(dyno.port),
            cpu_ns: dyno.cpu_ns,
            memory_bytes: dyno.memory_bytes,
            pids: dyno.pids,
        }
    }
}

/// Heroku's word for a dyno's state.
pub fn state(dyno: &control::Dyno) -> &'static str {
    match dyno.state() {
        DynoState::Starting => "starting",
        DynoState::Up => "up",
        DynoState::Crashed => "crashed",
        DynoState::Stopping => "stopping",
        DynoState::Down => "down",
        DynoState::Complete => "complete",
        DynoState::Unspecified => "unknown",
    }
}

/// The colour of a dyno's state.
pub fn state_colour(dyno: &control::Dyno) -> Colour {
    match dyno.state() {
        DynoState::Up => Colour::Green,
        DynoState::Crashed => Colour::Red,
        DynoState::Down | DynoState::Complete => Colour::Grey,
        _ => Colour::Yellow,
    }
}

/// systemd's mark for a dyno's state.
pub fn dot(dyno: &control::Dyno) -> &'static str {
    match dyno.state() {
        DynoState::Crashed => "×",
        DynoState::Down | DynoState::Complete => "○",
        _ => "●",
    }
}

/// How a dyno ended, as part of a sentence: `exited with code 1`.
pub fn ending(status: &ExitStatus) -> String {
    let how = match &status.how {
        Some(How::Code(code)) => format!("exited with code {code}"),
        Some(How::Signal(signal)) => format!("killed by {signal}"),
        Some(How::Lost(why)) => format!("lost: {}", printable(why)),
        Some(How::NotStarted(why)) => format!("not started: {}", printable(why)),
        None => "ended".to_owned(),
    };
    if status.oom_killed {
        format!("{how}, out of memory")
    } else {
        how
    }
}

/// How a dyno ended, as systemd has it: `code=exited, status=1`.
pub fn systemd_ending(status: &ExitStatus) -> String {
    let how = match &status.how {
        Some(How::Code(code)) => format!("code=exited, status={code}"),
        Some(How::Signal(signal)) => {
            format!("code=killed, signal={}", signal.trim_start_matches("SIG"))
        }
        Some(How::Lost(why)) => format!("lost: {}", printable(why)),
        Some(How::NotStarted(why)) => format!("not started: {}", printable(why)),
        None => "not known".to_owned(),
    };
    if status.oom_killed {
        format!("{how}, out of memory")
    } else {
        how
    }
}

/// How a dyno ended, in one word for a column: `1`, `SIGKILL`, `lost`.
pub fn short_ending(status: &ExitStatus) -> String {
    match &status.how {
        Some(How::Code(code)) => code.to_string(),
        Some(How::Signal(signal)) if status.oom_killed => format!("{signal} (oom)"),
        Some(How::Signal(signal)) => signal.clone(),
        Some(How::Lost(_)) => "lost".to_owned(),
        Some(How::NotStarted(_)) => "not started".to_owned(),
        None => "-".to_owned(),
    }
}

/// Why a dyno is not up and when it is tried again: `exited with code 1, restart in 12s (4th)`.
pub fn crash_note(dyno: &control::Dyno, moment: &Moment) -> Option<String> {
    if dyno.state() != DynoState::Crashed {
        return None;
    }
    let mut note = match dyno.crash.as_ref().or(dyno.last_exit.as_ref()) {
        Some(status) => ending(status),
        None => "ended".to_owned(),
    };
    if let Some(at) = dyno.retry_at_unix_ms {
        note.push_str(", restart in ");
        note.push_str(&remaining(moment.until(at)));
    }
    if dyno.crashes_in_a_row > 1 {
        note.push_str(" (");
        note.push_str(&ordinal(dyno.crashes_in_a_row));
        note.push(')');
    }
    Some(note)
}

/// `1st`, `2nd`, `11th`.
pub fn ordinal(n: u32) -> String {
    let suffix = match (n % 10, n % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{n}{suffix}")
}

/// `web=2 worker=1`, which `hsupctl scale` takes again.
pub fn formation(processes: &[control::Process]) -> String {
    let each =
        |process: &control::Process| format!("{}={}", process.process_type, process.quantity);
    processes.iter().map(each).collect::<Vec<_>>().join(" ")
}

/// A release in JSON. Names of config vars, never their values.
#[derive(Clone, Debug, Serialize)]
pub struct ReleaseView {
    pub id: u64,
    pub version: u64,
    pub state: &'static str,
    pub reason: Option<String>,
    pub source: String,
    pub at: Option<String>,
    pub stack: Option<String>,
    pub slug: Option<String>,
    pub image: Option<String>,
    pub config_names: Vec<String>,
    pub processes: Vec<ProcessView>,
    pub gap_ms: i64,
    pub last_lines: Vec<String>,
}

/// A process type in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessView {
    pub process_type: String,
    pub quantity: u32,
    pub command: String,
}

impl From<&control::Process> for ProcessView {
    fn from(process: &control::Process) -> Self {
        Self {
            process_type: process.process_type.clone(),
            quantity: process.quantity,
            command: process.command.clone(),
        }
    }
}

impl From<&control::Release> for ReleaseView {
    fn from(release: &control::Release) -> Self {
        Self {
            id: release.id,
            version: release.version,
            state: release_state(release),
            reason: known(&release.reason),
            source: release.source.clone(),
            at: rfc3339(release.at_unix_ms),
            stack: known(&release.stack),
            slug: known(&release.slug),
            image: known(&release.image),
            config_names: release.config_names.clone(),
            processes: release.processes.iter().map(Into::into).collect(),
            gap_ms: release.gap_ms,
            last_lines: release.last_lines.clone(),
        }
    }
}

/// The word for a release's state.
pub fn release_state(release: &control::Release) -> &'static str {
    match release.state() {
        ReleaseState::Building => "building",
        ReleaseState::RollingOut => "rolling out",
        ReleaseState::Current => "current",
        ReleaseState::Rejected => "rejected",
        ReleaseState::Superseded => "superseded",
        ReleaseState::Unspecified => "unknown",
    }
}

/// `12.5M`, as systemd has it.
pub fn bytes(count: u64) -> String {
    let mut whole = count;
    let mut tenths = 0;
    let mut unit = "B";
    for larger in ["K", "M", "G", "T"] {
        if whole < 1024 {
            break;
        }
        tenths = whole % 1024 * 10 / 1024;
        whole /= 1024;
        unit = larger;
    }
    if unit == "B" {
        format!("{whole}{unit}")
    } else {
        format!("{whole}.{tenths}{unit}")
    }
}

/// Processor time: `0.4s`, `8m2s`.
pub fn cpu(nanos: u64) -> String {
    let duration = std::time::Duration::from_nanos(nanos);
    if duration.as_secs() < 60 {
        format!("{}.{}s", duration.as_secs(), duration.subsec_millis() / 100)
    } else {
        crate::moment::short(duration)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use test_case::test_case;

    use super::*;
    use crate::moment::tests::moment;

    /// A dyno that has been up for an hour.
    pub(crate) fn up(name: &str) -> control::Dyno {
        let (process_type, number) = name.rsplit_once('.').unwrap();
        control::Dyno {
            name: name.to_owned(),
            process_type: process_type.to_owned(),
            number: number.parse().unwrap(),
            state: DynoState::Up.into(),
            since_unix_ms: moment().now_unix_ms - 3_600_000,
            ready: true,
            release: 7,
            command: "python3 app.py".to_owned(),
            dyno_id: format!("{name}.abc"),
            port: 5000,
            ..control::Dyno::default()
        }
    }

    /// One that crashed three seconds ago, for the fourth time in a row.
    pub(crate) fn crashed(name: &str) -> control::Dyno {
        let at = moment().now_unix_ms - 3000;
        let status = ExitStatus {
            how: Some(How::Code(1)),
            at_unix_ms: at,
            ..ExitStatus::default()
        };
        control::Dyno {
            state: DynoState::Crashed.into(),
            since_unix_ms: at,
            ready: false,
            restarts: 3,
            last_exit: Some(status.clone()),
            crash: Some(status),
            retry_at_unix_ms: Some(moment().now_unix_ms + 11_500),
            crashes_in_a_row: 4,
            dyno_id: String::new(),
            ..up(name)
        }
    }

    #[test]
    fn a_crash_says_why_and_when_it_is_tried_again() {
        let note = |dyno: &control::Dyno| crash_note(dyno, &moment());
        assert_eq!(
            note(&crashed("web.2")).unwrap(),
            "exited with code 1, restart in 12s (4th)"
        );
        assert_eq!(note(&up("web.1")), None);
    }

    #[test_case(1 => "1st")]
    #[test_case(2 => "2nd")]
    #[test_case(3 => "3rd")]
    #[test_case(4 => "4th")]
    #[test_case(11 => "11th")]
    #[test_case(112 => "112th")]
    #[test_case(121 => "121st")]
    fn ordinals(n: u32) -> String {
        ordinal(n)
    }

    #[test_case(0 => "0B")]
    #[test_case(1023 => "1023B")]
    #[test_case(13_107_200 => "12.5M")]
    #[test_case(u64::MAX => "16777215.9T")]
    fn sizes(count: u64) -> String {
        bytes(count)
    }

    #[test_case(How::Code(1), false => "code=exited, status=1")]
    #[test_case(How::Signal("SIGKILL".into()), false => "code=killed, signal=KILL")]
    #[test_case(How::Signal("SIGKILL".into()), true => "code=killed, signal=KILL, out of memory")]
    #[test_case(How::NotStarted("no such artifact".into()), false => "not started: no such artifact")]
    fn endings(how: How, oom_killed: bool) -> String {
        systemd_ending(&ExitStatus {
            how: Some(how),
            oom_killed,
            at_unix_ms: 0,
        })
    }
}
