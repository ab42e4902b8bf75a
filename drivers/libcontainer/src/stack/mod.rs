//! Stacks: the root file systems that dynos run on, by name and version.
//!
//! ```text
//! stacks/
//!   manifest.yml           the list of stacks, used as long as it is there
//!   heroku-24-v123/        a root file system, unpacked here or put here by hand
//!   cedar-14-v9.img        an ext4 or squashfs image, mounted by a loop device
//!   .primary/heroku-24     the version that `stack import` brought
//!   .fetch/                what is not whole yet, and the locks of who makes it
//! ```
//!
//! Which version of a name is used ([`Stacks::resolve`]):
//! 1. the one that was imported last on this machine, if it is still there: somebody wanted it;
//! 2. the one that the list says (see `manifest`), fetched if it is not there yet. The list is
//!    `manifest.yml`, kept until somebody removes it, or else the `--stacks-manifest` URL, which
//!    is then kept as that;
//! 3. if there is no list, or it does not have the name, the newest that is there.
//!
//! What is under a stack's name is whole, always: it gets its name last. Two drivers that want
//! the same stack fetch it once, and the second says that it waits.

mod accounts;
mod command;

mod disk;
mod engine;
mod error;
mod fetch;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod image;
mod install;
mod list;
mod lock;
mod make;
mod manifest;
mod mount;
mod name;
mod unpack;

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use hsup_driver_kit::file_url;

pub use self::{
    accounts::{Accounts, AccountsError, accounts, has_bash},
    command::command,
    disk::Listed,
    engine::{EngineError, Import},
    error::StackError,
    fetch::FetchError,
    image::{Filesystem, ImageError},
    install::InstallError,
    manifest::ManifestError,
    mount::{MountError, mount},
    name::{NameError, StackName, Version},
    unpack::UnpackError,
};
use self::{
    disk::Disk,
    install::Places,
    list::Stamp,
    make::in_place,
    manifest::{Manifest, NotChosen, is_remote, shown, this_arch},
};

/// The stacks of a work directory.
#[derive(Debug)]
pub struct Stacks {
    disk: Disk,
    manifest_url: Option<String>,
    /// The list as it was read last, and from which file that was.
    cached: Mutex<Option<(Stamp, Arc<Manifest>)>>,
}

/// A stack that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    pub name: StackName,
    pub version: Version,
    pub image: Image,
    /// Whom its programs expect to run as, if the list says.
    pub uid: Option<u32>,
}

/// Where a stack's root file system is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// In a directory.
    Directory(PathBuf),
    /// In a file that can be mounted.
    File {
        path: PathBuf,
        filesystem: Filesystem,
    },
}

impl Image {
    /// The directory or file itself.
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::File { path, .. } => path,
        }
    }
}

