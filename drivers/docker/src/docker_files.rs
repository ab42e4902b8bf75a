//! The files that the `docker` command has of its user: where they are, and how they are read.

use std::{io, path::PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;

/// The file with the current context and the logins.
pub(crate) const CONFIG: &str = "config.json";

/// A file cannot be used.
#[derive(Debug, Error)]
pub(crate) enum FileError {
    #[error("failed to read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` is not what Docker writes", path.display())]
    Parse {
        path: PathBuf,
        source: serde_json::Error,
    },
}

impl FileError {
    /// Whether there is no such file.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Their folder: `DOCKER_CONFIG`, else `.docker` of the home.
pub(crate) fn folder(variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let folder = |name: &str| Some(PathBuf::from(variable(name).filter(|at| !at.is_empty())?));
    folder("DOCKER_CONFIG").or_else(|| Some(folder("HOME")?.join(".docker")))
}

/// What is in a file, after it was `read`.
pub(crate) fn parse<T: DeserializeOwned>(
    path: PathBuf,
    read: io::Result<Vec<u8>>,
) -> Result<T, FileError> {
    match read.map(|bytes| serde_json::from_slice(&bytes)) {
        Ok(Ok(content)) => Ok(content),
        Ok(Err(source)) => Err(FileError::Parse { path, source }),
        Err(source) => Err(FileError::Read { path, source }),
    }
}
