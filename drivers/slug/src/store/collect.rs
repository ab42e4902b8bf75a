//! What goes, and when: half-made trees of who is gone, and releases that are too old.

use std::collections::{HashMap, HashSet};

use super::{
    files::{self, Layout, lock_alone, remove_tree},
    refs::{self, Ref},
};
use crate::{error::SlugError, id::SlugId};

/// What a collection has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Releases that were forgotten.
    pub releases: usize,
    /// Slugs that nobody needs any more.
    pub slugs: usize,
}

/// Removes half-made trees that nobody makes any more, and the rest of what was removed.
pub(super) fn half_made(layout: &Layout) -> Result<(), SlugError> {
    let given_up = give_up(layout);
    let emptied = empty_trash(layout);
    given_up.and(emptied)
}

fn give_up(layout: &Layout) -> Result<(), SlugError> {
    {
        let lock = layout.lock()?;
        for name in files::names(&layout.staging)? {
            let path = layout.staging.join(name);
            let root = path.join("root");
            // One without a root was not even begun.
            let is_nobodys = !root.exists() || lock_alone(&root)?.is_some();
            // No room in the trash, on a full disk: then where it is.
            if is_nobodys && layout.throw_away(&path).is_err() {
                remove_tree(&path).map_err(SlugError::store("remove", &path))?;
            }
        }
        drop(lock);
    }
    for id in layout.locked_ids()? {
        if let Some(lock) = layout.try_lock_id(&id)? {
            layout.forget_lock(&id);
            drop(lock);
        }
    }
    Ok(())
}

/// Whatever is in the trash is nobody's: who has put it there may be removing it, too. What cannot
/// be removed keeps nothing else there.
fn empty_trash(layout: &Layout) -> Result<(), SlugError> {
    let mut result = Ok(());
    for name in files::names(&layout.trash)? {
        let path = layout.trash.join(name);
        let removed = remove_tree(&path).map_err(SlugError::store("remove", &path));
        result = result.and(removed);
    }
    result
}

/// Forgets all but the newest `keep` releases of each app, and removes the trees that nobody
/// has any more. One in use keeps both: its dyno is asked for by a driver that starts again.
pub(super) fn overdue(layout: &Layout, keep: usize) -> Result<Collected, SlugError> {
    let mut collected = Collected::default();
    let mut trash = Vec::new();
    {
        let lock = layout.lock()?;
        let all = refs::all(layout)?;
        let mut needed: HashSet<SlugId> = all.iter().map(|reference| reference.id).collect();
        let old = too_old(&all, keep);
        for id in old
            .iter()
            .map(|reference| reference.id)
            .collect::<HashSet<_>>()
        {
            // Not in use, or not there at all.
            let unused = layout.lock_unused_tree(&id)?;
            if unused.is_none() && layout.has_tree(&id) {
                continue;
            }
            for reference in old.iter().filter(|reference| reference.id == id) {
                refs::remove(layout, reference)?;
                collected.releases += 1;
            }
            if !refs::all_of(&all, &id).any(|one| !old.iter().any(|old| old.is(one))) {
                needed.remove(&id);
            }
        }
        for id in layout.tree_ids()? {
            if !needed.contains(&id)
                // Somebody may have just made it, and is about to say whose it is.
                && let Some(making) = layout.try_lock_id(&id)?
            {
                if let Some(unused) = layout.lock_unused_tree(&id)? {
                    trash.extend(layout.throw_away(&layout.tree(&id))?);
                    collected.slugs += 1;
                    drop(unused);
                }
                layout.forget_lock(&id);
                drop(making);
            }
        }
        drop(lock);
    }
    for path in trash {
        remove_tree(&path).map_err(SlugError::store("remove", &path))?;
    }
    Ok(collected)
}

/// Forgets that the user has added the slug, and removes it if nobody else has.
pub(super) fn remove(layout: &Layout, peer: u32, id: &SlugId) -> Result<(), SlugError> {
    let mut trash = None;
    {
        let lock = layout.lock()?;
        let all = refs::all(layout)?;
        let (own, others): (Vec<_>, Vec<_>) =
            refs::all_of(&all, id).partition(|reference| reference.owner.peer == peer);
        if !own.is_empty() {
            let unused = layout.lock_unused_tree(id)?;
            if unused.is_none() && layout.has_tree(id) {
                return Err(SlugError::InUse(*id));
            }
            for reference in own {
                refs::remove(layout, reference)?;
            }
            // Somebody who is adding it at this moment has seen it here.
            if others.is_empty()
                && let Some(making) = layout.try_lock_id(id)?
            {
                trash = layout.throw_away(&layout.tree(id))?;
                layout.forget_lock(id);
                drop(making);
            }
            drop(unused);
        }
        drop(lock);
    }
    match trash {
        Some(path) => remove_tree(&path).map_err(SlugError::store("remove", &path)),
        None => Ok(()),
    }
}

/// The releases of each app that are older than its newest `keep`.
fn too_old(all: &[Ref], keep: usize) -> Vec<&Ref> {
    let mut apps: HashMap<_, Vec<&Ref>> = HashMap::new();
    for reference in all {
        apps.entry(&reference.owner).or_default().push(reference);
    }
    let mut old = Vec::new();
    for mut releases in apps.into_values() {
        releases.sort_by_key(|reference| std::cmp::Reverse((reference.added, reference.id)));
        old.extend(releases.into_iter().skip(keep));
    }
    old
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::store::Owner;

    fn reference(peer: u32, app: &str, id: u8, added: u64) -> Ref {
        Ref {
            owner: Owner::new(peer, app).unwrap(),
            id: SlugId::new([id; 32]),
            added: SystemTime::UNIX_EPOCH + Duration::from_secs(added),
        }
    }

    #[test]
    fn the_newest_of_each_app_stay() {
        let all = [
            reference(1, "a", 1, 10),
            reference(1, "a", 2, 30),
            reference(1, "a", 3, 20),
            reference(2, "a", 1, 1),
            reference(1, "b", 1, 2),
        ];
        let old = too_old(&all, 2);
        assert_eq!(old.len(), 1);
        assert!(old[0].is(&all[0]));
        assert_eq!(too_old(&all, 0).len(), 5);
        assert!(too_old(&all, 3).is_empty());
    }
}
