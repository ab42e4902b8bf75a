//! Who has added which slug, for which app.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    time::SystemTime,
};

use super::{
    Owner,
    files::{self, Layout},
};
use crate::{error::SlugError, id::SlugId};

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

/// The user has added the slug, now.
pub(super) fn add(layout: &Layout, owner: &Owner, id: &SlugId) -> Result<(), SlugError> {
    let directory = of(layout, owner.peer, id);
    let path = directory.join(&owner.app);
    let lock = layout.lock()?;
    let added = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .and_then(|()| File::create(&path))
        // Two that were added one after the other must be told apart.
        .and_then(|file| {
            file.set_modified(SystemTime::now())?;
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
