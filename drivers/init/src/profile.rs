//! The scripts that prepare a dyno's environment, and the one shell that reads them and then
//! becomes the command.
//!
//! The order is Heroku's: `/etc/profile.d/*.sh`, `/app/.profile.d/*.sh`, `/app/.profile`. They
//! are read at the shell's top level, as by a login shell, because what `declare -x` says within
//! a function is gone after it. The command waits where no script's `set --` or `shift` can
//! reach it.

use std::{
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use crate::sys;

const DIRECTORIES: [&str; 2] = ["/etc/profile.d", "/app/.profile.d"];
const LAST: &str = "/app/.profile";

/// The shell that a stack has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shell {
    Bash,
    Sh,
}

impl Shell {
    pub(crate) fn find() -> Option<Self> {
        let all = [Self::Bash, Self::Sh];
        all.into_iter().find(|shell| sys::may_execute(shell.path()))
    }

    pub(crate) fn path(self) -> &'static std::ffi::CStr {
        match self {
            Self::Bash => c"/bin/bash",
            Self::Sh => c"/bin/sh",
        }
    }

    /// What the shell is told with `-c`; the command is its arguments.
    ///
    /// `.` is a special builtin, whose failure would end any shell but bash; `command` makes it
    /// an ordinary one. These shells have no `declare`, but no arrays either: the function keeps
    /// the command's words from the scripts.
    pub(crate) fn script(self, scripts: &[PathBuf]) -> Vec<u8> {
        let (begin, read, end): (&str, &str, &str) = match self {
            Self::Bash => (
                "hsup_init_command=(\"$@\")\nset --\n",
                ".",
                "set -- \"${hsup_init_command[@]}\"\nunset hsup_init_command\n\
                 case $1 in */*) ;; *) type -P -- \"$1\" >/dev/null ||\n\
                 { printf 'hsup-init: %s: command not found\\n' \"$1\" >&2; exit 127; } ;; esac\n\
                 exec -- \"$@\"\n",
            ),
            Self::Sh => (
                "hsup_init_profile() {\n",
                "command .",
                "}\nhsup_init_profile\nunset -f hsup_init_profile\n\
                 case $1 in */*) ;; *) command -v -- \"$1\" >/dev/null ||\n\
                 { printf 'hsup-init: %s: command not found\\n' \"$1\" >&2; exit 127; } ;; esac\n\
                 exec \"$@\"\n",
            ),
        };
        let mut text = begin.as_bytes().to_vec();
        for script in scripts {
            text.extend_from_slice(read.as_bytes());
            text.push(b' ');
            quote(script, &mut text);
            text.push(b'\n');
        }
        text.extend_from_slice(end.as_bytes());
        text
    }
}

/// Writes a path so that a shell takes it for one word.
fn quote(path: &Path, text: &mut Vec<u8>) {
    text.push(b'\'');
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'\'' => text.extend_from_slice(br"'\''"),
            _ => text.push(*byte),
        }
    }
    text.push(b'\'');
}

/// The scripts there are, in the order in which they are read.
pub(crate) fn scripts() -> Vec<PathBuf> {
    let mut scripts = Vec::new();
    for directory in DIRECTORIES {
        let Ok(entries) = fs::read_dir(directory) else {
            continue;
        };
        let mut found: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| is_named_as_script(path))
            .collect();
        found.sort();
        scripts.append(&mut found);
    }
    scripts.push(PathBuf::from(LAST));
    // As `[ -r … ]` has it in every stack's /etc/profile.
    scripts.retain(|path| path.is_file() && fs::File::open(path).is_ok());
    scripts
}

/// What `*.sh` matches.
fn is_named_as_script(path: &Path) -> bool {
    let name = path.file_name().map_or(&[][..], |name| name.as_bytes());
    name.ends_with(b".sh") && !name.starts_with(b".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_has_a_name_that_a_glob_matches() {
        for name in ["a.sh", "a b.sh", "1.sh.sh"] {
            assert!(is_named_as_script(&Path::new("/x").join(name)), "{name}");
        }
        for name in ["a", "a.bash", ".sh", ".a.sh", "a.sh~"] {
            assert!(!is_named_as_script(&Path::new("/x").join(name)), "{name}");
        }
    }

    #[test]
    fn a_path_is_one_word_whatever_is_in_it() {
        let mut text = Vec::new();
        quote(Path::new("/a b/$(x)'\"\\"), &mut text);
        assert_eq!(text, br#"'/a b/$(x)'\''"\'"#);
    }
}
