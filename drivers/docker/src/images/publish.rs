//! Images in a registry, through which they come to the nodes of a Swarm.

use bollard::{
    Docker,
    auth::DockerCredentials,
    models::PushImageInfo,
    query_parameters::{
        PushImageOptionsBuilder, RemoveImageOptionsBuilder, TagImageOptionsBuilder,
    },
};
use futures_util::{StreamExt as _, TryFutureExt as _};
use hsup_driver_kit::{errors, hex, proto::Release, service::BuildLog};
use sha2::{Digest as _, Sha256};

use super::{
    collect::{self, Collection, Needs, Tag},
    error::ImageError,
    find, labels, reference,
    repository::Repository,
    settings::Settings,
    told::{Listener, Pushed},
};
use crate::artifact::{Artifact, Kind};

const STEP: &str = "push image";

/// Whose images a registry is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    /// What tells the driver's machine from others.
    pub(crate) machine: &'a [u8],
    /// Whose Build it is.
    pub(crate) uid: u32,
    /// What the driver is called among others, which may be there for a single command.
    pub(crate) driver: &'a str,
}

impl Owner<'_> {
    /// The repository of an app, in a registry: another machine's, or user's, app of the same name has
    /// another one.
    fn repository(&self, name: &str, app: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(self.machine);
        hash.update(format!(" {} {app}", self.uid));
        format!("{name}-{}", hex::encode(&hash.finalize()[..8]))
    }

    /// Whether an image, `REPOSITORY@DIGEST`, is of this app of the owner's, whatever the registry.
    pub(crate) fn has(&self, image: &str, app: &str) -> bool {
        let (name, _) = labels::name(app, 0);
        let (repository, _) = image.split_once('@').unwrap_or_default();
        repository.ends_with(&format!("/{}", self.repository(&name, app)))
    }
}

/// Whether a Build for a Swarm can be begun: before anything is fetched and made for nobody.
pub(crate) fn publishable(registry: Option<&str>, release: &Release) -> Result<(), ImageError> {
    match registry {
        None if release.image.is_empty() => Err(ImageError::NoRegistry),
        _ => Ok(()),
    }
}

/// Brings an image that was built, or found, into a registry, and gives it by the name that it has
/// there on every node: its repository and its digest.
pub(crate) async fn publish(
    engine: &Docker,
    settings: &Settings,
    registry: Option<&str>,
    owner: Owner<'_>,
    release: &Release,
    built: Artifact,
    log: &BuildLog,
) -> Result<Artifact, ImageError> {
    let listener: &dyn Listener = log;
    if !matches!(built.kind, Kind::Slug { .. }) {
        match pinned(engine, &release.image, &built).await? {
            Some(image) => return Ok(Artifact { image, ..built }),
            None if registry.is_none() => return Err(ImageError::OnlyHere(release.image.clone())),
            None => {}
        }
    }
    let registry = registry.ok_or(ImageError::NoRegistry)?;
    let (name, _) = labels::name(&release.app, release.version);
    let tag = Tag::new(release.version, owner.driver).to_string();
    let repository = format!("{registry}/{}", owner.repository(&name, &release.app));
    let login = settings.login(owner.uid, &repository).await;
    let asked = Repository::open(engine, &repository, login.as_ref()).and_then(async |asked| {
        let replaced = asked.digest(&tag).await?;
        Ok((asked, replaced))
    });
    let asked = asked.await;
    let digest = push(
        engine,
        &built.image,
        &repository,
        &tag,
        login.clone(),
        listener,
    )
    .await?;
    let needs = Needs {
        keep: settings.keep,
        driver: owner.driver,
        current: &digest,
    };
    let collected = match asked {
        Ok((asked, replaced)) => {
            collect::collect(&Collection {
                engine,
                repository: &asked,
                needs,
                replaced,
            })
            .await
        }
        Err(error) => Err(error.into()),
    };
    match collected {
        Ok(0) => {}
        Ok(removed) => tracing::info!(repository, removed, "releases removed from the registry"),
        // The image is there whatever became of others.
        Err(error) => {
            let error = errors::chain(&error);
            listener.line(&format!("old releases stay in the registry: {error}"));
        }
    }
    Ok(Artifact {
        image: format!("{repository}@{digest}"),
        kind: built.kind,
    })
}

