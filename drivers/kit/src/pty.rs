//! A terminal for a dyno: a pseudo-terminal (pty(7)) whose slave the dyno gets.
//!
//! What the dyno writes before anybody reads is kept, up to [`KEPT`]; beyond that it waits,
//! as at any terminal whose output is held.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hsup_proto::driver::StartRequest;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    pty::{Winsize, openpty},
    sys::termios::{InputFlags, LocalFlags, SpecialCharacterIndices, Termios, tcgetattr},
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
    /// What was typed last.
    typed: Mutex<Option<u8>>,
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

/// The size of a terminal's window, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Its lines.
    pub rows: u16,
    /// The characters of each.
    pub columns: u16,
}

impl Default for WindowSize {
    fn default() -> Self {
        Self {
            rows: 24,
            columns: 80,
        }
    }
}

impl WindowSize {
    /// The size that a Start asks for; the usual one where it does not know it.
    pub fn wanted(request: &StartRequest) -> Self {
        if request.tty_rows == 0 || request.tty_columns == 0 {
            return Self::default();
        }
        Self::clamped(request.tty_rows, request.tty_columns)
    }

    /// A size from the wire, which has room for larger ones than the kernel.
    pub(crate) fn clamped(rows: u32, columns: u32) -> Self {
        let clamp = |length: u32| u16::try_from(length).unwrap_or(u16::MAX);
        Self {
            rows: clamp(rows),
            columns: clamp(columns),
        }
    }

    const fn for_the_kernel(self) -> Winsize {
        Winsize {
            ws_row: self.rows,
            ws_col: self.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        }
    }
}

impl Terminal {
    /// The terminal whose master this is; for one that was opened elsewhere. Its slave must be
    /// open by now, or have been.
    ///
    /// Its output is read from now on. Must run inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// When this is no descriptor of a terminal, or cannot be waited for.
    pub fn from_master(master: OwnedFd) -> io::Result<Self> {
        // Of anything else a reader would wait for ever, or never.
        tcgetattr(&master)?;
        fcntl(&master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        fcntl(
            &master,
            FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK),
        )?;
        let gone = CancellationToken::new();
        let terminal = Self {
            inner: Arc::new(Inner {
                master: register(master)?,
                output: Mutex::default(),
                typed: Mutex::default(),
                came: Notify::new(),
                taken: Notify::new(),
            }),
            _last: Arc::new(gone.clone().drop_guard()),
        };
        let pump = pump(Arc::clone(&terminal.inner));
        tokio::spawn(async move { gone.run_until_cancelled(pump).await });
        Ok(terminal)
    }
}

/// Makes a terminal of this size: our end, and the one for the dyno.
///
/// # Errors
/// When this machine has no more of them.
pub fn open(size: WindowSize) -> io::Result<(Terminal, OwnedFd)> {
    let pair = openpty(Some(&size.for_the_kernel()), None)?;
    fcntl(&pair.slave, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok((Terminal::from_master(pair.master)?, pair.slave))
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
            *self.typed() = bytes[..written].last().copied();
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
        let unfinished = self
            .typed()
            .is_some_and(|last| !ends_line(&attributes, last));
        // The first one hands over what there is of a line; only at the beginning of one does
        // it mean that there is no more.
        let ends: &[u8] = if unfinished { &[end, end] } else { &[end] };
        self.write(ends).await
    }

    fn typed(&self) -> MutexGuard<'_, Option<u8>> {
        let typed = self.inner.typed.lock();
        typed.unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the window's size; the kernel tells the dyno (SIGWINCH).
    ///
    /// # Errors
    /// When the kernel refuses.
    #[expect(unsafe_code, reason = "an ioctl")]
    pub fn resize(&self, size: WindowSize) -> io::Result<()> {
        let size = size.for_the_kernel();
        let master = self.inner.master.get_ref().as_raw_fd();
        // SAFETY: the kernel reads a whole Winsize, which is there.
        let result = unsafe { libc::ioctl(master, libc::TIOCSWINSZ, &raw const size) };
        Errno::result(result)?;
        Ok(())
    }
}

