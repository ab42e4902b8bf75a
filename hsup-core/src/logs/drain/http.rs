//! Batches as requests: to Logplex as log-shuttle's, to an HTTPS drain as Logplex's.

use std::{
    error::Error,
    io::{self, Write as _},
    time::Duration,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use reqwest::{
    Client, Response,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
    redirect::Policy,
};

use super::{batch::Batch, retry::Answer, target::Http};
use crate::retry_after::retry_after;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// An answer's body is of no interest; a connection whose rest is read can be used again.
const BODY_BYTES: usize = 64 * 1024;

/// Sends batches; one for each lane, over connections that they share.
#[derive(Debug)]
pub(super) struct Poster {
    client: Client,
    http: Http,
    /// By which an HTTPS drain knows us; `None`: it is Logplex.
    drain_token: Option<String>,
}

/// The client that the lanes of a drain share.
///
/// # Errors
/// When there can be none: where no certificate is trusted, and one is needed.
pub(super) fn client(http: &Http) -> io::Result<Client> {
    // Refused where there is one already, which is the same one.
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut client = Client::builder();
    if http.url.scheme() == "http" {
        // Without asking this machine for some, which it need not have.
        client = client.tls_certs_only([]);
    }
    client
        .no_proxy()
        .redirect(Policy::none())
        .connect_timeout(CONNECT_WITHIN)
        .timeout(ANSWER_WITHIN)
        .user_agent(concat!("hsup/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| {
            let cause = cause(error);
            io::Error::other(format!("{cause}; SSL_CERT_FILE names whom to trust"))
        })
}

impl Poster {
    pub(super) const fn new(client: Client, http: Http, drain_token: Option<String>) -> Self {
        Self {
            client,
            http,
            drain_token,
        }
    }

    pub(super) async fn deliver(&self, batch: &Batch) -> Answer {
        let mut request = self
            .client
            // The user information becomes a header, and is in no URL from here on.
            .post(self.http.url.clone())
            .header(CONTENT_TYPE, "application/logplex-1")
            .header("Logplex-Msg-Count", batch.messages)
            .header("Logplex-Frame-Id", &batch.id);
        if let Some(token) = &self.drain_token {
            request = request.header("Logplex-Drain-Token", token);
        } else {
            request = request.header("X-Request-Id", &batch.id);
            for (name, tally) in [
                ("Logplex-Drop-Count", batch.announcement.dropped),
                ("Logplex-Lost-Count", batch.announcement.lost),
            ] {
                if tally.count > 0 {
                    request = request.header(name, tally.count);
                }
            }
        }
        request = match self.http.gzip.then(|| gzip(&batch.body)) {
            Some(Ok(body)) => request.header(CONTENT_ENCODING, "gzip").body(body),
            _ => request.body(batch.body.clone()),
        };
        match request.send().await {
            Ok(response) => answer(response).await,
            Err(error) => Answer::Broken(cause(error)),
        }
    }
}

async fn answer(mut response: Response) -> Answer {
    let status = response.status().as_u16();
    let asked = retry_after(response.headers());
    let mut read = 0;
    // What the status says holds, whatever becomes of the body.
    while let Ok(Some(part)) = response.chunk().await {
        read += part.len();
        if read > BODY_BYTES {
            break;
        }
    }
    Answer::Status(status, asked)
}

fn gzip(body: &[u8]) -> io::Result<Bytes> {
    let out = Vec::with_capacity(body.len() / 4);
    let mut encoder = GzEncoder::new(out, Compression::fast());
    encoder.write_all(body)?;
    Ok(encoder.finish()?.into())
}

/// The innermost cause: those around it name the URL, which may hold a secret.
fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    if error.is_timeout() {
        return "it does not answer".to_owned();
    }
    let mut innermost: &dyn Error = &error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
