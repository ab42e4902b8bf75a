//! How a command of hsupctl fails, and the exit code that says so.

use std::{error::Error as _, io, path::PathBuf};

use hsup_core::name::FormationChangeError;
use thiserror::Error;
use tonic::{Code, Status};

use super::connect::ConnectError;

/// A command failed.
#[derive(Debug, Error)]
pub enum CtlError {
    #[error(transparent)]
    Connect(#[from] ConnectError),

    /// hsup said no. Its text is for people.
    #[error("{}", refusal(.0))]
    Refused(#[from] Box<Status>),

    #[error("hsup went away")]
    Gone,

    #[error("no dyno `{0}`")]
    NoDyno(String),

    #[error("No {what} on {app}")]
    NoDynos { what: String, app: String },

    #[error("failed to read the release file `{}`", .path.display())]
    ReadRelease { path: PathBuf, source: io::Error },

    #[error(transparent)]
    Scale(#[from] FormationChangeError),

    #[error("the driver's socket is not known: give --socket PATH")]
    NoDriverSocket,

    #[error("there is no hsup-driver-check in `{}` or on PATH", .beside.display())]
    NoDriverCheck { beside: PathBuf },

    #[error("failed to run `{}`", .program.display())]
    Exec {
        program: PathBuf,
        source: nix::errno::Errno,
    },

    #[error("failed to start the runtime")]
    Runtime(#[source] io::Error),

    #[error("failed to write the output")]
    Output(#[source] io::Error),

    #[error("failed to write the output as JSON")]
    Json(#[source] serde_json::Error),
}

impl From<Status> for CtlError {
    fn from(status: Status) -> Self {
        if is_lost(&status) {
            Self::Gone
        } else {
            Self::Refused(Box::new(status))
        }
    }
}

/// Whether the connection ended, rather than hsup having answered.
fn is_lost(status: &Status) -> bool {
    status.source().is_some()
        && matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
        )
}

fn refusal(status: &Status) -> String {
    if status.message().is_empty() {
        status.code().description().to_lowercase()
    } else {
        status.message().to_owned()
    }
}

/// All is well, or was done.
pub const OK: u8 = 0;
/// hsupctl or hsup failed.
pub const FAILED: u8 = 1;
/// `ps` and `status`: some dynos that are wanted are not up (LSB).
pub const NOT_ALL_UP: u8 = 3;
/// There is no such dyno, or no supervisor (LSB).
pub const UNKNOWN: u8 = 4;
/// Nobody reads what is printed: 128 + SIGPIPE.
pub const NO_READER: u8 = 141;

impl CtlError {
    /// The exit code for it.
    pub fn code(&self) -> u8 {
        match self {
            Self::Connect(ConnectError::NothingRuns { .. } | ConnectError::NoSuchApp { .. })
            | Self::Gone
            | Self::NoDyno(_)
            | Self::NoDynos { .. } => UNKNOWN,
            Self::Connect(ConnectError::Connect { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                UNKNOWN
            }
            Self::Refused(status)
                if matches!(status.code(), Code::NotFound | Code::Unavailable) =>
            {
                UNKNOWN
            }
            _ if self.is_broken_pipe() => NO_READER,
            _ => FAILED,
        }
    }

    /// Whether nobody reads any more: no reason to say anything.
    pub fn is_broken_pipe(&self) -> bool {
        match self {
            Self::Output(error) => error.kind() == io::ErrorKind::BrokenPipe,
            Self::Json(error) => error.io_error_kind() == Some(io::ErrorKind::BrokenPipe),
            _ => false,
        }
    }

    /// What could help.
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Connect(ConnectError::NothingRuns { .. } | ConnectError::Connect { .. }) => Some(
                "start one with `hsup start` in a directory with a Procfile, or name its socket with --control-socket PATH",
            ),
            Self::NoDriverCheck { .. } => {
                Some("it is built with `cargo build --workspace --bins`, beside hsupctl")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_tell_unknown_from_failed() {
        let code = |status: Status| CtlError::from(status).code();
        assert_eq!(code(Status::not_found("no dyno `x`")), UNKNOWN);
        assert_eq!(code(Status::unavailable("hsup is shutting down")), UNKNOWN);
        assert_eq!(code(Status::failed_precondition("rejected")), FAILED);
        let broken = CtlError::Output(io::ErrorKind::BrokenPipe.into());
        assert_eq!(broken.code(), NO_READER);
        assert!(broken.is_broken_pipe());
    }
}
