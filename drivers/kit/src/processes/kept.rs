//! What dynos wrote and nobody has read yet, kept while their supervisor is away.
//!
//! A FIFO forgets what is in it when its last descriptor is closed. A supervisor that is down
//! holds none, and the dyno's own go with it: what it wrote before its end would be lost. So
//! the driver holds a reading end of each of its outputs, until the dyno is forgotten or there
//! is nothing in them.
//!
//! A *reading* end only: whoever reads waits for its end until no writing one is left.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Descriptors that a driver has for everything else: its connections, its sockets, `/proc`,
/// and what a start needs for a moment.
const RESERVE: u64 = 32;
/// How many of them one dyno costs.
const PER_DYNO: u64 = 2;

/// Where kept descriptors begin, where the limit on open files lets them.
const HIGH: RawFd = 1024;

/// The reading ends of one dyno's standard output and error.
#[derive(Debug)]
pub struct Kept([OwnedFd; 2]);

/// What one look at them shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    /// There is something to read.
    unread: bool,
    /// The same, and nobody holds that one for writing: no supervisor either, which opens it
    /// `O_RDWR`.
    alone: bool,
}

impl Kept {
    /// Keeps what is in two FIFOs; the descriptors must be for reading alone.
    pub fn new(stdout: OwnedFd, stderr: OwnedFd) -> Self {
        Self([stdout, stderr].map(high))
    }

    fn look(&self) -> Found {
        let ends = self.0.each_ref();
        let mut polled = ends.map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        if poll(&mut polled, PollTimeout::ZERO).is_err() {
            // Not to know is not to see nothing.
            return Found {
                unread: true,
                alone: true,
            };
        }
        let mut found = Found::default();
        for events in polled.iter().filter_map(PollFd::revents) {
            let unread = events.contains(PollFlags::POLLIN);
            found.unread |= unread;
            found.alone |= unread && events.contains(PollFlags::POLLHUP);
        }
        found
    }
}

/// Moves a descriptor to where it is not in the way: what a process that is spawned needs has
/// low numbers, and all below the highest of these are copied for it.
fn high(fd: OwnedFd) -> OwnedFd {
    fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(HIGH)).map_or(fd, owned)
}

#[expect(unsafe_code, reason = "fcntl(2) answers a number")]
fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Those of all dynos, by number.
#[derive(Debug)]
pub(super) struct Shelf {
    room: usize,
    dynos: BTreeMap<u32, Entry>,
}

#[derive(Debug)]
struct Entry {
    kept: Kept,
    has_ended: bool,
}

impl Shelf {
    /// What a process has room for that may open so many files.
    pub(super) fn below(open_files: u64) -> Self {
        let room = open_files.saturating_sub(RESERVE) / PER_DYNO;
        Self {
            room: usize::try_from(room).unwrap_or(usize::MAX),
            dynos: BTreeMap::new(),
        }
    }

    /// Sees to it that there is room for one more; answers the dynos whose last words had to
    /// make it.
    ///
    /// # Errors
    /// When dynos that run need all of it.
    pub(super) fn make_room(&mut self) -> io::Result<Vec<u32>> {
        let mut lost = Vec::new();
        if self.dynos.len() < self.room {
            return Ok(lost);
        }
        // Whoever else holds them reads them.
        self.dynos
            .retain(|_, entry| !entry.has_ended || entry.kept.look().alone);
        while self.dynos.len() >= self.room {
            let mut ended = self.dynos.iter().filter(|(_, entry)| entry.has_ended);
            let Some(number) = ended.next().map(|(number, _)| *number) else {
                return Err(io::Error::from_raw_os_error(libc::EMFILE));
            };
            self.dynos.remove(&number);
            lost.push(number);
        }
        Ok(lost)
    }

    /// Keeps what this dyno writes.
    pub(super) fn put(&mut self, number: u32, kept: Kept) {
        let has_ended = false;
        self.dynos.insert(number, Entry { kept, has_ended });
    }

    /// Nobody of this dyno is left to write more: where all of it was read, nothing is kept.
    pub(super) fn ended(&mut self, number: u32) {
        if let Some(entry) = self.dynos.get_mut(&number) {
            entry.has_ended = true;
            if !entry.kept.look().unread {
                self.dynos.remove(&number);
            }
        }
    }

