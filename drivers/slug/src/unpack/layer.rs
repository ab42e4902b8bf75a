//! A slug as a layer of an image: what is under `app/`, as an archive that is what it seems.
//!
//! Whoever unpacks the layer follows it blindly, and may be root. So each entry is made anew:
//! the permission bits and no others, one owner, no attributes, and every directory before what
//! is in it. That nothing goes through a link, or takes the place of a directory, is known here
//! from what was written before, as the tree of an unpacked slug knows it from the disk.

use std::{
    collections::{HashMap, hash_map},
    ffi::OsStr,
    fs::File,
    io::{self, BufWriter, Read, Write},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use nix::sys::resource::{Resource, setrlimit};
use serde::{Deserialize, Serialize};
use tar::{Builder, EntryType, Header};

use super::{
    BUFFER, CPU_SECONDS, Dropped, MEMORY, Sink, UnpackError,
    archive::{Data, Entry},
    given,
    name::Place,
    rules::{
        NO_WAY, NOT_A_DIRECTORY, NOT_BEFORE, NOT_IN_APP, REPLACES, THROUGH_LINK, TO_DIRECTORY,
        check_symlink, no_app, refused, target_of_link,
    },
    sort, too_much,
};
use crate::{
    error::SlugError,
    pack::append_link,
    privilege::Peer,
    store::Limits,
    wire::{self, Report},
};

pub(crate) const TASK: &str = "make a layer of the slug";
/// So many bytes of names are remembered.
const REMEMBERED: usize = 128 << 20;

/// What the process is to make a layer of.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) user: Peer,
    pub(crate) limits: Limits,
    pub(crate) compressed: bool,
    /// Whose all of it is to be: user and group.
    pub(crate) owner: (u32, u32),
}

impl Job {
    pub(crate) fn prepare(&self) -> Result<(), SlugError> {
        let limited = setrlimit(Resource::RLIMIT_CPU, CPU_SECONDS, CPU_SECONDS)
            .and_then(|()| setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY));
        limited.map_err(|errno| SlugError::Helper {
            task: TASK.to_owned(),
            cause: format!("cannot limit itself: {errno}"),
        })?;
        self.user.embody(TASK)
    }

    pub(crate) fn run(self, report: &Report) -> Result<String, SlugError> {
        let out = File::from(wire::take(wire::OUTPUT));
        let out = BufWriter::with_capacity(BUFFER, out);
        let result = layer(given(self.compressed), out, &self.limits, self.owner);
        let dropped = result.map_err(|error| error.said("the engine"))?;
        dropped.tell(report);
        Ok(String::new())
    }
}

pub(super) fn layer(
    input: impl Read,
    out: impl Write,
    limits: &Limits,
    owner: (u32, u32),
) -> Result<Dropped, UnpackError> {
    let mut layer = Layer {
        archive: Builder::new(out),
        owner,
        known: HashMap::new(),
        remembered: 0,
    };
    let dropped = sort(input, limits, &mut layer)?;
    if !layer.known.contains_key(&b"app"[..]) {
        return Err(no_app());
    }
    let written = layer.archive.into_inner().and_then(|mut out| out.flush());
    written.map_err(|error| UnpackError::Write(b"app".to_vec(), error))?;
    Ok(dropped)
}

/// What is at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Directory,
    File,
    Symlink,
}

/// A layer in the making.
struct Layer<W: Write> {
    archive: Builder<W>,
    owner: (u32, u32),
    known: HashMap<Vec<u8>, Known>,
    remembered: usize,
}

impl<W: Write> Sink for Layer<W> {
    fn directory(&mut self, place: &Place, entry: &Entry) -> Result<(), UnpackError> {
        let path = place.path();
        self.reach(place.split().0, entry)?;
        self.pass(path, entry)?;
        // Its owner can always enter it, as in a tree.
        self.write_directory(path, entry.mode | 0o700, entry)
    }

    fn file<R: Read>(
        &mut self,
        place: &Place,
        entry: &Entry,
        data: Data<'_, R>,
    ) -> Result<(), UnpackError> {
        self.make_room(place, entry)?;
        let mut header = self.header(EntryType::Regular, entry.mode, entry);
        header.set_size(entry.size);
        let mut watched = Watched { data, error: None };
        let path = Path::new(OsStr::from_bytes(place.path()));
        let written = self.archive.append_data(&mut header, path, &mut watched);
        if let Some(error) = watched.error {
            return Err(UnpackError::Read(error));
        }
        written.map_err(write(entry))?;
        self.learn(place.path(), Known::File)
    }

