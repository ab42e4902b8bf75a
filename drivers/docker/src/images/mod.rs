//! Images: what a Build makes in the engine, and for how long that is kept.
//!
//! ```text
//!   the stack's image ──▶ workshop.rs: a container of it ──▶ commit: the image of the release
//!                             ▲ the dyno user, /.hsup/init     labels.rs
//!                             ▲ /app
//!   the slug ── hsup_slug::layer ── as it comes
//! ```
//!
//! All that is remembered of an image is written on it ([`labels`]), so every driver of an
//! engine knows it, also one that was just started. A release that is an image itself is only
//! looked up, or pulled.

mod claim;
mod collect;
mod credentials;
mod error;
mod find;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod labels;
mod prune;
mod publish;
mod reference;
mod repository;
pub(crate) mod settings;
mod slug;
mod told;
mod user;
mod workshop;
mod workshops;

#[cfg(test)]
mod engine_tests;

use std::path::Path;

use bollard::{Docker, query_parameters::RemoveImageOptionsBuilder};
use hsup_driver_kit::{Status, proto::Release, serve::Peer, service::BuildLog};

pub(crate) use self::{
    claim::{Claim, claim},
    error::ImageError,
    labels::is_anothers,
    publish::{Owner, publish, publishable},
    reference::is_reference,
    settings::Settings,
};
use self::{
    error::{Fault, fault},
    told::Listener,
};
use crate::artifact::{Artifact, Kind};

/// What says that buildpacks made an image.
const CNB_LABEL: &str = "io.buildpacks.build.metadata";

/// Makes, or finds, the image of a release.
pub(crate) async fn build(
    engine: &Docker,
    settings: &Settings,
    peer: Peer,
    release: &Release,
    log: &BuildLog,
) -> Result<Artifact, Status> {
    Ok(build_release(engine, settings, user(peer), release, log).await?)
}

/// What tells one state of a `file://` slug from another: a change of any file in a directory is
/// one.
pub(crate) async fn slug_changed(settings: &Settings, peer: Peer, path: &Path) -> Option<Vec<u8>> {
    slug::changed(settings, user(peer), path).await
}

fn user(peer: Peer) -> (u32, u32) {
    (peer.uid.as_raw(), peer.gid.as_raw())
}

async fn build_release(
    engine: &Docker,
    settings: &Settings,
    user: (u32, u32),
    release: &Release,
    listener: &dyn Listener,
) -> Result<Artifact, ImageError> {
    if release.slug_url.is_empty() && !release.image.is_empty() {
        return image(engine, settings, user.0, &release.image, listener).await;
    }
    slug::build(engine, settings, user, release, listener).await
}

/// A release that is an image.
async fn image(
    engine: &Docker,
    settings: &Settings,
    uid: u32,
    name: &str,
    listener: &dyn Listener,
) -> Result<Artifact, ImageError> {
    let reference = reference::checked(name)?;
    let image = find::find_or_pull(engine, settings, uid, &reference, listener).await?;
    let config = image.inspect.config.unwrap_or_default();
    let labels = config.labels.unwrap_or_default();
    Ok(Artifact {
        image: image.id,
        kind: if labels.contains_key(CNB_LABEL) {
            Kind::Cnb
        } else {
            Kind::Plain
        },
    })
}

/// Whether the registry of an image, `REPOSITORY@DIGEST`, says that it does not have it. The engine
/// asks, which knows how: by which certificates, with a token or a password.
pub(crate) async fn is_gone(engine: &Docker, settings: &Settings, uid: u32, image: &str) -> bool {
    let login = settings.login(uid, image).await;
    match engine.inspect_registry_image(image, login).await {
        Ok(_) => false,
        Err(error) if fault(&error) == Fault::Missing => true,
        Err(error) => {
            let error = hsup_driver_kit::errors::chain(&error);
            tracing::debug!(error, "failed to ask a registry for an image");
            false
        }
    }
}

/// Removes an image that a Build of this user made of a slug, if no container uses it. Others are
/// not ours.
pub(crate) async fn remove(
    engine: &Docker,
    uid: u32,
    artifact: &Artifact,
) -> Result<(), ImageError> {
    if !matches!(artifact.kind, Kind::Slug { .. }) {
        return Ok(());
    }
    let Some(image) = find::find(engine, &artifact.image).await? else {
        return Ok(());
    };
    let is_of_slug = labels::is_of_slug(&image.inspect);
    if !is_of_slug || labels::is_anothers(&image.inspect, uid) {
        return Ok(());
    }
    remove_unused(engine, &image.id).await
}

/// Removes an image unless something uses it; one that is not there is removed.
async fn remove_unused(engine: &Docker, id: &str) -> Result<(), ImageError> {
    let Some(image) = find::find(engine, id).await? else {
        return Ok(());
    };
    // The engine removes no image by its id that has more than one name.
    let mut names = labels::names_in_registries(&image.inspect);
    let mut releases = labels::names_of_releases(&image.inspect);
    // By that it stays known, should something use it.
    releases.pop();
    names.append(&mut releases);
    for name in names {
        remove_name(engine, &name).await?;
    }
    remove_name(engine, id).await
}

async fn remove_name(engine: &Docker, id: &str) -> Result<(), ImageError> {
    // Without force: it would take an image from a container that does not run just now.
    let options = RemoveImageOptionsBuilder::new().force(false).build();
    match engine.remove_image(id, Some(options), None).await {
        Err(error) if fault(&error) != Fault::Missing => {
            Err(ImageError::engine("remove the image", id)(error))
        }
        _ => Ok(()),
    }
}
