//! A dyno's `/etc/passwd` and `/etc/group`: the stack's own, with the user `dyno` in them.
//!
//! The stack's files are read within its root: an image whose `etc/passwd` is a link to
//! somewhere else gets the file of that name inside, or none, never the host's.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::Mode,
};
use thiserror::Error;

/// More than any stack has of it.
const LONGEST: u64 = 1 << 20;

/// The texts of both files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accounts {
    pub passwd: String,
    pub group: String,
}

/// A stack's files could not be read.
#[derive(Debug, Error)]
#[error("failed to read the stack's /{file}")]
pub struct AccountsError {
    file: &'static str,
    source: io::Error,
}

/// Whether a stack has the shell that command lines are written for.
pub fn has_bash(root: &Path) -> bool {
    open_within(root, "bin/bash", OFlag::O_PATH).is_ok()
}

/// The accounts of a dyno that runs as `uid` and `gid` in the root file system `root`.
pub fn accounts(root: &Path, uid: u32, gid: u32) -> Result<Accounts, AccountsError> {
    let read = |file| read(root, file).map_err(|source| AccountsError { file, source });
    let shell = if has_bash(root) {
        "/bin/bash"
    } else {
        "/bin/sh"
    };
    let passwd = read("etc/passwd")?;
    let group = read("etc/group")?;
    Ok(Accounts {
        passwd: with(
            passwd
                .as_deref()
                .unwrap_or("root:x:0:0:root:/root:/bin/sh\n"),
            uid,
            &format!("dyno:x:{uid}:{gid}:dyno:/app:{shell}"),
        ),
        group: with(
            group.as_deref().unwrap_or("root:x:0:\n"),
            gid,
            &format!("dyno:x:{gid}:"),
        ),
    })
}

/// The lines without those that have the name `dyno` or the number, and `line`.
pub(super) fn with(text: &str, number: u32, line: &str) -> String {
    let is_other = |line: &&str| {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        let id = fields
            .nth(1)
            .and_then(|field| field.trim().parse::<u32>().ok());
        !line.is_empty() && name != "dyno" && id != Some(number)
    };
    let mut lines: Vec<_> = text.lines().filter(is_other).collect();
    lines.push(line);
    lines.join("\n") + "\n"
}

fn open_within(root: &Path, file: &str, flags: OFlag) -> nix::Result<File> {
    let root = open(
        root,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(&root, file, how).map(File::from)
}

/// A file's text; `None` if there is none.
fn read(root: &Path, file: &str) -> io::Result<Option<String>> {
    // A pipe in its place must not block, a terminal not become ours.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let opened = match open_within(root, file, flags) {
        Err(Errno::ENOENT) => return Ok(None),
        opened => opened?,
    };
    let metadata = opened.metadata()?;
    if !metadata.is_file() || metadata.len() > LONGEST {
        return Err(io::Error::other(format!(
            "it is not a file of at most {LONGEST} bytes"
        )));
    }
    let mut bytes = Vec::new();
    opened.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn write(path: &Path, text: &str) {
        use io::Write as _;
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    #[test]
    fn the_dyno_is_added_and_has_its_number_alone() {
        let root = tempfile::tempdir().unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/bash\ndyno:x:5:5::/:/bin/sh\n\
                      heroku:x:3000:3000::/home:/bin/sh\nlast:x:1:1::/:/bin/sh";
        write(&root.path().join("etc/passwd"), passwd);
        write(
            &root.path().join("etc/group"),
            "root:x:0:\nheroku:x:3000:a,b\n",
        );
        write(&root.path().join("bin/bash"), "");
        let found = accounts(root.path(), 3000, 3000).unwrap();
        assert_eq!(
            found.passwd,
            "root:x:0:0:root:/root:/bin/bash\nlast:x:1:1::/:/bin/sh\n\
             dyno:x:3000:3000:dyno:/app:/bin/bash\n"
        );
        assert_eq!(found.group, "root:x:0:\ndyno:x:3000:\n");
    }

    #[test]
    fn a_stack_without_any_has_root_and_the_dyno() {
        let root = tempfile::tempdir().unwrap();
        let found = accounts(root.path(), 7, 8).unwrap();
        assert_eq!(
            found.passwd,
            "root:x:0:0:root:/root:/bin/sh\ndyno:x:7:8:dyno:/app:/bin/sh\n"
        );
        assert_eq!(found.group, "root:x:0:\ndyno:x:8:\n");
    }

    #[test]
    fn links_stay_in_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        write(&secret, "outside:x:9:9::/:/bin/sh\n");
        fs::create_dir(root.path().join("etc")).unwrap();
        symlink(&secret, root.path().join("etc/passwd")).unwrap();
        symlink("../../../inside", root.path().join("etc/group")).unwrap();
        write(&root.path().join("inside"), "inside:x:9:\n");
        let found = accounts(root.path(), 7, 8).unwrap();
        assert!(!found.passwd.contains("outside"), "{}", found.passwd);
        assert_eq!(found.group, "inside:x:9:\ndyno:x:8:\n");
    }

    #[test]
    fn what_is_no_file_is_an_error_and_does_not_block() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let fifo = root.path().join("etc/passwd");
        nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600)).unwrap();
        let error = accounts(root.path(), 7, 8).unwrap_err();
        assert_eq!(error.to_string(), "failed to read the stack's /etc/passwd");
    }
}
