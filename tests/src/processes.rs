//! Processes that somebody else has started, by what they were given.

use std::{fs, path::Path};

/// Every live process that has this folder in its environment or its arguments; without the one
/// that asks. Of a process that keeps its memory to itself only root sees the environment.
pub fn of_folder(folder: &Path) -> Vec<i32> {
    let mark = folder.as_os_str().as_encoded_bytes();
    let has = |path: String| {
        fs::read(path).is_ok_and(|bytes| bytes.windows(mark.len()).any(|part| part == mark))
    };
    let own = std::process::id().cast_signed();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| has(format!("/proc/{pid}/environ")) || has(format!("/proc/{pid}/cmdline")))
        .collect()
}
