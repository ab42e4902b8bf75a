//! A terminal of the dyno's own: of its devpts, so that its name means something in the dyno.

use std::{
    fs::OpenOptions,
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
};

use crate::sys;

/// Where it is found; the second if the first is missing.
const MULTIPLEXERS: [&str; 2] = ["/dev/ptmx", "/dev/pts/ptmx"];

#[derive(Debug)]
pub(crate) struct Pair {
    /// The end of who watches the dyno.
    pub(crate) master: OwnedFd,
    /// The end of the dyno.
    pub(crate) slave: OwnedFd,
}

impl Pair {
    pub(crate) fn open(rows: u16, columns: u16) -> io::Result<Self> {
        let [first, second] = MULTIPLEXERS;
        let master = open(first).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => open(second),
            _ => Err(error),
        });
        let master = master
            .map_err(|error| sys::failed("failed to open a terminal at /dev/ptmx", &error))?;
        let slave = sys::open_terminal_slave(&master)
            .map_err(|error| sys::failed("failed to open the dyno's end of a terminal", &error))?;
        sys::set_terminal_size(&master, rows, columns)
            .map_err(|error| sys::failed("failed to set the size of a terminal", &error))?;
        Ok(Self { master, slave })
    }
}

fn open(path: &str) -> io::Result<OwnedFd> {
    let mut how = OpenOptions::new();
    how.read(true).write(true).custom_flags(libc::O_NOCTTY);
    how.open(path).map(OwnedFd::from)
}
