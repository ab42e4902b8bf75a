//! Whether a Start's caller may have its image.

use bollard::Docker;
use hsup_driver_kit::{Status, proto::StartRequest};

use crate::{
    artifact::Artifact,
    images::{self, Claim},
    runtime::DockerDriver,
};

impl DockerDriver {
    /// Asks whose the image of a slug is, once.
    pub(crate) async fn claim(
        &self,
        docker: &Docker,
        uid: u32,
        request: &StartRequest,
        artifact: &Artifact,
    ) -> Result<Claim, Status> {
        let key = (uid, request.artifact.clone());
        if self.claims().has(&key) {
            return Ok(Claim::Good);
        }
        let claim = images::claim(docker, uid, &artifact.image).await;
        let claim = claim.map_err(|error| {
            self.engine().suspect();
            Status::from(error)
        })?;
        if claim == Claim::Good {
            self.claims().add(key);
        }
        Ok(claim)
    }
}
