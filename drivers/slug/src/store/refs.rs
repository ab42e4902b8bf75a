//! Who has added which slug, for which app.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use super::{
    Owner,
    files::{self, Layout},
};
use crate::{error::SlugError, id::SlugId};

/// What two additions are apart at least.
const A_MOMENT: Duration = Duration::from_micros(1);

/// One slug of one app of one user.
#[derive(Clone, Debug)]
pub(super) struct Ref {
    pub(super) owner: Owner,
    pub(super) id: SlugId,
    pub(super) added: SystemTime,
}

impl Ref {
    pub(super) fn is(&self, other: &Self) -> bool {
        self.owner == other.owner && self.id == other.id
    }
}

/// Those of one slug.
pub(super) fn all_of<'a>(all: &'a [Ref], id: &'a SlugId) -> impl Iterator<Item = &'a Ref> {
    all.iter().filter(move |reference| reference.id == *id)
}

/// Whether the user has added the slug.
pub(super) fn has(layout: &Layout, peer: u32, id: &SlugId) -> bool {
    of(layout, peer, id).exists()
}

/// The user has added the slug, after all others of this app: also where the clock was set back
/// since, for the newest ones are kept.
pub(super) fn add(layout: &Layout, owner: &Owner, id: &SlugId) -> Result<(), SlugError> {
    let directory = of(layout, owner.peer, id);
    let path = directory.join(&owner.app);
    let lock = layout.lock()?;
    let others = all(layout)?.into_iter();
    let before = others.filter(|reference| reference.owner == *owner);
    let before = before.map(|reference| reference.added).max();
    let now = SystemTime::now();
    let at = before.map_or(now, |before| now.max(before + A_MOMENT));
    let added = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .and_then(|()| File::create(&path))
        // Two that were added one after the other must be told apart.
        .and_then(|file| {
            file.set_modified(at)?;
            file.sync_all()
        })
        .and_then(|()| File::open(&directory)?.sync_all());
    drop(lock);
    added.map_err(SlugError::store("write to", &path))
}

/// Forgets that the user has added the slug for this app; call it with the store locked.
pub(super) fn remove(layout: &Layout, reference: &Ref) -> Result<(), SlugError> {
    let directory = of(layout, reference.owner.peer, &reference.id);
    let path = directory.join(&reference.owner.app);
    ignoring(io::ErrorKind::NotFound, fs::remove_file(&path))
        .and_then(|()| ignoring(io::ErrorKind::DirectoryNotEmpty, fs::remove_dir(&directory)))
        .map_err(SlugError::store("remove", &path))
}

/// Everything that anybody has added; call it with the store locked.
pub(super) fn all(layout: &Layout) -> Result<Vec<Ref>, SlugError> {
    let mut all = Vec::new();
    for user in files::names(&layout.refs)? {
        let Ok(peer) = user.parse() else { continue };
        for id in files::ids(&layout.refs.join(&user))? {
            let directory = of(layout, peer, &id);
            for app in files::names(&directory)? {
                let path = directory.join(&app);
                let added = fs::metadata(&path).and_then(|file| file.modified());
                all.push(Ref {
                    owner: Owner { peer, app },
                    id,
                    added: added.map_err(SlugError::store("read", &path))?,
                });
            }
        }
    }
    Ok(all)
}

fn of(layout: &Layout, peer: u32, id: &SlugId) -> PathBuf {
    layout.refs.join(peer.to_string()).join(id.to_string())
}

fn ignoring(kind: io::ErrorKind, result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == kind => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_after_the_clock_was_set_back_is_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let owner = Owner::new(7, "shop").unwrap();
        let [before, after] = [1, 2].map(|id| SlugId::new([id; 32]));
        add(&layout, &owner, &before).unwrap();
        let tomorrow = SystemTime::now() + Duration::from_hours(24);
        let file = File::create(of(&layout, 7, &before).join("shop")).unwrap();
        file.set_modified(tomorrow).unwrap();
        add(&layout, &owner, &after).unwrap();
        let all = all(&layout).unwrap();
        let newest = all.iter().max_by_key(|reference| reference.added);
        assert_eq!(newest.unwrap().id, after);
    }
}
