//! Which stack images are mounted, and where: each file once, and never another in its place.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::stack::MountError;

/// By what an image is told from the one that takes its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ImageId {
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds: an inode number is used again.
    modified: (i64, i64),
}

impl ImageId {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            modified: (found.mtime(), found.mtime_nsec()),
        })
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanoseconds) = self.modified;
        write!(
            f,
            "{:x}-{:x}-{seconds:x}-{nanoseconds:x}",
            self.device, self.inode
        )
    }
}

/// The images that are mounted.
#[derive(Debug, Default)]
pub(crate) struct Mounted(Vec<Mount>);

#[derive(Debug)]
struct Mount {
    image: PathBuf,
    id: ImageId,
    at: PathBuf,
}

impl Mounted {
    /// Where an image is mounted, which `mount` does if it is not.
    pub(crate) fn of(
        &mut self,
        image: &Path,
        mount: impl FnOnce(ImageId) -> Result<PathBuf, MountError>,
    ) -> Result<PathBuf, MountError> {
        let id = ImageId::of(image).map_err(|source| MountError::Open {
            path: image.to_owned(),
            source,
        })?;
        let is_it = |mount: &&Mount| mount.image == image && mount.id == id;
        if let Some(mount) = self.0.iter().find(is_it) {
            return Ok(mount.at.clone());
        }
        let at = mount(id)?;
        self.0.push(Mount {
            image: image.to_owned(),
            id,
            at: at.clone(),
        });
        Ok(at)
    }

    /// Forgets the images that are not what is at their path any more: where they are mounted.
    pub(crate) fn take_stale(&mut self) -> Vec<PathBuf> {
        let is_stale = |mount: &mut Mount| ImageId::of(&mount.image).ok() != Some(mount.id);
        let stale = self.0.extract_if(.., is_stale);
        stale.map(|mount| mount.at).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn an_image_that_was_replaced_is_mounted_anew_and_the_old_one_is_to_go() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("s-1.img");
        let write = |text: &str| {
            let new = folder.path().join("new");
            fs::File::create(&new)
                .and_then(|mut file| file.write_all(text.as_bytes()))
                .unwrap();
            fs::rename(&new, &image).unwrap();
        };
        write("one");
        let mut mounted = Mounted::default();
        let first = mounted.of(&image, |_| Ok("/m/1".into())).unwrap();
        let again = mounted.of(&image, |_| Ok("/m/2".into())).unwrap();
        assert_eq!((&first, &again), (&PathBuf::from("/m/1"), &first));
        assert!(mounted.take_stale().is_empty());
        // Kept open, so that the new one has another number.
        let _old = fs::File::open(&image).unwrap();
        write("two");
        let second = mounted.of(&image, |_| Ok("/m/2".into())).unwrap();
        assert_eq!(second, Path::new("/m/2"));
        assert_eq!(mounted.take_stale(), [first]);
        fs::remove_file(&image).unwrap();
        assert!(mounted.of(&image, |_| Ok("/m/3".into())).is_err());
        assert_eq!(mounted.take_stale(), [second]);
    }
}
