//! A JSON file of the state directory: read once, and written whole with every change.
//!
//! A file that could not be written is behind what is in memory, and stays so until a later
//! save of the same file works: whoever owns it asks for that ([`JsonFile::is_behind`]).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

use super::Damage;
use crate::files::write_atomic;

/// A file of the state directory could not be written.
#[derive(Debug, Error)]
#[error("failed to save `{}`", .path.display())]
pub struct SaveError {
    path: PathBuf,
    source: io::Error,
    is_repeated: bool,
}

impl SaveError {
    /// Whether the save before this one failed as well, so that nobody needs to be told again.
    pub const fn is_repeated(&self) -> bool {
        self.is_repeated
    }
}

/// A file of the state directory could not be read.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error("failed to read `{}`", .path.display())]
    Read { path: PathBuf, source: io::Error },

    #[error("failed to set the damaged file `{}` aside", .path.display())]
    SetAside { path: PathBuf, source: io::Error },
}

/// See the module.
#[derive(Debug)]
pub(super) struct JsonFile {
    path: PathBuf,
    is_behind: bool,
}

impl JsonFile {
    /// Reads the file; one that is missing is the default, one that makes no sense is renamed
    /// and then the default.
    pub(super) fn load<T: Default + DeserializeOwned>(
        path: PathBuf,
    ) -> Result<(Self, T, Option<Damage>), LoadError> {
        let (value, damage) = load(&path)?;
        let file = Self {
            path,
            is_behind: false,
        };
        Ok((file, value, damage))
    }

    /// Whether what was to be saved last is not in the file.
    pub(super) const fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Replaces what is in the file.
    pub(super) fn save<T: Serialize>(&mut self, value: &T) -> Result<(), SaveError> {
        let result = serde_json::to_vec(value)
            .map_err(io::Error::from)
            .and_then(|mut text| {
                text.push(b'\n');
                write_atomic(&self.path, &text)
            });
        let was_behind = std::mem::replace(&mut self.is_behind, result.is_err());
        result.map_err(|source| SaveError {
            path: self.path.clone(),
            source,
            is_repeated: was_behind,
        })
    }
}

fn load<T: Default + DeserializeOwned>(path: &Path) -> Result<(T, Option<Damage>), LoadError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((T::default(), None)),
        Err(source) => {
            return Err(LoadError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let error = match serde_json::from_slice(&bytes) {
        Ok(value) => return Ok((value, None)),
        Err(error) => error,
    };
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    fs::rename(path, &aside).map_err(|source| LoadError::SetAside {
        path: path.to_owned(),
        source,
    })?;
    // The text of the error could show a value of the file; where it is does not.
    let damage = Damage(format!(
        "`{}` made no sense at line {}, column {}, and is now `{}`; starting without it",
        path.display(),
        error.line(),
        error.column(),
        Path::new(&aside).display(),
    ));
    Ok((T::default(), Some(damage)))
}
