//! What a dyno wrote, and nobody has read yet when it has ended.
//!
//! A FIFO forgets what is in it when nobody has it open any more (`pipe(7)`). A supervisor that is
//! away has it not, and the dyno's own ends go with the dyno: somebody else has to hold it until
//! there is a reader. That is a process of its own, for the end of the dyno's parent is what others
//! wait for.

use std::{
    ffi::CStr,
    fs::File,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    thread,
    time::Duration,
};

use crate::sys::{self, Fork};

/// After how long it is first looked whether it has been read: by a supervisor that is there.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest time between two looks.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The reading ends of the FIFOs that a dyno writes to.
#[derive(Debug)]
pub(crate) struct Unread(Vec<File>);

impl Unread {
    pub(crate) fn of(ends: impl IntoIterator<Item = File>) -> Self {
        Self(ends.into_iter().collect())
    }

    /// Leaves a process behind, called `name`, if there is anything to read. It holds nothing but
    /// that and the dyno's folder, and goes once that was read, or can't be any more: when the
    /// FIFO, or the folder, has been removed.
    pub(crate) fn keep(&self, name: &'static CStr, folder: &File) {
        if !self.is_there() || !matches!(sys::fork(), Ok(Fork::Child)) {
            return;
        }
        sys::set_name(name);
        let held = self.0.iter().chain([folder]);
        sys::close_all_but(held.map(File::as_raw_fd).collect());
        let mut pause = FIRST_PAUSE;
        while self.is_there() && has_a_name(folder) {
            thread::sleep(pause);
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        sys::exit_at_once(0);
    }

    /// Whether there is anything that somebody could still read.
    fn is_there(&self) -> bool {
        let is_there = |end: &File| sys::unread(end) > 0 && has_a_name(end);
        self.0.iter().any(is_there)
    }
}

/// Whether it has not been removed.
fn has_a_name(file: &File) -> bool {
    file.metadata()
        .map_or(true, |metadata| metadata.nlink() > 0)
}
