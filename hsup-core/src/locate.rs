//! Where a slug is right now, of sources whose URLs last only minutes.
//!
//! Such a source gives a release a slug that names it for good, and whoever has it built asks
//! for its URL just before: the URL, which is as good as the slug itself, is in no release, and
//! so neither in a journal nor in a history.

use std::{error::Error, fmt, time::Duration};

use thiserror::Error;

use crate::release::Slug;

/// Finds slugs.
#[tonic::async_trait]
pub trait SlugLocator: fmt::Debug + Send + Sync {
    /// Where `slug` is now; one that is no business of this locator is where it says.
    async fn locate(&self, slug: &Slug) -> Result<Slug, LocateSlugError>;
}

/// A slug could not be found.
#[derive(Debug, Error)]
#[error("failed to find where the slug is")]
pub struct LocateSlugError {
    /// Whether it may be found later.
    pub may_pass: bool,
    /// How long not to ask again at least.
    pub leave_alone: Duration,
    /// Why.
    pub source: Box<dyn Error + Send + Sync>,
}
