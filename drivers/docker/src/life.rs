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
    api::State,
    artifact::Kind,
    config, download,
    engine::{self, Engine, Up},
};

/// How long a failed call is not repeated.
const PAUSE: Duration = Duration::from_millis(200);

/// Why an exit status is not to be believed.
const RESTARTED: &str = "the engine was restarted while the dyno ran, and killed it";

/// How much is read of the archive of a few bytes that `hsup-init` has written.
const ARCHIVE: usize = 16 << 10;

/// Waits until a container has ended.
pub(crate) async fn ended(engine: &Engine, id: &str, kind: Kind) -> ExitStatus {
    // The engine was away while the container was known to run.
    let mut interrupted = false;
    loop {
        let Up {
            docker,
            api,
            traits,
        } = engine.up().await;
        match api.inspect(id).await {
            Ok(found) => {
                let state = found.state;
                if !is_running(&state) {
                    let doubt = (interrupted && !traits.live_restore).then_some(RESTARTED);
                    let mut status = exit_status(&state, doubt);
                    let is_slug = matches!(kind, Kind::Slug { .. });
                    if is_slug && matches!(status.how, Some(How::Signal(_))) {
                        match init_says(&docker, id).await {
                            Ok(None) => {}
                            Ok(Some(code)) => status.how = Some(How::Code(code)),
                            Err(error) if engine::code(&error).is_none() => {
                                engine.suspect();
                                time::sleep(PAUSE).await;
                                continue;
                            }
                            Err(error) => {
                                tracing::debug!(%error, "no word of hsup-init on a container's end");
                            }
                        }
                    }
                    return status;
                }
                interrupted = false;
            }
            Err(error) if engine::is_unknown(&error) => {
                return lost("its container was removed by somebody else");
            }
            Err(error) => {
                tracing::debug!(%error, "failed to look at a container");
                interrupted |= engine::code(&error).is_none();
                engine.suspect();
                time::sleep(PAUSE).await;
                continue;
            }
        }
        let options = None::<WaitContainerOptions>;
        match docker.wait_container(id, options).next().await {
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

/// The code that a command ended with, where `hsup-init` says that it was none of a signal's.
async fn init_says(docker: &Docker, id: &str) -> Result<Option<i32>, Error> {
    let archive = download::archive_of(docker, id, config::STATUS, ARCHIVE).await?;
    let said = download::first_file(&archive).unwrap_or_default();
    Ok(code_in(&said))
}

/// The code in the wait status that `hsup-init` has written down.
fn code_in(said: &[u8]) -> Option<i32> {
    let status = i32::from_ne_bytes(*said.first_chunk()?);
    match WaitStatus::from_raw(Pid::from_raw(1), status) {
        Ok(WaitStatus::Exited(_, code)) => Some(code),
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
        exited_at_unix_ms: state
            .finished_at
            .as_deref()
            .and_then(|text| text.parse::<jiff::Timestamp>().ok())
            .map(jiff::Timestamp::as_millisecond)
            // The engine's zero is long ago.
            .filter(|at| *at > 0)
            .unwrap_or_else(now_unix_ms),
    }
}

/// An init ends with 128 and the number of the signal that its child was ended by.
fn how(code: i64) -> How {
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
        for (code, doubt) in [(None, None), (Some(137), Some(RESTARTED))] {
            let status = exit_status(&state(code), doubt);
            assert!(matches!(status.how, Some(How::Lost(_))), "{status:?}");
        }
    }

    #[test_case(&[0, 137, 0, 0], Some(137); "a code")]
    #[test_case(&[9, 0, 0, 0], None; "a signal")]
    #[test_case(&[0, 137], None; "cut short")]
    #[test_case(&[], None; "nothing was said")]
    fn init_knows_a_code_from_a_signal(content: &[u8], expected: Option<i32>) {
        assert_eq!(code_in(content), expected);
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
