//! Where a slug is: a URL that Heroku signs anew each time, and that is good for minutes.

use std::time::Duration;

use thiserror::Error;

use super::{api::Api, assemble::slug_id, error::Trouble};
use crate::{
    locate::{LocateSlugError, SlugLocator},
    release::Slug,
};

/// How long who is refused waits before the next question, where nobody says it.
const A_WHILE: Duration = Duration::from_mins(1);

/// The slug is there, and cannot be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
enum NoUrlError {
    #[error("Heroku gives no URL for it")]
    None,
    #[error("Heroku gives a URL for it that is not https://")]
    Scheme,
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
        let refused = |error: NoUrlError| LocateSlugError {
            may_pass: false,
            leave_alone: Duration::ZERO,
            source: error.into(),
        };
        let url = answer.blob.ok_or(refused(NoUrlError::None))?.url;
        // Nobody on the way may change what is run. An API on this machine may say otherwise.
        let is_plain = self.client.is_plain() && url.expose().starts_with("http://");
        if url.expose().starts_with("https://") || is_plain {
            Ok(url)
        } else {
            Err(refused(NoUrlError::Scheme))
        }
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    const SEVEN: Option<Duration> = Some(Duration::from_secs(7));

    #[test_case(Trouble::Passing { retry_after: None } => 0)]
    #[test_case(Trouble::Passing { retry_after: SEVEN } => 7; "who says so")]
    #[test_case(Trouble::Limited { retry_after: SEVEN } => 7; "until there are requests again")]
    #[test_case(Trouble::Limited { retry_after: None } => 60; "nobody says how long")]
    #[test_case(Trouble::Denied => 60)]
    fn heroku_is_left_alone(trouble: Trouble) -> u64 {
        leave_alone(trouble).as_secs()
    }
}
