//! An app's own directory as a source: a `Procfile`, maybe a `.env`, and the app around them.
//!
//! The directory is its own slug (`file://DIR/`). It is read once: what runs is what was
//! there when hsup started, and a person who edits a Procfile starts hsup again.

use std::{
    future::pending,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{
    Loaded, Origin, Update,
    dotenv::{self, DotEnv, ParseDotEnvError},
    procfile::{self, ParseProcfileError},
};
use crate::{
    files::{Links, ReadFileError, read_regular},
    ports::{self, BasePortError},
    release::{Limits, Release, Slug, SlugPathError, file_url},
    releases::Newness,
};

/// The name of the file with the process types.
pub const PROCFILE: &str = "Procfile";
const DOT_ENV: &str = ".env";
const MAX_SIZE: u64 = 1 << 20;

/// An app's directory could not be read as a release.
#[derive(Debug, Error)]
pub enum LoadDirectoryError {
    /// The directory is not there.
    #[error("failed to find the directory `{}`", .path.display())]
    Find {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file could not be read.
    #[error("failed to read the app in `{}`", .directory.display())]
    Read {
        /// The directory.
        directory: PathBuf,
        /// Which file, and why.
        source: ReadFileError,
    },
    /// The Procfile is none.
    #[error("`{}` is not a Procfile", .path.display())]
    Procfile {
        /// The file.
        path: PathBuf,
        /// Why, with the line.
        source: ParseProcfileError,
    },
    /// The file with the config vars is none.
    #[error("`{}` cannot be read as config vars", .path.display())]
    DotEnv {
        /// The file.
        path: PathBuf,
        /// Why, with the line.
        source: ParseDotEnvError,
    },
    /// A config var that hsup itself goes by is wrong.
    #[error("`{}` has an invalid value", .path.display())]
    BasePort {
        /// The file.
        path: PathBuf,
        /// Which.
        source: BasePortError,
    },
    /// The directory's name cannot be told to a driver.
    #[error("failed to name the app in `{}` to a driver", .path.display())]
    Name {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: SlugPathError,
    },
}

/// An app's directory, as a source that yields once.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    loaded: Option<Box<Loaded>>,
}

impl Directory {
    /// Reads the app in `path`.
    ///
    /// # Errors
    /// When there is no Procfile, or a file of the app is wrong.
    pub fn open(path: &Path) -> Result<Self, LoadDirectoryError> {
        let path = path
            .canonicalize()
            .map_err(|source| LoadDirectoryError::Find {
                path: path.to_owned(),
                source,
            })?;
        let (release, warnings) = load(&path)?;
        let loaded = Some(Box::new(Loaded {
            release,
            warnings,
            origin: Origin::Procfile,
            newness: Newness::Kept,
            text: None,
        }));
        Ok(Self { path, loaded })
    }

    /// The directory, as a canonical path.
    pub const fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The release that is there to begin with, unless [`Directory::next`] has told it.
    pub fn release(&self) -> Option<&Release> {
        self.loaded.as_ref().map(|loaded| &loaded.release)
    }

    /// The release, and then nothing for ever. Cancel safe.
    pub async fn next(&mut self) -> Update {
        match self.loaded.take() {
            Some(loaded) => Update::Release(loaded),
            None => pending().await,
        }
    }
}

/// Reads the app in `directory`, an absolute path, once. The release is named after
/// the directory.
///
/// # Errors
/// When there is no Procfile, or a file of the app is wrong.
pub fn load(directory: &Path) -> Result<(Release, Vec<String>), LoadDirectoryError> {
    let read = |name: &str| {
        let path = directory.join(name);
        let text = read_regular(&path, Links::Follow, MAX_SIZE);
        (path, text)
    };
    let unreadable = |source| LoadDirectoryError::Read {
        directory: directory.to_owned(),
        source,
    };
    let mut warnings = Vec::new();

    let (path, text) = read(PROCFILE);
    let procfile = procfile::parse(&text.map_err(unreadable)?)
        .map_err(|source| LoadDirectoryError::Procfile { path, source })?;
    warnings.extend(procfile.warnings.iter().map(|w| format!("{PROCFILE}, {w}")));

    let (path, text) = read(DOT_ENV);
    let dot_env = match text {
        Ok(text) => dotenv::parse(&text).map_err(|source| LoadDirectoryError::DotEnv {
            path: path.clone(),
            source,
        })?,
        // A link to nothing is no app without config vars.
        Err(error) if error.is_not_found() && !path.is_symlink() => DotEnv::default(),
        Err(error) => return Err(unreadable(error)),
    };
    warnings.extend(dot_env.warnings.iter().map(|w| format!("{DOT_ENV}, {w}")));
    ports::base(&dot_env.config).map_err(|source| LoadDirectoryError::BasePort { path, source })?;

    let url = file_url(directory).map_err(|source| LoadDirectoryError::Name {
        path: directory.to_owned(),
        source,
    })?;
    let release = Release {
        app: app_name(directory),
        version: 1,
        config: dot_env.config,
        slug: Some(Slug::new(format!("{}/", url.trim_end_matches('/')))),
        slug_checksum: None,
        stack: String::new(),
        image: None,
        limits: Limits::default(),
        log_target: None,
        processes: procfile.processes,
        metadata: None,
    };
    Ok((release, warnings))
}

/// A name for the app in `directory`: the directory's own, in letters that any name may
/// have.
pub fn app_name(directory: &Path) -> String {
    let written = directory.file_name().unwrap_or_default().to_string_lossy();
    let name: String = written
        .chars()
        .map(|c| match c {
            'a'..='z' | '0'..='9' => c,
            'A'..='Z' => c.to_ascii_lowercase(),
            _ => '-',
        })
        .collect();
    let name: String = name.trim_matches('-').chars().take(63).collect();
    if name.is_empty() {
        "app".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use test_case::test_case;

    use super::*;
    use crate::{files::write_atomic, name::check_app_name};

    fn app(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            write_atomic(&dir.path().join(name), text.as_bytes()).unwrap();
        }
        dir
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_yields_itself_once() {
        let dir = app(&[("Procfile", "web: x\nweb: y\n"), (".env", "A=b\nA=c\n")]);
        let mut source = Directory::open(dir.path()).unwrap();
        let Update::Release(loaded) = source.next().await else {
            panic!("no release");
        };
        assert_eq!(loaded.origin.to_string(), "Procfile");
        assert_eq!(loaded.release.config.get("A"), Some("c"));
        assert_eq!(
            loaded.warnings,
            [
                "Procfile, line 2: another `web`: this one counts",
                ".env, line 2: another `A`: this one counts"
            ]
        );
        let slug = loaded.release.slug.unwrap();
        let path = dir.path().canonicalize().unwrap();
        assert_eq!(slug.expose(), format!("file://{}/", path.display()));
        let hour = std::time::Duration::from_hours(1);
        assert!(tokio::time::timeout(hour, source.next()).await.is_err());
    }

    #[test]
    fn an_error_names_the_file_and_its_cause_the_line() {
        let dir = app(&[("Procfile", "web\n")]);
        let error = Directory::open(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("/Procfile` is not a Procfile"));
        let cause = error.source().unwrap().to_string();
        assert!(cause.starts_with("line 1: `web` has no colon"), "{cause}");

        let dir = app(&[("Procfile", "web: x\n"), (".env", "PORT=hunter2")]);
        let error = Directory::open(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("/.env` has an invalid value"));
        assert!(!format!("{error:?}").contains("hunter2"));

        let dir = app(&[("Procfile", "web: x\n")]);
        std::os::unix::fs::symlink("nowhere", dir.path().join(".env")).unwrap();
        let error = Directory::open(dir.path()).unwrap_err();
        let cause = error.source().unwrap().to_string();
        assert!(cause.ends_with("/.env`"), "{cause}");

        let error = Directory::open(app(&[]).path()).unwrap_err();
        let cause = error.source().unwrap().to_string();
        assert!(cause.ends_with("/Procfile`"), "{cause}");
    }

    #[test_case("/srv/shop" => "shop")]
    #[test_case("/srv/My App_2" => "my-app-2")]
    #[test_case("/" => "app")]
    #[test_case("/srv/---" => "app")]
    #[test_case("/srv/été" => "t")]
    fn the_app_in(directory: &str) -> String {
        let name = app_name(Path::new(directory));
        assert_eq!(check_app_name(&name), Ok(()));
        name
    }
}
