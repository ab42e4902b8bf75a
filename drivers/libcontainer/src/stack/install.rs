//! What was fetched becomes a stack: verified, unpacked, and only then under its name.
//!
//! Whatever is made has a name of its own in `.fetch`, and gets its place by a rename when it is
//! whole and on the disk. So what is under a stack's name is whole, after any crash.

use std::{
    fs::{self, File},
    io::{self, Read, Seek as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hsup_driver_kit::hex;
use md5::Md5;
use sha2::Sha256;
use thiserror::Error;

use super::{
    image::{self, ImageError},
    manifest::{Checksum, Format},
    unpack::{UnpackError, unpack},
};

/// What was fetched did not become a stack. Nothing of it was kept.
#[derive(Debug, Error)]
pub enum InstallError {
    #[error("failed to open `{}`", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("failed to read `{}`", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("it has {actual} bytes instead of {expected}; nothing of it was kept")]
    Size { expected: u64, actual: u64 },
    #[error("it has the {actual} instead of {expected}; nothing of it was kept")]
    Checksum { expected: String, actual: String },
    #[error("what was fetched is no image that could be mounted; nothing of it was kept")]
    Image(#[source] ImageError),
    #[error("its archive could not be unpacked; nothing of it was kept")]
    Unpack(#[from] UnpackError),
    #[error("failed to unpack it to `{}`; nothing of it was kept", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("failed to put it in its place, `{}`", .path.display())]
    Place { path: PathBuf, source: io::Error },
}

/// Compares a file with what it is to be.
pub(super) fn verify(
    file: &mut File,
    path: &Path,
    size: Option<u64>,
    checksum: Option<Checksum>,
    stop: &Stop,
) -> Result<(), InstallError> {
    let read = |source| InstallError::Read {
        path: path.to_owned(),
        source,
    };
    let actual = file.metadata().map_err(read)?.len();
    match size {
        Some(expected) if expected != actual => {
            return Err(InstallError::Size { expected, actual });
        }
        _ => {}
    }
    let Some(checksum) = checksum else {
        return Ok(());
    };
    file.rewind().map_err(read)?;
    let actual = match checksum {
        Checksum::Sha256(_) => {
            digest::<Sha256>(stop.reader(&mut *file)).map(|sum| Checksum::Sha256(sum.into()))
        }
        Checksum::Md5(_) => {
            digest::<Md5>(stop.reader(&mut *file)).map(|sum| Checksum::Md5(sum.into()))
        }
    };
    let actual = actual.map_err(read)?;
    file.rewind().map_err(read)?;
    if actual == checksum {
        Ok(())
    } else {
        Err(InstallError::Checksum {
            expected: checksum.to_string(),
            actual: actual.to_string(),
        })
    }
}

fn digest<D: sha2::Digest>(mut reader: impl Read) -> io::Result<sha2::digest::Output<D>> {
    let mut digest = D::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(digest.finalize()),
            Ok(length) => digest.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The beginning of a checksum, to tell one half-fetched file from another.
pub(super) fn tag(checksum: Checksum) -> String {
    match checksum {
        Checksum::Sha256(bytes) => hex::encode(&bytes[..8]),
        Checksum::Md5(bytes) => hex::encode(&bytes[..8]),
    }
}

/// Where a stack is made, and where it will be.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// `stacks/.fetch/NAME-VERSION.new`.
    pub(super) new: PathBuf,
    /// `stacks/NAME-VERSION`.
    pub(super) directory: PathBuf,
    /// `stacks/NAME-VERSION.img`.
    pub(super) image: PathBuf,
}

impl Places {
    /// Makes a stack of a file that is verified. `whole` is the file's path if it may become the
    /// stack itself.
    pub(super) fn install(
        &self,
        file: File,
        path: &Path,
        whole: Option<&Path>,
        format: &Format,
        stop: &Stop,
    ) -> Result<(), InstallError> {
        let read = |source| InstallError::Read {
            path: path.to_owned(),
            source,
        };
        if *format == Format::RootfsTar {
            let archive = image::plain(file).map_err(read)?;
            return self.unpack(archive, stop);
        }
        let is_compressed = image::is_compressed(&file).map_err(read)?;
        if let (Some(whole), false) = (whole, is_compressed) {
            image::probe(&file).map_err(InstallError::Image)?;
            return place(whole, &self.image, || file.sync_all());
        }
        let plain = image::plain(file).map_err(read)?;
        self.expand(plain, stop)
    }

    /// Unpacks an archive into the stack's directory.
    pub(super) fn unpack(&self, archive: impl Read, stop: &Stop) -> Result<(), InstallError> {
        let new = New::clear(&self.new)?;
        let made = fs::DirBuilder::new().mode(0o755).create(&self.new);
        made.map_err(|source| new.unwritten(source))?;
        unpack(stop.reader(archive), &self.new)?;
        let whole = File::open(&self.new).map_err(|source| new.unwritten(source))?;
        place(&self.new, &self.directory, || {
            nix::unistd::syncfs(&whole).map_err(io::Error::from)
        })
    }

    fn expand(&self, plain: impl Read, stop: &Stop) -> Result<(), InstallError> {
        let new = New::clear(&self.new)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&self.new)
            .map_err(|source| new.unwritten(source))?;
        io::copy(&mut stop.reader(plain), &mut file).map_err(|source| new.unwritten(source))?;
        image::probe(&file).map_err(InstallError::Image)?;
        place(&self.new, &self.image, || file.sync_all())
    }
}

/// Something that is being made. What is left under its name goes with it.
struct New<'a>(&'a Path);

impl<'a> New<'a> {
    fn clear(path: &'a Path) -> Result<Self, InstallError> {
        let new = Self(path);
        match remove(path) {
            Ok(()) => Ok(new),
            Err(source) => Err(new.unwritten(source)),
        }
    }

    fn unwritten(&self, source: io::Error) -> InstallError {
        InstallError::Write {
            path: self.0.to_owned(),
            source,
        }
    }
}

impl Drop for New<'_> {
    fn drop(&mut self) {
        // What cannot be removed now is, when the next driver begins.
        drop(remove(self.0));
    }
}

/// Removes a file or a tree, if there is one.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Gives a thing its name, once it is on the disk; and sees to it that the name is too.
fn place(
    from: &Path,
    to: &Path,
    sync: impl FnOnce() -> io::Result<()>,
) -> Result<(), InstallError> {
    let placed = || {
        sync()?;
        fs::rename(from, to)?;
        to.parent()
            .map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    };
    placed().map_err(|source| InstallError::Place {
        path: to.to_owned(),
        source,
    })
}

/// Tells a thread to stop its work, because nobody waits for it any more.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

/// Stops when dropped.
#[derive(Debug, Default)]
pub(super) struct StopOnDrop(pub(super) Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

impl Stop {
    fn reader<R: Read>(&self, inner: R) -> StoppableReader<'_, R> {
        StoppableReader { inner, stop: self }
    }
}

struct StoppableReader<'a, R> {
    inner: R,
    stop: &'a Stop,
}

impl<R: Read> Read for StoppableReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.0.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody waits for it any more"));
        }
        self.inner.read(buffer)
    }
}
