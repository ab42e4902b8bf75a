//! For how long images are kept: the newest releases of each app, and what containers use.

use std::collections::HashSet;

use bollard::{
    Docker,
    models::ImageSummary,
    query_parameters::{ListContainersOptionsBuilder, ListImagesOptionsBuilder},
};

use super::{
    error::{Fault, ImageError, fault},
    labels::{self, Kept, Origin, RELEASE},
    remove_unused,
};

/// Removes what nobody needs any more of an app; `current` is needed. Gives how many went.
pub(super) async fn prune(
    engine: &Docker,
    origin: &Origin,
    keep: usize,
    current: &str,
) -> Result<usize, ImageError> {
    let images = labelled(engine, &origin.same_app()).await?;
    let images = images.into_iter().map(|image| {
        let named = labels::newest_release(&origin.app, &image.repo_tags);
        let first = image.labels.get(RELEASE);
        let first = first.and_then(|number| number.parse().ok());
        Kept {
            release: named.or(first).unwrap_or(0),
            is_named: named.is_some(),
            created: image.created,
            id: image.id,
        }
    });
    let used = used(engine).await?;
    let mut removed = 0;
    for id in labels::surplus(images.collect(), keep, current, &used) {
        match remove_unused(engine, &id).await {
            Ok(()) => removed += 1,
            // A container that was made meanwhile, or a name that somebody gave it.
            Err(ImageError::Engine { source, .. }) if fault(&source) == Fault::Conflict => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

/// The images that have all of these labels.
pub(super) async fn labelled(
    engine: &Docker,
    wanted: &[String],
) -> Result<Vec<ImageSummary>, ImageError> {
    // Podman finds none by more than one label.
    let slugs = format!("{}={}", labels::ROLE, labels::SLUG);
    let filters = [("label", vec![slugs])].into();
    let options = ListImagesOptionsBuilder::new().filters(&filters).build();
    let images = engine.list_images(Some(options)).await;
    let mut images = images.map_err(ImageError::engine("list the images of", "the app"))?;
    images.retain(|image| {
        let has = |label: &String| {
            let (name, value) = label.split_once('=').unwrap_or((label, ""));
            image.labels.get(name).is_some_and(|found| found == value)
        };
        wanted.iter().all(has)
    });
    Ok(images)
}

async fn used(engine: &Docker) -> Result<HashSet<String>, ImageError> {
    let options = ListContainersOptionsBuilder::new().all(true).build();
    let containers = engine.list_containers(Some(options)).await;
    let containers = containers.map_err(ImageError::engine("list", "containers"))?;
    let images = containers.into_iter().filter_map(|one| one.image_id);
    Ok(images.collect())
}
