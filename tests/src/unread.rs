//! What dynos have written and nobody has read yet: a look that takes nothing out.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, SpliceFFlags, tee},
};

/// As much as a FIFO holds, and a pipe.
const MOST: usize = 64 * 1024;

/// What waits in the standard output of each dyno, by its id, of all supervisors that have their
/// folders below `runtime`, their `XDG_RUNTIME_DIR`.
///
/// # Errors
/// When a FIFO cannot be looked into.
pub fn by_dyno(runtime: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut unread = BTreeMap::new();
    for supervisor in entries(&runtime.join("hsup/run")) {
        for folder in entries(&supervisor.path().join("io")) {
            match look_into(&folder.path().join("stdout")) {
                // It went just now, or is about to be made.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                text => {
                    let id = folder.file_name().to_string_lossy().into_owned();
                    unread.insert(id, String::from_utf8_lossy(&text?).into_owned());
                }
            }
        }
    }
    Ok(unread)
}

fn entries(folder: &Path) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(folder).into_iter().flatten().flatten()
}

/// What is in a FIFO, and stays there.
fn look_into(fifo: &Path) -> io::Result<Vec<u8>> {
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let fifo = options.open(fifo)?;
    let (mut copy, into) = io::pipe()?;
    match tee(&fifo, &into, MOST, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Ok(_) | Err(Errno::EAGAIN) => {}
        Err(errno) => return Err(errno.into()),
    }
    drop(into);
    let mut found = Vec::new();
    copy.read_to_end(&mut found)?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn who_looks_takes_nothing_out() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("hsup/run/one/io/web-1-a");
        fs::create_dir_all(&folder).unwrap();
        assert!(by_dyno(dir.path()).unwrap().is_empty());
        let path = folder.join("stdout");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let unread = || by_dyno(dir.path()).unwrap()["web-1-a"].clone();
        assert_eq!(unread(), "");
        let mut options = OpenOptions::new();
        let mut dyno = options.read(true).write(true).open(&path).unwrap();
        for line in ["one\n", "two\n"] {
            dyno.write_all(line.as_bytes()).unwrap();
        }
        for _ in 0..2 {
            assert_eq!(unread(), "one\ntwo\n");
        }
    }
}
