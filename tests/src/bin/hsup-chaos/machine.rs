//! What is looked at from outside: processes, descriptors, a small disk, the clock.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use hsup_tests::processes;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        signal::{Signal, kill},
        time::TimeSpec,
    },
    time::{ClockId, clock_gettime, clock_settime},
    unistd::{Pid, gethostname},
};

/// A process that has a folder in its environment or its arguments.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// The file name of what it runs.
    pub(crate) program: String,
}

/// All processes of the app in this folder; without this program.
pub(crate) fn processes_of(root: &Path) -> Vec<Process> {
    let found = processes::of_folder(root).into_iter();
    found
        .filter_map(|pid| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let first =
                String::from_utf8_lossy(words.split(|byte| *byte == 0).next()?).into_owned();
            let program = first.rsplit('/').next()?.to_owned();
            Some(Process { pid, program })
        })
        .collect()
}

/// What the descriptors of a process are. Of hsup and its drivers only root sees them.
pub(crate) fn descriptors(pid: i32) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?;
    // One that is closed meanwhile is none.
    let links = entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok());
    Ok(links.map(|link| link.display().to_string()).collect())
}

/// The names in a folder; none if it is not there.
pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// Sends a signal; whoever has gone needs none.
pub(crate) fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// All files below a folder, by their paths within it, in order.
pub(crate) fn all_below(folder: &Path) -> Vec<String> {
    fn collect(folder: &Path, root: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap_or(&path);
            found.push(name.display().to_string());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                collect(&path, root, found);
            }
        }
    }
    let mut found = Vec::new();
    collect(folder, folder, &mut found);
    found.sort();
    found
}

/// A small file system of its own, gone when dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts one there, which must be a folder.
    pub(crate) fn mount(path: PathBuf) -> nix::Result<Self> {
        let (none, size) = (Some("none"), Some("size=4m"));
        mount(none, &path, Some("tmpfs"), MsFlags::empty(), size)?;
        Ok(Self { path })
    }

    /// Takes all the room that is left.
    pub(crate) fn fill(&self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut filler = options.append(true).create(true).open(self.filler())?;
        for size in [65536, 512] {
            while filler.write_all(&vec![0; size]).is_ok() {}
        }
        Ok(())
    }

    pub(crate) fn free(&self) -> io::Result<()> {
        fs::remove_file(self.filler())
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that failed has left somebody in it: it goes when that goes.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

/// The machine's clock. Dropped, it is what it would be if nobody had set it.
#[derive(Debug)]
pub(crate) struct Clock {
    /// When the machine was started, by the clock as it was.
    boot: TimeSpec,
    /// How far it is ahead of what it was, in minutes.
    ahead: i64,
}

impl Clock {
    /// For whoever knows the machine: it is everybody's clock.
    pub(crate) fn of(machine: &str) -> Result<Self> {
        let name = gethostname().context("failed to ask for the machine's name")?;
        ensure!(
            name == machine,
            "this machine is not `{machine}`, and its clock is everybody's"
        );
        let now = clock_gettime(ClockId::CLOCK_REALTIME).context("failed to ask for the time")?;
        let mut clock = Self {
            boot: now - since_boot()?,
            ahead: 0,
        };
        // Whoever may not set it knows that now.
        clock.jump(0)?;
        Ok(clock)
    }

    /// Sets it so many minutes ahead of what it shows, or back.
    pub(crate) fn jump(&mut self, minutes: i64) -> Result<()> {
        self.ahead += minutes;
        let time = self.boot + since_boot()? + TimeSpec::new(self.ahead * 60, 0);
        clock_settime(ClockId::CLOCK_REALTIME, time).context("failed to set the clock")
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        // It could be set before.
        drop(self.jump(-self.ahead));
    }
}

fn since_boot() -> Result<TimeSpec> {
    clock_gettime(ClockId::CLOCK_BOOTTIME).context("failed to ask for the time since the boot")
}
