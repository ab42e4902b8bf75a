//! From the API's answers to a release: pure, and where bad ones are refused.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Url;
use thiserror::Error;

use super::{error::ApiError, model};
use crate::{
    formation::MAX_QUANTITY,
    name::{ProcessType, check_app_name},
    ports,
    release::{AppMetadata, ConfigVars, Process, Release, Slug, slug_checksum},
    source::excerpt,
};

/// The scheme of a slug that the API knows by its id.
const SCHEME: &str = "heroku://";
/// Where images are whose repository has no host.
const REGISTRY: &str = "registry.heroku.com";

/// A release that cannot be run. Other ones can, so that what runs goes on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UnusableReleaseError {
    /// Nothing was deployed, or something that is no slug.
    #[error(
        "v{version} ({description}) has no slug: nothing was deployed to it yet, or it runs images \
         of the container stack, which the API does not give out (its stack is `{stack}`)"
    )]
    NoSlug {
        /// The release.
        version: u64,
        /// What it changed.
        description: String,
        /// The app's stack.
        stack: String,
    },
    /// Heroku has the release, and not all that belongs to it.
    #[error("v{version} is not whole on Heroku")]
    Missing {
        /// The release.
        version: u64,
        /// What is not there.
        source: ApiError,
    },
    /// Heroku has the release, and does not say all that belongs to it.
    #[error("v{version} cannot be read on Heroku for now")]
    Unread {
        /// The release.
        version: u64,
        /// What is not said.
        source: ApiError,
    },
    /// It was deployed too long ago.
    #[error("the slug of v{version} was deleted on Heroku")]
    Deleted {
        /// The release.
        version: u64,
    },
    /// No archive has no bytes.
    #[error("the slug of v{version} is empty: Heroku says that it has 0 bytes")]
    Empty {
        /// The release.
        version: u64,
    },
    /// The checksum is not one that hsup can check.
    #[error("the slug of v{version} has a checksum that is not `SHA256:` and 64 digits")]
    Checksum {
        /// The release.
        version: u64,
    },
    /// The image cannot be named.
    #[error("the OCI image of v{version} has no repository or no digest")]
    Image {
        /// The release.
        version: u64,
    },
    /// A process type that should run has no command.
    #[error("the process type `{process_type}` of v{version} has no command, and should run")]
    NoCommand {
        /// The release.
        version: u64,
        /// Which.
        process_type: String,
    },
    /// A process type has a name or a quantity that none can have.
    #[error("the process type `{process_type}` of v{version} is wrong: {problem}")]
    Process {
        /// The release.
        version: u64,
        /// Which.
        process_type: String,
        /// What is wrong.
        problem: String,
    },
}

impl UnusableReleaseError {
    /// Whether it may be as it should later, without anybody changing the app.
    pub(super) const fn may_pass(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Unread { .. })
    }

    /// Whether what is wrong is an answer, and not the release.
    pub(super) const fn is_unread(&self) -> bool {
        matches!(self, Self::Unread { .. })
    }
}

/// What was fetched of a release, all of it.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) app: model::App,
    pub(super) release: model::Release,
    pub(super) config: model::ConfigVars,
    pub(super) formation: Vec<model::Formation>,
    pub(super) content: Content,
}

/// What a release runs.
#[derive(Debug)]
pub(super) enum Content {
    Slug(model::Slug),
    Image(model::OciImage),
    Nothing,
}

/// The release that `parts` of the app `asked` for make, and what is odd about it.
pub(super) fn assemble(
    asked: &str,
    parts: Parts,
) -> Result<(Release, Vec<String>), UnusableReleaseError> {
    let Parts {
        app,
        release,
        config,
        formation,
        content,
    } = parts;
    let version = release.version;
    let mut warnings = Vec::new();
    let mut metadata = AppMetadata {
        app_id: app.id,
        app_name: app.name.clone(),
        app_default_domain: host(&app.web_url),
        release_id: release.id,
        release_version: version,
        release_created_at: release.created_at,
        release_description: release.description,
        ..AppMetadata::default()
    };
    let (slug, checksum, image, stack, commands) = match content {
        Content::Slug(slug) => {
            refuse_bad_slug(&slug, version)?;
            let location = Slug::new(format!("{SCHEME}{asked}/slugs/{}", slug.id));
            let checksum = slug.checksum.as_deref().map(slug_checksum);
            let checksum = match checksum {
                Some(None) => return Err(UnusableReleaseError::Checksum { version }),
                Some(checksum) => checksum,
                None => None,
            };
            metadata.slug_id = slug.id;
            metadata.slug_commit = slug.commit;
            metadata.slug_description = slug.commit_description;
            let commands = slug.process_types.into_iter();
            let commands = commands.map(|(name, line)| (name, line.unwrap_or_default()));
            (
                Some(location),
                checksum,
                None,
                slug.stack,
                commands.collect(),
            )
        }
        Content::Image(image) => {
            let reference = image_reference(&image, version)?;
            metadata.slug_id = image.id;
            metadata.slug_commit = image.commit;
            metadata.slug_description = image.commit_description;
            let commands = image.process_types.into_iter();
            let commands = commands.map(|(name, process)| (name, process.command));
            (None, None, Some(reference), image.stack, commands.collect())
        }
        Content::Nothing => {
            return Err(UnusableReleaseError::NoSlug {
                version,
                description: excerpt(&metadata.release_description),
                stack: app.stack.name,
            });
        }
    };
    let processes = processes(version, &formation, commands, &mut warnings)?;
    if processes.is_empty() {
        warnings.push(format!(
            "v{version} has no process types: there is nothing to start"
        ));
    }
    let name = if check_app_name(&app.name).is_ok() {
        app.name
    } else {
        asked.to_owned()
    };
    let stack = if stack.name.is_empty() {
        app.stack.name
    } else {
        stack.name
    };
    let release = Release {
        app: name,
        version,
        config: config_vars(config, &mut warnings),
        slug,
        slug_checksum: checksum,
        stack,
        image,
        processes,
        metadata: Some(Box::new(metadata)),
        ..Release::default()
    };
    Ok((release, warnings))
}

