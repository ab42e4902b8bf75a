//! What the kernel tells of processes that run.

use std::fs;

use anyhow::{Context as _, Result};

/// All processes that there are now.
pub(super) fn processes() -> Result<Vec<i32>> {
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc").context("failed to list processes")? {
        let name = entry?.file_name();
        processes.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(processes)
}

/// What a process says of itself from the third field of `proc_pid_stat(5)` on, which is its state:
/// before that is its name, in which anything may be. None of one that has ended.
fn fields(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind) = stat.rsplit_once(") ")?;
    Some(behind.split_whitespace().map(str::to_owned).collect())
}

/// Who has started it.
pub(super) fn parent(pid: i32) -> Option<i32> {
    fields(pid)?.get(1)?.parse().ok()
}

/// What it has used of processors, in ticks.
pub(super) fn ticks(pid: i32) -> Option<u64> {
    // The 14th field and the 15th.
    let fields = fields(pid)?;
    let used = fields.get(11..13)?.iter().map(|field| field.parse::<u64>());
    used.sum::<Result<u64, _>>().ok()
}
