//! What a driver that was killed has left: the next one at the same socket kills it.
//!
//! A note beside the socket has the folders of the dynos' FIFOs; whoever has one of these for
//! a standard stream is of a dyno.

use std::{
    env,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The note, where there is a socket to put it beside.
fn note() -> Option<PathBuf> {
    let mut path = env::var_os("HSUP_DRIVER_SOCKET")?;
    path.push(".left");
    Some(path.into())
}

/// Notes the FIFOs of a dyno that is about to start.
pub(crate) fn remember(io_dir: &str) -> io::Result<()> {
    let Some(note) = note() else { return Ok(()) };
    let mut file = OpenOptions::new().create(true).append(true).open(note)?;
    writeln!(file, "{io_dir}")
}

/// Nothing is left.
pub(crate) fn forget() {
    // There is none if no dyno was started.
    drop(note().map(fs::remove_file));
}

/// Kills whatever the driver before this one left.
pub(crate) fn kill_all() {
    let text = note().map(fs::read_to_string);
    let Some(Ok(text)) = text else { return };
    let folders: Vec<_> = text.lines().collect();
    loop {
        let left = pids().filter(|pid| is_of_a_dyno(*pid, &folders));
        let killed = left.map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        if killed.count() == 0 {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    forget();
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn is_of_a_dyno(pid: i32, folders: &[&str]) -> bool {
    (0..3).any(|fd| {
        let stream = fs::read_link(format!("/proc/{pid}/fd/{fd}"));
        let folder = stream
            .ok()
            .and_then(|path| path.parent().map(Path::to_owned));
        folder.is_some_and(|folder| folders.iter().any(|known| folder == Path::new(known)))
    })
}
