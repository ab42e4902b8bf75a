//! Of which dynos somebody is left whose first process has ended, told without a look at all
//! of `/proc`.
//!
//! Whoever is left of a tree whose root has been reaped has an ancestor that lost its parent,
//! and that one is now a child of ours, the subreaper: an orphan. So only the orphans among
//! our children need a look, usually none at all. Whoever is below them is one of them as soon
//! as they are killed.

use std::collections::{HashMap, HashSet};

use nix::{errno::Errno, unistd::Pid};

use super::{Shared, lock};
use crate::orphans;

/// How often a look is repeated that something came in between of, before that is an error.
const ATTEMPTS: usize = 10;

/// Who is left, by the number of the dyno.
pub(super) type Left = HashMap<u32, Vec<Pid>>;

/// What a look at the orphans came to.
enum Look {
    /// All of them are known.
    Clear(Left),
    /// The same, but some are strangers, and had to be looked below.
    Deep(Left),
    /// The kernel does not list a task's children (`CONFIG_PROC_CHILDREN`).
    Blind,
}

/// The orphans, dyno by dyno; `None` where the kernel does not tell.
///
/// # Errors
/// When nobody could look.
pub(super) fn behind(shared: &Shared) -> nix::Result<Option<Left>> {
    for _ in 0..ATTEMPTS {
        let Some(children) = shared.procfs.own_children()? else {
            return Ok(None);
        };
        match look(shared, &children)? {
            Look::Clear(left) => return Ok(Some(left)),
            Look::Blind => return Ok(None),
            Look::Deep(left) => {
                // Below a stranger somebody may have lost a parent while we looked, and missed
                // us: then it is a child of ours by now.
                let before: HashSet<i32> = children.into_iter().collect();
                let now = shared.procfs.own_children()?.unwrap_or_default();
                if now.iter().all(|child| before.contains(child)) {
                    return Ok(Some(left));
                }
            }
        }
    }
    Err(Errno::EAGAIN)
}

fn look(shared: &Shared, children: &[i32]) -> nix::Result<Look> {
    let mut book = lock(&shared.book);
    let mut left = Left::new();
    let mut strangers = Vec::new();
    for &child in children {
        if book.led_by(child).is_some() {
            continue;
        }
        match book.recognise(shared, child)? {
            Some(dyno) => left.entry(dyno).or_default().push(Pid::from_raw(child)),
            None => strangers.push(child),
        }
    }
    if strangers.is_empty() {
        return Ok(Look::Clear(left));
    }
    for &stranger in &strangers {
        if shared
            .procfs
            .stat(stranger)?
            .is_some_and(|stat| !stat.zombie && !orphans::is_found(Pid::from_raw(stranger), &stat))
        {
            book.note_stranger(stranger);
        }
    }
    // What is below them may still be known for whose it is.
    while let Some(parent) = strangers.pop() {
        let Some(children) = shared.procfs.children_of(parent)? else {
            return Ok(Look::Blind);
        };
        for child in children {
            match book.recognise(shared, child)? {
                Some(dyno) => left.entry(dyno).or_default().push(Pid::from_raw(child)),
                None => strangers.push(child),
            }
        }
    }
    Ok(Look::Deep(left))
}
