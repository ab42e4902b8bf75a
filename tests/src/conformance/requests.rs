//! The requests that cases make, and the ends they look for.

use std::{collections::BTreeMap, time::Duration};

use hsup_proto::driver::{
    ExitStatus, RemoveRequest, StopRequest, WaitRequest, exit_status::How, remove_request,
};

use super::case::{Failure, check_eq};

/// Fails unless `status` says `how`.
pub(crate) fn check_exit(id: &str, status: &ExitStatus, how: &How) -> Result<(), Failure> {
    check_eq(
        format_args!("Wait of {id}"),
        &status.how.as_ref(),
        &Some(how),
    )
}

/// A graceful Stop with the default grace.
pub(crate) fn stop(id: &str) -> StopRequest {
    StopRequest {
        dyno_id: id.to_owned(),
        ..StopRequest::default()
    }
}

/// A graceful Stop with `grace_ms`.
pub(crate) fn stop_in(id: &str, grace_ms: u32) -> StopRequest {
    StopRequest {
        grace_ms,
        ..stop(id)
    }
}

/// A Stop that kills now.
pub(crate) fn force(id: &str) -> StopRequest {
    StopRequest {
        force: true,
        ..stop(id)
    }
}

/// A Wait of at most `timeout_ms`.
pub(crate) fn wait_for(id: &str, timeout_ms: u32) -> WaitRequest {
    WaitRequest {
        dyno_id: id.to_owned(),
        timeout_ms,
    }
}

/// A Remove of a dyno.
pub(crate) fn remove(id: &str) -> RemoveRequest {
    RemoveRequest {
        what: Some(remove_request::What::DynoId(id.to_owned())),
    }
}

/// A Remove of an artifact.
pub(crate) fn remove_artifact(artifact: &str) -> RemoveRequest {
    RemoveRequest {
        what: Some(remove_request::What::Artifact(artifact.to_owned())),
    }
}

/// An exit with `code`.
pub(crate) const fn code(code: i32) -> How {
    How::Code(code)
}

/// An end by `signal`.
pub(crate) fn signal(signal: &str) -> How {
    How::Signal(signal.to_owned())
}

/// An environment of these variables alone.
pub(crate) fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
    pairs.iter().map(owned).collect()
}

/// One second, in which the pure calls must answer whatever else is in flight.
pub(crate) const ONE_SECOND: Duration = Duration::from_secs(1);