/// Whether nothing of a line is left after `byte` was typed: it ended, or was thrown away.
fn ends_line(attributes: &Termios, byte: u8) -> bool {
    use SpecialCharacterIndices as Index;
    let is = |index: Index| {
        let special = attributes.control_chars[index as usize];
        special != libc::_POSIX_VDISABLE && special == byte
    };
    let has = |flag| attributes.local_flags.contains(flag);
    match byte {
        b'\n' => true,
        b'\r' => attributes.input_flags.contains(InputFlags::ICRNL),
        _ if has(LocalFlags::ISIG) && !has(LocalFlags::NOFLSH) => {
            [Index::VINTR, Index::VQUIT, Index::VSUSP]
                .into_iter()
                .any(is)
                || [Index::VEOF, Index::VEOL, Index::VKILL].into_iter().any(is)
        }
        _ => [Index::VEOF, Index::VEOL, Index::VKILL].into_iter().any(is),
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[tokio::test]
    async fn what_is_written_before_anybody_reads_is_kept() {
        let (terminal, slave) = open(WindowSize::default()).unwrap();
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

    /// What a program reads until the end of its input, each time that it reads.
    async fn reads(typed: &[&[u8]]) -> Vec<String> {
        let (terminal, slave) = open(WindowSize::default()).unwrap();
        for typed in typed {
            terminal.write(typed).await.unwrap();
        }
        terminal.end_input().await.unwrap();
        // Were there no end, it would wait for ever.
        terminal.write(b"no end\n").await.unwrap();
        let mut reads = Vec::new();
        let mut buffer = [0; 64];
        loop {
            let n = read(&slave, &mut buffer).unwrap();
            if n == 0 {
                return reads;
            }
            reads.push(String::from_utf8_lossy(&buffer[..n]).into_owned());
        }
    }

    #[tokio::test]
    async fn input_and_its_end_arrive() {
        assert_eq!(reads(&[b"line\n"]).await, ["line\n"]);
        assert_eq!(reads(&[b"return\r"]).await, ["return\n"]);
        assert_eq!(reads(&[]).await, [""; 0]);
    }

    #[tokio::test]
    async fn the_end_of_input_comes_after_an_unfinished_line_too() {
        assert_eq!(
            reads(&[b"line\n", b"unfini", b"shed"]).await,
            ["line\n", "unfinished"]
        );
    }

    #[tokio::test]
    async fn a_line_that_was_thrown_away_is_none() {
        // Ctrl-U, Ctrl-C; a second end would be for the next reader.
        let (terminal, slave) = open(WindowSize::default()).unwrap();
        for thrown in [b"line\x15", b"line\x03"] {
            terminal.write(thrown).await.unwrap();
            terminal.end_input().await.unwrap();
            terminal.write(b"next\n").await.unwrap();
            let mut buffer = [0; 64];
            assert_eq!(read(&slave, &mut buffer), Ok(0));
            assert_eq!(read(&slave, &mut buffer), Ok(5));
        }
    }

    #[tokio::test]
    async fn a_master_from_elsewhere_is_a_terminal_and_nothing_else_is() {
        let pair = openpty(None, None).unwrap();
        let terminal = Terminal::from_master(pair.master).unwrap();
        write(&pair.slave, b"hello\n").unwrap();
        assert_eq!(terminal.read().await, b"hello\r\n");
        terminal.write(b"you\n").await.unwrap();
        let mut buffer = [0; 8];
        assert_eq!(read(&pair.slave, &mut buffer), Ok(4));
        let (pipe, _other) = nix::unistd::pipe().unwrap();
        let error = Terminal::from_master(pipe).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }

    #[test_case(0, 0 => (24, 80); "not known")]
    #[test_case(0, 100 => (24, 80); "half of it")]
    #[test_case(50, 132 => (50, 132))]
    #[test_case(70_000, 1 => (u16::MAX, 1); "more than the kernel has")]
    fn the_size_that_a_start_asks_for(tty_rows: u32, tty_columns: u32) -> (u16, u16) {
        let size = WindowSize::wanted(&StartRequest {
            tty_rows,
            tty_columns,
            ..StartRequest::default()
        });
        (size.rows, size.columns)
    }

    #[tokio::test]
    async fn the_size_is_the_slaves_too() {
        let (terminal, slave) = open(WindowSize::default()).unwrap();
        terminal
            .resize(WindowSize {
                rows: 33,
                columns: 101,
            })
            .unwrap();
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
