//! The folder of stacks: what is where, what is whole, and what was left half made.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{
    Image, Places, Stack, StackError, image,
    install::{remove, tag},
    lock::{self, FetchLock},
    manifest::Checksum,
    name::{StackName, Version, joined, parted},
};

/// How long the beginning of a download is kept for a driver that goes on with it.
const KEPT: Duration = Duration::from_hours(7 * 24);

/// A stack that is here, as it is shown to a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: StackName,
    pub version: Version,
    /// `directory`, `ext4` or `squashfs`, or what is wrong with it.
    pub format: &'static str,
    /// What it takes on the disk.
    pub bytes: u64,
    /// Whether it was imported last, and so goes before all others of its name.
    pub primary: bool,
}

/// The folder of stacks.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    folder: PathBuf,
}

impl Disk {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn manifest(&self) -> PathBuf {
        self.folder.join("manifest.yml")
    }

    pub(super) fn fetch_folder(&self) -> PathBuf {
        self.folder.join(".fetch")
    }

    pub(super) fn primary_folder(&self) -> PathBuf {
        self.folder.join(".primary")
    }

    /// Where the beginning of a download is.
    pub(super) fn part(&self, stack: &str, checksum: Option<Checksum>) -> PathBuf {
        let tag = checksum.map_or_else(|| "unverified".to_owned(), tag);
        self.fetch_folder().join(format!("{stack}.{tag}.part"))
    }

    pub(super) fn places(&self, stack: &str) -> Places {
        Places {
            new: self.fetch_folder().join(format!("{stack}.new")),
            directory: self.folder.join(stack),
            image: self.folder.join(format!("{stack}.img")),
        }
    }

