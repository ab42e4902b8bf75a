//! One request to the API, and its answer: bounded in time, in size, and in where it goes.

use std::{
    error::Error as _,
    io,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use reqwest::{
    Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
    redirect::Policy,
};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use thiserror::Error;
use tokio::time::timeout;

use super::{
    access::Access,
    error::{ApiError, Refusal, RequestId},
    model::Failure,
};
use crate::{random, retry_after::retry_after, source::excerpt};

const ACCEPT: &str = "application/vnd.heroku+json; version=3";
const REQUEST_ID: &str = "request-id";
const USER_AGENT: &str = concat!("hsup/", env!("CARGO_PKG_VERSION"));
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The longest answer that is read. Config vars are 64 KiB at most, a page of releases less.
const MAX_BODY: usize = 4 << 20;
const REDIRECTS: usize = 3;
/// Nobody has told how many requests are left.
const UNKNOWN: u32 = u32::MAX;

/// Asks the API. There are no cookies, and the token goes to the API's own host alone.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: Url,
    host: String,
    token: super::access::Token,
    authorization: HeaderValue,
    answer_within: Duration,
    remaining: AtomicU32,
}

/// There is nothing to ask the API with.
#[derive(Debug, Error)]
#[error(
    "failed to prepare for HTTPS; SSL_CERT_FILE names whom to trust where `ca-certificates` is missing"
)]
pub struct NewClientError(#[source] Option<reqwest::Error>);

/// What to ask.
#[derive(Clone, Debug)]
pub(super) struct Question<'a> {
    /// For people: `the releases of shop`.
    pub(super) what: String,
    /// Below the API's own URL, in parts.
    pub(super) path: &'a [&'a str],
    pub(super) range: Option<&'a HeaderValue>,
    /// What is known already.
    pub(super) etag: Option<&'a HeaderValue>,
}

/// What was answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// It is as it was.
    Same,
    /// This.
    New(Body),
}

/// The text of an answer, and what was said of it.
pub(super) struct Body {
    host: String,
    what: String,
    request: RequestId,
    bytes: Vec<u8>,
    pub(super) etag: Option<HeaderValue>,
    pub(super) next_range: Option<HeaderValue>,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It may be config vars.
        write!(f, "Body({}, {} bytes)", self.what, self.bytes.len())
    }
}

impl Client {
    pub(super) fn new(access: &Access) -> Result<Self, NewClientError> {
        // The first word counts, and there is only one in this program.
        drop(rustls::crypto::ring::default_provider().install_default());
        let http = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(redirects())
            .connect_timeout(CONNECT_WITHIN);
        // Nobody between this machine and itself is to see the token.
        let http = if access.is_of_this_machine() {
            http.no_proxy()
        } else {
            http
        };
        let http = http.build().map_err(|error| NewClientError(Some(error)))?;
        let url = access.url.clone();
        let host = match (url.host_str().unwrap_or_default(), url.port()) {
            (host, Some(port)) => format!("{host}:{port}"),
            (host, None) => host.to_owned(),
        };
        Ok(Self {
            http,
            url,
            host,
            token: access.token.clone(),
            authorization: access.token.header().ok_or(NewClientError(None))?,
            answer_within: ANSWER_WITHIN,
            remaining: AtomicU32::new(UNKNOWN),
        })
    }

    /// How many requests are left, as the last answer that told it said.
    pub(super) fn remaining(&self) -> Option<u32> {
        match self.remaining.load(Ordering::Relaxed) {
            UNKNOWN => None,
            remaining => Some(remaining),
        }
    }

    /// Who is asked.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Whether nobody but this machine can read what is said.
    pub(super) fn is_plain(&self) -> bool {
        self.url.scheme() == "http"
    }

