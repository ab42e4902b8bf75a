//! What callers are told: errors of the parts in the protocol's words, and a build's log.

use hsup_driver_kit::{Status, errors, proto::Progress as Report, service::BuildLog};
use hsup_slug::{SlugError, Step};

use crate::stack::{self, Event, StackError};

/// An artifact that is not there, in the words that make hsup build it again.
pub(crate) fn unknown(artifact: &str) -> Status {
    let shown: String = artifact.chars().take(200).collect();
    Status::not_found(format!("artifact `{shown}` is not known to this driver"))
}

pub(crate) fn slug_status(error: &SlugError) -> Status {
    let text = errors::chain(error);
    if error.is_exhaustion() {
        Status::resource_exhausted(text)
    } else if error.is_network() {
        Status::unavailable(text)
    } else if error.wants_fresh_url() {
        // In the words that make hsup ask for a fresh one.
        Status::failed_precondition(format!("slug_url is refused: {text}"))
    } else if error.is_callers() {
        Status::failed_precondition(text)
    } else {
        Status::internal(text)
    }
}

pub(crate) fn stack_status(error: StackError) -> Status {
    let text = errors::chain(&error);
    if errors::is_of_exhaustion(&error) {
        return Status::resource_exhausted(text);
    }
    match error {
        StackError::Fetch { source, .. } | StackError::FetchManifest(source)
            if matches!(
                source,
                stack::FetchError::Broken { .. } | stack::FetchError::Untrusted { .. }
            ) =>
        {
            Status::unavailable(text)
        }
        _ => Status::failed_precondition(text),
    }
}

pub(crate) fn mount_status(error: &stack::MountError) -> Status {
    let text = errors::chain(error);
    if errors::is_of_exhaustion(error) {
        Status::resource_exhausted(text)
    } else {
        Status::failed_precondition(text)
    }
}

/// A build's log, as the parts that report to it know it.
pub(crate) struct Told<'a>(pub(crate) &'a BuildLog);

impl hsup_slug::Progress for Told<'_> {
    fn progress(&self, step: Step, done: u64, total: u64) {
        self.0.progress(report(step.name(), done, total));
    }

    fn note(&self, text: &str) {
        self.0.log(format!("{text}\n").as_bytes());
    }
}

impl stack::Progress for Told<'_> {
    fn report(&self, event: Event<'_>) {
        match event {
            Event::Waiting { stack } => {
                self.line(&format!("waiting for another driver to fetch {stack}"));
            }
            Event::Fetching { done, total } => {
                self.0
                    .progress(report("download stack", done, total.unwrap_or(0)));
            }
            Event::Installing { stack } => self.line(&format!("installing the stack {stack}")),
            Event::Warning(text) => self.line(&format!("warning: {text}")),
        }
    }
}

impl Told<'_> {
    fn line(&self, text: &str) {
        self.0.log(format!("{text}\n").as_bytes());
    }
}

fn report(step: &str, done: u64, total: u64) -> Report {
    Report {
        step: step.to_owned(),
        done,
        total,
        unit: "bytes".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::{io, path::PathBuf};

    use super::*;

    #[test]
    fn a_url_that_is_refused_is_told_in_the_words_that_bring_a_fresh_one() {
        let host = "storage.example".to_owned();
        let status = slug_status(&SlugError::Refused { host, status: 403 });
        assert_eq!(status.code(), Status::failed_precondition("").code());
        let message = status.message();
        assert!(
            message.starts_with("slug_url is refused: `storage.example`"),
            "{message}"
        );
    }

    #[test]
    fn a_file_that_cannot_be_opened_now_may_be_later() {
        let path = PathBuf::from("/srv/stack.img");
        let look = |errno| StackError::Look {
            path: path.clone(),
            source: io::Error::from_raw_os_error(errno),
        };
        let exhausted = Status::resource_exhausted("").code();
        assert_eq!(stack_status(look(libc::EMFILE)).code(), exhausted);
        assert_ne!(stack_status(look(libc::EIO)).code(), exhausted);
        let open = |errno| stack::MountError::Open {
            path: path.clone(),
            source: io::Error::from_raw_os_error(errno),
        };
        assert_eq!(mount_status(&open(libc::ENFILE)).code(), exhausted);
    }
}
