//! The release that `run` runs in: the app's directory, what a control directory has, or what is
//! deployed on Heroku.

use std::{path::Path, sync::Arc};

use thiserror::Error;

use crate::{
    environment::Base,
    locate::SlugLocator,
    paths::{AppKey, Paths, PathsError},
    release::Release,
    source::{
        ControlDir, LoadDirectoryError, SourceSpec, Update,
        control_dir::{OpenControlDirError, ReadLoadedError, read_loaded},
        directory, heroku,
    },
    state::{OpenStateError, StateDir},
};

/// There is no release to run in.
#[derive(Debug, Error)]
pub enum LoadReleaseError {
    /// The app's directory.
    #[error(transparent)]
    Directory(#[from] LoadDirectoryError),
    /// The app on Heroku.
    #[error(transparent)]
    Heroku(#[from] heroku::LoadHerokuError),
    /// The control directory.
    #[error(transparent)]
    ControlDir(#[from] OpenControlDirError),
    /// Its file.
    #[error(transparent)]
    Loaded(#[from] ReadLoadedError),
    /// No place for files.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] OpenStateError),
    /// What is in the directory is no release.
    #[error("{0}")]
    Rejected(String),
    /// There is nothing yet.
    #[error(
        "the control directory `{directory}` has no release yet: write one to `{directory}/new`"
    )]
    Nothing {
        /// The directory.
        directory: String,
    },
}

/// A release, and what its dynos' environment is built on.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) release: Release,
    pub(super) base: Base,
    /// Who knows where its slug is, if it does not say.
    pub(super) locator: Option<Arc<dyn SlugLocator>>,
}

/// Loads the release of `source`. A control directory's `new` is taken in only where no
/// `start` lives that would do so, and so would miss it.
pub(super) async fn load(
    source: &SourceSpec,
    state_dir: Option<&Path>,
) -> Result<Loaded, LoadReleaseError> {
    match source {
        SourceSpec::Directory(path) => {
            let path = path.canonicalize().unwrap_or_else(|_| path.clone());
            let (release, _) = directory::load(&path)?;
            Ok(Loaded {
                release,
                base: Base::Inherited,
                locator: None,
            })
        }
        SourceSpec::ControlDir(path) => {
            let mut release = from_control_dir(path, state_dir).await?;
            if release.app.is_empty() {
                release.app = directory::app_name(path);
            }
            Ok(Loaded {
                release,
                base: Base::Login,
                locator: None,
            })
        }
        SourceSpec::Heroku(app) => {
            let loaded = heroku::load(app).await?;
            for warning in &loaded.warnings {
                tracing::warn!(warning, "release of Heroku");
            }
            Ok(Loaded {
                release: loaded.release,
                base: Base::Login,
                locator: Some(loaded.locator),
            })
        }
    }
}

async fn from_control_dir(
    path: &Path,
    state_dir: Option<&Path>,
) -> Result<Release, LoadReleaseError> {
    let nothing = || LoadReleaseError::Nothing {
        directory: path.display().to_string(),
    };
    let mut control = ControlDir::open(path)?;
    let state = match state_dir {
        Some(path) => path.to_owned(),
        None => Paths::from_env().state_dir(&AppKey::directory(control.path()))?,
    };
    let beside_another = || {
        let loaded = read_loaded(path)?;
        loaded.map(|file| file.release).ok_or_else(nothing)
    };
    let _alone = match StateDir::open(&state) {
        Ok(state) => state,
        Err(OpenStateError::InUse { .. }) => return beside_another(),
        Err(error) => return Err(error.into()),
    };
    match control.claim() {
        Ok(()) => {}
        // With its state elsewhere.
        Err(OpenControlDirError::InUse { .. }) => return beside_another(),
        Err(error) => return Err(error.into()),
    }
    if !path.join("new").exists() && !path.join("loaded").exists() {
        return Err(nothing());
    }
    loop {
        match control.next().await {
            Update::Release(loaded) => return Ok(loaded.release),
            Update::Rejected { reason: why } | Update::Empty { why, .. } => {
                return Err(LoadReleaseError::Rejected(why));
            }
            // Which a control directory has none of.
            Update::Late { .. } | Update::Scaled(_) => {}
            Update::Warning(text) => tracing::warn!(text, "control directory"),
        }
    }
}
