//! A tree in the making: it becomes one of the store, or nothing.

use std::{
    fs::{self, DirBuilder, File},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use nix::unistd::{Gid, Uid, fchown, geteuid};

use super::files::{Layout, remove_tree};
use crate::{error::SlugError, id::SlugId};

/// A directory in `staging`. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Staging {
    layout: Arc<Layout>,
    path: PathBuf,
    /// Locked. The process that unpacks has it too, so that nobody removes what it writes to.
    root: File,
    is_done: bool,
}

impl Staging {
    pub(super) fn new(layout: Arc<Layout>, uid: u32, gid: u32) -> Result<Self, SlugError> {
        let failed = || SlugError::store("make a directory in", &layout.staging);
        // Whoever collects must not see it without its lock.
        let lock = layout.lock()?;
        let directory = tempfile::Builder::new()
            .prefix("")
            .tempdir_in(&layout.staging)
            .map_err(failed())?;
        let path = directory.path().join("root");
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(failed())?;
        let root = File::open(&path).map_err(failed())?;
        root.lock().map_err(failed())?;
        if geteuid().is_root() {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            fchown(&root, Some(uid), Some(gid)).map_err(|errno| failed()(errno.into()))?;
        }
        drop(lock);
        Ok(Self {
            path: directory.keep(),
            layout,
            root,
            is_done: false,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Makes it the tree of this slug.
    pub(super) fn persist(mut self, id: &SlugId) -> Result<(), SlugError> {
        let tree = self.layout.tree(id);
        let renamed = fs::rename(&self.path, &tree);
        renamed.map_err(SlugError::store("make", &tree))?;
        self.is_done = true;
        let trees = &self.layout.trees;
        File::open(trees)
            .and_then(|trees| trees.sync_all())
            .map_err(SlugError::store("write to", trees))
    }

    /// Removes it now.
    pub(super) fn remove(mut self) {
        self.is_done = true;
        if self.layout.discard(&self.path).is_err() {
            // No trash, on a full disk: then where it is. What is left now goes when the
            // store is tidied.
            drop(remove_tree(&self.path));
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        // Given up in the middle: the process that unpacks was killed just now. Whoever has
        // given up does not wait for many files to be removed.
        let path = match self.layout.throw_away(&self.path) {
            Ok(Some(trash)) => trash,
            Ok(None) | Err(_) => self.path.clone(),
        };
        thread::spawn(move || remove_tree(&path));
    }
}
