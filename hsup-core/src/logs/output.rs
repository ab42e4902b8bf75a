//! A descriptor that is written to until everything is out.
//!
//! A full pipe or a stopped terminal is waited for, also where somebody else made the
//! descriptor non-blocking, and from another thread it can be seen whether anything is taken
//! meanwhile. Two ends are different. A reader that has gone (EPIPE, a terminal that hung up)
//! will not come back, so the output is given up. A full disk may get room again, so lines
//! are lost until then, and their bytes are told in the output itself. Either way they are
//! counted, for whoever can tell it elsewhere.

use std::{
    fs::File,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::{SFlag, fstat},
    unistd::{isatty, write},
};

/// What one write has at most: one that blocks shows only at its end what was taken.
const AT_ONCE: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Output {
    fd: OwnedFd,
    lost: Option<Lost>,
    /// The last byte that got out was a `\n`, or none did yet.
    at_line_start: bool,
    flow: Arc<Flow>,
}

/// How far the writing is, seen from another thread.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// How many bytes the write under way has left.
    left: AtomicUsize,
    taken: AtomicU64,
}

impl Flow {
    /// How many bytes the write under way has left.
    pub(super) fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    /// A number that changes whenever anything is taken.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

/// What could not be written, and has not been told in the output itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) bytes: usize,
    pub(super) why: Errno,
}

impl Lost {
    /// Whether there may be room again.
    pub(super) fn is_for_now(&self) -> bool {
        matches!(self.why, Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)
    }
}

impl Output {
    pub(super) fn new(fd: OwnedFd, flow: Arc<Flow>) -> Self {
        Self {
            fd: of_our_own(fd.as_fd()).unwrap_or(fd),
            lost: None,
            at_line_start: true,
            flow,
        }
    }

    /// What is lost by now.
    pub(super) fn lost(&self) -> Option<Lost> {
        self.lost
    }

    /// Writes everything; waits for as long as the other side takes.
    pub(super) fn write_through(&mut self, bytes: &[u8]) {
        if let Some(lost) = self.lost {
            if !lost.is_for_now() {
                return self.lose(bytes.len(), lost.why);
            }
            let start = if self.at_line_start { "" } else { "\n" };
            let notice = format!(
                "{start}hsup: {} bytes of output were lost: {}\n",
                lost.bytes,
                lost.why.desc()
            );
            match self.write_all(notice.as_bytes()) {
                Ok(()) => self.lost = None,
                Err(failed) => return self.lose(bytes.len(), failed.errno),
            }
        }
        if let Err(failed) = self.write_all(bytes) {
            self.lose(failed.left, failed.errno);
        }
    }

    fn lose(&mut self, bytes: usize, why: Errno) {
        let before = self.lost.map_or(0, |lost| lost.bytes);
        self.lost = Some(Lost {
            bytes: before + bytes,
            why,
        });
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), WriteFailed> {
        while !bytes.is_empty() {
            self.flow.left.store(bytes.len(), Ordering::Relaxed);
            let part = &bytes[..bytes.len().min(AT_ONCE)];
            let written = write_some(self.fd.as_fd(), part).map_err(|errno| {
                // They wait for nobody any more.
                self.flow.left.store(0, Ordering::Relaxed);
                WriteFailed {
                    errno,
                    left: bytes.len(),
                }
            })?;
            self.flow.taken.fetch_add(1, Ordering::Relaxed);
            if let Some(last) = bytes[..written].last() {
                self.at_line_start = *last == b'\n';
            }
            bytes = &bytes[written..];
        }
        self.flow.left.store(0, Ordering::Relaxed);
        Ok(())
    }
}

struct WriteFailed {
    errno: Errno,
    /// How many bytes did not get out.
    left: usize,
}

/// The same pipe or terminal opened once more, so as not to block: then it is seen of a write
/// that waits whether its reader takes a little now and then. The flag on `fd` itself would be
/// for everybody who has that, the shell among them.
fn of_our_own(fd: BorrowedFd<'_>) -> Option<OwnedFd> {
    let mode = fstat(fd).ok()?.st_mode;
    let kind = SFlag::from_bits_truncate(mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFIFO && !isatty(fd).unwrap_or(false) {
        return None;
    }
    File::options()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .ok()
        .map(Into::into)
}

/// Writes what there is room for, and waits until there is some: also where somebody else made
/// the descriptor non-blocking.
pub(crate) fn write_some(fd: BorrowedFd<'_>, bytes: &[u8]) -> nix::Result<usize> {
    loop {
        match write(fd, bytes) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                // Whatever ended the wait, the next write says what is the matter.
                let _: nix::Result<i32> = poll(
                    &mut [PollFd::new(fd, PollFlags::POLLOUT)],
                    PollTimeout::NONE,
                );
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::OpenOptions,
        io::{Read as _, pipe},
        thread,
    };

    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;

    #[test]
    fn a_full_disk_is_told_once_there_is_room() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut output = Output::new(full.into(), Arc::default());
        output.write_through(b"web.1 | lost\n");
        output.write_through(b"web.1 | lost too\n");
        assert_eq!(
            output.lost(),
            Some(Lost {
                bytes: 30,
                why: Errno::ENOSPC
            })
        );

        let file = tempfile::NamedTempFile::new().unwrap();
        output.fd = file.reopen().unwrap().into();
        output.write_through(b"web.1 | kept\n");
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(output.lost(), None);
        assert_eq!(
            text,
            "hsup: 30 bytes of output were lost: No space left on device\nweb.1 | kept\n"
        );
    }

    #[test]
    fn what_a_reader_that_has_gone_does_not_get_is_counted() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut output = Output::new(writer.into(), Arc::default());
        for _ in 0..2 {
            output.write_through(b"web.1 | lost\n");
        }
        let lost = output.lost().unwrap();
        assert_eq!((lost.bytes, lost.why), (26, Errno::EPIPE));
        assert!(!lost.is_for_now());
    }

    #[test]
    fn it_is_seen_of_one_long_write_that_its_reader_takes_a_little() {
        let (mut reader, writer) = pipe().unwrap();
        let room = fcntl(&writer, FcntlArg::F_GETPIPE_SZ).unwrap();
        let room = usize::try_from(room).unwrap();
        let flow = Arc::new(Flow::default());
        let mut output = Output::new(writer.try_clone().unwrap().into(), Arc::clone(&flow));
        assert_eq!(
            fcntl(&writer, FcntlArg::F_GETFL).unwrap() & libc::O_NONBLOCK,
            0
        );
        drop(writer);
        let writing = thread::spawn(move || output.write_through(&vec![b'x'; 4 * room]));
        while flow.left() != 3 * room {
            thread::yield_now();
        }
        let before = flow.taken();
        // A page: what the kernel gives a writer of a full pipe room by.
        reader.read_exact(&mut [0; 4096]).unwrap();
        while flow.taken() == before {
            thread::yield_now();
        }
        assert!(flow.left() > 0, "most of it still waits");
        let rest = thread::spawn(move || reader.read_to_end(&mut Vec::new()).unwrap());
        writing.join().unwrap();
        assert_eq!(rest.join().unwrap(), 4 * room - 4096);
        assert_eq!(flow.left(), 0);
    }
}
