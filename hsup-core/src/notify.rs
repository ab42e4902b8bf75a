//! Telling a service manager how hsup does: `sd_notify(3)`, for units with `Type=notify`.

use std::{
    borrow::Cow,
    env,
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    pin::pin,
    time::Duration,
};

use futures_util::FutureExt as _;
use hsup_proto::control::{DynoState, GetStatusRequest, GetStatusResponse};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::StreamExt as _;

use crate::control::Control;

/// Changes that follow each other faster than this are told as one.
const PAUSE: Duration = Duration::from_secs(1);
/// What hsup takes for its end beyond the grace of dynos: a driver that is slow to answer, log
/// drains. Whoever takes longer hangs.
const END_WITHIN: Duration = Duration::from_secs(30);
/// The longest text of a status: a driver's words may be many.
const STATUS_MAX: usize = 200;

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News<'a> {
    /// The control socket is answered.
    Ready,
    /// hsup is about to end, once its dynos have, which have so much time. The manager's own
    /// limit is a unit's, which knows nothing of that.
    Stopping { grace: Duration },
    /// The supervisor answers: a manager that hears nothing for too long ends hsup.
    Alive,
    /// What runs, in a line for people.
    Status(&'a str),
}

impl News<'_> {
    fn text(self) -> Cow<'static, str> {
        match self {
            Self::Ready => "READY=1".into(),
            Self::Stopping { grace } => {
                let limit = grace.saturating_add(END_WITHIN).as_micros();
                // It takes effect where it is beyond the unit's own TimeoutStopSec=.
                format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={limit}").into()
            }
            Self::Alive => "WATCHDOG=1".into(),
            Self::Status(line) => format!("STATUS={line}").into(),
        }
    }
}

/// Whether there is a manager to tell.
pub(crate) fn is_wanted() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some()
}