/// What is going on while somebody waits for a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Another driver is fetching the same.
    Waiting { stack: &'a str },
    /// So many bytes have come.
    Fetching { done: u64, total: Option<u64> },
    /// All bytes are here, and become a stack.
    Installing { stack: &'a str },
    /// Something is off, but does not stop it.
    Warning(&'a str),
}

/// Somebody who is told what is going on.
pub trait Progress: Send + Sync {
    /// Takes note of it. Must not block.
    fn report(&self, event: Event<'_>);
}

impl<F: Fn(Event<'_>) + Send + Sync> Progress for F {
    fn report(&self, event: Event<'_>) {
        self(event);
    }
}

impl Stacks {
    /// Opens the stacks of a work directory, and clears away what drivers left that were killed
    /// while they fetched.
    ///
    /// # Errors
    /// When the folder cannot be made or read, or the URL is none that a list can have.
    pub fn open(work_dir: &Path, manifest_url: Option<String>) -> Result<Self, StackError> {
        if let Some(url) = &manifest_url
            && !is_remote(url)
            && file_url::path(url).is_none()
        {
            return Err(StackError::ManifestUrl { url: shown(url) });
        }
        let folder = work_dir.join("stacks");
        let disk = Disk::new(folder.clone());
        let prepared = || {
            let mut builder = fs::DirBuilder::new();
            // Shut: what of a stack has the set-user-ID bit is not for the host's users.
            builder.recursive(true).mode(0o700).create(&folder)?;
            builder.mode(0o700).create(disk.fetch_folder())?;
            builder.create(disk.primary_folder())?;
            disk.collect()
        };
        prepared().map_err(|source| StackError::Open {
            path: folder.clone(),
            source,
        })?;
        Ok(Self {
            disk,
            manifest_url,
            cached: Mutex::new(None),
        })
    }

    /// The version of a stack to use now: fetched, verified and unpacked if it is not here yet.
    pub async fn resolve(&self, name: &str, progress: &dyn Progress) -> Result<Stack, StackError> {
        let name: StackName = name.parse()?;
        if let Some(version) = self.disk.primary(&name)
            && let Some(stack) = self.disk.stack(&name, &version)?
        {
            return Ok(stack);
        }
        let list = match self.manifest().await {
            Ok(list) => list,
            // What is here can be used without a list.
            Err(error) => {
                let Some(stack) = self.disk.newest(&name)? else {
                    return Err(error);
                };
                let text = hsup_driver_kit::errors::chain(&error);
                progress.report(Event::Warning(&text));
                return Ok(stack);
            }
        };
        let Some((manifest, origin)) = list else {
            if let Some(stack) = self.disk.newest(&name)? {
                return Ok(stack);
            }
            let mut here: Vec<_> = self
                .disk
                .names()?
                .into_iter()
                .map(|(name, _)| name)
                .collect();
            here.sort();
            here.dedup();
            return Err(StackError::NoManifest {
                here: listed(&here),
                manifest: self.disk.manifest(),
                directory: self.disk.folder().join(format!("{name}-VERSION")),
                stack: name,
            });
        };
        for warning in manifest.warnings_of(&name) {
            progress.report(Event::Warning(warning));
        }
        let reason = match manifest.choose(&name, this_arch()) {
            Ok(entry) => return self.have(entry, progress).await,
            Err(reason) => reason,
        };
        if let Some(stack) = self.disk.newest(&name)? {
            return Ok(stack);
        }
        Err(match reason {
            NotChosen::Unknown(known) => StackError::Unknown {
                stack: name,
                origin,
                known: listed(&known),
            },
            NotChosen::PassedOver(reasons) => StackError::PassedOver {
                stack: name,
                origin,
                reasons: reasons.join("; "),
            },
        })
    }

    /// A version that is here, without any network; `None` if it is not.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn find(&self, name: &str, version: &str) -> Result<Option<Stack>, StackError> {
        let (Ok(name), Ok(version)) = (name.parse(), version.parse()) else {
            return Ok(None);
        };
        let there = match self.disk.stack(&name, &version) {
            // A build says what is wrong with it, or takes another version.
            Err(StackError::Image { .. }) => return Ok(None),
            other => other?,
        };
        if let Some(mut stack) = there {
            // Without a list that can be read, it is here all the same.
            let manifest = self.cached_manifest().ok().flatten();
            let entry = manifest.and_then(|it| it.entry(&name, &version, this_arch()).cloned());
            stack.uid = entry.and_then(|entry| entry.uid);
            return Ok(Some(stack));
        }
        let manifest = self.cached_manifest()?;
        let entry = manifest
            .as_ref()
            .and_then(|it| it.entry(&name, &version, this_arch()));
        Ok(entry.and_then(in_place).and_then(Result::ok))
    }

    /// The names of the stacks that are here, or, where none is, of those in the list.
    pub async fn names(&self) -> Result<Vec<StackName>, StackError> {
        let mut names: Vec<_> = self
            .disk
            .names()?
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        if names.is_empty()
            && let Some((manifest, _)) = self.manifest().await?
        {
            names = manifest.names();
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Keeps a stack from being removed, as long as the descriptor is open in some process.
    pub fn hold(stack: &Stack) -> Result<OwnedFd, StackError> {
        let path = stack.image.path();
        let held = lock::share(path).map_err(|source| StackError::Lock {
            path: path.to_owned(),
            source,
        })?;
        held.map(OwnedFd::from).ok_or_else(|| StackError::Gone {
            stack: name::joined(&stack.name, &stack.version),
        })
    }

    /// What is here, in order of names and versions.
    pub fn list(&self) -> Result<Vec<Listed>, StackError> {
        let names = self.disk.names()?.into_iter();
        Ok(names
            .map(|(name, version)| self.disk.listed(name, version))
            .collect())
    }

    /// What is in a work directory, which need not be one yet, nor ours to write in.
    fn list_in(work_dir: &Path) -> Result<Vec<Listed>, StackError> {
        let folder = work_dir.join("stacks");
        if !folder.exists() {
            return Ok(Vec::new());
        }
        let stacks = Self {
            disk: Disk::new(folder),
            manifest_url: None,
            cached: Mutex::new(None),
        };
        stacks.list()
    }

    /// Removes a stack by its `NAME-VERSION`, unless it is in use.
    pub fn remove(&self, stack: &str) -> Result<(), StackError> {
        let (name, version) = name::parted(stack).ok_or_else(|| StackError::NotThere {
            stack: stack.escape_debug().to_string(),
            folder: self.disk.folder().to_owned(),
        })?;
        self.disk.remove(&name, &version)
    }
}

fn listed(names: &[StackName]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let names: Vec<_> = names.iter().map(StackName::as_str).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests;
