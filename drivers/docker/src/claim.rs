//! Whether a Start's caller may have its image.

use bollard::Docker;
use hsup_driver_kit::{Status, proto::StartRequest};

use crate::{
    artifact::Artifact,
    images::{self, Claim, ImageError},
    runtime::DockerDriver,
};

/// A release, and the artifact that its user's dynos are started from.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claimed {
    pub(crate) uid: u32,
    pub(crate) app: String,
    pub(crate) release: u64,
    pub(crate) artifact: String,
}

impl DockerDriver {
    /// Asks whose the image of a slug is, once for each release.
    pub(crate) async fn claim(
        &self,
        docker: &Docker,
        uid: u32,
        request: &StartRequest,
        artifact: &Artifact,
    ) -> Result<Claim, Status> {
        let claimed = Claimed {
            uid,
            app: request.app.clone(),
            release: request.release,
            artifact: request.artifact.clone(),
        };
        if self.claims().has(&claimed) {
            return Ok(Claim::Good);
        }
        let release = (request.app.as_str(), request.release);
        let claim = images::claim(docker, uid, &artifact.image, release).await;
        let claim = claim.map_err(|error| match error {
            // As that of any other call of a Start: one that passes is no reason to give up.
            ImageError::Engine { source, .. } => self.failed("look for an image", &source),
            error => Status::from(error),
        })?;
        if claim == Claim::Good {
            self.claims().add(claimed);
        }
        Ok(claim)
    }
}
