//! Where a slug is: a URL that Heroku signs anew each time, and that is good for minutes.

use thiserror::Error;

use super::{api::Api, assemble::slug_id};
use crate::{
    locate::{LocateSlugError, SlugLocator},
    release::Slug,
};

/// The slug is there, and cannot be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
enum NoUrlError {
    #[error("Heroku gives no URL for it")]
    None,
    #[error("Heroku gives a URL for it that is not https://")]
    Scheme,
}

#[tonic::async_trait]
impl SlugLocator for Api {
    async fn locate(&self, slug: &Slug) -> Result<Slug, LocateSlugError> {
        let Some(id) = slug_id(slug) else {
            return Ok(slug.clone());
        };
        let answer = self.slug(id).await.map_err(|error| LocateSlugError {
            may_pass: !error.is_missing(),
            source: error.into(),
        })?;
        let refused = |error: NoUrlError| LocateSlugError {
            may_pass: false,
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
