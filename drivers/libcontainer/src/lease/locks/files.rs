//! The files that leases are: one for each uid and each subnet, with its owner in it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use super::{CURSOR, LeaseError, SUBNETS, Subnet, UIDS, failed};

/// The lock that is held while leases change.
#[derive(Debug)]
pub(super) struct Guard(File);

impl Guard {
    pub(super) fn take(work_dir: &Path) -> Result<Self, LeaseError> {
        let path = work_dir.join(UIDS).join(CURSOR);
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        let file = opened.map_err(|source| failed("open", path.clone(), source))?;
        file.lock().map_err(|source| failed("lock", path, source))?;
        Ok(Self(file))
    }

    /// The uid that was given last, as far as that is known.
    pub(super) fn last_given(&self) -> Option<u32> {
        let mut text = [0; 16];
        let length = self.0.read_at(&mut text, 0).ok()?;
        str::from_utf8(&text[..length]).ok()?.trim().parse().ok()
    }

    /// Notes that `uid` was given. Only the order in which uids are tried depends on it, so
    /// a full disk does not matter.
    pub(super) fn give(&self, uid: u32) {
        // As wide as a uid can be, so that nothing of a longer one is left.
        let _written = self.0.write_all_at(format!("{uid:>10}\n").as_bytes(), 0);
    }
}

pub(super) fn uid_path(work_dir: &Path, uid: u32) -> PathBuf {
    work_dir.join(UIDS).join(uid.to_string())
}

pub(super) fn subnet_path(work_dir: &Path, subnet: Subnet) -> PathBuf {
    work_dir.join(SUBNETS).join(subnet.network().to_string())
}

/// Makes the lock file for `owner`, unless there is one.
pub(super) fn lock(path: &Path, owner: &Path) -> Result<bool, LeaseError> {
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let mut file = match made {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(source) => return Err(failed("make", path.to_owned(), source)),
    };
    if let Err(source) = file.write_all(owner.as_os_str().as_bytes()) {
        let _best_effort = fs::remove_file(path);
        return Err(failed("write", path.to_owned(), source));
    }
    Ok(true)
}

/// Who has the lock; nothing if there is no such file.
pub(super) fn owner_of(path: &Path) -> Result<Option<PathBuf>, LeaseError> {
    let mut owner = Vec::new();
    let read = File::open(path).and_then(|mut file| file.read_to_end(&mut owner));
    match read {
        Ok(_) => Ok(Some(PathBuf::from(std::ffi::OsStr::from_bytes(&owner)))),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", path.to_owned(), source)),
    }
}

pub(super) fn remove_if_owned(path: &Path, owner: &Path) -> Result<(), LeaseError> {
    if owner_of(path)?.as_deref() == Some(owner) {
        remove(path)?;
    }
    Ok(())
}

/// Whether there is no such owner any more, or never was one.
pub(super) fn has_gone(owner: &Path) -> bool {
    if owner.as_os_str().is_empty() {
        return true;
    }
    // Any other error says nothing about the dyno, so it keeps what it has.
    fs::symlink_metadata(owner).is_err_and(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
    })
}

pub(super) fn remove(path: &Path) -> Result<(), LeaseError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", path.to_owned(), source))
        }
        _ => Ok(()),
    }
}

/// Whether any subnet of this kind is leased. Ends at the first: a sweep asks it.
pub(super) fn leased(
    work_dir: &Path,
    is_meant: impl Fn(Subnet) -> bool,
) -> Result<bool, LeaseError> {
    let path = work_dir.join(SUBNETS);
    let entries = fs::read_dir(&path).map_err(|source| failed("list", path.clone(), source))?;
    for entry in entries {
        let entry = entry.map_err(|source| failed("list", path.clone(), source))?;
        let name = entry.file_name();
        let subnet = name
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(Subnet::at);
        if subnet.is_some_and(&is_meant) {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn files(directory: &Path) -> Result<Vec<(PathBuf, String)>, LeaseError> {
    let failed = |source| failed("list", directory.to_owned(), source);
    fs::read_dir(directory)
        .map_err(failed)?
        .map(|entry| {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            Ok((entry.path(), name))
        })
        .collect()
}

/// Every uid that a process has now. By the status, since the directory of a process that
/// can't be traced is root's whoever it is.
pub(super) fn users_of_processes() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut uids: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok())
        .flat_map(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
            line.unwrap_or_default()
                .split_whitespace()
                .filter_map(|uid| uid.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect();
    uids.sort_unstable();
    uids.dedup();
    uids
}
