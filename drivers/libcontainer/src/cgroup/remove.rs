//! Killing what is in a dyno's groups, and removing them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::Instant;

use super::is_busy;

/// How long a group is emptied before that is given up: a process in the kernel's hands may take
/// its time to go.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);

/// The processes in any of these groups.
pub(crate) fn members(folders: &[PathBuf]) -> Vec<i32> {
    // A process is in all of them, but for one that is being made.
    let mut pids: Vec<i32> = folders
        .iter()
        .filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok())
        .flat_map(|text| {
            text.lines()
                // 0 is somebody in a pid namespace that we do not see.
                .filter_map(|line| line.parse().ok().filter(|pid| *pid > 0))
                .collect::<Vec<i32>>()
        })
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Kills what is in these groups, waits until they are empty, and removes them, and their parent
/// where that is empty. What is not there is no error.
///
/// # Errors
/// When something does not die, or a group cannot be removed.
pub(crate) fn remove(folders: &[PathBuf]) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    for folder in folders {
        loop {
            for pid in members(std::slice::from_ref(folder)) {
                // It is a member of a dyno's own group; it may be gone by now.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            match remove_tree(folder) {
                Ok(()) => break,
                Err(error) if is_busy(&error) && Instant::now() < end => {
                    thread::sleep(PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(parent) = folder.parent() {
            // Only if nobody else is in it.
            drop(fs::remove_dir(parent));
        }
    }
    Ok(())
}

/// Removes a group and those below it, which a dyno's own programs may have made.
fn remove_tree(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if is_busy(&error) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => return other,
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            for pid in members(&[entry.path()]) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        remove(&[folder.path().join("hsup/none")]).unwrap();
    }
}
