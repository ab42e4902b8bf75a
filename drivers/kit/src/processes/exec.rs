//! Finding the program of a command, and what it means when it cannot be executed.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr},
    io,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::errno::Errno;

/// The shells' codes for a command that is not there, and for one that is no program.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;
/// Where to look when the environment has no PATH: as `execvp`(3) does.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// A command, ready for the kernel.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) program: CString,
    pub(super) argv: Vec<CString>,
    pub(super) env: Vec<CString>,
    pub(super) cwd: CString,
}

/// A command that comes to nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    NulByte,
    /// The shell's code for it, and why, for the dyno's own standard error.
    Cannot {
        code: i32,
        why: String,
    },
}

/// Looks `argv[0]` up in the PATH of `env`, from `cwd`.
pub(super) fn resolve(
    argv: &[String],
    env: &BTreeMap<String, String>,
    cwd: &Path,
) -> Result<Resolved, Refused> {
    let strings = |words: &mut dyn Iterator<Item = String>| {
        words
            .map(CString::new)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Refused::NulByte)
    };
    let argv0 = argv.first().map_or("", String::as_str);
    if !cwd.is_dir() {
        return Err(Refused::Cannot {
            code: NOT_EXECUTABLE,
            why: format!("{}: no such directory to run in\n", cwd.display()),
        });
    }
    let program = find(argv0, env.get("PATH").map(String::as_str), cwd)?;
    let path = |path: &OsStr| CString::new(path.as_bytes()).map_err(|_| Refused::NulByte);
    Ok(Resolved {
        program: path(program.as_os_str())?,
        argv: strings(&mut argv.iter().cloned())?,
        env: strings(&mut env.iter().map(|(name, value)| format!("{name}={value}")))?,
        cwd: path(cwd.as_os_str())?,
    })
}

fn find(argv0: &str, path: Option<&str>, cwd: &Path) -> Result<PathBuf, Refused> {
    let cannot = |code, why: &str| Refused::Cannot {
        code,
        why: format!("{argv0}: {why}\n"),
    };
    if argv0.contains('/') {
        return Ok(cwd.join(argv0));
    }
    let mut refused = cannot(NOT_FOUND, "command not found");
    if argv0.is_empty() {
        return Err(refused);
    }
    for folder in path.unwrap_or(DEFAULT_PATH).split(':') {
        // An empty entry means the working directory.
        let candidate = cwd.join(folder).join(argv0);
        match candidate.metadata() {
            Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => {
                return Ok(candidate);
            }
            Ok(_) => refused = cannot(NOT_EXECUTABLE, "permission denied"),
            Err(_) => {}
        }
    }
    Err(refused)
}

/// What an error of `execve` comes to, if it is the command's fault.
pub(super) fn refused(argv: &[String], error: &io::Error) -> Option<Refused> {
    let errno = Errno::from_raw(error.raw_os_error()?);
    let argv0 = argv.first().map_or("", String::as_str);
    Some(Refused::Cannot {
        code: code_of(errno)?,
        why: format!("{argv0}: {}\n", errno.desc()),
    })
}

/// The shell's code for it.
fn code_of(errno: Errno) -> Option<i32> {
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => Some(NOT_FOUND),
        Errno::EACCES
        | Errno::ENOEXEC
        | Errno::EPERM
        | Errno::EISDIR
        | Errno::ELOOP
        | Errno::ENAMETOOLONG
        | Errno::ETXTBSY
        | Errno::E2BIG
        | Errno::EINVAL
        | Errno::ELIBBAD => Some(NOT_EXECUTABLE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(path: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("PATH".to_owned(), path.to_owned())])
    }

    fn refused(argv0: &str, path: &str) -> i32 {
        match resolve(&[argv0.to_owned()], &env(path), Path::new("/")) {
            Err(Refused::Cannot { code, .. }) => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_path_is_the_dynos_own() {
        let sh = ["sh".to_owned()];
        let found = resolve(&sh, &env("/nowhere:/bin"), Path::new("/")).unwrap();
        assert_eq!(found.program.as_c_str(), c"/bin/sh");
        let relative = resolve(&sh, &env("bin"), Path::new("/")).unwrap();
        assert_eq!(relative.program.as_c_str(), c"/bin/sh");
        assert_eq!(refused("sh", "/nowhere"), NOT_FOUND);
        assert_eq!(refused("", "/bin"), NOT_FOUND);
    }

    #[test]
    fn a_file_that_is_no_program_is_found_and_refused() {
        assert_eq!(refused("passwd", "/etc"), NOT_EXECUTABLE);
    }

    #[test]
    fn a_nul_byte_goes_nowhere() {
        let argv = ["sh".to_owned(), "a\0b".to_owned()];
        let result = resolve(&argv, &env("/bin"), Path::new("/"));
        assert_eq!(result.unwrap_err(), Refused::NulByte);
    }
}
