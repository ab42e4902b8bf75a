//! The lock files of leases.
//!
//! `O_EXCL` alone decides who has what: even a driver that knows nothing of the rest can't
//! take what is taken. The lock on `uids/.next` is held for a moment by who takes, frees or
//! collects, so that none of them sees a lease of which only one file is there, and so that
//! nobody removes a file that became another's a moment ago. That file holds the uid that was
//! given last: the next dyno gets the next one, so that a uid rests for as long as possible,
//! and so that a free one is found at once however many are taken.

mod files;

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use hsup_driver_kit::errors;
use thiserror::Error;

use self::files::{
    Guard, files, has_gone, leased, lock, owner_of, remove, remove_if_owned, subnet_path, uid_path,
    users_of_processes,
};
use super::{Lease, Pool, SUBNET_VARIABLE, Span, Subnet, UID_MAX_VARIABLE, UidRange};

const UIDS: &str = "uids";
const SUBNETS: &str = "subnets";
const CURSOR: &str = ".next";

/// What dynos can borrow from this host.
#[derive(Debug)]
pub struct Leases {
    work_dir: PathBuf,
    uids: UidRange,
    /// Of those, whoever is somebody else on this host.
    strangers: BTreeSet<u32>,
    pool: Pool,
}

/// Why there is no lease.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// Every uid is another dyno's.
    #[error(
        "no uid left: all {} from {} to {} are in use, {passed_over} of them by users of the host; stop a dyno, or raise {UID_MAX_VARIABLE}",
        range.count(), range.min(), range.max()
    )]
    NoUid {
        /// Who dynos may be.
        range: UidRange,
        /// How many of them are somebody on this host.
        passed_over: usize,
    },
    /// Every subnet is another dyno's, or the host's own.
    #[error(
        "no subnet left: of the {total} in {block}, {taken} are in use by dynos and {passed_over} by the host itself; stop a dyno, or set {SUBNET_VARIABLE} to a larger block"
    )]
    NoSubnet {
        /// The pool's block.
        block: String,
        /// How many subnets the pool has.
        total: u32,
        /// How many of them other dynos have.
        taken: u32,
        /// How many of them the caller did not want.
        passed_over: u32,
    },
    /// The work directory does not work.
    #[error("failed to {operation} `{}`", path.display())]
    Files {
        /// What was tried.
        operation: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl LeaseError {
    /// Whether it works again when a dyno is gone, or the disk has room.
    pub fn is_exhausted(&self) -> bool {
        match self {
            Self::NoUid { .. } | Self::NoSubnet { .. } => true,
            Self::Files { source, .. } => errors::is_exhaustion(source),
        }
    }
}

impl Leases {
    /// Leases under `work_dir`, which exists; makes what is missing in it.
    pub fn open(work_dir: &Path, uids: UidRange, pool: Pool) -> Result<Self, LeaseError> {
        for name in [UIDS, SUBNETS] {
            let path = work_dir.join(name);
            let made = fs::DirBuilder::new().mode(0o755).create(&path);
            match made {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("make directory", path, source));
                }
                _ => {}
            }
        }
        let work_dir = work_dir.to_owned();
        drop(Guard::take(&work_dir)?);
        Ok(Self {
            work_dir,
            uids,
            strangers: BTreeSet::new(),
            pool,
        })
    }

    /// Has no dyno be one of the `named` users, nor one that has processes now and is no dyno:
    /// that user could stop the dyno's, and own its files. Returns who that is.
    ///
    /// It reads the status of every process, so it is for a driver's beginning.
    pub fn pass_over(
        &mut self,
        named: impl IntoIterator<Item = u32>,
    ) -> Result<&BTreeSet<u32>, LeaseError> {
        let _guard = Guard::take(&self.work_dir)?;
        // Whose lock is there is a dyno: it is not freed before its processes are gone.
        let strangers = users_of_processes()
            .into_iter()
            .filter(|uid| !uid_path(&self.work_dir, *uid).exists());
        self.strangers = named
            .into_iter()
            .chain(strangers)
            .filter(|uid| self.uids.contains(*uid))
            .collect();
        Ok(&self.strangers)
    }

    /// The subnets that dynos may have.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Takes a uid and a subnet for `owner`, the run directory of a dyno, which exists.
    ///
    /// A subnet that is not `is_free`, because the host uses its addresses, is passed over.
    pub fn take(
        &self,
        owner: &Path,
        is_free: impl Fn(Subnet) -> bool,
    ) -> Result<Lease, LeaseError> {
        let guard = Guard::take(&self.work_dir)?;
        let uid = self.take_uid(owner, guard.last_given())?;
        match self.take_subnet(owner, uid, is_free) {
            Ok(subnet) => {
                guard.give(uid);
                Ok(Lease {
                    uid,
                    subnet,
                    pool: self.pool.span(),
                })
            }
            Err(error) => {
                let path = uid_path(&self.work_dir, uid);
                fs::remove_file(&path).map_err(|source| failed("remove", path, source))?;
                Err(error)
            }
        }
    }

    /// Frees `lease` if it is still `owner`'s; if not, nothing happens.
    pub fn free(work_dir: &Path, lease: &Lease, owner: &Path) -> Result<(), LeaseError> {
        Self::free_and(work_dir, lease, owner, || ()).map(|_| ())
    }

    /// Frees `lease` if it is still `owner`'s, and calls `last` if no subnet of its pool is
    /// leased then: nobody takes one before `last` has returned, so that it may take down
    /// what every dyno of the pool needs.
    pub fn free_and<T>(
        work_dir: &Path,
        lease: &Lease,
        owner: &Path,
        last: impl FnOnce() -> T,
    ) -> Result<Option<T>, LeaseError> {
        let _guard = Guard::take(work_dir)?;
        // The uid last: as long as it is locked, a crash in here is mended by another try.
        remove_if_owned(&subnet_path(work_dir, lease.subnet), owner)?;
        remove_if_owned(&uid_path(work_dir, lease.uid), owner)?;
        let left = leased(work_dir, |subnet| lease.pool.contains(subnet))?;
        Ok((!left).then(last))
    }

    /// Calls `then` if any subnet of the pool is leased, and lets nobody free one meanwhile.
    pub fn if_any<T>(
        work_dir: &Path,
        pool: Span,
        then: impl FnOnce() -> T,
    ) -> Result<Option<T>, LeaseError> {
        let _guard = Guard::take(work_dir)?;
        let any = leased(work_dir, |subnet| pool.contains(subnet))?;
        Ok(any.then(then))
    }

    /// Calls `then` if no subnet of the pool is leased, and lets nobody take one meanwhile.
    pub fn if_none<T>(
        work_dir: &Path,
        pool: Span,
        then: impl FnOnce() -> T,
    ) -> Result<Option<T>, LeaseError> {
        let _guard = Guard::take(work_dir)?;
        let any = leased(work_dir, |subnet| pool.contains(subnet))?;
        Ok((!any).then(then))
    }

    /// Calls `then` if this subnet is not leased, and lets nobody take it meanwhile.
    pub fn unless_leased<T>(
        work_dir: &Path,
        subnet: Subnet,
        then: impl FnOnce() -> T,
    ) -> Result<Option<T>, LeaseError> {
        let _guard = Guard::take(work_dir)?;
        let free = owner_of(&subnet_path(work_dir, subnet))?.is_none();
        Ok(free.then(then))
    }

    /// Calls `then` if nobody has this uid, and lets nobody take it meanwhile.
    pub fn if_free<T>(&self, uid: u32, then: impl FnOnce() -> T) -> Result<Option<T>, LeaseError> {
        let _guard = Guard::take(&self.work_dir)?;
        let taken = uid_path(&self.work_dir, uid).exists();
        Ok((!taken).then(then))
    }

    /// Frees what belongs to an owner who does not exist any more, after a crash or a reboot.
    /// Returns the uids that are free again.
    ///
    /// A file without an owner was left by a driver that crashed while it took the lease, or
    /// it is of an hsup that wrote none: such a uid stays locked while a process has it.
    pub fn free_stale(&self) -> Result<Vec<u32>, LeaseError> {
        let _guard = Guard::take(&self.work_dir)?;
        let mut freed = Vec::new();
        let mut processes = None;
        // A driver that does not see the run directory of another (in a mount namespace of its
        // own) must not take what that one's dynos hold: who has processes is no leftover.
        let mut kept = HashSet::new();
        for (path, name) in files(&self.work_dir.join(UIDS))? {
            let Ok(uid) = name.parse() else { continue };
            let mut lives = || {
                processes
                    .get_or_insert_with(users_of_processes)
                    .contains(&uid)
            };
            let Some(owner) = owner_of(&path)? else {
                continue;
            };
            if has_gone(&owner) && !lives() {
                remove(&path)?;
                freed.push(uid);
            } else {
                kept.insert(owner);
            }
        }
        for (path, name) in files(&self.work_dir.join(SUBNETS))? {
            if name.parse().ok().and_then(Subnet::at).is_some()
                && let Some(owner) = owner_of(&path)?
                && !kept.contains(&owner)
                && has_gone(&owner)
            {
                remove(&path)?;
            }
        }
        freed.sort_unstable();
        Ok(freed)
    }

    fn take_uid(&self, owner: &Path, last: Option<u32>) -> Result<u32, LeaseError> {
        for uid in self.uids.after(last) {
            if !self.strangers.contains(&uid) && lock(&uid_path(&self.work_dir, uid), owner)? {
                return Ok(uid);
            }
        }
        Err(LeaseError::NoUid {
            range: self.uids,
            passed_over: self.strangers.len(),
        })
    }

    fn take_subnet(
        &self,
        owner: &Path,
        uid: u32,
        is_free: impl Fn(Subnet) -> bool,
    ) -> Result<Subnet, LeaseError> {
        let mut taken = 0;
        let mut passed_over = 0;
        for subnet in self.pool.for_uid(uid) {
            let path = subnet_path(&self.work_dir, subnet);
            // The files first: a leased subnet is the host's too, as a dyno's gateway.
            if path.exists() {
                taken += 1;
            } else if !is_free(subnet) {
                passed_over += 1;
            } else if lock(&path, owner)? {
                return Ok(subnet);
            } else {
                taken += 1;
            }
        }
        Err(LeaseError::NoSubnet {
            block: self.pool.block().to_owned(),
            total: self.pool.count(),
            taken,
            passed_over,
        })
    }
}

fn failed(operation: &'static str, path: PathBuf, source: io::Error) -> LeaseError {
    LeaseError::Files {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests;
