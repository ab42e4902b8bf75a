//! Building a release: its stack and its slug, made ready to be mounted.

use hsup_driver_kit::{Status, proto::Release, serve::Peer, service::BuildLog};
use hsup_slug::{Fetch, Owner, SlugId};

use super::{Libcontainer, as_peer};
use crate::{
    answers::{Told, slug_status, stack_status},
    artifact::Artifact,
};

impl Libcontainer {
    /// Builds a release; the name of what it became.
    pub(super) async fn build_release(
        &self,
        peer: Peer,
        release: Release,
        log: &BuildLog,
    ) -> Result<String, Status> {
        if release.slug_url.is_empty() && !release.image.is_empty() {
            return Err(Status::failed_precondition(
                "the libcontainer driver runs slugs on stacks, no images; the docker driver does",
            ));
        }
        let name = match release.stack.as_str() {
            "" => self.only_stack().await?,
            name => name.to_owned(),
        };
        let stack = self.stacks().resolve(&name, &Told(log)).await;
        let stack = stack.map_err(stack_status)?;
        let slug = self.slug(peer, &release, log).await?;
        // An image that cannot be mounted is found out now.
        self.mounted(&stack)?;
        let artifact = Artifact {
            stack: stack.name.as_str().to_owned(),
            version: stack.version.as_str().to_owned(),
            slug,
        };
        Ok(artifact.to_string())
    }

    /// The stack of a release that names none, as that of a Procfile: there must be no choice.
    async fn only_stack(&self) -> Result<String, Status> {
        let names = self.stacks().names().await.map_err(stack_status)?;
        match names.as_slice() {
            [name] => Ok(name.to_string()),
            [] => Err(Status::failed_precondition(
                "the release names no stack, and none is here; \
                 `hsup-driver-libcontainer stack import IMAGE` brings one from a Docker engine",
            )),
            _ => {
                let names: Vec<_> = names.iter().map(ToString::to_string).collect();
                Err(Status::failed_precondition(format!(
                    "the release names no stack, and there are several: {}",
                    names.join(", ")
                )))
            }
        }
    }

    async fn slug(
        &self,
        peer: Peer,
        release: &Release,
        log: &BuildLog,
    ) -> Result<Option<SlugId>, Status> {
        if release.slug_url.is_empty() {
            return Ok(None);
        }
        let checksum = match release.slug_checksum.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|error: hsup_slug::BadId| {
                Status::invalid_argument(format!("release.slug_checksum is wrong: {error}"))
            })?),
        };
        let owner =
            Owner::new(peer.uid.as_raw(), &release.app).map_err(|error| slug_status(&error))?;
        let fetch = Fetch::new(release.slug_url.clone(), checksum, as_peer(peer));
        let id = self.slugs().add(&fetch, &owner, &Told(log)).await;
        let id = id.map_err(|error| slug_status(&error))?;
        Ok(Some(id))
    }
}
