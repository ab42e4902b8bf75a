//! Errors of the kit in the protocol's words (docs/driver-rules.md §9).

use std::{error::Error, io};

use tonic::Status;

use crate::{fifo::FifoError, processes::SpawnError};

/// An error and its causes, on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Whether the machine, or this process, ran out of something, which may be there again later.
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock
    ) || matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOSPC | libc::EDQUOT)
    )
}

/// The same of an error with an [`io::Error`] somewhere among its causes.
pub fn is_of_exhaustion(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        if cause.downcast_ref::<io::Error>().is_some_and(is_exhaustion) {
            return true;
        }
        next = cause.source();
    }
    false
}

/// That the driver itself failed to do `what`: `RESOURCE_EXHAUSTED` where the machine ran out
/// of something, else `INTERNAL`.
pub fn internal(what: &str, error: &io::Error) -> Status {
    let text = format!("failed to {what}: {error}");
    if is_exhaustion(error) {
        Status::resource_exhausted(text)
    } else {
        Status::internal(text)
    }
}

impl From<FifoError> for Status {
    fn from(error: FifoError) -> Self {
        let text = chain(&error);
        match &error {
            FifoError::Open { source, .. } if is_exhaustion(source) => {
                Self::resource_exhausted(text)
            }
            // ELOOP: a link, which is not followed for a caller who is not us.
            FifoError::Open { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied
                    || source.raw_os_error() == Some(libc::ELOOP) =>
            {
                Self::permission_denied(text)
            }
            FifoError::Open { .. } | FifoError::NotFifo { .. } => Self::invalid_argument(text),
            FifoError::Stranger { .. } | FifoError::Shared { .. } => Self::permission_denied(text),
        }
    }
}

impl From<SpawnError> for Status {
    fn from(error: SpawnError) -> Self {
        let text = chain(&error);
        match error {
            SpawnError::Exhausted(_) => Self::resource_exhausted(text),
            SpawnError::NulByte => Self::invalid_argument(text),
            // What is the command's fault is a dyno that has exited, so this is ours.
            SpawnError::Other(_) => Self::internal(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use test_case::test_case;
    use tonic::Code;

    use super::*;

    fn open(errno: i32) -> FifoError {
        FifoError::Open {
            path: "/io/stdout".into(),
            source: io::Error::from_raw_os_error(errno),
        }
    }

    #[test_case(open(libc::EMFILE), Code::ResourceExhausted)]
    #[test_case(open(libc::ENFILE), Code::ResourceExhausted)]
    #[test_case(open(libc::ENOMEM), Code::ResourceExhausted)]
    #[test_case(open(libc::EACCES), Code::PermissionDenied)]
    #[test_case(open(libc::ELOOP), Code::PermissionDenied)]
    #[test_case(open(libc::ENOENT), Code::InvalidArgument)]
    #[test_case(FifoError::NotFifo { path: PathBuf::new() }, Code::InvalidArgument)]
    #[test_case(FifoError::Shared { path: PathBuf::new() }, Code::PermissionDenied)]
    #[test_case(FifoError::Stranger { path: PathBuf::new(), owner: 7, caller: 8 }, Code::PermissionDenied)]
    fn a_fifo_is_refused_by_its_reason(error: FifoError, code: Code) {
        assert_eq!(Status::from(error).code(), code);
    }

    #[test]
    fn the_operation_comes_first() {
        let error = FifoError::Open {
            path: PathBuf::from("/io/stdout"),
            source: io::Error::other("gone"),
        };
        assert_eq!(chain(&error), format!("{error}: gone"));
    }

    #[test]
    fn the_cause_is_told_too() {
        let status = Status::from(SpawnError::Exhausted(io::Error::from_raw_os_error(
            libc::EAGAIN,
        )));
        assert_eq!(status.code(), Code::ResourceExhausted);
        let text = "this machine has no room for another process: Resource temporarily unavailable";
        assert!(status.message().starts_with(text), "{status}");
    }
}
