//! Whether anybody outlived the first process of a dyno, told without a look at all of `/proc`.
//!
//! Whoever is left of a tree whose root has been reaped has an ancestor that lost its parent,
//! and that one is now a child of ours, the subreaper. So when all our children are first
//! processes, nobody is left of anybody else.

use std::{collections::HashMap, fs, hash::BuildHasher};

/// Whether all our children are among `first`, by pid. `false` when that cannot be told: not
/// every kernel lists a task's children (`CONFIG_PROC_CHILDREN`).
pub(super) fn nobody<T, S: BuildHasher>(first: &HashMap<i32, T, S>) -> bool {
    children().is_some_and(|children| {
        children
            .split_ascii_whitespace()
            .all(|pid| pid.parse().is_ok_and(|pid: i32| first.contains_key(&pid)))
    })
}

/// The children of all our threads: the kernel gives orphans to one that lives.
fn children() -> Option<String> {
    let mut children = String::new();
    for task in fs::read_dir("/proc/self/task").ok()? {
        children += &fs::read_to_string(task.ok()?.path().join("children")).ok()?;
    }
    Some(children)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Our children but for one, as first processes. Other tests have children, too.
    fn all_but(pid: i32) -> HashMap<i32, char> {
        let children = children().unwrap_or_default();
        let pids = children.split_ascii_whitespace().flat_map(str::parse);
        pids.filter(|child| *child != pid)
            .map(|child| (child, '-'))
            .collect()
    }

    #[test]
    fn a_child_that_nobody_knows_is_seen() {
        #[expect(
            clippy::disallowed_methods,
            reason = "a child that nobody here spawned"
        )]
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let seen = !nobody(&all_but(child.id().cast_signed()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen);
    }

    #[test]
    fn our_threads_can_be_asked_where_the_kernel_lists_children() {
        let listed = fs::exists("/proc/thread-self/children").unwrap();
        // Only a kernel without the file, or a thread that just ended, has no answer.
        assert!(!listed || (0..100).any(|_| children().is_some()));
    }
}
