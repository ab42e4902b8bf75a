//! What downloads have in common, a slug's and a stack's: whom they follow, and what they read of
//! an answer.

use std::{error::Error, io};

use reqwest::{
    Client, ClientBuilder,
    header::{CONTENT_RANGE, HeaderMap},
    redirect::Policy,
};

/// A storage that sends us on more often does not know where the file is.
const REDIRECTS: usize = 5;

/// A client with these settings. It is sent on a few times at most, and never from https to http.
/// On a machine that trusts nobody it trusts nobody, and http works there as anywhere.
///
/// # Errors
/// When the settings do not go together.
pub fn client(with: impl Fn(ClientBuilder) -> ClientBuilder) -> reqwest::Result<Client> {
    // Refused where there is one already, which is the same one.
    drop(rustls::crypto::ring::default_provider().install_default());
    let begin = || {
        let client = Client::builder()
            .redirect(redirects())
            .user_agent(concat!("hsup/", env!("CARGO_PKG_VERSION")));
        with(client)
    };
    // It fails where there is no certificate.
    begin()
        .build()
        .or_else(|_| begin().tls_certs_only([]).build())
}

fn redirects() -> Policy {
    Policy::custom(|attempt| {
        let was_secret = attempt
            .previous()
            .last()
            .is_some_and(|from| from.scheme() == "https");
        if attempt.previous().len() > REDIRECTS || (was_secret && attempt.url().scheme() != "https")
        {
            attempt.error("no further")
        } else {
            attempt.follow()
        }
    })
}

/// What an answer says of the part of a file that it is (RFC 9110, 14.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentRange {
    /// Where the part begins; none of an answer that there is no such part.
    pub first: Option<u64>,
    /// How long the file is, if the server says so.
    pub total: Option<u64>,
}

impl ContentRange {
    /// That of an answer; empty if it says nothing that could be understood.
    pub fn of(headers: &HeaderMap) -> Self {
        let text = headers.get(CONTENT_RANGE).and_then(|it| it.to_str().ok());
        text.map(Self::parse).unwrap_or_default()
    }

    /// `bytes 5-9/10`, `bytes 5-9/*`, `bytes */10`.
    pub(crate) fn parse(text: &str) -> Self {
        let Some((range, total)) = text
            .strip_prefix("bytes ")
            .and_then(|it| it.split_once('/'))
        else {
            return Self::default();
        };
        let first = range
            .split_once('-')
            .and_then(|(first, _)| first.parse().ok());
        Self {
            first,
            total: total.parse().ok(),
        }
    }
}

/// Whether a certificate that was refused is among the causes: asking again brings no other.
pub fn is_untrusted(error: &(dyn Error + 'static)) -> bool {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return matches!(tls, rustls::Error::InvalidCertificate(_));
    }
    // An I/O error that was made of another one has the causes of that, and does not name it.
    let wrapped = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    match wrapped {
        Some(inner) => is_untrusted(inner),
        None => error.source().is_some_and(is_untrusted),
    }
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError};
    use test_case::test_case;

    use super::*;

    #[test_case("bytes 5-9/10", Some(5), Some(10))]
    #[test_case("bytes 5-9/*", Some(5), None)]
    #[test_case("bytes */10", None, Some(10))]
    #[test_case("lines 5-9/10", None, None)]
    #[test_case("", None, None)]
    fn content_ranges(text: &str, first: Option<u64>, total: Option<u64>) {
        assert_eq!(ContentRange::parse(text), ContentRange { first, total });
    }

    #[derive(Debug, thiserror::Error)]
    #[error("no connection")]
    struct Outer(#[source] io::Error);

    #[test_case(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => true)]
    #[test_case(rustls::Error::InvalidCertificate(CertificateError::Expired) => true)]
    #[test_case(rustls::Error::AlertReceived(AlertDescription::InternalError) => false)]
    fn a_certificate_is_found_wherever_it_is(error: rustls::Error) -> bool {
        let deep = io::Error::other(io::Error::other(error));
        is_untrusted(&Outer(deep))
    }

    #[test]
    fn a_connection_that_broke_may_be_made_again() {
        assert!(!is_untrusted(&Outer(io::ErrorKind::ConnectionReset.into())));
    }
}
