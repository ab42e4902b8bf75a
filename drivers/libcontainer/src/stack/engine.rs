//! A stack out of a Docker engine's image: the root file system of a container that is made of
//! it, and never started.
//!
//! The engine exports that as an archive, which goes straight into the unpacker. The stack's
//! version is the beginning of the image's id, so the same image is imported once, and a newer
//! image of the same tag is another version.

use std::{
    error::Error,
    io::{self, Read},
    sync::Arc,
};

use bollard::{
    Docker,
    models::{ContainerCreateBody, ImageInspect},
    query_parameters::{
        CreateContainerOptions, CreateImageOptionsBuilder, RemoveContainerOptionsBuilder,
    },
};
use futures_util::{Stream, StreamExt as _};
use hsup_driver_kit::CancellationToken;
use thiserror::Error;
use tokio::sync::mpsc;

use super::{
    Event, Progress, Stack, StackError, Stacks,
    install::StopOnDrop,
    lock::FetchLock,
    name::{NameError, StackName, Version, joined},
};

/// How many pieces of the archive may wait to be unpacked.
const AHEAD: usize = 64;
/// How much of the archive comes between two reports.
const REPORT: u64 = 16 << 20;
/// How many digits of an image's id are a version: as many as Docker itself shows.
const DIGITS: usize = 12;

/// What an import brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    pub stack: Stack,
    /// Whether it was here before.
    pub was_here: bool,
}

