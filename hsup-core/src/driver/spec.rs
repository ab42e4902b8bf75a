//! Which driver to use: one by name or path that hsup starts, or one that serves a socket already.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The drivers that come with hsup, by the name that `-d` takes.
const KNOWN: [&str; 3] = ["simple", "docker", "libcontainer"];

/// What the operator asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverSpec {
    /// `--driver-socket PATH`: somebody else runs it.
    Socket(PathBuf),
    /// `-d simple|docker|libcontainer|PATH`: hsup starts it as its child.
    Child(String),
}

/// A driver program, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The file to execute.
    pub program: PathBuf,
    /// Its `argv[0]`.
    pub argv0: OsString,
    /// Whether it takes a listening descriptor (the ones that come with hsup do), which
    /// spares both sides from polling for the socket.
    pub takes_listener: bool,
}

/// There is no such driver.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FindDriverError {
    /// The name is of a driver whose program is not there.
    #[error(
        "there is no `{program}` beside {beside} or on PATH: {way_out}, use `-d simple`, or name a \
         driver program with `-d PATH`"
    )]
    NotInstalled {
        /// As given.
        name: String,
        /// The program looked for.
        program: String,
        /// The folder of the hsup program.
        beside: String,
        /// What else there is to do.
        way_out: &'static str,
    },
    /// The name is not a driver's.
    #[error(
        "unknown driver `{0}`: use simple, docker, libcontainer, or the path of a driver program \
         (with a `/` in it)"
    )]
    Unknown(String),
    /// The original's fourth driver.
    #[error(
        "the abspath driver is gone: `-d docker` and `-d libcontainer` run slugs, `-d simple` runs \
         commands where hsup was started"
    )]
    Abspath,
    /// The path cannot be executed.
    #[error("the driver program `{}` {why}", path.display())]
    NotExecutable {
        /// As given.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Finds the program of the driver `name`, `own` being hsup's own program, which acts as the
/// simple driver itself.
///
/// # Errors
/// When there is no such driver, or its program is not there or cannot be executed.
pub fn find(name: &str, own: &Path) -> Result<Found, FindDriverError> {
    if name == "simple" {
        return Ok(Found {
            program: own.to_owned(),
            argv0: "hsup-driver-simple".into(),
            takes_listener: true,
        });
    }
    if name == "abspath" {
        return Err(FindDriverError::Abspath);
    }
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match not_executable(&path) {
            Some(why) => Err(FindDriverError::NotExecutable { path, why }),
            None => Ok(Found {
                argv0: path.clone().into_os_string(),
                program: path,
                takes_listener: false,
            }),
        };
    }
    if !KNOWN.contains(&name) {
        return Err(FindDriverError::Unknown(name.to_owned()));
    }
    let program = format!("hsup-driver-{name}");
    let beside = own.parent().unwrap_or(Path::new("/"));
    let path = env::var_os("PATH").unwrap_or_default();
    search(&program, beside, &path)
        .map(|found| Found {
            program: found,
            argv0: program.clone().into(),
            takes_listener: true,
        })
        .ok_or_else(|| FindDriverError::NotInstalled {
            name: name.to_owned(),
            program,
            beside: beside.display().to_string(),
            way_out: "build or install it (`cargo build --workspace` makes all drivers)",
        })
}

fn search(program: &str, beside: &Path, path: &OsStr) -> Option<PathBuf> {
    std::iter::once(beside.to_owned())
        .chain(env::split_paths(path))
        .map(|folder| folder.join(program))
        .find(|candidate| not_executable(candidate).is_none())
}

fn not_executable(path: &Path) -> Option<&'static str> {
    match path.metadata() {
        Err(_) => Some("does not exist or cannot be reached"),
        Ok(metadata) if !metadata.is_file() => Some("is not a file"),
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => Some("is not executable"),
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simple_is_hsup_itself() {
        let found = find("simple", Path::new("/opt/hsup")).unwrap();
        assert_eq!(found.program, Path::new("/opt/hsup"));
        assert_eq!(found.argv0, "hsup-driver-simple");
    }

    #[test]
    fn a_path_needs_a_slash_and_must_be_executable() {
        assert!(find("/bin/sh", Path::new("/opt/hsup")).is_ok());
        assert_eq!(
            find("/etc/passwd", Path::new("/opt/hsup")),
            Err(FindDriverError::NotExecutable {
                path: "/etc/passwd".into(),
                why: "is not executable"
            })
        );
        assert_eq!(
            find("sh", Path::new("/opt/hsup")),
            Err(FindDriverError::Unknown("sh".to_owned()))
        );
    }

    #[test]
    fn a_driver_that_is_not_installed_says_where_it_was_looked_for() {
        let error = find("docker", Path::new("/nowhere/hsup")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("hsup-driver-docker"), "{text}");
        assert!(text.contains("/nowhere"), "{text}");
        assert!(text.contains("cargo build --workspace"), "{text}");
    }

    #[test]
    fn abspath_names_its_replacement() {
        let error = find("abspath", Path::new("/opt/hsup")).unwrap_err();
        assert!(error.to_string().contains("-d simple"));
    }
}
