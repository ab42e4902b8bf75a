//! A terminal for a dyno: a pseudo-terminal (pty(7)) whose slave the dyno gets.
//!
//! What the dyno writes before anybody reads is kept, up to [`KEPT`]; beyond that it waits,
//! as at any terminal whose output is held.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    pty::{Winsize, openpty},
    sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr},
    unistd::{read, write},
};
use tokio::{io::unix::AsyncFd, sync::Notify};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How much output waits for a reader.
pub const KEPT: usize = 64 * 1024;

/// The driver's end of a dyno's terminal. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Terminal {
    inner: Arc<Inner>,
    /// Ends the pump, which may wait for a reader for ever, with the last of us.
    _last: Arc<DropGuard>,
}

#[derive(Debug)]
struct Inner {
    master: AsyncFd<OwnedFd>,
    output: Mutex<Output>,
    /// Output came, or its end.
    came: Notify,
    /// Output was taken.
    taken: Notify,
}

#[derive(Debug, Default)]
struct Output {
    bytes: VecDeque<u8>,
    ended: bool,
}

/// Makes a terminal: our end, and the one for the dyno.
///
/// # Errors
/// When this machine has no more of them.
pub fn open() -> io::Result<(Terminal, OwnedFd)> {
    let size = Winsize {
        ws_row: 24,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pair = openpty(Some(&size), None)?;
    for end in [&pair.master, &pair.slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    fcntl(
        &pair.master,
        FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK),
    )?;
    let gone = CancellationToken::new();
    let terminal = Terminal {
        inner: Arc::new(Inner {
            master: register(pair.master)?,
            output: Mutex::default(),
            came: Notify::new(),
            taken: Notify::new(),
        }),
        _last: Arc::new(gone.clone().drop_guard()),
    };
    let pump = pump(Arc::clone(&terminal.inner));
    tokio::spawn(async move { gone.run_until_cancelled(pump).await });
    Ok((terminal, pair.slave))
}

#[expect(unsafe_code, reason = "tokio's way to say who owns a descriptor")]
fn register(master: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays the same open descriptor for as long as it is owned.
    unsafe { AsyncFd::register(master) }.map_err(|error| error.into_parts().1)
}

/// Moves output from the kernel to where it is kept, until every process has let go of the
/// terminal.
async fn pump(inner: Arc<Inner>) {
    let mut buffer = vec![0; 8192];
    loop {
        let has_room = inner.with_output(|output| output.bytes.len() < KEPT);
        if !has_room {
            inner.taken.notified().await;
            continue;
        }
        let result = inner
            .master
            .async_io(tokio::io::Interest::READABLE, |master| {
                read(master, &mut buffer).map_err(io::Error::from)
            })
            .await;
        match result {
            Ok(n) if n > 0 => inner.with_output(|output| output.bytes.extend(&buffer[..n])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // EIO: the last slave was closed.
            Ok(_) | Err(_) => {
                inner.with_output(|output| output.ended = true);
                inner.came.notify_waiters();
                inner.came.notify_one();
                return;
            }
        }
        inner.came.notify_one();
    }
}

impl Inner {
    fn with_output<T>(&self, change: impl FnOnce(&mut Output) -> T) -> T {
        change(&mut self.output.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Terminal {
    /// Takes what the dyno wrote; nothing once it has ended and all was taken. For one reader
    /// at a time. Cancel safe.
    pub async fn read(&self) -> Vec<u8> {
        loop {
            let (bytes, ended) = self
                .inner
                .with_output(|output| (output.bytes.drain(..).collect::<Vec<u8>>(), output.ended));
            if !bytes.is_empty() {
                self.inner.taken.notify_one();
                return bytes;
            }
            if ended {
                return bytes;
            }
            self.inner.came.notified().await;
        }
    }

    /// Types `bytes`.
    ///
    /// # Errors
    /// When nobody has the terminal any more.
    pub async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self
                .inner
                .master
                .async_io(tokio::io::Interest::WRITABLE, |master| {
                    write(master, bytes).map_err(io::Error::from)
                })
                .await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Ends the input, as Ctrl-D does: a program that reads raw has no end of input.
    ///
    /// # Errors
    /// When nobody has the terminal any more.
    pub async fn end_input(&self) -> io::Result<()> {
        let attributes = tcgetattr(self.inner.master.get_ref())?;
        if !attributes.local_flags.contains(LocalFlags::ICANON) {
            return Ok(());
        }
        let end = attributes.control_chars[SpecialCharacterIndices::VEOF as usize];
        self.write(&[end]).await
    }

    /// Sets the window's size; the kernel tells the dyno (SIGWINCH).
    ///
    /// # Errors
    /// When the kernel refuses.
    #[expect(unsafe_code, reason = "an ioctl")]
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let master = self.inner.master.get_ref().as_raw_fd();
        // SAFETY: the kernel reads a whole Winsize, which is there.
        let result = unsafe { libc::ioctl(master, libc::TIOCSWINSZ, &raw const size) };
        Errno::result(result)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_before_anybody_reads_is_kept() {
        let (terminal, slave) = open().unwrap();
        write(&slave, b"hello\n").unwrap();
        drop(slave);
        let mut all = Vec::new();
        loop {
            let bytes = terminal.read().await;
            if bytes.is_empty() {
                break;
            }
            all.extend(bytes);
        }
        assert_eq!(all, b"hello\r\n");
    }

    #[tokio::test]
    async fn input_and_its_end_arrive() {
        let (terminal, slave) = open().unwrap();
        terminal.write(b"line\n").await.unwrap();
        terminal.end_input().await.unwrap();
        let mut buffer = [0; 16];
        assert_eq!(read(&slave, &mut buffer), Ok(5));
        assert_eq!(read(&slave, &mut buffer), Ok(0));
    }

    #[tokio::test]
    async fn the_size_is_the_slaves_too() {
        let (terminal, slave) = open().unwrap();
        terminal.resize(33, 101).unwrap();
        let size = tty_size(&slave);
        assert_eq!((size.ws_row, size.ws_col), (33, 101));
    }

    #[expect(unsafe_code, reason = "an ioctl")]
    fn tty_size(fd: &OwnedFd) -> libc::winsize {
        let mut size = std::mem::MaybeUninit::<libc::winsize>::zeroed();
        // SAFETY: the kernel fills a whole winsize.
        unsafe {
            libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr());
            size.assume_init()
        }
    }
}
