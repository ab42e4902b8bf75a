//! A download, in a process that has no rights: tried again from where it broke.
//!
//! What was handed on cannot be taken back. So a server that cannot go on in the middle (no
//! ranges, or nothing to tell that it is the same file) is asked for all of it, and its first
//! part is compared by hash with what was handed on instead of being handed on again.

use std::{fs::File, io::Write as _, time::Duration};

use bytes::Bytes;
use reqwest::{
    Client, Error, Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
};
use sha2::{Digest as _, Sha256};
use tokio::time::{sleep, timeout};

use super::{Patience, too_big};
use crate::{
    error::SlugError,
    web::{self, ContentRange},
    wire::{Event, Report},
};

/// No server is asked more often than this, even if each try brings something.
const MOST_TRIES: u32 = 100;
/// The longest pause between two tries, whatever the server would like.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// What may be said of a URL: whom it asks.
pub(crate) fn host(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let host = url.host_str().filter(|host| !host.is_empty())?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

/// Downloads the slug to `out`.
pub(super) fn download(
    url: &str,
    patience: &Patience,
    most: u64,
    out: File,
    report: &Report,
) -> Result<(), SlugError> {
    let host = host(url).ok_or(SlugError::Url)?;
    let broken = |cause: String| SlugError::Network {
        host: host.clone(),
        tries: 0,
        cause,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| broken(error.to_string()))?;
    let client = web::client(|client| client.no_proxy().connect_timeout(patience.connect))
        .map_err(|error| broken(cause(error, url)))?;
    let mut download = Download {
        client,
        url,
        host: &host,
        patience,
        most,
        out,
        report,
        written: 0,
        hash: Sha256::new(),
        validator: None,
        total: None,
    };
    runtime.block_on(download.run())
}

struct Download<'a> {
    client: Client,
    url: &'a str,
    host: &'a str,
    patience: &'a Patience,
    most: u64,
    out: File,
    report: &'a Report,
    /// How many bytes were handed on, and their hash.
    written: u64,
    hash: Sha256,
    /// How the server knows that it is still the same file.
    validator: Option<HeaderValue>,
    total: Option<u64>,
}

/// Why a try failed.
enum Broken {
    /// Trying again is of no use.
    ForGood(SlugError),
    /// Trying again may help: the cause, and how long the server wants us to wait.
    ForNow(Cause, Option<Duration>),
}

enum Cause {
    Text(String),
    Status(u16),
    Stall,
}

