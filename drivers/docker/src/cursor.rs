//! How far a dyno's outputs were passed on, in files that outlive this process.
//!
//! A folder per dyno, two small files in it, each written in place after each write to a FIFO. A
//! third, which is empty, is there once the engine has said how the dyno ended and nothing spoke
//! against it: an engine that was restarted later is still right.
//! They are in memory: with the machine's the FIFOs' contents are gone, too.

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::unistd::Uid;

use crate::frames::Cursor;

/// How long the id of a container is.
const CONTAINER_ID: usize = 64;

const ENDED: &str = "ended";

/// Where the cursors of this driver's dynos are.
#[derive(Clone, Debug)]
pub(crate) struct Cursors(PathBuf);

impl Cursors {
    /// Makes the folder of the driver that is called `home`.
    pub(crate) fn open(runtime_dir: Option<&Path>, home: &str) -> io::Result<Self> {
        let base = match runtime_dir {
            Some(path) => path.join("hsup-docker"),
            None if Uid::effective().is_root() => PathBuf::from("/run/hsup-docker"),
            // Without a session there is no better place that a reboot clears.
            None => std::env::temp_dir().join(format!("hsup-docker-{}", Uid::effective())),
        };
        private(&base)?;
        let path = base.join(home);
        private(&path)?;
        Ok(Self(path))
    }

    fn folder(&self, container: &str) -> PathBuf {
        self.0.join(container)
    }

    /// The file of one output of a container, whose names are the engine's and ours.
    pub(crate) fn file(&self, container: &str, output: &str) -> io::Result<(CursorFile, Cursor)> {
        let folder = self.folder(container);
        private(&folder)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(folder.join(output))?;
        let mut bytes = [0; Cursor::SIZE];
        let cursor = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Cursor::from_bytes(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Cursor::default(),
            Err(error) => return Err(error),
        };
        Ok((CursorFile(file), cursor))
    }

    /// Remembers that there is such a container.
    pub(crate) fn know(&self, container: &str) -> io::Result<()> {
        private(&self.folder(container))
    }

    /// Remembers that what the engine says of a container's end is so.
    pub(crate) fn note_end(&self, container: &str) {
        let file = self.folder(container).join(ENDED);
        let made = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(file);
        match made {
            // It was removed just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(container, %error, "failed to note that a dyno has ended"),
            Ok(_) => {}
        }
    }

    /// Whether that was noted.
    pub(crate) fn has_ended(&self, container: &str) -> bool {
        self.folder(container).join(ENDED).exists()
    }

    /// Whether any dyno of a Swarm is.
    pub(crate) fn has_services(&self) -> bool {
        self.services().next().is_some()
    }

    /// Forgets the dynos of a Swarm but for those of these services: there are no others.
    pub(crate) fn keep_services(&self, known: &[&str]) {
        for service in self.services().filter(|id| !known.contains(&id.as_str())) {
            self.forget(&service);
        }
    }

    /// The dynos of a Swarm, by their ids, which are shorter than those of containers.
    fn services(&self) -> impl Iterator<Item = String> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.len() < CONTAINER_ID)
    }

    /// Forgets a dyno.
    pub(crate) fn forget(&self, container: &str) {
        let folder = self.folder(container);
        if let Err(error) = std::fs::remove_dir_all(&folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %folder.display(), %error, "failed to forget a dyno's cursors");
        }
    }

    /// The driver ends: its folder goes if nothing is in it.
    pub(crate) fn close(&self) {
        // It is not empty while dynos go on.
        drop(std::fs::remove_dir(&self.0));
        if let Some(base) = self.0.parent() {
            drop(std::fs::remove_dir(base));
        }
    }
}

/// Where the cursor of one output is kept.
#[derive(Debug)]
pub(crate) struct CursorFile(File);

impl CursorFile {
    pub(crate) fn write(&self, cursor: Cursor) -> io::Result<()> {
        self.0.write_all_at(&cursor.to_bytes(), 0)
    }
}

/// A folder that is ours alone.
fn private(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made,
    }
    let found = std::fs::symlink_metadata(path)?;
    if found.is_dir() && found.uid() == Uid::effective().as_raw() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("`{}` is not a directory of ours", path.display()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_found_again() {
        let base = tempfile::tempdir().unwrap();
        let cursors = Cursors::open(Some(base.path()), "home").unwrap();
        let (file, cursor) = cursors.file("c0ffee", "stdout").unwrap();
        assert_eq!(cursor, Cursor::default());
        let mut reader = crate::frames::Reader::new(cursor);
        reader.rest(7, b"line\n").unwrap();
        reader.wrote(3);
        file.write(reader.cursor()).unwrap();
        let again = Cursors::open(Some(base.path()), "home").unwrap();
        assert_eq!(again.file("c0ffee", "stdout").unwrap().1, reader.cursor());
        assert_eq!(again.file("c0ffee", "stderr").unwrap().1, Cursor::default());
        assert!(!again.has_ended("c0ffee"));
        cursors.note_end("c0ffee");
        assert!(again.has_ended("c0ffee"));
        again.forget("c0ffee");
        // Nothing comes back of what is forgotten.
        again.note_end("c0ffee");
        again.close();
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn services_that_are_no_more_are_forgotten() {
        let base = tempfile::tempdir().unwrap();
        let cursors = Cursors::open(Some(base.path()), "home").unwrap();
        let container = "c".repeat(CONTAINER_ID);
        for id in ["gone", "here", &container] {
            cursors.know(id).unwrap();
        }
        cursors.keep_services(&["here"]);
        assert!(cursors.has_services());
        cursors.keep_services(&[]);
        assert!(!cursors.has_services());
        assert!(cursors.folder(&container).exists());
    }

    #[test]
    fn what_is_no_folder_of_ours_is_not_used() {
        let base = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/tmp", base.path().join("hsup-docker")).unwrap();
        let error = Cursors::open(Some(base.path()), "home").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
