//! One of hsup's own two outputs: a descriptor with a buffer before it.
//!
//! Nothing is lost on the way out: a full pipe or a stopped terminal is waited
//! for, also where somebody else made the descriptor non-blocking.  Two ends are
//! different.  A reader that has gone (EPIPE, a terminal that hung up) will not
//! come back, so the output is given up.  A full disk may get room again, so lines
//! are lost until then, and their bytes are told in the output itself.  Either way
//! they are counted, for whoever can tell it elsewhere.

use std::{
    mem,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::write,
};

/// How much is gathered before it is written.
const BUFFER_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Output {
    fd: OwnedFd,
    buffer: Vec<u8>,
    lost: Option<Lost>,
    /// The last byte that got out was a `\n`, or none did yet.
    at_line_start: bool,
    /// How many bytes the write under way has left.
    pending: Arc<AtomicUsize>,
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
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            buffer: Vec::new(),
            lost: None,
            at_line_start: true,
            pending: Arc::default(),
        }
    }

    /// What is lost by now.
    pub(super) fn lost(&self) -> Option<Lost> {
        self.lost
    }

    /// How many bytes the write under way has left, seen from another thread.
    pub(super) fn pending(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.pending)
    }

    /// Adds a prefix and a line that follows it.
    #[inline]
    pub(super) fn push(&mut self, prefix: &[u8], line: &[u8]) {
        if self.buffer.len() + prefix.len() + line.len() > BUFFER_BYTES {
            self.flush();
        }
        self.buffer.extend_from_slice(prefix);
        self.buffer.extend_from_slice(line);
    }

    /// Adds what `compose` writes.
    pub(super) fn compose(&mut self, compose: impl FnOnce(&mut Vec<u8>)) {
        compose(&mut self.buffer);
        if self.buffer.len() > BUFFER_BYTES {
            self.flush();
        }
    }

    /// Writes what has gathered; waits for as long as the other side takes.
    pub(super) fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let mut buffer = mem::take(&mut self.buffer);
        self.write_through(&buffer);
        buffer.clear();
        // One enormous line must not stay in memory.
        buffer.shrink_to(2 * BUFFER_BYTES);
        self.buffer = buffer;
    }

    /// Writes `bytes` past the buffer, which must be empty.
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
            self.pending.store(bytes.len(), Ordering::Relaxed);
            let written = write_some(self.fd.as_fd(), bytes).map_err(|errno| WriteFailed {
                errno,
                left: bytes.len(),
            })?;
            if let Some(last) = bytes[..written].last() {
                self.at_line_start = *last == b'\n';
            }
            bytes = &bytes[written..];
        }
        self.pending.store(0, Ordering::Relaxed);
        Ok(())
    }
}

struct WriteFailed {
    errno: Errno,
    /// How many bytes did not get out.
    left: usize,
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
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn a_full_disk_is_told_once_there_is_room() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut output = Output::new(full.into());
        output.push(b"web.1 | ", b"lost\n");
        output.flush();
        output.push(b"web.1 | ", b"lost too\n");
        output.flush();
        assert_eq!(
            output.lost(),
            Some(Lost {
                bytes: 30,
                why: Errno::ENOSPC
            })
        );

        let file = tempfile::NamedTempFile::new().unwrap();
        output.fd = file.reopen().unwrap().into();
        output.push(b"web.1 | ", b"kept\n");
        output.flush();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(output.lost(), None);
        assert_eq!(
            text,
            "hsup: 30 bytes of output were lost: No space left on device\nweb.1 | kept\n"
        );
    }

    #[test]
    fn what_a_reader_that_has_gone_does_not_get_is_counted() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut output = Output::new(writer.into());
        for _ in 0..2 {
            output.push(b"web.1 | ", b"lost\n");
            output.flush();
        }
        let lost = output.lost().unwrap();
        assert_eq!((lost.bytes, lost.why), (26, Errno::EPIPE));
        assert!(!lost.is_for_now());
    }
}
