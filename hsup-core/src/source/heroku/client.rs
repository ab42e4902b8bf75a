//! One request to the API, and its answer: bounded in time, in size, and in where it goes.

use std::{
    error::Error as _,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use jiff::fmt::rfc2822;
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
    error::{ApiError, Refusal},
    model::Failure,
};
use crate::source::excerpt;

const ACCEPT: &str = "application/vnd.heroku+json; version=3";
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
#[error("failed to prepare for HTTPS")]
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
            .connect_timeout(CONNECT_WITHIN)
            .build()
            .map_err(|error| NewClientError(Some(error)))?;
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

    /// How many requests were left when the API said so last.
    pub(super) fn remaining(&self) -> Option<u32> {
        match self.remaining.load(Ordering::Relaxed) {
            UNKNOWN => None,
            remaining => Some(remaining),
        }
    }

    /// Whether nobody but this machine can read what is said.
    pub(super) fn is_plain(&self) -> bool {
        self.url.scheme() == "http"
    }

    /// Asks once.
    pub(super) async fn ask(&self, question: Question<'_>) -> Result<Answer, ApiError> {
        match timeout(self.answer_within, self.exchange(&question)).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::Late {
                what: question.what,
                host: self.host.clone(),
                within: self.answer_within,
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
            }),
        }
    }

    async fn exchange(&self, question: &Question<'_>) -> Result<Answer, ApiError> {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(question.path);
        }
        let mut request = self
            .http
            .get(url)
            .header(header::ACCEPT, ACCEPT)
            .header(header::AUTHORIZATION, &self.authorization);
        if let Some(range) = question.range {
            request = request.header(header::RANGE, range);
        }
        if let Some(etag) = question.etag {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        let response = request
            .send()
            .await
            .map_err(|error| self.failed(question, error))?;
        self.learn(question, response.headers());
        let of = |name| response.headers().get(name).cloned();
        let (etag, next_range) = (of("etag"), of("next-range"));
        match response.status() {
            StatusCode::NOT_MODIFIED if question.etag.is_some() => Ok(Answer::Same),
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(Answer::New(Body {
                host: self.host.clone(),
                what: question.what.clone(),
                bytes: self.read(question, response).await?,
                etag,
                next_range,
            })),
            _ => Err(self.refused(question, response).await),
        }
    }

    /// What every answer says beside what was asked.
    fn learn(&self, question: &Question<'_>, headers: &HeaderMap) {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
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
    ) -> Result<Vec<u8>, ApiError> {
        let mut bytes = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if bytes.len() + chunk.len() > MAX_BODY => {
                    return Err(ApiError::TooLong {
                        what: question.what.clone(),
                        host: self.host.clone(),
                        limit: MAX_BODY,
                    });
                }
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => return Ok(bytes),
                Err(error) => return Err(self.failed(question, error)),
            }
        }
    }

    async fn refused(&self, question: &Question<'_>, response: Response) -> ApiError {
        let headers = response.headers();
        let mut refusal = Refusal {
            status: response.status().as_u16(),
            request_id: headers
                .get("request-id")
                .and_then(|value| value.to_str().ok())
                .map(|text| self.shown(text))
                .unwrap_or_default(),
            retry_after: retry_after(headers),
            ..Refusal::default()
        };
        // Whatever else it is, the status says enough.
        let body = self.read(question, response).await.unwrap_or_default();
        let failure: Failure = serde_json::from_slice(&body).unwrap_or_default();
        refusal.id = self.shown(&failure.id);
        refusal.message = self.shown(&failure.message);
        ApiError::Refused {
            what: question.what.clone(),
            host: self.host.clone(),
            refusal: Box::new(refusal),
        }
    }

    /// A text of theirs, for ours.
    fn shown(&self, text: &str) -> String {
        excerpt(&self.token.hide_in(text))
    }

    fn failed(&self, question: &Question<'_>, error: reqwest::Error) -> ApiError {
        let (what, host) = (question.what.clone(), self.host.clone());
        if error.is_redirect() {
            return ApiError::Redirect { what, host };
        }
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
        ApiError::Unreachable {
            what,
            host,
            cause: self.token.hide_in(&cause.join(": ")),
        }
    }
}

impl Body {
    /// What the text says.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.bytes).map_err(|error| ApiError::Malformed {
            what: self.what.clone(),
            host: self.host.clone(),
            problem: problem(&error),
        })
    }
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

/// `Retry-After`, in seconds or as a time; the time is compared with the server's own, for the
/// clock of this machine may be wrong.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok();
    let wanted = text(header::RETRY_AFTER)?.trim();
    if let Ok(seconds) = wanted.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let time = |text| rfc2822::parse(text).ok().map(|time| time.timestamp());
    let wait = time(wanted)?.as_second() - time(text(header::DATE)?)?.as_second();
    u64::try_from(wait).ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests;