/// A Docker engine did not do what it was asked.
#[derive(Debug, Error)]
pub enum EngineError {
    #[error("there is no Docker engine at {host}: is it running, and does DOCKER_HOST say where?")]
    Connect {
        host: String,
        source: bollard::errors::Error,
    },
    #[error("the engine failed to look at the image")]
    Inspect(#[source] bollard::errors::Error),
    #[error("the engine does not have the image, and failed to pull it")]
    Pull(#[source] bollard::errors::Error),
    #[error("the engine gave the image the id `{id}`, which is none")]
    Id { id: String },
    #[error("the image's name gives no name of a stack; give one with --as")]
    Name(#[source] NameError),
    #[error("the engine failed to make a container of the image")]
    Create(#[source] bollard::errors::Error),
    #[error("the engine failed to remove the container {id}; `docker rm {id}` does")]
    Remove {
        id: String,
        source: bollard::errors::Error,
    },
    #[error("it was called off")]
    CalledOff,
}

/// The name of the stack that an image is: `heroku/heroku:24` is `heroku-24`, `heroku/cedar:14`
/// is `cedar-14`, `debian` is `debian`.
fn derived(reference: &str) -> Result<StackName, NameError> {
    let (repository, tag) = repository_and_tag(reference);
    let last = repository.rsplit('/').next().unwrap_or_default();
    let text = match tag {
        None | Some("latest") => last.to_owned(),
        Some(tag) => format!("{last}-{tag}"),
    };
    let fitting = |character: char| match character.to_ascii_lowercase() {
        fits @ ('a'..='z' | '0'..='9' | '-' | '_' | '.') => fits,
        _ => '-',
    };
    text.chars().map(fitting).collect::<String>().parse()
}

/// Parts `host:port/owner/image:tag@digest`.
fn repository_and_tag(reference: &str) -> (&str, Option<&str>) {
    let named = reference.split('@').next().unwrap_or_default();
    match named.rsplit_once(':') {
        // A colon before the last slash is a port's.
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (named, None),
    }
}

/// The version of a stack that an image's id makes.
fn version(id: &str) -> Option<Version> {
    let digits = id.strip_prefix("sha256:").unwrap_or(id).get(..DIGITS)?;
    let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.parse().ok().filter(|_| is_hex)
}

impl Stacks {
    /// Imports an image from the Docker engine of `DOCKER_HOST`, which pulls it if need be, as
    /// the version that its stack's name then means on this machine.
    ///
    /// `until` calls it off: the engine is left without the container also then.
    pub async fn import(
        &self,
        reference: &str,
        name: Option<&str>,
        progress: &dyn Progress,
        until: &CancellationToken,
    ) -> Result<Import, StackError> {
        let failed = |source| StackError::Import {
            reference: reference.to_owned(),
            source,
        };
        let name = match name {
            Some(name) => name.parse()?,
            None => derived(reference).map_err(|error| failed(EngineError::Name(error)))?,
        };
        let called_off = || failed(EngineError::CalledOff);
        let docker = connect().await.map_err(failed)?;
        let image = until.run_until_cancelled(image(&docker, reference)).await;
        let image = image.ok_or_else(called_off)?.map_err(failed)?;
        let id = image.id.unwrap_or_default();
        let version = version(&id).ok_or_else(|| failed(EngineError::Id { id: id.clone() }))?;
        let stack = joined(&name, &version);
        let lock = until.run_until_cancelled(self.lock(&stack, progress)).await;
        let lock = Arc::new(lock.ok_or_else(called_off)??);
        let mut was_here = true;
        if self.disk.stack(&name, &version)?.is_none() {
            was_here = false;
            let container = Container::create(docker, &id).await.map_err(failed)?;
            let archive = container.docker.export_container(&container.id);
            let unpacked = self.unpack(&stack, reference, archive, Arc::clone(&lock), progress);
            let result = until.run_until_cancelled(unpacked).await;
            let removed = container.remove().await.map_err(failed);
            result.ok_or_else(called_off)??;
            removed?;
        }
        let primary = self.disk.set_primary(&name, &version);
        primary.map_err(|source| StackError::Open {
            path: self.disk.primary_folder(),
            source,
        })?;
        let there = self.disk.stack(&name, &version)?;
        let stack = there.ok_or(StackError::Gone { stack })?;
        Ok(Import { stack, was_here })
    }

    /// Unpacks an archive as it comes.
    async fn unpack(
        &self,
        stack: &str,
        from: &str,
        archive: impl Stream<Item = Result<impl AsRef<[u8]> + Send + 'static, bollard::errors::Error>>,
        lock: Arc<FetchLock>,
        progress: &dyn Progress,
    ) -> Result<(), StackError> {
        let places = self.disk.places(stack);
        let (pieces, comes) = mpsc::channel(AHEAD);
        let stop = StopOnDrop::default();
        let stopped = stop.0.clone();
        let thread = tokio::task::spawn_blocking(move || {
            let result = places.unpack(Pieces::new(comes), &stopped);
            // Until here, whoever still waits for it.
            drop(lock);
            result
        });
        let mut archive = std::pin::pin!(archive);
        let (mut done, mut reported) = (0, 0);
        while let Some(piece) = archive.next().await {
            let length = piece.as_ref().map_or(0, |piece| piece.as_ref().len());
            let piece = piece
                .map_err(|error| io::Error::other(Box::<dyn Error + Send + Sync>::from(error)));
            if pieces.send(piece).await.is_err() {
                // The unpacker has ended, and says why.
                break;
            }
            done += length as u64;
            if done >= reported + REPORT {
                reported = done;
                progress.report(Event::Fetching { done, total: None });
            }
        }
        drop(pieces);
        progress.report(Event::Installing { stack });
        let result = thread.await.map_err(StackError::Thread)?;
        result.map_err(|source| StackError::Install {
            stack: stack.to_owned(),
            from: from.to_owned(),
            source,
        })
    }
}

/// Connects, in a version of the API that the engine has.
async fn connect() -> Result<Docker, EngineError> {
    let failed = |source| EngineError::Connect {
        host: std::env::var("DOCKER_HOST").unwrap_or_else(|_| "/var/run/docker.sock".to_owned()),
        source,
    };
    let docker = Docker::connect_with_defaults().map_err(failed)?;
    docker.negotiate_version().await.map_err(failed)
}

/// Finds the image, which is pulled if the engine does not have it.
async fn image(docker: &Docker, reference: &str) -> Result<ImageInspect, EngineError> {
    match docker.inspect_image(reference).await {
        Err(error) if is_unknown(&error) => {}
        found => return found.map_err(EngineError::Inspect),
    }
    let (repository, tag) = repository_and_tag(reference);
    let options = match reference.split_once('@') {
        Some(_) => CreateImageOptionsBuilder::new().from_image(reference),
        // Without a tag the engine would pull all that there are.
        None => CreateImageOptionsBuilder::new()
            .from_image(repository)
            .tag(tag.unwrap_or("latest")),
    };
    let mut pull = std::pin::pin!(docker.create_image(Some(options.build()), None, None));
    while let Some(step) = pull.next().await {
        step.map_err(EngineError::Pull)?;
    }
    let found = docker.inspect_image(reference).await;
    found.map_err(EngineError::Inspect)
}

fn is_unknown(error: &bollard::errors::Error) -> bool {
    use bollard::errors::Error::DockerResponseServerError;
    matches!(
        error,
        DockerResponseServerError {
            status_code: 404,
            ..
        }
    )
}

/// A container that is there to be exported.
struct Container {
    docker: Docker,
    id: String,
}

impl Container {
    async fn create(docker: Docker, image: &str) -> Result<Self, EngineError> {
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            // It is not run, but an image without a command makes no container.
            cmd: Some(vec!["/bin/true".to_owned()]),
            // Should we be killed, this says to a person why it is there.
            labels: Some([("hsup.stack-import".to_owned(), String::new())].into()),
            ..ContainerCreateBody::default()
        };
        let made = docker
            .create_container(None::<CreateContainerOptions>, body)
            .await;
        let id = made.map_err(EngineError::Create)?.id;
        Ok(Self { docker, id })
    }

    async fn remove(self) -> Result<(), EngineError> {
        // With the volumes that the image declares.
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true);
        let removed = self
            .docker
            .remove_container(&self.id, Some(options.build()));
        removed.await.map_err(|source| EngineError::Remove {
            id: self.id,
            source,
        })
    }
}

/// An archive that comes in pieces from another task.
struct Pieces<B> {
    comes: mpsc::Receiver<io::Result<B>>,
    piece: Option<B>,
    read: usize,
}

impl<B: AsRef<[u8]>> Pieces<B> {
    const fn new(comes: mpsc::Receiver<io::Result<B>>) -> Self {
        Self {
            comes,
            piece: None,
            read: 0,
        }
    }
}

impl<B: AsRef<[u8]>> Read for Pieces<B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let rest = self
                .piece
                .as_ref()
                .map_or(&[][..], |piece| &piece.as_ref()[self.read..]);
            if !rest.is_empty() {
                let length = rest.len().min(buffer.len());
                buffer[..length].copy_from_slice(&rest[..length]);
                self.read += length;
                return Ok(length);
            }
            match self.comes.blocking_recv() {
                Some(piece) => {
                    self.piece = Some(piece?);
                    self.read = 0;
                }
                None => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
