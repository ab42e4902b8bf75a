//! Making a release startable: the driver's Build.

use std::{path::Path, time::Duration};

use hsup_proto::driver::{self, BuildRequest, build_response::Event};
use thiserror::Error;
use tokio::time::timeout;

use crate::{
    driver::Up,
    dyno::said,
    release::{Release, SlugPathError},
};

/// A driver that builds says something at least this often (driver protocol §9).
const SILENCE: Duration = Duration::from_secs(30);
/// And is through within this.
const BUILD_WITHIN: Duration = Duration::from_mins(15);

/// The release could not be made startable.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The driver refused or failed.
    #[error("the driver could not build it: {0}")]
    Driver(String),
    /// The driver fell silent.
    #[error("the driver has built for {0:.0?} without a word")]
    Silent(Duration),
    /// It took too long.
    #[error("the build was not through after {0:.0?}")]
    TooLong(Duration),
    /// The stream ended before the artifact.
    #[error("the driver ended the build without an artifact")]
    NoArtifact,
}

/// What a driver says while it builds.
#[derive(Debug)]
pub enum Saying {
    /// A piece of its log.
    Log(Vec<u8>),
    /// How far it is.
    Progress(driver::Progress),
}

/// The Build request of `release`. Config vars are no part of it: they build nothing.
pub fn request(release: &Release, base: &Path) -> Result<BuildRequest, SlugPathError> {
    let slug_url = match &release.slug {
        Some(slug) => slug.url(base)?,
        None => String::new(),
    };
    Ok(BuildRequest {
        release: Some(driver::Release {
            app: release.app.clone(),
            version: release.version,
            stack: release.stack.clone(),
            slug_url,
            slug_checksum: release.slug_checksum.clone().unwrap_or_default(),
            image: release.image.clone().unwrap_or_default(),
            config: std::collections::BTreeMap::new(),
        }),
        options: std::collections::BTreeMap::new(),
    })
}

/// Has the driver build; answers the artifact.
pub async fn build(
    up: &Up,
    request: BuildRequest,
    mut said_so: impl FnMut(Saying),
) -> Result<String, BuildError> {
    let work = async {
        let mut stream = up
            .client()
            .build(request)
            .await
            .map_err(|status| BuildError::Driver(said(&status)))?
            .into_inner();
        let mut artifact = None;
        loop {
            let message = timeout(SILENCE, stream.message())
                .await
                .map_err(|_| BuildError::Silent(SILENCE))?
                .map_err(|status| BuildError::Driver(said(&status)))?;
            match message.map(|message| message.event) {
                None => return artifact.ok_or(BuildError::NoArtifact),
                Some(Some(Event::Artifact(id))) => artifact = Some(id),
                Some(Some(Event::Log(bytes))) => said_so(Saying::Log(bytes)),
                Some(Some(Event::Progress(progress))) => said_so(Saying::Progress(progress)),
                Some(None) => {}
            }
        }
    };
    timeout(BUILD_WITHIN, work)
        .await
        .unwrap_or(Err(BuildError::TooLong(BUILD_WITHIN)))
}
