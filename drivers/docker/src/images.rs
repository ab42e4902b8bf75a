//! What a Build makes of a release: an image that is in the engine.

use bollard::{Docker, errors::Error};
use hsup_driver_kit::{Status, errors, proto::BuildRequest, service::BuildLog};

use crate::{
    artifact::{Artifact, Kind},
    engine,
};

/// The image of a release that names one.
pub(crate) async fn build(
    docker: &Docker,
    request: BuildRequest,
    log: &BuildLog,
) -> Result<Artifact, Status> {
    let release = request.release.unwrap_or_default();
    if release.image.is_empty() {
        return Err(Status::failed_precondition(
            "the docker driver runs images only: the release names none",
        ));
    }
    let found = docker.inspect_image(&release.image).await;
    let found = found.map_err(|error| match &error {
        Error::DockerResponseServerError {
            status_code: 404, ..
        } => Status::failed_precondition(format!("the engine has no image `{}`", release.image)),
        _ => engine::status("look for an image", &error),
    })?;
    let image = found.id.unwrap_or_default();
    log.log(format!("the image is {image}\n").as_bytes());
    Ok(Artifact {
        image,
        kind: Kind::Plain,
    })
}

/// Removes an image that no dyno uses; one that is not there is removed. An image of its own
/// stays: it is its owner's.
pub(crate) async fn remove(docker: &Docker, artifact: &Artifact) -> Result<(), Status> {
    if artifact.kind == Kind::Plain || artifact.kind == Kind::Cnb {
        return Ok(());
    }
    let removed = docker.remove_image(
        &artifact.image,
        None::<bollard::query_parameters::RemoveImageOptions>,
        None,
    );
    match removed.await {
        Ok(_) => Ok(()),
        Err(error) if engine::is_unknown(&error) => Ok(()),
        Err(error) => Err(Status::failed_precondition(format!(
            "failed to remove an image: {}",
            errors::chain(&error)
        ))),
    }
}
