//! A container in which an image is made: what is put into it becomes one layer.
//!
//! It is never started. Putting an archive into it and committing it writes everything twice. The
//! engine's builder with a COPY would write it three times, and need room of ours.

use std::time::Duration;

use bollard::{
    Docker,
    models::{ContainerConfig, ContainerCreateBody},
    query_parameters::{
        CommitContainerOptionsBuilder, CreateContainerOptions, UploadToContainerOptionsBuilder,
    },
};
use bytes::Bytes;
use futures_util::Stream;

use super::{
    error::{Fault, ImageError, fault},
    workshops::{Name, Workshops},
};
use crate::{download, engine, remove};

/// How long the engine may take for one call: a slug is downloaded meanwhile.
const LONGEST: Duration = Duration::from_hours(3);
/// How long it may take to remove one, before that is tried again.
const REMOVAL: Duration = Duration::from_secs(20);
/// Larger than any file that is read here.
const LONGEST_FILE: usize = 4 << 20;

/// A container in which an image is made. It goes when dropped.
#[derive(Debug)]
pub(super) struct Workshop {
    engine: Docker,
    image: String,
    /// None once it is removed.
    id: Option<String>,
    /// None once it is on its way out.
    name: Option<Name>,
}

impl Workshop {
    /// On top of an image.
    pub(super) async fn open(
        engine: &Docker,
        workshops: &Workshops,
        image: &str,
    ) -> Result<Self, ImageError> {
        let name = workshops.name();
        let engine = engine.clone().with_timeout(LONGEST);
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            // It is not run, but an image without a command makes no container.
            cmd: Some(vec!["hsup".to_owned()]),
            entrypoint: Some(Vec::new()),
            labels: Some(name.labels()),
            ..ContainerCreateBody::default()
        };
        let made = engine.create_container(None::<CreateContainerOptions>, body);
        let made = match made.await {
            Ok(made) => made,
            Err(error) => {
                drop(name);
                if engine::code(&error).is_none() {
                    // It may be made, and the answer lost.
                    workshops.sweep_later(engine.with_timeout(REMOVAL));
                }
                return Err(ImageError::engine("make a container of", image)(error));
            }
        };
        Ok(Self {
            engine,
            image: image.to_owned(),
            id: Some(made.id),
            name: Some(name),
        })
    }

    fn id(&self) -> &str {
        self.id.as_deref().unwrap_or_default()
    }

    /// The text of a file; empty if there is none, or something else of that name.
    pub(super) async fn read(&self, path: &'static str) -> Result<String, ImageError> {
        let archive = download::archive_of(&self.engine, self.id(), path, LONGEST_FILE).await;
        let archive = match archive {
            Err(error) if fault(&error) == Fault::Missing => return Ok(String::new()),
            archive => archive.map_err(ImageError::engine("read", path))?,
        };
        let bytes = download::first_file(&archive).map_err(|source| ImageError::File {
            image: self.image.clone(),
            path,
            source,
        })?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Puts in what an archive holds, as it comes.
    pub(super) async fn put(
        &self,
        archive: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<(), ImageError> {
        let options = UploadToContainerOptionsBuilder::new().path("/").build();
        let body = bollard::body_stream(archive);
        let put = self
            .engine
            .upload_to_container(self.id(), Some(options), body);
        let failed = ImageError::engine("put the files of the dyno on", &self.image);
        put.await.map_err(failed)
    }

    /// Makes the image `repository:tag`, and gives its id.
    pub(super) async fn commit(
        &self,
        repository: &str,
        tag: &str,
        config: ContainerConfig,
    ) -> Result<String, ImageError> {
        let options = CommitContainerOptionsBuilder::new()
            .container(self.id())
            .repo(repository)
            .tag(tag)
            .changes(&changes(&config))
            .pause(false)
            .build();
        let made = self.engine.commit_container(options, config).await;
        let made = made.map_err(ImageError::engine("make the image", repository))?;
        // Podman leaves out what kind of digest it is.
        Ok(match made.id.strip_prefix("sha256:") {
            Some(_) => made.id,
            None => format!("sha256:{}", made.id),
        })
    }

    /// Leaves nothing of it, if the engine does not fail; else that is tried again.
    pub(super) async fn close(mut self) -> Result<(), ImageError> {
        let removed = remove::remove(&self.engine, self.id()).await;
        removed.map_err(ImageError::engine("remove the container", self.id()))?;
        self.id = None;
        Ok(())
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let name = self.name.take();
        let engine = self.engine.clone().with_timeout(REMOVAL);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                remove::until_removed(|| std::future::ready(engine.clone()), &id).await;
                drop(name);
            });
        }
    }
}

/// What an image is found again by, as instructions: Podman takes nothing else. They have no way
/// to say every value that it may have, and one that they cannot say is left out.
fn changes(config: &ContainerConfig) -> String {
    let is_plain = |value: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
        !value.is_empty() && value.bytes().all(plain)
    };
    let labels = config.labels.iter().flatten();
    let labels = labels.filter(|(_, value)| is_plain(value));
    let labels = labels.map(|(name, value)| format!("LABEL {name}={value}"));
    let user = config.user.iter().map(|user| format!("USER {user}"));
    let mut changes: Vec<_> = labels.chain(user).collect();
    changes.sort();
    changes.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_never_more_than_one() {
        let labels = [
            ("a", "app-1"),
            ("b", "x\nUSER root"),
            ("c", "$HOME"),
            ("d", ""),
        ];
        let config = ContainerConfig {
            user: Some("1000:1000".to_owned()),
            labels: Some(
                labels
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
            ),
            ..ContainerConfig::default()
        };
        assert_eq!(changes(&config), "LABEL a=app-1\nUSER 1000:1000");
    }
}
