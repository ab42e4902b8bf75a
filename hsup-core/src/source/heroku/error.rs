//! Why the API did not say what it was asked, and what kind of trouble that is.

use std::{fmt, time::Duration};

use thiserror::Error;

/// The API did not say what it was asked. No error shows a token, or what a config var holds.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ApiError {
    /// Nobody answers, or not to the end.
    #[error("failed to get {what} from {host}: {cause}{request}")]
    Unreachable {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// Why.
        cause: String,
        /// By which Heroku knows it, should it have come so far.
        request: RequestId,
    },
    /// The server shows a certificate that this machine does not trust.
    #[error(
        "failed to get {what} from {host}, which this machine does not trust: {cause}; \
         SSL_CERT_FILE names whom it trusts"
    )]
    Untrusted {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// What is wrong with the certificate.
        cause: String,
    },
    /// The answer took too long.
    #[error("failed to get {what} from {host}: no whole answer within {within:?}{request}")]
    Late {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// How long that was waited for.
        within: Duration,
        /// By which Heroku knows it, should it have come so far.
        request: RequestId,
    },
    /// The API sends its callers on.
    #[error(
        "failed to get {what} from {host}: it sends on to another place, or for ever, \
         and the token goes nowhere else{request}"
    )]
    Redirect {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// By which Heroku knows it.
        request: RequestId,
    },
    /// It answered that it will not.
    #[error("failed to get {what} from {host}: {refusal}")]
    Refused {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// What it answered.
        refusal: Box<Refusal>,
    },
    /// The answer is too long for what was asked.
    #[error("failed to get {what} from {host}: the answer has more than {limit} bytes{request}")]
    TooLong {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// How long it may be.
        limit: usize,
        /// By which Heroku knows it.
        request: RequestId,
    },
    /// The answer is not what it should be.
    #[error("failed to read {what} as {host} gives it: {problem}{request}")]
    Malformed {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// What is wrong with it.
        problem: String,
        /// By which Heroku knows it.
        request: RequestId,
    },
}

/// By which Heroku knows a request, for whoever asks its support: hsup's own word for it, or the
/// one that the answer has. Empty where nobody was reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestId(pub(super) String);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            "" => Ok(()),
            id => write!(f, " (request {id})"),
        }
    }
}

/// An answer of another status than success.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// Heroku's word for it: `rate_limit`, `not_found`.
    pub id: String,
    /// Heroku's sentence for it.
    pub message: String,
    /// By which Heroku knows the request.
    pub request: RequestId,
    /// How long it wants to be left alone.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {}", self.status)?;
        for part in [&self.id, &self.message] {
            if !part.is_empty() {
                write!(f, ": {part}")?;
            }
        }
        write!(f, "{}", self.request)?;
        let hint = match self.status {
            401 => "the token is wrong, or good no more",
            403 => {
                "the token has not the rights: it needs the scope `read-protected` or `global`, \
                 and its owner access to the app"
            }
            404 => "there is none of that name, or none that the token may see",
            _ => return Ok(()),
        };
        write!(f, "; {hint}")
    }
}

/// What kind of trouble it is: what can be done about it, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It passes by itself, or may.
    Passing {
        /// How long Heroku wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// All requests of the hour are used up.
    Limited {
        /// How long Heroku wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// Somebody must do something about the token, or the app.
    Denied,
}

impl ApiError {
    /// What kind of trouble it is.
    pub fn trouble(&self) -> Trouble {
        let Self::Refused { refusal, .. } = self else {
            return Trouble::Passing { retry_after: None };
        };
        let retry_after = refusal.retry_after;
        match refusal.status {
            429 => Trouble::Limited { retry_after },
            400..=499 if !matches!(refusal.status, 408 | 425) => Trouble::Denied,
            _ => Trouble::Passing { retry_after },
        }
    }

    /// Whether it is an answer, and about this question alone as far as can be told: others may be
    /// asked for at once. Whoever wants to be left alone for some time means all of it.
    pub fn is_of_one(&self) -> bool {
        let is_answer = matches!(
            self,
            Self::Refused { .. } | Self::Malformed { .. } | Self::TooLong { .. }
        );
        is_answer && self.trouble() == Trouble::Passing { retry_after: None }
    }

    /// Whether what was asked for is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. } if matches!(refusal.status, 404 | 410))
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn refused(status: u16) -> ApiError {
        ApiError::Refused {
            what: "the releases of shop".to_owned(),
            host: "api.heroku.com".to_owned(),
            refusal: Box::new(Refusal {
                status,
                id: "not_found".to_owned(),
                message: "Couldn't find that app.".to_owned(),
                request: RequestId("4711".to_owned()),
                retry_after: Some(Duration::from_secs(7)),
            }),
        }
    }

    #[test_case(401 => Trouble::Denied)]
    #[test_case(403 => Trouble::Denied)]
    #[test_case(404 => Trouble::Denied)]
    #[test_case(406 => Trouble::Denied)]
    #[test_case(408 => Trouble::Passing { retry_after: Some(Duration::from_secs(7)) })]
    #[test_case(429 => Trouble::Limited { retry_after: Some(Duration::from_secs(7)) })]
    #[test_case(500 => Trouble::Passing { retry_after: Some(Duration::from_secs(7)) })]
    #[test_case(503 => Trouble::Passing { retry_after: Some(Duration::from_secs(7)) })]
    fn troubles(status: u16) -> Trouble {
        refused(status).trouble()
    }

    #[test]
    fn a_refusal_says_who_refused_what_and_the_request() {
        assert_eq!(
            refused(404).to_string(),
            "failed to get the releases of shop from api.heroku.com: HTTP 404: not_found: \
             Couldn't find that app. (request 4711); there is none of that name, or none that \
             the token may see"
        );
    }
}
