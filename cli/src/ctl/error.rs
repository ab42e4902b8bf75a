//! What can go wrong in `hsupctl`, and what it means for the exit status.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use hsup_core::{formation::FormationChangeError, source::control_file::MAX_SIZE};
use thiserror::Error;
use tonic::{Code, Status};

use super::connect::ConnectError;

/// No such name, or nobody to ask: as `systemctl status` and LSB have it.
pub const EXIT_UNKNOWN: u8 = 4;

/// A command that could not be carried out.
#[derive(Debug, Error)]
pub enum CtlError {
    #[error(transparent)]
    Connect(#[from] ConnectError),

    /// hsup's own words; they name what was asked for.
    #[error("{0}")]
    Refused(String),

    /// A request that can never work, in hsup's words.
    #[error("{0}")]
    Invalid(String),

    /// What was asked for cannot be meant.
    #[error("{0}")]
    Usage(String),

    /// The release that was handed in does not run.
    #[error("{0}")]
    Rejected(String),

    /// Dynos that were restarted do not run.
    #[error("{0}")]
    NotUp(String),

    #[error("{0}")]
    NotFound(String),

    #[error("hsup does not know this command: it is another version than hsupctl {}", env!("CARGO_PKG_VERSION"))]
    Unimplemented,

    #[error("hsup went away")]
    Gone,

    #[error("hsup did not answer within {} seconds", .0.as_secs())]
    Silent(Duration),

    #[error("hsup's answer is not what hsupctl {} understands", env!("CARGO_PKG_VERSION"))]
    Garbled(#[source] Box<Status>),

    #[error(transparent)]
    Change(#[from] FormationChangeError),

    /// In hsup's words, but where the text came from is known on this side only.
    #[error("{} is not a release: {why}", of_file(path))]
    NotARelease { path: PathBuf, why: String },

    /// hsup would not take it.
    #[error("{} is no release: it is larger than {MAX_SIZE} bytes", of_file(path))]
    TooLarge { path: PathBuf },

    #[error("failed to read the release from `{}`", path.display())]
    ReadRelease { path: PathBuf, source: io::Error },

    #[error("failed to write to standard output")]
    Write(#[source] io::Error),

    #[error("failed to write as JSON")]
    Json(#[source] serde_json::Error),

    #[error("failed to start the runtime")]
    Runtime(#[source] io::Error),

    #[error("there is no program hsup-driver-check, neither beside hsupctl nor in PATH")]
    NoDriverCheck,

    #[error("failed to run `{}`", path.display())]
    DriverCheck { path: PathBuf, source: io::Error },

    #[error("hsup has no driver now")]
    NoDriver,

    #[error("top needs a terminal: use `hsupctl ps`, `hsupctl logs -t` or `hsupctl events`")]
    NoTerminal,

    #[error("failed to use the terminal")]
    Terminal(#[source] io::Error),
}

fn of_file(path: &Path) -> String {
    if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        format!("`{}`", path.display())
    }
}

impl CtlError {
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Connect(_) | Self::NotFound(_) | Self::Gone | Self::Silent(_) => EXIT_UNKNOWN,
            Self::Change(_) | Self::Usage(_) => 2,
            _ => 1,
        }
    }

    /// The error of a call that can be wrong in its names only: what is no name at all is as
    /// unknown as a name of nothing.
    #[must_use]
    pub fn about_names(self) -> Self {
        match self {
            Self::Invalid(text) => Self::NotFound(text),
            other => other,
        }
    }

    /// The error of a call that is wrong where its arguments are: a quantity that no type can
    /// have, whichever side says so.
    #[must_use]
    pub fn about_usage(self) -> Self {
        match self {
            Self::Invalid(text) => Self::Usage(text),
            other => other,
        }
    }

    /// The error of a call that can be wrong in the release that it hands in only.
    #[must_use]
    pub fn about_release(self, path: &Path) -> Self {
        match self {
            Self::Invalid(why) => Self::NotARelease {
                path: path.to_owned(),
                why,
            },
            other => other,
        }
    }

    /// What to do about it, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Connect(error) => error.hint(),
            Self::Rejected(_) => {
                Some("`hsupctl releases` shows what its dynos said last".to_owned())
            }
            Self::NotUp(_) => Some("`hsupctl status DYNO` shows what it said last".to_owned()),
            Self::TooLarge { .. } => {
                Some("what is large belongs into the slug, and not into config vars".to_owned())
            }
            Self::Silent(_) => Some("is it stopped, or under a debugger?".to_owned()),
            Self::NoDriverCheck => {
                Some("build it with `cargo build -p hsup-tests --bin hsup-driver-check`".to_owned())
            }
            _ => None,
        }
    }

    /// Whether whoever reads our output has had enough: no error at all.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Write(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl From<Status> for CtlError {
    fn from(status: Status) -> Self {
        // Only a status that was made on this side has a source: the connection was lost.
        let ours = std::error::Error::source(&status).is_some();
        match status.code() {
            _ if ours => Self::Gone,
            Code::NotFound => Self::NotFound(status.message().to_owned()),
            Code::Unimplemented => Self::Unimplemented,
            Code::InvalidArgument => Self::Invalid(status.message().to_owned()),
            Code::FailedPrecondition | Code::Unavailable if !status.message().is_empty() => {
                Self::Refused(status.message().to_owned())
            }
            Code::Unavailable | Code::Cancelled => Self::Gone,
            _ => Self::Garbled(Box::new(status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_hsups_own_sentence() {
        let error = CtlError::from(Status::invalid_argument("no process type `x`"));
        assert_eq!(error.to_string(), "no process type `x`");
        assert_eq!(error.exit_code(), 1);
        assert_eq!(error.about_names().exit_code(), 4);
        let error = CtlError::from(Status::not_found("no dyno `web.9`"));
        assert_eq!(error.to_string(), "no dyno `web.9`");
        assert_eq!(error.exit_code(), 4);
    }

    #[test]
    fn an_hsup_that_does_not_answer_is_as_good_as_none() {
        assert_eq!(CtlError::Silent(Duration::from_secs(15)).exit_code(), 4);
    }

    #[test]
    fn a_lost_connection_is_a_sentence_too() {
        let mut status = Status::unknown("h2 protocol error: error reading a body");
        status.set_source(std::sync::Arc::new(io::Error::from(
            io::ErrorKind::BrokenPipe,
        )));
        assert_eq!(CtlError::from(status).to_string(), "hsup went away");
    }
}
