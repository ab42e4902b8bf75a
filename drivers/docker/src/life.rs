//! How a container ends.

use std::time::Duration;

use bollard::{Docker, errors::Error, query_parameters::WaitContainerOptions};
use futures_util::StreamExt as _;
use hsup_driver_kit::{
    Signal,
    clock::now_unix_ms,
    proto::{ExitStatus, exit_status::How},
};
use nix::{sys::wait::WaitStatus, unistd::Pid};
use tokio::time;

use crate::{
    api::{Api, State},
    artifact::Kind,
    config, download,
    engine::{self, Engine, Up},
};

/// How long a failed call is not repeated.
const PAUSE: Duration = Duration::from_millis(200);

/// Why what the engine says of an end is not to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// It may have ended the dyno, however the dyno took that.
    Restarted,
    /// It was away when the dyno ended.
    Forgotten,
}

impl Doubt {
    const fn why(self) -> &'static str {
        match self {
            Self::Restarted => "the engine was away while the dyno ran, and may have killed it",
            Self::Forgotten => "it ended while the engine was away, which does not know how",
        }
    }
}

/// Since when this process knows of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// From its start on.
    FromStart,
    /// It was found again, and what the engine says of it was not doubted when it ended.
    SinceItsEnd,
    /// It was found again, and nobody has seen it end.
    Unseen,
}

/// What is said of a dyno whose container is not there any more.
const REMOVED: &str = "its container was removed by somebody else";

/// What engines say that do not know how a container ended.
/// <https://github.com/moby/moby/blob/v26.1.5/daemon/daemon.go>, `restore`
const UNKNOWN: i64 = 255;

/// How much is read of the archive of a few bytes that `hsup-init` has written.
const ARCHIVE: usize = 16 << 10;