    /// Nobody will ask for this dyno any more.
    pub(super) fn forget(&mut self, number: u32) {
        self.dynos.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _},
        os::unix::fs::OpenOptionsExt as _,
        path::Path,
    };

    use nix::{sys::stat::Mode, unistd::mkfifo};
    use tempfile::TempDir;

    use super::*;
    use crate::{fifo, processes::Stdio};

    /// A dyno's FIFOs, and its own end of standard output.
    struct Fifos {
        folder: TempDir,
        stdout: File,
    }

    fn opened() -> (Fifos, Kept) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["stdout", "stderr"] {
            mkfifo(&folder.path().join(name), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        }
        let uid = nix::unistd::Uid::effective().as_raw();
        match fifo::open(folder.path(), uid).unwrap() {
            Stdio::Fds { stdout, kept, .. } => {
                let stdout = stdout.into();
                (Fifos { folder, stdout }, kept.unwrap())
            }
            Stdio::Terminal(_) => panic!("FIFOs are no terminal"),
        }
    }

    /// Waits until nobody can write to what this dyno's standard output was any more: a process
    /// that another test spawns can until its `exec`.
    fn until_nobody_writes(kept: &Kept) {
        let mut polled = [PollFd::new(kept.0[0].as_fd(), PollFlags::empty())];
        let ready = poll(&mut polled, PollTimeout::from(60_000_u16)).unwrap();
        assert_eq!(ready, 1, "somebody holds a writing end");
    }

    fn supervisor(folder: &Path) -> File {
        let mut options = File::options();
        options.read(true).write(true);
        options.open(folder.join("stdout")).unwrap()
    }

    #[test]
    fn what_a_dyno_wrote_before_its_end_waits_for_whoever_comes_and_so_does_the_end() {
        let mut shelf = Shelf::below(1000);
        let (mut dyno, kept) = opened();
        dyno.stdout.write_all(b"dying words").unwrap();
        drop(dyno.stdout);
        until_nobody_writes(&kept);
        shelf.put(1, kept);
        shelf.ended(1);
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut reader = options.open(dyno.folder.path().join("stdout")).unwrap();
        let mut text = String::new();
        // Would be `WouldBlock` after the words if somebody held a writing end.
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "dying words");
        shelf.forget(1);
        assert!(shelf.dynos.is_empty());
    }

    #[test]
    fn nothing_is_kept_of_a_dyno_that_was_read_to_the_end() {
        let mut shelf = Shelf::below(1000);
        let (mut dyno, kept) = opened();
        let mut supervisor = supervisor(dyno.folder.path());
        shelf.put(1, kept);
        dyno.stdout.write_all(b"read").unwrap();
        supervisor.read_exact(&mut [0; 4]).unwrap();
        drop(dyno);
        shelf.ended(1);
        assert!(shelf.dynos.is_empty());
    }

    #[test]
    fn room_is_made_by_those_who_are_read_then_by_the_first_and_never_by_one_that_runs() {
        let mut shelf = Shelf::below(RESERVE + 3 * PER_DYNO);
        let mut dynos = Vec::new();
        for number in 0..3 {
            assert_eq!(shelf.make_room().unwrap(), [0; 0]);
            let (mut dyno, kept) = opened();
            dyno.stdout.write_all(b"words").unwrap();
            shelf.put(number, kept);
            dynos.push(dyno);
        }
        assert_eq!(
            shelf.make_room().unwrap_err().raw_os_error(),
            Some(libc::EMFILE)
        );
        let supervisor = supervisor(dynos[1].folder.path());
        let folders: Vec<_> = dynos.into_iter().map(|dyno| dyno.folder).collect();
        for number in [0, 2] {
            until_nobody_writes(&shelf.dynos[&number].kept);
        }
        for number in 0..3 {
            shelf.ended(number);
        }
        assert_eq!(shelf.dynos.len(), 3);
        assert_eq!(
            shelf.make_room().unwrap(),
            [0; 0],
            "somebody reads the second"
        );
        let left: Vec<_> = shelf.dynos.keys().copied().collect();
        assert_eq!(left, [0, 2]);
        shelf.put(3, opened().1);
        assert_eq!(shelf.make_room().unwrap(), [0]);
        drop((supervisor, folders));
    }
}
