//! The kernel's word that a directory changed, through inotify.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::Path,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::{Interest, unix::AsyncFd};

/// What happened to the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A file that is looked for was written and closed, or moved there.
    File,
    /// There is something now under a name that is looked for: what is no file, such as a
    /// link, says no more than that.
    Made,
    /// The directory was deleted or moved, or events were lost.
    Directory,
}

/// A watched directory.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: AsyncFd<Instance>,
    directory: WatchDescriptor,
    name: OsString,
}

#[derive(Debug)]
struct Instance(Inotify);

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    /// Watches `directory`.
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // Not IN_MODIFY: a file that is being written is not yet whole.
        let watched = inotify.add_watch(
            directory,
            AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_ONLYDIR,
        )?;
        // A directory that is held open is not gone when it is removed. Where it was is told,
        // if that may be read; if not, a poll finds out.
        let gone = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
        if let Some(parent) = directory.parent() {
            let _ = inotify.add_watch(parent, gone | AddWatchFlags::IN_ONLYDIR);
        }
        #[expect(
            unsafe_code,
            reason = "tokio offers no safe way to register a descriptor"
        )]
        // SAFETY: `Instance` owns its descriptor, gives out no other one, and never closes
        // it before it is dropped itself.
        let inotify =
            unsafe { AsyncFd::register_with_interest(Instance(inotify), Interest::READABLE) };
        Ok(Self {
            inotify: inotify?,
            directory: watched,
            name: directory.file_name().unwrap_or_default().to_owned(),
        })
    }

    /// Waits for a change of a file with one of these names, or of the directory. Cancel safe.
    pub(super) async fn changed(&self, names: &[&str]) -> io::Result<Change> {
        loop {
            let mut ready = self.inotify.readable().await?;
            let read = ready.try_io(|inotify| Ok(inotify.get_ref().0.read_events()?));
            let Ok(events) = read else {
                continue;
            };
            let events = events?;
            // What is gone from here is not seen by a file's event any more.
            let directory = AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_IGNORED
                | AddWatchFlags::IN_UNMOUNT;
            let (inside, beside): (Vec<_>, Vec<_>) =
                events.iter().partition(|event| event.wd == self.directory);
            let is_gone = beside
                .iter()
                .any(|event| event.name.as_ref() == Some(&self.name));
            let overflow = AddWatchFlags::IN_Q_OVERFLOW;
            let is_lost = events.iter().any(|event| event.mask.contains(overflow));
            if is_lost || is_gone || inside.iter().any(|event| event.mask.intersects(directory)) {
                return Ok(Change::Directory);
            }
            let named = |name: &std::ffi::OsStr| names.iter().any(|looked_for| name == *looked_for);
            let of_names = inside
                .iter()
                .filter(|event| event.name.as_deref().is_some_and(named));
            let change = of_names.map(|event| event.mask.contains(AddWatchFlags::IN_CREATE));
            match change.min() {
                Some(false) => return Ok(Change::File),
                Some(true) => return Ok(Change::Made),
                None => {}
            }
        }
    }
}