/// Waits until a container has ended.
pub(crate) async fn ended(engine: &Engine, id: &str, kind: Kind, known: Known) -> ExitStatus {
    // The engine was away while the container was known to run, or only the way to it.
    let mut interrupted = false;
    // Whether it was away before that is for its own clock to say.
    let mut is_unseen = known == Known::Unseen;
    loop {
        let up = engine.up().await;
        match up.api.inspect(id).await {
            Ok(found) if is_running(&found.state) => {
                interrupted = false;
                is_unseen = false;
            }
            Ok(found) => {
                let asking = async {
                    // One that lets them run learns how they ended, whatever its age.
                    let is_asked = if interrupted {
                        !up.traits.live_restore
                    } else {
                        is_unseen
                    };
                    let outlived = if is_asked {
                        outlived(&up, &found.state).await?
                    } else {
                        None
                    };
                    let interrupted = outlived.unwrap_or(interrupted);
                    how_it_ended(&up, id, kind, &found.state, interrupted).await
                };
                match asking.await {
                    Ok(status) => return status,
                    Err(error) => tracing::debug!(%error, "failed to ask how a container ended"),
                }
                engine.suspect();
                time::sleep(PAUSE).await;
                continue;
            }
            Err(error) if engine::is_unknown(&error) => return lost(REMOVED),
            Err(error) => {
                tracing::debug!(%error, "failed to look at a container");
                interrupted |= engine::code(&error).is_none();
                engine.suspect();
                time::sleep(PAUSE).await;
                continue;
            }
        }
        let options = None::<WaitContainerOptions>;
        match up.docker.wait_container(id, options).next().await {
            Some(
                Ok(_) | Err(Error::DockerContainerWaitError { .. } | Error::RequestTimeoutError),
            ) => {}
            Some(Err(error)) if engine::code(&error).is_some() => time::sleep(PAUSE).await,
            // The connection broke.
            Some(Err(_)) | None => {
                interrupted = true;
                engine.suspect();
                time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whether the engine was restarted after a container's start, if that can be told. Fails only where
/// it does not answer.
async fn outlived(up: &Up, state: &State) -> Result<Option<bool>, Error> {
    match up.api.began().await {
        Ok(began) => Ok(is_older(state, began.as_deref())),
        Err(error) if engine::code(&error).is_none() => Err(error),
        Err(error) => {
            tracing::debug!(%error, "no word on since when the engine runs");
            Ok(None)
        }
    }
}

/// How a container ended, from whoever knows best. Fails only where the engine does not answer.
async fn how_it_ended(
    up: &Up,
    id: &str,
    kind: Kind,
    state: &State,
    interrupted: bool,
) -> Result<ExitStatus, Error> {
    if is_going(state) {
        return Ok(lost(REMOVED));
    }
    let doubt = doubt(state, interrupted, up.traits.live_restore);
    let mut status = exit_status(state, doubt.map(Doubt::why));
    let is_slug = matches!(kind, Kind::Slug { .. });
    if !is_slug || !is_vague(&status, doubt) {
        return Ok(status);
    }
    match init_says(&up.docker, id).await {
        Ok(None) => {}
        Ok(known) => status.how = known,
        Err(error) if engine::code(&error).is_none() => return Err(error),
        Err(error) if engine::is_unknown(&error) && is_gone(&up.api, id).await => {
            return Ok(lost(REMOVED));
        }
        Err(error) => tracing::debug!(%error, "no word of hsup-init on a container's end"),
    }
    Ok(status)
}

/// Why what the engine says of an end is not to be believed; `interrupted`: it was away meanwhile.
fn doubt(state: &State, interrupted: bool, live_restore: bool) -> Option<Doubt> {
    match (interrupted, live_restore, state.exit_code) {
        (true, false, _) => Some(Doubt::Restarted),
        // Its containerd, which went with it, cleans up what it finds ended.
        (true, true, Some(UNKNOWN)) => Some(Doubt::Forgotten),
        _ => None,
    }
}

/// Whether `hsup-init` knows better how it ended: the engine has one number for a signal and a
/// code, and one for 255 and what it does not know. What a dyno made of the engine's own SIGTERM
/// is no end of its own.
fn is_vague(status: &ExitStatus, doubt: Option<Doubt>) -> bool {
    if doubt == Some(Doubt::Restarted) {
        return false;
    }
    match &status.how {
        Some(How::Code(code)) => i64::from(*code) == UNKNOWN,
        Some(How::Signal(_) | How::Lost(_)) | None => true,
    }
}

/// How a command ended, where `hsup-init` has written it down.
async fn init_says(docker: &Docker, id: &str) -> Result<Option<How>, Error> {
    let archive = download::archive_of(docker, id, config::STATUS, ARCHIVE).await?;
    let said = download::first_file(&archive).unwrap_or_default();
    Ok(how_in(&said))
}

/// What the wait status says that `hsup-init` has written down.
fn how_in(said: &[u8]) -> Option<How> {
    let status = i32::from_ne_bytes(*said.first_chunk()?);
    match WaitStatus::from_raw(Pid::from_raw(1), status).ok()? {
        WaitStatus::Exited(_, code) => Some(How::Code(code)),
        WaitStatus::Signaled(_, signal, _) => {
            let signal = Signal::from_number(signal as i32)?;
            Some(How::Signal(signal.to_string()))
        }
        _ => None,
    }
}

/// Whether a container has a process.
pub(crate) fn is_running(state: &State) -> bool {
    state.running || state.restarting
}

/// Whether it never had one.
pub(crate) fn is_new(state: &State) -> bool {
    // The others are Podman's words.
    ["created", "configured", "initialized"].contains(&state.status.as_str())
}

/// Whether it is being removed, which kills it first: what it ended with is not its own doing.
fn is_going(state: &State) -> bool {
    // The other is what a removal leaves that failed.
    ["removing", "dead"].contains(&state.status.as_str())
}

/// Whether the engine has no such container: it says the same of a file that is not in one.
async fn is_gone(api: &Api, id: &str) -> bool {
    let found = api.inspect(id).await;
    found.is_err_and(|error| engine::is_unknown(&error))
}

/// Whether a container was started before the engine `began`, if both is known. By the engine's clock
/// alone.
fn is_older(state: &State, began: Option<&str>) -> Option<bool> {
    let time = |text: Option<&str>| text?.parse::<jiff::Timestamp>().ok();
    let started = time(state.started_at.as_deref())?;
    Some(started < time(began)?)
}

/// What the engine says of a container that has ended; `doubt` is why that is not to be believed.
pub(crate) fn exit_status(state: &State, doubt: Option<&str>) -> ExitStatus {
    let how = match (doubt, state.exit_code) {
        (Some(doubt), _) => How::Lost(doubt.to_owned()),
        (None, None) => How::Lost("the engine does not know how it ended".to_owned()),
        (None, Some(code)) => how(code),
    };
    ExitStatus {
        how: Some(how),
        oom_killed: state.oom_killed,
        exited_at_unix_ms: at(state.finished_at.as_deref().unwrap_or_default()),
    }
}

/// A time that the engine says, in milliseconds; now where it says none.
pub(crate) fn at(text: &str) -> i64 {
    let at = text.parse::<jiff::Timestamp>().ok();
    // The engine's zero is long ago.
    let at = at.map(jiff::Timestamp::as_millisecond).filter(|at| *at > 0);
    at.unwrap_or_else(now_unix_ms)
}

/// An init ends with 128 and the number of the signal that its child was ended by.
pub(crate) fn how(code: i64) -> How {
    let signal = i32::try_from(code - 128).ok().and_then(Signal::from_number);
    match (signal, i32::try_from(code)) {
        (Some(signal), _) => How::Signal(signal.to_string()),
        (None, Ok(code)) => How::Code(code),
        (None, Err(_)) => How::Lost(format!("the engine says that it ended with {code}")),
    }
}

pub(crate) fn lost(why: &str) -> ExitStatus {
    ExitStatus {
        how: Some(How::Lost(why.to_owned())),
        oom_killed: false,
        exited_at_unix_ms: now_unix_ms(),
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn state(code: Option<i64>) -> State {
        State {
            exit_code: code,
            finished_at: Some("2026-11-28T11:00:00.5Z".to_owned()),
            ..State::default()
        }
    }

    #[test_case(0, How::Code(0))]
    #[test_case(127, How::Code(127))]
    #[test_case(128, How::Code(128))]
    #[test_case(255, How::Code(255))]
    #[test_case(137, How::Signal("SIGKILL".to_owned()))]
    #[test_case(143, How::Signal("SIGTERM".to_owned()))]
    fn a_code_above_128_is_a_signal(code: i64, expected: How) {
        let status = exit_status(&state(Some(code)), None);
        assert_eq!(status.how, Some(expected));
        assert_eq!(status.exited_at_unix_ms, 1_795_863_600_500);
    }

    #[test]
    fn what_is_not_known_is_lost() {
        for (code, doubt) in [(None, None), (Some(137), Some(Doubt::Restarted))] {
            let status = exit_status(&state(code), doubt.map(Doubt::why));
            assert!(matches!(status.how, Some(How::Lost(_))), "{status:?}");
        }
    }

    #[test_case(&[0, 137, 0, 0], Some(&How::Code(137)); "a code")]
    #[test_case(&[9, 0, 0, 0], Some(&How::Signal("SIGKILL".to_owned())); "a signal")]
    #[test_case(&[0, 137], None; "cut short")]
    #[test_case(&[], None; "nothing was said")]
    fn init_knows_a_code_from_a_signal(content: &[u8], expected: Option<&How>) {
        assert_eq!(how_in(content).as_ref(), expected);
    }

    #[test_case(7, true, true, None; "an engine that lets them run knows it")]
    #[test_case(255, true, true, Some(Doubt::Forgotten); "or says a number for not")]
    #[test_case(255, false, true, None; "which is a code where it was there")]
    #[test_case(137, true, false, Some(Doubt::Restarted); "another engine has killed it")]
    #[test_case(137, false, false, None; "if it was away")]
    fn an_engine_that_was_away_is_doubted(
        code: i64,
        interrupted: bool,
        live_restore: bool,
        expected: Option<Doubt>,
    ) {
        assert_eq!(
            doubt(&state(Some(code)), interrupted, live_restore),
            expected
        );
    }

    #[test_case(Some(7), None, false)]
    #[test_case(Some(255), None, true)]
    #[test_case(Some(143), None, true)]
    #[test_case(Some(255), Some(Doubt::Forgotten), true)]
    #[test_case(Some(143), Some(Doubt::Restarted), false)]
    #[test_case(None, None, true)]
    fn init_is_asked_where_the_engine_is_vague(
        code: Option<i64>,
        doubt: Option<Doubt>,
        expected: bool,
    ) {
        let status = exit_status(&state(code), doubt.map(Doubt::why));
        assert_eq!(is_vague(&status, doubt), expected);
    }

    #[test_case("exited", false)]
    #[test_case("removing", true; "somebody removes it")]
    #[test_case("dead", true; "somebody has tried to")]
    fn a_container_that_goes_has_not_ended_by_itself(status: &str, expected: bool) {
        let state = State {
            status: status.to_owned(),
            ..state(Some(137))
        };
        assert_eq!(is_going(&state), expected);
    }

    #[test_case(Some("2026-11-28T10:59:59Z"), Some(false); "the engine was there first")]
    #[test_case(Some("2026-11-28T12:00:00.5+01:00"), Some(true); "the dyno was")]
    #[test_case(None, None; "nobody knows")]
    #[test_case(Some("soon"), None; "that is no time")]
    fn a_dyno_may_be_older_than_the_engine(began: Option<&str>, expected: Option<bool>) {
        let state = State {
            started_at: Some("2026-11-28T11:00:00.25Z".to_owned()),
            ..state(Some(0))
        };
        assert_eq!(is_older(&state, began), expected);
        assert_eq!(is_older(&State::default(), began), None);
    }

    #[test]
    fn the_engines_zero_is_not_when_it_ended() {
        let state = State {
            finished_at: Some("0001-01-01T00:00:00Z".to_owned()),
            ..state(Some(0))
        };
        assert!(exit_status(&state, None).exited_at_unix_ms > 1_700_000_000_000);
    }
}
