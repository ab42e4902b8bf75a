//! Unpacking a slug, in a process that sees nothing but the directory it unpacks into.
//!
//! The archive is a stranger's. Three things keep it in: every path is resolved by `openat2`
//! beneath the root and through no link (`tree.rs`), the root of the process is that
//! directory, and the process has the rights of a user that owns nothing else.

mod archive;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod layer;
mod name;
mod rules;
mod tree;

use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::fd::OwnedFd,
};

use flate2::bufread::MultiGzDecoder;
use nix::{
    sys::resource::{Resource, setrlimit},
    unistd::{chdir, chroot, fchdir, geteuid, syncfs},
};
use serde::{Deserialize, Serialize};

pub(crate) use self::layer::{Job as LayerJob, TASK as LAYER_TASK};
pub(crate) use self::name::escaped;
use self::{
    archive::{Archive, Data, Entry, Kind},
    name::Place,
    tree::Tree,
};
use crate::{
    error::{SlugError, is_full},
    privilege::Peer,
    store::Limits,
    wire::{self, Event, Report},
};

pub(crate) const TASK: &str = "unpack the slug";
/// A slug as big as one may be takes a minute.
const CPU_SECONDS: u64 = 900;
/// Far more than it needs; it then fails alone, rather than the machine.
const MEMORY: u64 = 1 << 30;
/// Larger reads than a pipe gives by itself are of no use.
const BUFFER: usize = 256 * 1024;

/// What the process is to unpack.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) user: Peer,
    pub(crate) limits: Limits,
    pub(crate) compressed: bool,
    /// Where the store is, for whoever reads that it is full.
    pub(crate) store: String,
}

impl Job {
    /// Enters the directory at descriptor 1 for good.
    pub(crate) fn prepare(&self) -> Result<(), SlugError> {
        self.enter().map_err(|source| SlugError::Helper {
            task: TASK.to_owned(),
            cause: format!("cannot enter the staging directory: {source}"),
        })?;
        self.user.embody(TASK)
    }

    fn enter(&self) -> io::Result<()> {
        fchdir(wire::given(wire::OUTPUT))?;
        if geteuid().is_root() {
            chroot(".")?;
            chdir("/")?;
        }
        setrlimit(Resource::RLIMIT_CPU, CPU_SECONDS, CPU_SECONDS)?;
        setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY)?;
        let largest = self.limits.max_file_bytes;
        setrlimit(Resource::RLIMIT_FSIZE, largest, largest)?;
        Ok(())
    }

    pub(crate) fn run(self, report: &Report) -> Result<String, SlugError> {
        let root = wire::take(wire::OUTPUT);
        let result = unpack(given(self.compressed), root, &self.limits, report);
        result.map_err(|error| error.said(&self.store))?;
        Ok(String::new())
    }
}

/// The archive at descriptor 0.
fn given(compressed: bool) -> Box<dyn Read> {
    let input = BufReader::with_capacity(BUFFER, File::from(wire::take(wire::INPUT)));
    if compressed {
        Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(input)))
    } else {
        Box::new(input)
    }
}

/// Why a slug was not unpacked.
#[derive(Debug)]
pub(crate) enum UnpackError {
    Slug(SlugError),
    /// The disk does not take this.
    Write(Vec<u8>, io::Error),
    /// The archive cannot be read on.
    Read(io::Error),
}

impl From<SlugError> for UnpackError {
    fn from(error: SlugError) -> Self {
        Self::Slug(error)
    }
}

impl UnpackError {
    fn said(self, store: &str) -> SlugError {
        match self {
            Self::Slug(error) => error,
            Self::Write(_, error) if is_full(&error) => SlugError::NoSpace {
                store: store.into(),
            },
            Self::Write(name, error) => SlugError::Entry {
                name: escaped(&name),
                reason: format!("cannot be written: {error}"),
            },
            Self::Read(error) => SlugError::Archive(match error.kind() {
                io::ErrorKind::UnexpectedEof => "it is cut short".to_owned(),
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                    format!("it is no gzip archive: {error}")
                }
                _ => format!("it cannot be read: {error}"),
            }),
        }
    }
}