    /// Asks once.
    pub(super) async fn ask(&self, question: Question<'_>) -> Result<Answer, ApiError> {
        let request = new_request_id();
        match timeout(self.answer_within, self.exchange(&question, &request)).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::Late {
                what: question.what,
                host: self.host.clone(),
                within: self.answer_within,
                request,
            }),
        }
    }

    /// Asks for what there is, whatever was known.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        what: String,
        path: &[&str],
    ) -> Result<T, ApiError> {
        let question = Question {
            what,
            path,
            range: None,
            etag: None,
        };
        match self.ask(question.clone()).await? {
            Answer::New(body) => body.json(),
            Answer::Same => Err(ApiError::Malformed {
                what: question.what,
                host: self.host.clone(),
                problem: "it has not changed, and nothing was known of it".to_owned(),
                request: RequestId::default(),
            }),
        }
    }

    async fn exchange(
        &self,
        question: &Question<'_>,
        asked_as: &RequestId,
    ) -> Result<Answer, ApiError> {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(question.path);
        }
        let mut request = self
            .http
            .get(url)
            .header(header::ACCEPT, ACCEPT)
            .header(header::AUTHORIZATION, &self.authorization)
            .header(REQUEST_ID, &asked_as.0);
        if let Some(range) = question.range {
            request = request.header(header::RANGE, range);
        }
        if let Some(etag) = question.etag {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        let response = request.send().await.map_err(|error| {
            let is_unheard = error.is_connect();
            let request = (!is_unheard).then(|| asked_as.clone());
            self.failed(question, error, request.unwrap_or_default())
        })?;
        self.learn(question, response.headers());
        let of = |name| response.headers().get(name).cloned();
        let (etag, next_range) = (of("etag"), of("next-range"));
        let request = self.request_id(response.headers());
        let request = request.unwrap_or_else(|| asked_as.clone());
        match response.status() {
            StatusCode::NOT_MODIFIED if question.etag.is_some() => Ok(Answer::Same),
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(Answer::New(Body {
                host: self.host.clone(),
                what: question.what.clone(),
                bytes: self.read(question, response, &request).await?,
                request,
                etag,
                next_range,
            })),
            _ => Err(self.refused(question, response, request).await),
        }
    }

    /// What every answer says beside what was asked.
    fn learn(&self, question: &Question<'_>, headers: &HeaderMap) {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        // Whoever stands between (a gateway with its 503) does not know, and no request has come
        // back for that.
        if let Some(remaining) = text("ratelimit-remaining").and_then(|text| text.parse().ok()) {
            self.remaining.store(remaining, Ordering::Relaxed);
        }
        if let Some(warning) = text("x-heroku-warning") {
            let warning = self.shown(warning);
            tracing::warn!(warning, what = question.what, "Heroku's API warns");
        }
    }

    async fn read(
        &self,
        question: &Question<'_>,
        mut response: Response,
        request: &RequestId,
    ) -> Result<Vec<u8>, ApiError> {
        let mut bytes = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if bytes.len() + chunk.len() > MAX_BODY => {
                    return Err(ApiError::TooLong {
                        what: question.what.clone(),
                        host: self.host.clone(),
                        limit: MAX_BODY,
                        request: request.clone(),
                    });
                }
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => return Ok(bytes),
                Err(error) => return Err(self.failed(question, error, request.clone())),
            }
        }
    }

    fn request_id(&self, headers: &HeaderMap) -> Option<RequestId> {
        let id = headers.get(REQUEST_ID)?.to_str().ok()?;
        Some(RequestId(self.shown(id)))
    }

    async fn refused(
        &self,
        question: &Question<'_>,
        response: Response,
        request: RequestId,
    ) -> ApiError {
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        // Whatever else it is, the status says enough.
        let body = self.read(question, response, &request).await;
        let body = body.unwrap_or_default();
        let failure: Failure = serde_json::from_slice(&body).unwrap_or_default();
        ApiError::Refused {
            what: question.what.clone(),
            host: self.host.clone(),
            refusal: Box::new(Refusal {
                status: status.as_u16(),
                id: self.shown(&failure.id),
                message: self.shown(&failure.message),
                request,
                retry_after,
            }),
        }
    }

    /// A text of theirs, for ours.
    fn shown(&self, text: &str) -> String {
        excerpt(&self.token.hide_in(text))
    }

    fn failed(
        &self,
        question: &Question<'_>,
        error: reqwest::Error,
        request: RequestId,
    ) -> ApiError {
        let (what, host) = (question.what.clone(), self.host.clone());
        if error.is_redirect() {
            return ApiError::Redirect {
                what,
                host,
                request,
            };
        }
        let is_untrusted = is_untrusted(&error);
        let error = error.without_url();
        let mut causes = vec![error.to_string()];
        let mut source = error.source();
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        // The outer ones say no more than that a request failed.
        let start = causes.len().saturating_sub(2);
        let mut cause = causes.split_off(start);
        cause.dedup();
        let cause = self.token.hide_in(&cause.join(": "));
        if is_untrusted {
            return ApiError::Untrusted { what, host, cause };
        }
        ApiError::Unreachable {
            what,
            host,
            cause,
            request,
        }
    }
}

impl Body {
    /// What the text says.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.bytes).map_err(|error| self.malformed(problem(&error)))
    }

    /// It is not what it should be.
    pub(super) fn malformed(&self, problem: String) -> ApiError {
        ApiError::Malformed {
            what: self.what.clone(),
            host: self.host.clone(),
            problem,
            request: self.request.clone(),
        }
    }
}

/// A UUID of random numbers, which Heroku takes over as its own word for the request.
fn new_request_id() -> RequestId {
    let (high, low) = (random::u64(), random::u64());
    RequestId(format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        0x8000 | (low >> 48) & 0x3fff,
        low & 0xffff_ffff_ffff
    ))
}

/// What is wrong with a text, without a word of it: it may be a config var.
fn problem(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    let what = match error.classify() {
        Category::Eof => "it is cut short",
        Category::Syntax => "it is no JSON",
        Category::Data => "a value is not of the kind that it should be",
        Category::Io => "it could not be read",
    };
    format!("{what}, at line {line} column {column}")
}

/// Whether a certificate that was refused is among the causes.
fn is_untrusted(error: &(dyn std::error::Error + 'static)) -> bool {
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

/// Never to another host, and not for ever.
fn redirects() -> Policy {
    Policy::custom(|attempt| {
        let is_same = attempt.previous().first().is_some_and(|first| {
            let next = attempt.url();
            first.scheme() == next.scheme()
                && first.host_str() == next.host_str()
                && first.port_or_known_default() == next.port_or_known_default()
        });
        if is_same && attempt.previous().len() <= REDIRECTS {
            attempt.follow()
        } else {
            attempt.error("no further")
        }
    })
}

#[cfg(test)]
mod tests;
