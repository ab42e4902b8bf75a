//! Whose an image is. One of a slug is for the user whose Build made it: what is in the slug is
//! nobody else's affair.

use bollard::Docker;

use super::{error::ImageError, find, labels};

/// Whose an image is, to somebody who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The caller may have it.
    Good,
    /// It is of another user's slug.
    Anothers,
    /// The engine does not have it.
    Missing,
}

/// Whether a user may start dynos from an image.
pub(crate) async fn claim(engine: &Docker, uid: u32, image: &str) -> Result<Claim, ImageError> {
    let Some(image) = find::find(engine, image).await? else {
        return Ok(Claim::Missing);
    };
    Ok(if labels::is_anothers(&image.inspect, uid) {
        Claim::Anothers
    } else {
        Claim::Good
    })
}