impl Download<'_> {
    async fn run(&mut self) -> Result<(), SlugError> {
        let mut in_vain = 0;
        for tries in 1.. {
            self.report.send(&Event::Trying);
            let before = self.written;
            let (cause, pause) = match self.attempt().await {
                Ok(()) => return Ok(()),
                Err(Broken::ForGood(error)) => return Err(error),
                Err(Broken::ForNow(cause, pause)) => (cause, pause),
            };
            in_vain = if self.written > before {
                0
            } else {
                in_vain + 1
            };
            if in_vain >= self.patience.tries || tries >= MOST_TRIES {
                return Err(self.give_up(cause, tries));
            }
            let backoff = self.patience.backoff * 2_u32.saturating_pow(in_vain.min(16));
            sleep(pause.unwrap_or(backoff).min(LONGEST_PAUSE)).await;
        }
        Ok(())
    }

    fn give_up(&self, cause: Cause, tries: u32) -> SlugError {
        let host = self.host.to_owned();
        match cause {
            Cause::Text(cause) => SlugError::Network { host, tries, cause },
            Cause::Status(status) => SlugError::Http { host, status },
            Cause::Stall => SlugError::Stalled {
                from: host,
                seconds: self.patience.stall.as_secs(),
            },
        }
    }

    async fn attempt(&mut self) -> Result<(), Broken> {
        let mut request = self
            .client
            .get(self.url)
            .header(header::ACCEPT_ENCODING, "identity");
        if let Some(validator) = self.validator.clone().filter(|_| self.written > 0) {
            request = request
                .header(header::RANGE, format!("bytes={}-", self.written))
                .header(header::IF_RANGE, validator);
        }
        let response = match timeout(self.patience.stall, request.send()).await {
            Err(_) => return Err(Broken::ForNow(Cause::Stall, None)),
            Ok(Err(error)) if error.is_redirect() => {
                return Err(Broken::ForGood(SlugError::Redirect {
                    host: self.host.to_owned(),
                }));
            }
            Ok(Err(error)) => return Err(self.broken(error)),
            Ok(Ok(response)) => response,
        };
        match response.status() {
            StatusCode::OK => self.whole(response).await,
            StatusCode::PARTIAL_CONTENT => {
                if self.continues(response.headers()) {
                    self.rest(response).await
                } else {
                    // Not what we asked for: ask for all of it.
                    self.validator = None;
                    Err(Broken::ForNow(
                        Cause::Text("the server continues at another place".to_owned()),
                        None,
                    ))
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                self.validator = None;
                Err(Broken::ForNow(Cause::Status(416), None))
            }
            status => Err(self.refused(status, response.headers())),
        }
    }

    fn refused(&self, status: StatusCode, headers: &HeaderMap) -> Broken {
        let host = self.host.to_owned();
        match status.as_u16() {
            // A storage says 403 or 404 of a URL that has expired, and 410 of a purged slug.
            status @ (401 | 403 | 404 | 410) => {
                Broken::ForGood(SlugError::Refused { host, status })
            }
            status @ (408 | 425 | 429 | 500..) => {
                let wanted = headers
                    .get(header::RETRY_AFTER)
                    .and_then(|value| value.to_str().ok()?.parse().ok())
                    .map(Duration::from_secs);
                Broken::ForNow(Cause::Status(status), wanted)
            }
            status => Broken::ForGood(SlugError::Http { host, status }),
        }
    }

    /// Whether the rest of what we have comes.
    fn continues(&self, headers: &HeaderMap) -> bool {
        let ContentRange { first, total } = ContentRange::of(headers);
        first == Some(self.written)
            && (total.is_none() || self.total.is_none() || total == self.total)
            && validator(headers).is_none_or(|now| Some(now) == self.validator)
    }

    /// All of it comes: what we have is compared, the rest is handed on.
    async fn whole(&mut self, mut response: Response) -> Result<(), Broken> {
        let length = response.content_length();
        if let Some(length) = length {
            if length > self.most {
                return Err(Broken::ForGood(too_big(self.most)));
            }
            self.report.send(&Event::Total(length));
        }
        self.total = length;
        self.validator = validator(response.headers());
        let mut again = Sha256::new();
        let mut left = self.written;
        while let Some(chunk) = self.chunk(&mut response).await? {
            let known = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            let (old, new) = chunk.split_at(known);
            if known > 0 {
                again.update(old);
                left -= known as u64;
                if left == 0 && again.clone().finalize() != self.hash.clone().finalize() {
                    return Err(Broken::ForGood(self.changed()));
                }
            }
            self.hand_on(new)?;
        }
        if left > 0 {
            return Err(Broken::ForGood(self.changed()));
        }
        self.complete()
    }

    async fn rest(&mut self, mut response: Response) -> Result<(), Broken> {
        while let Some(chunk) = self.chunk(&mut response).await? {
            self.hand_on(&chunk)?;
        }
        self.complete()
    }

    fn complete(&self) -> Result<(), Broken> {
        match self.total {
            Some(total) if self.written < total => Err(Broken::ForNow(
                Cause::Text(format!("only {} of {total} bytes came", self.written)),
                None,
            )),
            _ => Ok(()),
        }
    }

    async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, Broken> {
        match timeout(self.patience.stall, response.chunk()).await {
            Err(_) => Err(Broken::ForNow(Cause::Stall, None)),
            Ok(Err(error)) => Err(self.broken(error)),
            Ok(Ok(chunk)) => Ok(chunk),
        }
    }

    fn hand_on(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        if self.written > self.most {
            return Err(Broken::ForGood(too_big(self.most)));
        }
        self.out.write_all(bytes).map_err(|error| {
            // The front has given up.
            Broken::ForGood(SlugError::Helper {
                task: super::TASK.to_owned(),
                cause: error.to_string(),
            })
        })
    }

    fn changed(&self) -> SlugError {
        SlugError::Changed {
            from: self.host.to_owned(),
        }
    }

    fn broken(&self, error: Error) -> Broken {
        if web::is_untrusted(&error) {
            let host = self.host.to_owned();
            let cause = cause(error, self.url);
            return Broken::ForGood(SlugError::Untrusted { host, cause });
        }
        Broken::ForNow(Cause::Text(cause(error, self.url)), None)
    }
}

/// What tells that a file is still the same: a strong tag, else when it was changed.
fn validator(headers: &HeaderMap) -> Option<HeaderValue> {
    headers
        .get(header::ETAG)
        .filter(|tag| !tag.as_bytes().starts_with(b"W/"))
        .or_else(|| headers.get(header::LAST_MODIFIED))
        .cloned()
}

/// Why it failed, without where: the URL is a secret.
fn cause(error: Error, url: &str) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    // Nothing below names it today.
    text.replace(url, "…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weak_tag_is_no_validator() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ETAG, HeaderValue::from_static("W/\"a\""));
        assert_eq!(validator(&headers), None);
        headers.insert(header::LAST_MODIFIED, HeaderValue::from_static("then"));
        assert_eq!(validator(&headers), Some(HeaderValue::from_static("then")));
        headers.insert(header::ETAG, HeaderValue::from_static("\"a\""));
        assert_eq!(validator(&headers), Some(HeaderValue::from_static("\"a\"")));
    }
}
