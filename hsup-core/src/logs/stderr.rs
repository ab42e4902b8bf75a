//! hsup's own standard error, where that is a place of its own.
//!
//! Nobody waits for it: neither a dyno, nor hsup's standard output, nor hsup itself.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    line::counted,
    outlet::{Bounds, Outlet},
    style::Style,
};

const BOUNDS: Bounds = Bounds {
    room: 256 * 1024,
    kept: 16 * 1024,
    patience: Duration::ZERO,
};

/// The way to standard error, for whoever has something to say.
#[derive(Clone, Debug)]
pub(super) struct Stderr {
    outlet: Outlet,
    style: Arc<Mutex<Style>>,
}

impl Stderr {
    /// Starts the thread that writes it.
    pub(super) fn start(fd: OwnedFd, style: Style) -> io::Result<Self> {
        let outlet = Outlet::new(BOUNDS);
        // What goes wrong with it cannot be told there.
        outlet.write_to(fd, "stderr", |dropped| notice(dropped).into_bytes(), drop)?;
        Ok(Self {
            outlet,
            style: Arc::new(Mutex::new(style)),
        })
    }

    /// Makes the column of names wide enough.
    pub(super) fn widen(&self, name_len: usize) {
        self.style().widen(name_len);
    }

    /// Whole lines of a dyno, each with its `\n`.
    pub(super) fn lines(&self, name: &str, at_unix_us: i64, lines: &[u8]) {
        let mut style = self.style();
        self.push(style.before_lines(name, at_unix_us), lines);
    }

    /// hsup's own lines, each with its `\n`.
    pub(super) fn note(&self, name: &str, at_unix_us: i64, lines: &[u8]) {
        let mut style = self.style();
        self.push(style.before_note(name, at_unix_us), lines);
    }

    /// Whole lines that are nobody's: as they are.
    pub(super) fn text(&self, text: &[u8]) {
        self.push(b"", text);
    }

    /// Lets nothing more in; what it returns resolves when everything is written.
    pub(super) fn close(&self) -> oneshot::Receiver<()> {
        let (done, written) = oneshot::channel();
        self.outlet.close(vec![done]);
        written
    }

    fn push(&self, prefix: &[u8], lines: &[u8]) {
        self.outlet.push(prefix, lines);
        // What is missing is said in its place, and there is no other.
        self.outlet.flush();
    }

    fn style(&self) -> MutexGuard<'_, Style> {
        self.style.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn notice(dropped: u64) -> String {
    format!(
        "hsup: {} not shown: standard error took nothing\n",
        counted(dropped)
    )
}
