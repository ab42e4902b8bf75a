//! Why there is no image, and what that is in the protocol's words.

use bollard::errors::Error as EngineError;
use hsup_driver_kit::{Status, errors};
use hsup_slug::{BadId, SlugError};

use super::{reference::ReferenceError, user::NoUser};

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("release.slug_checksum is wrong")]
    Checksum(#[source] BadId),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(
        "the engine does not have the image `{image}`, and failed to pull it; is the name right, \
         and the network there? a private one takes a `docker login`; `docker pull` or \
         `docker load` bring it too"
    )]
    Pull { image: String, source: EngineError },
    #[error(
        "failed to push the image `{image}`; is the registry there, and reached from the engine? \
         one without TLS stands in the engine's `insecure-registries`, a private one takes a \
         `docker login`"
    )]
    Push { image: String, source: EngineError },
    #[error("the engine pushed `{0}`, and did not say under which digest")]
    NoDigest(String),
    #[error(
        "on a Swarm the image of a slug comes to the nodes through a registry: name one, with the \
         option `registry=HOST:PORT` or the driver's `--registry HOST:PORT`"
    )]
    NoRegistry,
    #[error(
        "the image `{0}` is on this engine alone: push it, and name it as it is in its registry; \
         or name a registry to hsup, with the option `registry=HOST:PORT`"
    )]
    OnlyHere(String),
    #[error("the image `{0}` is of another user's slug, and for dynos of that user alone")]
    Anothers(String),
    #[error("the engine failed to {operation} `{of}`")]
    Engine {
        operation: &'static str,
        of: String,
        source: EngineError,
    },
    #[error("the engine gave `{of}` the id `{id}`, which is none")]
    Id { of: String, id: String },
    #[error(
        "the image `{image}` has a volume at `{path}`, which would hide the slug: \
         it cannot be a stack"
    )]
    Volume { image: String, path: String },
    #[error("the image `{image}` cannot be a stack")]
    User { image: String, source: NoUser },
    #[error("failed to read `{path}` of the image `{image}`")]
    File {
        image: String,
        path: &'static str,
        source: std::io::Error,
    },
    #[error(transparent)]
    Slug(#[from] SlugError),
    #[error("failed to pack what an image has besides its slug")]
    Ground(#[source] std::io::Error),
    #[error("the engine took only a part of the slug")]
    Part,
}

impl ImageError {
    /// An error of a call to the engine.
    pub(super) fn engine(operation: &'static str, of: &str) -> impl FnOnce(EngineError) -> Self {
        let of = of.to_owned();
        move |source| Self::Engine {
            operation,
            of,
            source,
        }
    }
}

/// What went wrong in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It has no such thing.
    Missing,
    /// It does not understand what it is asked for.
    Malformed,
    /// It is in use.
    Conflict,
    /// Its disk is full.
    Full,
    /// It does not answer.
    Away,
    Other,
}

pub(super) fn fault(error: &EngineError) -> Fault {
    let said = |text: &str| {
        let text = text.to_ascii_lowercase();
        let full = ["no space left on device", "disk quota exceeded"];
        if full.iter().any(|sign| text.contains(sign)) {
            Fault::Full
        } else {
            Fault::Other
        }
    };
    match error {
        EngineError::DockerResponseServerError {
            status_code,
            message,
        } => match (status_code, said(message)) {
            (400, Fault::Other) => Fault::Malformed,
            (404, _) => Fault::Missing,
            (409, _) => Fault::Conflict,
            (_, fault) => fault,
        },
        EngineError::DockerStreamError { error } => said(error),
        EngineError::RequestTimeoutError
        | EngineError::IOError { .. }
        | EngineError::HyperResponseError { .. }
        | EngineError::HyperLegacyError { .. }
        | EngineError::SocketNotFoundError(_) => Fault::Away,
        _ => Fault::Other,
    }
}