/// The name of an image that came from a registry, by its digest there.
async fn pinned(
    engine: &Docker,
    name: &str,
    built: &Artifact,
) -> Result<Option<String>, ImageError> {
    if name.contains('@') {
        return Ok(Some(name.to_owned()));
    }
    let found = find::find(engine, &built.image).await?;
    let digests = found.and_then(|image| image.inspect.repo_digests);
    let (repository, _) = reference::to_pull(name);
    let is_its = |digest: &String| {
        let of = digest.split('@').next().unwrap_or_default();
        reference::familiar(of) == reference::familiar(repository)
    };
    Ok(digests.into_iter().flatten().find(is_its))
}

/// Pushes an image, and gives the digest that the registry knows it by.
async fn push(
    engine: &Docker,
    image: &str,
    repository: &str,
    tag: &str,
    login: Option<DockerCredentials>,
    listener: &dyn Listener,
) -> Result<String, ImageError> {
    let options = TagImageOptionsBuilder::new().repo(repository).tag(tag);
    let tagged = engine.tag_image(image, Some(options.build())).await;
    tagged.map_err(ImageError::engine("name the image", image))?;
    listener.line(&format!("pushing the image {repository}:{tag}"));
    let options = PushImageOptionsBuilder::new().tag(tag).build();
    let mut push = std::pin::pin!(engine.push_image(repository, Some(options), login));
    let mut pushed = Pushed::default();
    let mut digest = None;
    while let Some(said) = push.next().await {
        let said = match said {
            Ok(said) => said,
            Err(source) => {
                let image = format!("{repository}:{tag}");
                // A name that leads nowhere, as a wrong registry's, stays with nobody.
                let options = RemoveImageOptionsBuilder::new().noprune(true).build();
                drop(engine.remove_image(&image, Some(options), None).await);
                return Err(ImageError::Push { image, source });
            }
        };
        digest = digest_in(&said).or(digest);
        if let Some((done, total)) = pushed.hear(&said) {
            listener.progress(STEP, done, total);
        }
    }
    digest.ok_or_else(|| ImageError::NoDigest(format!("{repository}:{tag}")))
}

/// `v7: digest: sha256:HEX size: 528`, as the engine says at the end.
fn digest_in(said: &PushImageInfo) -> Option<String> {
    let (_, rest) = said.status.as_deref()?.split_once("digest: ")?;
    let digest = rest.split_whitespace().next()?;
    find::is_image_id(digest).then(|| digest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_has_one_repository_whatever_its_drivers() {
        let owner = |machine, uid, driver| Owner {
            machine,
            uid,
            driver,
        };
        let of = |owner: Owner<'_>, app| owner.repository("hsup/shop", app);
        let one = of(owner(b"m", 7, "a"), "shop");
        assert!(one.starts_with("hsup/shop-"), "{one}");
        assert_eq!(one, of(owner(b"m", 7, "b"), "shop"));
        for other in [
            of(owner(b"n", 7, "a"), "shop"),
            of(owner(b"m", 8, "a"), "shop"),
            of(owner(b"m", 7, "a"), "Shop"),
        ] {
            assert_ne!(one, other);
        }
        let image = format!("10.0.0.1:5000/{one}@sha256:a5");
        assert!(owner(b"m", 7, "b").has(&image, "shop"));
        assert!(!owner(b"m", 8, "a").has(&image, "shop"));
        assert!(!owner(b"m", 7, "a").has(&image, "Shop"));
        assert!(!owner(b"m", 7, "a").has("sha256:a5", "shop"));
    }

    #[test]
    fn the_digest_is_what_the_engine_says_last() {
        let said = |status: &str| PushImageInfo {
            status: Some(status.to_owned()),
            ..PushImageInfo::default()
        };
        let digest = format!("sha256:{}", "a5".repeat(32));
        let last = said(&format!("v7: digest: {digest} size: 528"));
        assert_eq!(digest_in(&last), Some(digest));
        assert_eq!(digest_in(&said("Pushing")), None);
        assert_eq!(digest_in(&said("v7: digest: sha256:a5 size: 1")), None);
    }
}
