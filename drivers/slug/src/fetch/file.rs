//! A `file://` slug, in a process that is the caller's.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _, Write as _},
    os::{fd::OwnedFd, unix::ffi::OsStringExt as _},
    path::{Path, PathBuf},
};

use nix::sys::stat::{SFlag, fstat};

use super::too_big;
use crate::{
    error::SlugError,
    pack::{self, PackError},
    walk::{self, kind},
    wire::{Event, Report},
};

/// Copies the file.
pub(super) fn copy(
    path: &[u8],
    uid: u32,
    most: u64,
    mut out: File,
    report: &Report,
) -> Result<(), SlugError> {
    let path = path_of(path);
    let (fd, size) = open(&path, uid, SFlag::S_IFREG, "it is no regular file")?;
    if size > most {
        return Err(too_big(most));
    }
    report.send(&Event::Total(size));
    let mut file = File::from(fd);
    let mut buffer = vec![0; 256 * 1024];
    let mut done = 0;
    loop {
        let read = match file.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(&path, uid, &error)),
        };
        if read == 0 {
            break;
        }
        done += read as u64;
        // It grows while we read it, maybe without an end.
        if done > most {
            return Err(too_big(most));
        }
        out.write_all(&buffer[..read]).map_err(|e| unwanted(&e))?;
    }
    Ok(())
}

/// Packs the directory.
pub(super) fn pack(path: &[u8], uid: u32, out: File, report: &Report) -> Result<(), SlugError> {
    let path = path_of(path);
    let (fd, _) = open(&path, uid, SFlag::S_IFDIR, "it is no directory")?;
    let out = io::BufWriter::with_capacity(256 * 1024, out);
    pack::pack(fd, out, report).map_err(|error| match error {
        PackError::Read(at, source) => failed(&path.join(at), uid, &source),
        PackError::Write(source) => unwanted(&source),
    })
}

fn path_of(path: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(path.to_vec()))
}

fn open(path: &Path, uid: u32, wanted: SFlag, else_: &str) -> Result<(OwnedFd, u64), SlugError> {
    let fd = walk::open(path).map_err(|errno| failed(path, uid, &errno.into()))?;
    let stat = fstat(&fd).map_err(|errno| failed(path, uid, &errno.into()))?;
    if kind(&stat) != wanted {
        let cause = if kind(&stat) == SFlag::S_IFDIR {
            "it is a directory, whose URL ends in a slash"
        } else {
            else_
        };
        return Err(failed(path, uid, &io::Error::other(cause)));
    }
    Ok((fd, u64::try_from(stat.st_size).unwrap_or(0)))
}

fn failed(path: &Path, uid: u32, error: &io::Error) -> SlugError {
    SlugError::File {
        path: path.to_owned(),
        uid,
        missing: error.kind() == io::ErrorKind::NotFound,
        cause: error.to_string(),
    }
}

/// Nobody reads what we write: the front has given up, and will not read this either.
fn unwanted(error: &io::Error) -> SlugError {
    SlugError::Helper {
        task: super::TASK.to_owned(),
        cause: error.to_string(),
    }
}
