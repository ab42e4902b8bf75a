//! Giving up what a process of ours must not have, as its first act.

use std::io;

use nix::{
    errno::Errno,
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        stat::{Mode, umask},
    },
    unistd::{
        Gid, Uid, User, geteuid, getgid, getgrouplist, getresuid, setgroups, setresgid, setresuid,
    },
};
use serde::{Deserialize, Serialize};

use crate::error::SlugError;

/// Whom a process is to run as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its other groups; `None`: those that the user database gives it.
    pub groups: Option<Vec<u32>>,
}

impl Peer {
    /// A user with the groups that the user database gives it.
    pub fn of_uid(uid: u32, gid: u32) -> Self {
        Self {
            uid,
            gid,
            groups: None,
        }
    }

    fn supplementary(&self) -> nix::Result<Vec<Gid>> {
        if let Some(groups) = &self.groups {
            return Ok(groups.iter().copied().map(Gid::from_raw).collect());
        }
        let gid = Gid::from_raw(self.gid);
        let Some(user) = User::from_uid(Uid::from_raw(self.uid))? else {
            return Ok(vec![gid]);
        };
        let name = std::ffi::CString::new(user.name).map_err(|_| Errno::EINVAL)?;
        getgrouplist(&name, gid)
    }

    /// Makes this process, which has one thread, this user's and nobody else's, for good.
    ///
    /// A process that is not root can only stay who it is.
    pub(crate) fn embody(&self, task: &str) -> Result<(), SlugError> {
        self.try_embody().map_err(|source| SlugError::Helper {
            task: task.to_owned(),
            cause: format!("cannot become uid {}: {source}", self.uid),
        })
    }

    fn try_embody(&self) -> Result<(), io::Error> {
        prctl::set_no_new_privs()?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        umask(Mode::from_bits_truncate(0o077));
        let uid = Uid::from_raw(self.uid);
        let gid = Gid::from_raw(self.gid);
        if geteuid().is_root() {
            let groups = self.supplementary()?;
            if !uid.is_root() {
                drop_bounding_set()?;
            }
            setgroups(&groups)?;
            setresgid(gid, gid, gid)?;
            // With the last uid of root go its capabilities.
            setresuid(uid, uid, uid)?;
        }
        let now = getresuid()?;
        if [now.real, now.effective, now.saved] != [uid; 3] || getgid() != gid {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        // Whoever has the same uid may neither trace us nor read what we hold: the peer's
        // other processes above all. The change of the uid has reset this.
        prctl::set_dumpable(false)?;
        Ok(())
    }
}

/// No program that we would execute could give us a capability either.
fn drop_bounding_set() -> Result<(), Errno> {
    for capability in 0..64 {
        #[expect(unsafe_code, reason = "nix does not know this one")]
        // SAFETY: numbers only.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match Errno::result(dropped) {
            Ok(_) => {}
            // One more than this kernel knows.
            Err(Errno::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Closes every descriptor from `first` on: who started us may have leaked some.
pub(crate) fn close_the_rest(first: i32) {
    #[expect(unsafe_code, reason = "nix does not know this one")]
    // SAFETY: called first thing; nothing here owns a descriptor of those numbers yet.
    unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0);
    }
}