    /// A version of a stack, if it is here.
    pub(super) fn stack(
        &self,
        name: &StackName,
        version: &Version,
    ) -> Result<Option<Stack>, StackError> {
        let places = self.places(&joined(name, version));
        let image = if places.directory.is_dir() {
            Image::Directory(places.directory)
        } else {
            let path = places.image;
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(StackError::Look { path, source }),
            };
            match image::probe(&file) {
                Ok(filesystem) => Image::File { path, filesystem },
                Err(source) => return Err(StackError::Image { path, source }),
            }
        };
        Ok(Some(Stack {
            name: name.clone(),
            version: version.clone(),
            image,
            uid: None,
        }))
    }

    /// The newest version of a stack that is here.
    pub(super) fn newest(&self, name: &StackName) -> Result<Option<Stack>, StackError> {
        let all = self.names()?;
        let newest = all.iter().filter(|(of, _)| of == name).max();
        newest.map_or(Ok(None), |(name, version)| self.stack(name, version))
    }

    /// Every stack's name and version, in order.
    pub(super) fn names(&self) -> Result<Vec<(StackName, Version)>, StackError> {
        let mut names = Vec::new();
        let mut look = || {
            for entry in fs::read_dir(&self.folder)? {
                let entry = entry?;
                let name = entry.file_name();
                let text = name.to_str().unwrap_or_default();
                let is_directory = fs::metadata(entry.path()).is_ok_and(|it| it.is_dir());
                let text = match (text.strip_suffix(".img"), is_directory) {
                    (Some(stack), false) => stack,
                    (None, true) => text,
                    _ => continue,
                };
                names.extend(parted(text));
            }
            Ok(())
        };
        look().map_err(|source| StackError::Look {
            path: self.folder.clone(),
            source,
        })?;
        names.sort();
        names.dedup();
        Ok(names)
    }

    pub(super) fn listed(&self, name: StackName, version: Version) -> Listed {
        let format = match self.stack(&name, &version) {
            Ok(Some(stack)) => match stack.image {
                Image::Directory(_) => "directory",
                Image::File { filesystem, .. } => filesystem.name(),
            },
            Ok(None) => "gone",
            Err(StackError::Image { .. }) => "broken",
            Err(_) => "unreadable",
        };
        let places = self.places(&joined(&name, &version));
        let paths = [&places.directory, &places.image];
        Listed {
            primary: self.primary(&name).as_ref() == Some(&version),
            bytes: paths.into_iter().map(|path| usage(path)).sum(),
            name,
            version,
            format,
        }
    }

    /// The version of a stack that was imported last.
    pub(super) fn primary(&self, name: &StackName) -> Option<Version> {
        let text = fs::read_to_string(self.primary_folder().join(name.as_str())).ok()?;
        text.trim_end().parse().ok()
    }

    pub(super) fn set_primary(&self, name: &StackName, version: &Version) -> io::Result<()> {
        let path = self.primary_folder().join(name.as_str());
        self.write(&path, version.as_str())
    }

    /// Keeps a list. Its URLs may hold secrets: it is root's alone.
    pub(super) fn keep_manifest(&self, text: &str) -> io::Result<()> {
        self.write(&self.manifest(), text)
    }

    /// Writes a file that is never seen half written.
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .suffix(".text")
            .tempfile_in(self.fetch_folder())?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    }

    /// Removes a stack, unless it is in use.
    pub(super) fn remove(&self, name: &StackName, version: &Version) -> Result<(), StackError> {
        let stack = joined(name, version);
        let places = self.places(&stack);
        let failed = |source| StackError::Remove {
            stack: stack.clone(),
            source,
        };
        let paths = [&places.directory, &places.image];
        let there: Vec<_> = paths
            .into_iter()
            .filter(|path| fs::symlink_metadata(path).is_ok())
            .collect();
        if there.is_empty() {
            return Err(StackError::NotThere {
                stack,
                folder: self.folder.clone(),
            });
        }
        // All locks first: what is in use stays whole.
        let mut locks = Vec::new();
        for path in &there {
            match lock::alone(path) {
                Ok(Some(lock)) => locks.push(lock),
                Ok(None) => return Err(StackError::InUse { stack }),
                // A link into nowhere.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let path = self.fetch_folder().join(format!("{stack}.lock"));
        let Some(_lock) = FetchLock::try_take(&path).map_err(failed)? else {
            return Err(StackError::InUse { stack });
        };
        for path in there {
            // Away first: half of it under its name would be taken for a stack.
            remove(&places.new).map_err(failed)?;
            fs::rename(path, &places.new).map_err(failed)?;
            remove(&places.new).map_err(failed)?;
        }
        if self.primary(name).as_ref() == Some(version) {
            remove(&self.primary_folder().join(name.as_str())).map_err(failed)?;
        }
        Ok(())
    }

    /// Clears away what processes that are gone were making; the beginnings of downloads stay for a
    /// while.
    pub(super) fn collect(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.fetch_folder())? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let Some((stem, kind)) = name.and_then(|name| name.rsplit_once('.')) else {
                continue;
            };
            let stack = match kind {
                "new" | "lock" => stem,
                "part" if is_old(&path) => stem.rsplit_once('.').map_or(stem, |(stack, _)| stack),
                // A list or a note: written in no time, by nobody who would take a lock.
                "text" if is_old(&path) => stem,
                _ => continue,
            };
            let lock = self.fetch_folder().join(format!("{stack}.lock"));
            // Whoever makes it now has the lock. It goes with its holder, here us.
            if let Some(_lock) = FetchLock::try_take(&lock)? {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

/// What a file or a tree takes on the disk, as far as it can be seen. A file with several names
/// counts once for each, as long as nobody minds.
fn usage(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    let own = metadata.blocks() * 512;
    if !metadata.is_dir() {
        return own;
    }
    let inside = fs::read_dir(path).into_iter().flatten().flatten();
    own + inside.map(|entry| usage(&entry.path())).sum::<u64>()
}

fn is_old(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    let age = modified.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
    age.is_ok_and(|age| age > KEPT)
}
