//! Where a slug is: a URL that Heroku signs anew each time, and that is good for minutes.

use std::time::Duration;

use thiserror::Error;

use super::{api::Api, assemble::slug_id, error::Trouble, model};
use crate::{
    locate::{LocateSlugError, SlugLocator},
    release::Slug,
};

/// How long who is refused waits before the next question, where nobody says it.
const A_WHILE: Duration = Duration::from_mins(1);

/// The slug is there, and cannot be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
enum NoUrlError {
    #[error("the slug {0} was deleted on Heroku")]
    Deleted(String),
    #[error("Heroku gives no URL for the slug {0}")]
    None(String),
    #[error("Heroku gives a URL for the slug {0} that is not https://")]
    Scheme(String),
}

/// The URL of the slug `id`, should the answer have one that can be used.
fn url(id: &str, answer: model::Slug, may_be_plain: bool) -> Result<Slug, NoUrlError> {
    let id = || id.to_owned();
    if answer.deleted_at.is_some() {
        return Err(NoUrlError::Deleted(id()));
    }
    let url = answer.blob.and_then(|blob| blob.url);
    let url = url.ok_or_else(|| NoUrlError::None(id()))?;
    // Nobody on the way may change what is run. An API on this machine may say otherwise.
    let is_plain = may_be_plain && url.expose().starts_with("http://");
    if url.expose().starts_with("https://") || is_plain {
        Ok(url)
    } else {
        Err(NoUrlError::Scheme(id()))
    }
}

/// How long Heroku wants not to be asked, or is not to be.
fn leave_alone(trouble: Trouble) -> Duration {
    match trouble {
        Trouble::Passing { retry_after } => retry_after.unwrap_or_default(),
        Trouble::Limited { retry_after } => retry_after.unwrap_or(A_WHILE),
        Trouble::Denied => A_WHILE,
    }
}

#[tonic::async_trait]
impl SlugLocator for Api {
    async fn locate(&self, slug: &Slug) -> Result<Slug, LocateSlugError> {
        let Some(id) = slug_id(slug) else {
            return Ok(slug.clone());
        };
        let answer = self.slug(id).await.map_err(|error| LocateSlugError {
            may_pass: !error.is_missing(),
            leave_alone: leave_alone(error.trouble()),
            source: error.into(),
        })?;
        url(id, answer, self.client.is_plain()).map_err(|error| LocateSlugError {
            may_pass: false,
            leave_alone: Duration::ZERO,
            source: error.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    const SEVEN: Option<Duration> = Some(Duration::from_secs(7));

    #[test_case(r#"{"blob":{"url":"https://s/x"}}"# => "https://s/x")]
    #[test_case(r#"{"blob":{"url":"http://s/x"}}"# => "Heroku gives a URL for the slug 5100 that is not https://")]
    #[test_case(r#"{"blob":{"url":null}}"# => "Heroku gives no URL for the slug 5100"; "a URL that is null")]
    #[test_case(r#"{"blob":{}}"# => "Heroku gives no URL for the slug 5100"; "a blob without a URL")]
    #[test_case("{}" => "Heroku gives no URL for the slug 5100"; "no blob")]
    #[test_case(r#"{"blob":{"url":"https://s/x"},"deleted_at":"2026"}"# => "the slug 5100 was deleted on Heroku")]
    fn where_a_slug_is(answer: &str) -> String {
        match url("5100", serde_json::from_str(answer).unwrap(), false) {
            Ok(url) => url.expose().to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test_case(Trouble::Passing { retry_after: None } => 0)]
    #[test_case(Trouble::Passing { retry_after: SEVEN } => 7; "who says so")]
    #[test_case(Trouble::Limited { retry_after: SEVEN } => 7; "until there are requests again")]
    #[test_case(Trouble::Limited { retry_after: None } => 60; "nobody says how long")]
    #[test_case(Trouble::Denied => 60)]
    fn heroku_is_left_alone(trouble: Trouble) -> u64 {
        leave_alone(trouble).as_secs()
    }
}