impl From<ImageError> for Status {
    fn from(error: ImageError) -> Self {
        let text = errors::chain(&error);
        match &error {
            ImageError::Checksum(_) | ImageError::Reference(ReferenceError::Malformed(_)) => {
                Self::invalid_argument(text)
            }
            ImageError::Slug(error) if error.is_exhaustion() => Self::resource_exhausted(text),
            ImageError::Slug(error) if error.is_network() => Self::unavailable(text),
            ImageError::Slug(error) if error.wants_fresh_url() => {
                Self::failed_precondition(format!("slug_url is refused: {text}"))
            }
            ImageError::Slug(error) if error.is_callers() => Self::failed_precondition(text),
            ImageError::Pull { source, .. } | ImageError::Push { source, .. } => {
                match fault(source) {
                    Fault::Full => Self::resource_exhausted(text),
                    Fault::Missing | Fault::Malformed => Self::failed_precondition(text),
                    _ if is_refusal(source) => Self::failed_precondition(text),
                    // A registry, or what is between, may be there again later.
                    Fault::Conflict | Fault::Away | Fault::Other => Self::unavailable(text),
                }
            }
            ImageError::Engine { source, .. } => match fault(source) {
                Fault::Full => Self::resource_exhausted(text),
                Fault::Away => Self::unavailable(text),
                Fault::Missing | Fault::Malformed | Fault::Conflict => {
                    Self::failed_precondition(text)
                }
                Fault::Other => Self::internal(text),
            },
            ImageError::Anothers(_) => Self::permission_denied(text),
            ImageError::Reference(_)
            | ImageError::NoRegistry
            | ImageError::OnlyHere(_)
            | ImageError::Volume { .. }
            | ImageError::User { .. }
            | ImageError::File { .. } => Self::failed_precondition(text),
            ImageError::Part => Self::unavailable(text),
            ImageError::Slug(_)
            | ImageError::NoDigest(_)
            | ImageError::Id { .. }
            | ImageError::Ground(_) => Self::internal(text),
        }
    }
}

/// Whether a registry says that there is no such image, or not for us.
fn is_refusal(error: &EngineError) -> bool {
    let text = error.to_string().to_ascii_lowercase();
    ["not found", "denied", "unauthorized", "manifest unknown"]
        .iter()
        .any(|sign| text.contains(sign))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn answer(status_code: u16, message: &str) -> EngineError {
        EngineError::DockerResponseServerError {
            status_code,
            message: message.to_owned(),
        }
    }

    fn said(error: &str) -> EngineError {
        EngineError::DockerStreamError {
            error: error.to_owned(),
        }
    }

    #[test_case(answer(404, "pull access denied"), "FailedPrecondition"; "nothing there")]
    #[test_case(said("manifest unknown"), "FailedPrecondition"; "no such tag")]
    #[test_case(answer(500, "dial tcp: lookup registry-1.docker.io: no such host"), "Unavailable"; "no network")]
    #[test_case(said("write /x: no space left on device"), "ResourceExhausted"; "full")]
    #[test_case(answer(400, "invalid reference format"), "FailedPrecondition"; "no name")]
    #[test_case(EngineError::RequestTimeoutError, "Unavailable"; "silence")]
    fn pulls(source: EngineError, code: &str) {
        let image = "my/stack:1".to_owned();
        let status = Status::from(ImageError::Pull { image, source });
        assert_eq!(format!("{:?}", status.code()), code);
        let message = status.message();
        assert!(message.contains("`my/stack:1`") && message.contains("docker load"));
    }

    #[test]
    fn a_url_that_is_refused_is_told_in_the_words_that_bring_a_fresh_one() {
        let host = "storage.example".to_owned();
        let status = Status::from(ImageError::Slug(SlugError::Refused { host, status: 403 }));
        assert_eq!(format!("{:?}", status.code()), "FailedPrecondition");
        let message = status.message();
        assert!(
            message.starts_with("slug_url is refused: `storage.example`"),
            "{message}"
        );
    }

    #[test_case(answer(500, "No space left on device"), "ResourceExhausted"; "full")]
    #[test_case(answer(409, "in use"), "FailedPrecondition"; "in use")]
    #[test_case(answer(500, "surprise"), "Internal"; "a surprise")]
    #[test_case(EngineError::SocketNotFoundError("/x".to_owned()), "Unavailable"; "no engine")]
    fn calls(source: EngineError, code: &str) {
        let status = Status::from(ImageError::engine("look at", "a")(source));
        assert_eq!(format!("{:?}", status.code()), code);
        assert!(
            status
                .message()
                .starts_with("the engine failed to look at `a`: ")
        );
    }
}