    fn symlink(&mut self, place: &Place, entry: &Entry) -> Result<(), UnpackError> {
        check_symlink(entry)?;
        self.make_room(place, entry)?;
        let mut header = self.header(EntryType::Symlink, 0o777, entry);
        let path = Path::new(OsStr::from_bytes(place.path()));
        append_link(&mut self.archive, &mut header, path, &entry.target).map_err(write(entry))?;
        self.learn(place.path(), Known::Symlink)
    }

    fn hard_link(&mut self, place: &Place, entry: &Entry) -> Result<(), UnpackError> {
        let target = target_of_link(place, entry)?;
        for above in ancestors(target.split().0) {
            match self.known.get(above) {
                Some(Known::Directory) => {}
                Some(Known::Symlink) => return Err(refused(entry, NOT_IN_APP)),
                Some(Known::File) | None => return Err(refused(entry, NOT_BEFORE)),
            }
        }
        let kind = match self.known.get(target.path()) {
            Some(Known::Directory) => return Err(refused(entry, TO_DIRECTORY)),
            Some(kind) => *kind,
            None => return Err(refused(entry, NOT_BEFORE)),
        };
        self.make_room(place, entry)?;
        let mut header = self.header(EntryType::Link, entry.mode, entry);
        let path = Path::new(OsStr::from_bytes(place.path()));
        append_link(&mut self.archive, &mut header, path, target.path()).map_err(write(entry))?;
        self.learn(place.path(), kind)
    }
}

impl<W: Write> Layer<W> {
    /// Sees to it that the entry can be written: its directory is there, and no other is of its
    /// name. Archives may hold a name twice; the last one counts, here as for the engine.
    fn make_room(&mut self, place: &Place, entry: &Entry) -> Result<(), UnpackError> {
        if place.is_app() {
            return Err(refused(entry, NOT_A_DIRECTORY));
        }
        self.reach(place.split().0, entry)?;
        match self.known.get(place.path()) {
            Some(Known::Directory) => Err(refused(entry, REPLACES)),
            Some(Known::File | Known::Symlink) | None => Ok(()),
        }
    }

    /// Writes the directories that lead to `path`, and itself, where they are missing.
    fn reach(&mut self, path: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        if self.known.get(path) == Some(&Known::Directory) {
            return Ok(());
        }
        for above in ancestors(path) {
            self.pass(above, entry)?;
            if !self.known.contains_key(above) {
                // Without an entry of its own it is as most directories are.
                self.write_directory(above, 0o755, entry)?;
            }
        }
        Ok(())
    }

    /// Whether a directory is, or could be, at `path`.
    fn pass(&self, path: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        match self.known.get(path) {
            Some(Known::Symlink) => Err(refused(entry, THROUGH_LINK)),
            Some(Known::File) => Err(refused(entry, NO_WAY)),
            Some(Known::Directory) | None => Ok(()),
        }
    }

    fn write_directory(
        &mut self,
        path: &[u8],
        mode: u32,
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let mut header = self.header(EntryType::Directory, mode, entry);
        let name = [path, b"/"].concat();
        let name = Path::new(OsStr::from_bytes(&name));
        let written = self.archive.append_data(&mut header, name, io::empty());
        written.map_err(write(entry))?;
        self.learn(path, Known::Directory)
    }

    fn header(&self, kind: EntryType, mode: u32, entry: &Entry) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(self.owner.0.into());
        header.set_gid(self.owner.1.into());
        header.set_mtime(u64::try_from(entry.mtime).unwrap_or(0));
        header.set_size(0);
        header
    }

    fn learn(&mut self, path: &[u8], kind: Known) -> Result<(), UnpackError> {
        match self.known.entry(path.to_vec()) {
            hash_map::Entry::Occupied(mut known) => {
                known.insert(kind);
            }
            hash_map::Entry::Vacant(free) => {
                free.insert(kind);
                self.remembered += path.len();
            }
        }
        if self.remembered > REMEMBERED {
            return Err(too_much(REMEMBERED as u64, "bytes of names").into());
        }
        Ok(())
    }
}

/// `app`, `app/bin`, `app/bin/x` of `app/bin/x`; none of `.`, which the app itself is in.
fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = path.iter().enumerate();
    let ends = ends.filter_map(|(at, byte)| (*byte == b'/').then_some(at));
    ends.chain([path.len()])
        .map(|end| &path[..end])
        .filter(|path| *path != b".")
}

fn write(entry: &Entry) -> impl Fn(io::Error) -> UnpackError + '_ {
    |error| UnpackError::Write(entry.name.clone(), error)
}

/// Keeps what goes wrong with the reading apart from what goes wrong with the writing.
struct Watched<'a, R> {
    data: Data<'a, R>,
    error: Option<io::Error>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.data.read(buffer).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.error = Some(error);
            }
            kind.into()
        })
    }
}