/// The host of an app's own URL; empty where it has none.
fn host(web_url: &str) -> String {
    let url = Url::parse(web_url).ok();
    let host = url.as_ref().and_then(Url::host_str);
    host.unwrap_or_default().to_owned()
}

/// The id of a slug that [`assemble`] has named.
pub(super) fn slug_id(slug: &Slug) -> Option<&str> {
    let (_, id) = slug.expose().strip_prefix(SCHEME)?.split_once("/slugs/")?;
    Some(id)
}

fn refuse_bad_slug(slug: &model::Slug, version: u64) -> Result<(), UnusableReleaseError> {
    if slug.deleted_at.is_some() {
        return Err(UnusableReleaseError::Deleted { version });
    }
    if slug.size == Some(0) {
        return Err(UnusableReleaseError::Empty { version });
    }
    Ok(())
}

/// The image by its digest. Its repository is in Heroku's registry unless it names another one.
fn image_reference(image: &model::OciImage, version: u64) -> Result<String, UnusableReleaseError> {
    if image.deleted_at.is_some() {
        return Err(UnusableReleaseError::Deleted { version });
    }
    let (repository, digest) = (&image.image_repo, &image.digest);
    if repository.is_empty() || digest.is_empty() {
        return Err(UnusableReleaseError::Image { version });
    }
    let has_host = repository
        .split_once('/')
        .is_some_and(|(first, _)| first.contains(['.', ':']) || first == "localhost");
    Ok(if has_host {
        format!("{repository}@{digest}")
    } else {
        format!("{REGISTRY}/{repository}@{digest}")
    })
}

/// The process types of the formation, and those that only the slug has, with none running.
///
/// What the slug says that a type runs counts before what the formation says: the slug is the
/// release's, and the formation may be the next one's already.
fn processes(
    version: u64,
    formation: &[model::Formation],
    mut commands: BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) -> Result<Vec<Process>, UnusableReleaseError> {
    let mut processes: Vec<Process> = Vec::new();
    let mut seen = BTreeSet::new();
    for entry in formation {
        let own = commands
            .remove(&entry.process_type)
            .filter(|line| !line.trim().is_empty());
        let command = own.unwrap_or_else(|| entry.command.clone());
        if !seen.insert(&entry.process_type) {
            continue;
        }
        processes.extend(process(
            version,
            &entry.process_type,
            command,
            entry.quantity,
            warnings,
        )?);
    }
    for (name, command) in commands {
        if !seen.contains(&name) {
            processes.extend(process(version, &name, command, 0, warnings)?);
        }
    }
    Ok(processes)
}

/// One process type; none if it is wrong, but should not run anyhow.
fn process(
    version: u64,
    name: &str,
    command: String,
    quantity: i64,
    warnings: &mut Vec<String>,
) -> Result<Option<Process>, UnusableReleaseError> {
    let wrong = |problem| UnusableReleaseError::Process {
        version,
        process_type: excerpt(name),
        problem,
    };
    let process_type: ProcessType = match name.parse() {
        Ok(process_type) => process_type,
        Err(error) if quantity == 0 => {
            warnings.push(format!("v{version}: {error}"));
            return Ok(None);
        }
        Err(error) => return Err(wrong(format!("{error}"))),
    };
    let quantity = quantity_of(quantity).ok_or_else(|| {
        wrong(format!(
            "a quantity is 0 to {MAX_QUANTITY}, and Heroku says {quantity}"
        ))
    })?;
    if process_type.is_release() && quantity > 0 {
        warnings.push(format!(
            "v{version}: `release` is the command of the release phase and gets no dyno"
        ));
    }
    if command.trim().is_empty() || command.contains('\0') {
        if quantity > 0 && !process_type.is_release() {
            return Err(UnusableReleaseError::NoCommand {
                version,
                process_type: name.to_owned(),
            });
        }
        return Ok(None);
    }
    Ok(Some(Process::new(process_type, command, quantity)))
}

/// A quantity of the API, if any process type can have it.
pub(super) fn quantity_of(quantity: i64) -> Option<u32> {
    u32::try_from(quantity)
        .ok()
        .filter(|quantity| *quantity <= MAX_QUANTITY)
}

fn config_vars(config: model::ConfigVars, warnings: &mut Vec<String>) -> ConfigVars {
    let mut vars = ConfigVars::default();
    for (name, value) in config {
        let Some(value) = value else { continue };
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            let name = excerpt(&name);
            warnings.push(format!(
                "the config var `{name}` cannot be one of a process: left out"
            ));
        } else if name == "PORT" && ports::parse(&value).is_none() {
            // Heroku gives every dyno a port of its own, and so nobody has noticed there.
            warnings.push("the config var `PORT` is no port: left out".to_owned());
        } else {
            vars.insert(name, value);
        }
    }
    vars
}

#[cfg(test)]
mod tests;
