//! Becoming the command: through the profile scripts' shell if there are any, else directly, in
//! the same way in which a shell would.

use std::{
    env,
    ffi::{CStr, CString},
    fmt, fs,
    io::{self, Read as _},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::Path,
};

use crate::{
    profile::{self, Shell},
    sys,
};

/// The exit status of a command that is there and cannot be run, as a shell has it.
pub(crate) const CANNOT_RUN: u8 = 126;
/// The same of one that is not there.
const NOT_FOUND: u8 = 127;
/// Where a shell looks without a `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// How much of a file without a format is looked at, to tell text from a program.
const SAMPLE: usize = 128;

/// Why there is no command. The text names it.
#[derive(Debug)]
pub(crate) enum Failure {
    NotFound(CString),
    Missing(CString),
    CannotRun { path: CString, source: io::Error },
}

impl Failure {
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::NotFound(_) | Self::Missing(_) => NOT_FOUND,
            Self::CannotRun { .. } => CANNOT_RUN,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(name) => write!(f, "{}: command not found", name.to_string_lossy()),
            Self::Missing(path) => {
                write!(f, "{}: no such file or directory", path.to_string_lossy())
            }
            Self::CannotRun { path, source } => {
                write!(f, "{}: cannot be run: {source}", path.to_string_lossy())
            }
        }
    }
}

impl std::error::Error for Failure {}

/// Replaces this process; comes back only if it cannot.
pub(crate) fn run(words: &[CString]) -> Failure {
    let scripts = profile::scripts();
    if scripts.is_empty() {
        return execute(words);
    }
    let Some(shell) = Shell::find() else {
        sys::complain(
            "hsup-init",
            &"profile scripts are not read: there is no shell",
        );
        return execute(words);
    };
    let Ok(script) = CString::new(shell.script(&scripts)) else {
        return execute(words);
    };
    let mut all = vec![shell.path().to_owned(), c"-c".to_owned(), script];
    // The shell's messages have this name.
    all.push(c"hsup-init".to_owned());
    all.extend_from_slice(words);
    Failure::CannotRun {
        path: shell.path().to_owned(),
        source: sys::execute(shell.path(), &all),
    }
}

/// Executes the command as `execvp` does, and says what is wrong as a shell does.
pub(crate) fn execute(words: &[CString]) -> Failure {
    let Some(name) = words.first() else {
        return Failure::NotFound(CString::default());
    };
    if name.as_bytes().contains(&b'/') {
        return execute_file(name, words);
    }
    let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut refused = None;
    for directory in env::split_paths(&path).filter(|_| !name.is_empty()) {
        let candidate = directory.join(Path::new(std::ffi::OsStr::from_bytes(name.as_bytes())));
        let Ok(candidate) = CString::new(candidate.into_os_string().into_vec()) else {
            continue;
        };
        match execute_file(&candidate, words) {
            // It may be further on.
            Failure::NotFound(_) | Failure::Missing(_) => {}
            Failure::CannotRun { source, .. } if source.kind() == io::ErrorKind::NotADirectory => {}
            // A folder that may not be looked into has no command, as far as anybody can tell.
            Failure::CannotRun { .. } if fs::symlink_metadata(path_of(&candidate)).is_err() => {}
            // Another may be further on, and if not, then this is what is wrong.
            failure @ Failure::CannotRun { .. } => {
                let _ = refused.get_or_insert(failure);
            }
        }
    }
    refused.unwrap_or_else(|| Failure::NotFound(name.clone()))
}

fn execute_file(path: &CStr, words: &[CString]) -> Failure {
    let error = sys::execute(path, words);
    let place = path_of(path);
    let source = match error.raw_os_error() {
        // The file, or what its first line or its ELF header names.
        Some(libc::ENOENT) if fs::symlink_metadata(place).is_err() => {
            return Failure::Missing(path.to_owned());
        }
        Some(libc::ENOENT) => sys::failed("its interpreter is missing", &error),
        Some(libc::EACCES) if place.is_dir() => io::Error::from(io::ErrorKind::IsADirectory),
        // Every shell takes a text without `#!` for a script of its own.
        Some(libc::ENOEXEC) if is_text(place) => {
            let Some(shell) = Shell::find() else {
                return Failure::CannotRun {
                    path: path.to_owned(),
                    source: sys::failed("there is no shell for it", &error),
                };
            };
            let mut all = vec![shell.path().to_owned(), path.to_owned()];
            all.extend_from_slice(words.get(1..).unwrap_or_default());
            sys::execute(shell.path(), &all)
        }
        _ => error,
    };
    Failure::CannotRun {
        path: path.to_owned(),
        source,
    }
}

fn path_of(path: &CStr) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()))
}

fn is_text(path: &Path) -> bool {
    let mut sample = [0; SAMPLE];
    let read = fs::File::open(path).and_then(|mut file| file.read(&mut sample));
    read.is_ok_and(|length| !sample[..length].contains(&0))
}
