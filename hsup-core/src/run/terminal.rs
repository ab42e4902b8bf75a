//! hsup's own terminal, while a dyno's is behind it: raw, so that every key is the dyno's.

use std::{
    io::{self, IsTerminal as _},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr},
    unistd::{getpgrp, tcgetpgrp},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Whether standard input and output are a terminal both, and it is ours to use.
pub(super) fn is_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal() && !is_behind_another_job()
}

/// Whether standard input is a terminal that its shell has given to another job (`hsup run … &`):
/// who reads from it there, or makes it raw, is stopped by the kernel.
pub(super) fn is_behind_another_job() -> bool {
    // A terminal of somebody else's session knows nothing of our jobs.
    tcgetpgrp(io::stdin()).is_ok_and(|in_front| in_front != getpgrp())
}

/// The window of hsup's terminal, watched: whoever reads its size misses no change of it
/// afterwards.
#[derive(Debug)]
pub(super) struct Window {
    terminal: OwnedFd,
    resized: Signal,
}

impl Window {
    /// Begins to watch.
    pub(super) fn watch() -> io::Result<Self> {
        Self::on(io::stdin().as_fd().try_clone_to_owned()?)
    }

    /// The window of this terminal.
    pub(super) fn on(terminal: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            terminal,
            resized: signal(SignalKind::window_change())?,
        })
    }

    /// Its rows and columns, if it knows them.
    #[expect(unsafe_code, reason = "an ioctl")]
    pub(super) fn size(&self) -> Option<(u32, u32)> {
        let mut size = std::mem::MaybeUninit::<libc::winsize>::zeroed();
        let terminal = self.terminal.as_raw_fd();
        // SAFETY: the kernel fills a whole winsize where it answers 0; all zeroes is one, too.
        let size = unsafe {
            if libc::ioctl(terminal, libc::TIOCGWINSZ, size.as_mut_ptr()) != 0 {
                return None;
            }
            size.assume_init()
        };
        (size.ws_row > 0 && size.ws_col > 0)
            .then(|| (u32::from(size.ws_row), u32::from(size.ws_col)))
    }

    /// Resolves when the size may have changed.
    pub(super) async fn changed(&mut self) {
        if self.resized.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// A terminal in raw mode; it is as before when this is dropped.
#[derive(Debug)]
pub(super) struct RawTerminal {
    fd: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Makes standard input's terminal raw.
    ///
    /// # Errors
    /// When it is no terminal.
    pub(super) fn enter() -> Result<Self, Errno> {
        let fd = io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        let before = tcgetattr(&fd)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        // At once: what is shown already may find nobody who takes it.
        tcsetattr(&fd, SetArg::TCSANOW, &raw)?;
        Ok(Self { fd, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Behind another job it is as the shell wants it, which has set it for that one.
        if is_behind_another_job() {
            return;
        }
        // It may be gone; then nobody minds.
        let _ = tcsetattr(&self.fd, SetArg::TCSANOW, &self.before);
    }
}
