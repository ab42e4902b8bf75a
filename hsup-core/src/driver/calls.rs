//! What an error of a call means (docs/driver-rules.md §9), whoever made the call.

use std::time::Duration;

use tokio::time::sleep;
use tonic::{Code, Status};

/// What a failed call means to whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The same call again, after a pause.
    Again,
    /// The driver has lost the artifact: build again, then the same call.
    Rebuild,
    /// It has no room, which may pass and is nobody's fault who asked; why.
    NoRoom(String),
    /// It has failed, and would fail again; why.
    Failed(String),
}

/// Reads the error of a call as the protocol's table does.
pub(crate) fn verdict(status: &Status, connection_gone: bool) -> Verdict {
    if connection_gone {
        return Verdict::Again;
    }
    match status.code() {
        Code::Unavailable | Code::Aborted | Code::DeadlineExceeded => Verdict::Again,
        Code::NotFound if status.message().starts_with("artifact") => Verdict::Rebuild,
        Code::ResourceExhausted => Verdict::NoRoom(said(status)),
        _ => Verdict::Failed(said(status)),
    }
}

/// A driver's error, for people.
pub(crate) fn said(status: &Status) -> String {
    let code = status.code();
    if status.message().is_empty() {
        format!("the driver answered {code:?}")
    } else {
        format!("{} ({code:?})", status.message())
    }
}

/// Pauses that double from `0.1` s to 30 s, as the protocol asks for a backend that is down.
#[derive(Debug)]
pub(crate) struct Pause(Duration);

impl Pause {
    pub(crate) const fn new() -> Self {
        Self(Duration::from_millis(100))
    }

    pub(crate) async fn wait(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_secs(30));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_read_as_the_protocol_says() {
        let failed = |why: &str| Verdict::Failed(why.to_owned());
        for (status, expected) in [
            (Status::unavailable("dockerd is down"), Verdict::Again),
            (Status::aborted("in flight"), Verdict::Again),
            (
                Status::not_found("artifact dir:/x is gone"),
                Verdict::Rebuild,
            ),
            (Status::not_found("dyno"), failed("dyno (NotFound)")),
            (
                Status::invalid_argument("argv is empty"),
                failed("argv is empty (InvalidArgument)"),
            ),
            (
                Status::resource_exhausted(""),
                Verdict::NoRoom("the driver answered ResourceExhausted".to_owned()),
            ),
        ] {
            assert_eq!(verdict(&status, false), expected, "{status:?}");
        }
    }

    #[test]
    fn any_error_of_a_dead_connection_means_again() {
        assert_eq!(verdict(&Status::unknown("h2"), true), Verdict::Again);
    }
}
