//! What only some drivers offer: binds, limits, figures.
//!
//! No kernel is asked for help: a bind is a symbolic link, a limit is a thread that looks.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use hsup_proto::driver::{Bind, Limits, StatsResponse};
use nix::{
    sys::signal::Signal,
    unistd::{Pid, SysconfVar, sysconf},
};
use tempfile::TempDir;

use crate::{
    Fault,
    builds::copy_of,
    dyno::{Dyno, PAUSE, now_ms},
    tree::tree,
};

/// The binds of one dyno; dropped, they are gone.
#[derive(Debug, Default)]
pub(crate) struct Binds {
    links: Vec<PathBuf>,
    copies: Vec<TempDir>,
}

impl Drop for Binds {
    fn drop(&mut self) {
        for link in &self.links {
            // A link that somebody removed is as good.
            drop(fs::remove_file(link));
        }
    }
}

/// Makes the binds of a dyno. What it may only read is a copy.
pub(crate) fn bind(wanted: &[Bind], fault: Option<Fault>) -> io::Result<Binds> {
    let mut binds = Binds::default();
    if fault == Some(Fault::BindsAreIgnored) {
        return Ok(binds);
    }
    for bind in wanted {
        let host = Path::new(&bind.host_path);
        if !host.is_absolute() || !host.is_dir() {
            let message = format!("`{}` is no directory", bind.host_path);
            return Err(io::Error::new(ErrorKind::InvalidInput, message));
        }
        let writable = bind.writable || fault == Some(Fault::BindsAreWritable);
        let target = if writable {
            host.to_owned()
        } else {
            let copy = copy_of(host)?;
            let path = copy.path().to_owned();
            binds.copies.push(copy);
            path
        };
        symlink(target, &bind.dyno_path)?;
        binds.links.push(PathBuf::from(&bind.dyno_path));
    }
    Ok(binds)
}

/// Holds a dyno to its limits, if it has some.
pub(crate) fn limit(dyno: &Arc<Dyno>) {
    if let (Some(limits), Some(first)) = (dyno.request.limits, dyno.first) {
        hold(dyno, first, limits);
    }
}

fn hold(dyno: &Arc<Dyno>, first: Pid, limits: Limits) {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    let page = u64::try_from(page.unwrap_or(4096)).unwrap_or(4096);
    let watched = Arc::clone(dyno);
    thread::spawn(move || {
        while watched.status().is_none() {
            let processes = tree(first);
            let pages: u64 = processes.iter().map(|process| process.pages).sum();
            if limits.memory_bytes > 0 && pages * page > limits.memory_bytes {
                watched.out_of_memory.store(true, Ordering::SeqCst);
                watched.kill();
            }
            let allowed = usize::try_from(limits.pids).unwrap_or(usize::MAX);
            if limits.pids > 0 && processes.len() > allowed {
                // A process that may not fork gives up, as shells do.
                watched.kill();
            }
            thread::sleep(PAUSE);
        }
    });
    if limits.cpu_millis == 0 {
        return;
    }
    let throttled = Arc::clone(dyno);
    thread::spawn(move || {
        let run = u64::from(limits.cpu_millis.min(1000)) / 5;
        while throttled.status().is_none() {
            throttled.signal(Signal::SIGCONT);
            thread::sleep(Duration::from_millis(run));
            throttled.signal(Signal::SIGSTOP);
            thread::sleep(Duration::from_millis(200 - run));
        }
    });
}

/// What a dyno takes up now.
pub(crate) fn stats(first: Pid) -> StatsResponse {
    let processes = tree(first);
    let ticks: u64 = processes.iter().map(|process| process.cpu_ticks).sum();
    let pages: u64 = processes.iter().map(|process| process.pages).sum();
    StatsResponse {
        at_unix_ms: now_ms(),
        // A hundred ticks are a second.
        cpu_ns: Some(ticks * 10_000_000),
        memory_bytes: Some(pages * 4096),
        memory_peak_bytes: None,
        pids: u32::try_from(processes.len()).ok(),
        pid: u32::try_from(first.as_raw()).ok(),
    }
}