/// Unpacks what is under `app/` to the directory `app` in `root`.
pub(crate) fn unpack(
    input: impl Read,
    root: OwnedFd,
    limits: &Limits,
    report: &Report,
) -> Result<(), UnpackError> {
    let mut tree = Tree::new(root)?;
    sort(input, limits, &mut tree)?.tell(report);
    let root = tree.finish()?;
    report.send(&Event::Trying);
    // A slug that is in the store is there after a power failure too, whole.
    syncfs(&root).map_err(|errno| UnpackError::Write(Vec::new(), errno.into()))
}

/// Where what is in the app goes. Each entry's own rules are its affair.
trait Sink {
    fn directory(&mut self, place: &Place, entry: &Entry) -> Result<(), UnpackError>;
    fn file<R: Read>(
        &mut self,
        place: &Place,
        entry: &Entry,
        data: Data<'_, R>,
    ) -> Result<(), UnpackError>;
    fn symlink(&mut self, place: &Place, entry: &Entry) -> Result<(), UnpackError>;
    fn hard_link(&mut self, place: &Place, entry: &Entry) -> Result<(), UnpackError>;
}

/// Reads all of an archive, and hands on what is under `app/`.
fn sort(input: impl Read, limits: &Limits, sink: &mut impl Sink) -> Result<Dropped, UnpackError> {
    let mut archive = Archive::new(input, limits.max_entries);
    let mut bytes = 0_u64;
    let mut is_empty = true;
    let mut dropped = Dropped::default();
    while let Some(entry) = archive.next()? {
        is_empty = false;
        let refused = |reason: &str| SlugError::Entry {
            name: escaped(&entry.name),
            reason: reason.to_owned(),
        };
        let place = Place::of(&entry.name).map_err(&refused)?;
        // What is outside counts too: it takes as long to read.
        bytes = bytes.saturating_add(entry.size);
        if bytes > limits.max_bytes {
            return Err(too_much(limits.max_bytes, "bytes, unpacked").into());
        }
        if entry.size > limits.max_file_bytes {
            return Err(refused(&format!(
                "is of {} bytes, more than the {} that a file may have",
                entry.size, limits.max_file_bytes
            ))
            .into());
        }
        let refuse = |reason| UnpackError::Slug(refused(reason));
        match entry.kind {
            Kind::Device => return Err(refuse("is a device or a FIFO")),
            Kind::Sparse => return Err(refuse("is a sparse file, which slugs do not have")),
            Kind::Unknown(kind) => {
                return Err(refuse(&format!(
                    "is of a kind that slugs do not have ('{}')",
                    kind.escape_ascii()
                )));
            }
            _ if place.is_outside() => continue,
            Kind::Directory => sink.directory(&place, &entry)?,
            Kind::File => sink.file(&place, &entry, archive.data())?,
            Kind::Symlink => sink.symlink(&place, &entry)?,
            Kind::HardLink => sink.hard_link(&place, &entry)?,
        }
        dropped.note(&entry);
    }
    if is_empty {
        return Err(SlugError::Archive("it is empty".to_owned()).into());
    }
    // What gzip's own checksum says is known at its end only.
    archive.finish(limits.max_bytes)?;
    Ok(dropped)
}

/// What of the archive's entries was left out, which nobody would see otherwise.
#[derive(Debug, Default, PartialEq, Eq)]
struct Dropped {
    /// Files without the rights of their owner or group that they were to have.
    set_id: u64,
    /// The name of the first.
    first: String,
}

impl Dropped {
    fn note(&mut self, entry: &Entry) {
        if entry.sets_id {
            if self.set_id == 0 {
                self.first = escaped(&entry.name);
            }
            self.set_id += 1;
        }
    }

    fn tell(&self, report: &Report) {
        if self.set_id > 0 {
            let Self { set_id, first } = self;
            report.note(format!(
                "set-user-ID and set-group-ID bits have no effect in a dyno and were dropped: \
                 {set_id} file(s), the first is `{first}`"
            ));
        }
    }
}

pub(crate) fn too_much(limit: u64, of: &str) -> SlugError {
    SlugError::TooMuch {
        limit,
        of: of.to_owned(),
    }
}
