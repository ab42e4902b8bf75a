//! Whose an image is, and of which releases. One of a slug is for the user whose Build made it:
//! what is in the slug is nobody else's affair.

use bollard::{Docker, query_parameters::TagImageOptionsBuilder};
use hsup_driver_kit::errors;

use super::{
    error::{Fault, ImageError, fault},
    find::{self, Image},
    labels,
};

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

/// Whether a user may start dynos of a release from an image, which gets that release's name: the
/// image of a rollback comes without a Build.
pub(crate) async fn claim(
    engine: &Docker,
    uid: u32,
    image: &str,
    (app, release): (&str, u64),
) -> Result<Claim, ImageError> {
    let Some(image) = find::find(engine, image).await? else {
        return Ok(Claim::Missing);
    };
    if labels::is_anothers(&image.inspect, uid) {
        return Ok(Claim::Anothers);
    }
    // Whoever does not say which release it is has none to be kept.
    if release > 0 && labels::is_of_app(&image.inspect, app) {
        match named(engine, &image, app, release).await {
            Ok(true) => {}
            Ok(false) => return Ok(Claim::Missing),
            // A dyno is better than a name.
            Err(error) => {
                let error = errors::chain(&error);
                tracing::warn!(error, "an image is not kept as long as its release");
            }
        }
    }
    Ok(Claim::Good)
}

/// Gives an image the name of a release, too: for how long it is kept goes by its names. `false` if
/// it has just been removed.
pub(super) async fn named(
    engine: &Docker,
    image: &Image,
    app: &str,
    release: u64,
) -> Result<bool, ImageError> {
    if labels::has_release(&image.inspect, app, release) {
        return Ok(true);
    }
    let (repository, tag) = labels::name(app, release);
    let options = TagImageOptionsBuilder::new().repo(&repository).tag(&tag);
    match engine.tag_image(&image.id, Some(options.build())).await {
        Ok(()) => Ok(true),
        Err(error) if fault(&error) == Fault::Missing => Ok(false),
        Err(error) => Err(ImageError::engine("name the image", &image.id)(error)),
    }
}