/// How often the manager wants to hear that the process `own_pid` lives: twice in the time that
/// it waits. `None` where it does not wait for that.
pub(crate) fn watched(env: impl Fn(&str) -> Option<OsString>, own_pid: u32) -> Option<Duration> {
    let number = |name| env(name)?.to_str()?.parse::<u64>().ok();
    let is_ours = env("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(own_pid.into());
    let limit = number("WATCHDOG_USEC").filter(|limit| *limit > 0 && is_ours)?;
    Some(Duration::from_micros(limit) / 2)
}

/// Tells what runs as it changes and, as often as it is `watched`, that the supervisor is alive:
/// it is asked, and its answer is the sign. Ends when the supervisor has.
pub(crate) async fn keep_telling(
    control: impl Control,
    watched: Option<Duration>,
    tell: impl Fn(News<'_>),
) {
    let mut events = pin!(control.events());
    let mut said = String::new();
    loop {
        let asked = Instant::now();
        let Ok(status) = control.status(GetStatusRequest::default()).await else {
            return;
        };
        if watched.is_some() {
            tell(News::Alive);
        }
        let line = summary(&status);
        if line != said {
            tell(News::Status(&line));
            said = line;
        }
        sleep(watched.map_or(PAUSE, |every| PAUSE.min(every))).await;
        // What has changed meanwhile is in the next answer.
        let mut has_changed = false;
        while let Some(event) = events.next().now_or_never() {
            if event.is_none() {
                return;
            }
            has_changed = true;
        }
        if has_changed {
            continue;
        }
        let due = async {
            match watched {
                Some(every) => sleep_until(asked + every).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            event = events.next() => if event.is_none() { return },
        }
    }
}

/// What runs, in a line.
fn summary(status: &GetStatusResponse) -> String {
    let wanted: u32 = status
        .formation
        .iter()
        .map(|process| process.quantity)
        .sum();
    let is_up = |dyno: &&_| {
        let dyno: &hsup_proto::control::Dyno = dyno;
        dyno.ready && dyno.state() == DynoState::Up
    };
    let up = status.dynos.iter().filter(is_up).count();
    let mut line = match &status.release {
        None => "No release yet".to_owned(),
        Some(release) => {
            let dynos = if wanted == 1 { "dyno" } else { "dynos" };
            format!("Release v{}: {up} of {wanted} {dynos} up", release.version)
        }
    };
    if !status.driver_ready {
        line.push_str("; the driver is not ready: ");
        line.push_str(&status.driver_message);
    }
    let line = line.chars().map(|c| if c.is_control() { ' ' } else { c });
    line.take(STATUS_MAX).collect()
}

/// Tells whoever wants to know (`NOTIFY_SOCKET`); nobody does where there is no manager.
pub(crate) fn tell(news: News<'_>) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, news) {
        tracing::warn!(%error, "the service manager is not told: {}", news.text());
    }
}

fn send(socket: &OsStr, news: News<'_>) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // A manager that does not read must not hold hsup up.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(news.text().as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use hsup_proto::control::{Dyno, Process, Release};

    use super::*;
    use crate::control::fake::Fake;

    fn received(socket: &UnixDatagram) -> String {
        let mut text = [0; 64];
        let length = socket.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    #[test]
    fn the_manager_is_told_at_a_path_or_by_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), News::Ready).unwrap();
        assert_eq!(received(&manager), "READY=1");

        let name = format!("hsup-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let grace = Duration::from_mins(5);
        send(OsStr::new(&format!("@{name}")), News::Stopping { grace }).unwrap();
        assert_eq!(
            received(&manager),
            "STOPPING=1\nEXTEND_TIMEOUT_USEC=330000000"
        );
    }

    #[test]
    fn a_manager_that_is_not_there_is_an_error() {
        assert!(send(OsStr::new("/no/such/socket"), News::Ready).is_err());
    }

    fn every(env: &[(&str, &str)]) -> Option<Duration> {
        let find = |name: &str| {
            let found = env.iter().find(|(key, _)| *key == name)?;
            Some(OsString::from(found.1))
        };
        watched(find, 42)
    }

    #[test]
    fn a_watchdog_is_told_twice_in_its_time_by_the_process_that_it_watches() {
        let ten = ("WATCHDOG_USEC", "10000000");
        let five = Some(Duration::from_secs(5));
        assert_eq!(every(&[ten]), five);
        assert_eq!(every(&[ten, ("WATCHDOG_PID", "42")]), five);
        assert_eq!(every(&[ten, ("WATCHDOG_PID", "41")]), None);
        assert_eq!(every(&[("WATCHDOG_USEC", "0")]), None);
        assert_eq!(every(&[]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watchdog_hears_of_a_supervisor_that_answers_and_a_status_once() {
        let told = RefCell::new(Vec::new());
        let begin = Instant::now();
        let tell = |news: News<'_>| told.borrow_mut().push((begin.elapsed(), news.text()));
        let watched = Duration::from_secs(15);
        let telling = keep_telling(Fake::default(), Some(watched), tell);
        let all = tokio::time::timeout(Duration::from_secs(50), telling).await;
        assert!(all.is_err(), "it ends with the supervisor alone");
        let told = told.into_inner();
        let statuses = told.iter().filter(|(_, text)| text.starts_with("STATUS="));
        assert_eq!(statuses.count(), 1, "{told:?}");
        let alive: Vec<_> = told
            .iter()
            .filter(|(_, text)| text == "WATCHDOG=1")
            .collect();
        for pair in alive.windows(2) {
            assert!(pair[1].0 <= pair[0].0 + watched, "{alive:?}");
        }
        assert!(alive.len() >= 4, "{alive:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_does_not_answer_is_not_alive() {
        let told = RefCell::new(Vec::new());
        let tell = |news: News<'_>| told.borrow_mut().push(news.text());
        let telling = keep_telling(Fake::hung(), Some(Duration::from_secs(15)), tell);
        let _ = tokio::time::timeout(Duration::from_hours(1), telling).await;
        assert_eq!(told.into_inner(), [""; 0]);
    }

    #[test]
    fn a_status_says_what_runs_in_one_line() {
        let mut status = GetStatusResponse {
            driver_ready: true,
            ..GetStatusResponse::default()
        };
        assert_eq!(summary(&status), "No release yet");
        status.release = Some(Release {
            version: 7,
            ..Release::default()
        });
        status.formation = vec![Process {
            quantity: 2,
            ..Process::default()
        }];
        let up = Dyno {
            ready: true,
            state: DynoState::Up.into(),
            ..Dyno::default()
        };
        let listens_not = Dyno {
            ready: false,
            ..up.clone()
        };
        status.dynos = vec![up, listens_not];
        assert_eq!(summary(&status), "Release v7: 1 of 2 dynos up");
        status.driver_ready = false;
        status.driver_message = "gone\nfor now".to_owned();
        assert_eq!(
            summary(&status),
            "Release v7: 1 of 2 dynos up; the driver is not ready: gone for now"
        );
    }
}
