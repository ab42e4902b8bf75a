//! Marks: how an orphan is known, when nothing else tells whose it is.
//!
//! A mark is the limit `RLIMIT_LOCKS`, which Linux has not enforced since 2.4.25
//! (setrlimit(2)). Every descendant inherits it, across sessions and the death of parents, and
//! everybody may read it.
//!
//! ```text
//!   61  60 59                32 31                    0
//!  ┌──────┬────────────────────┬───────────────────────┐
//!  │ kind │ which socket's     │ which dyno: counts up │
//!  │      │ driver             │ from a random number  │
//!  └──────┴────────────────────┴───────────────────────┘
//! ```
//!
//! The upper half is made of the driver's user and socket, so that whoever comes to serve that
//! socket knows what a driver that was killed left there; the lower half begins anywhere, so
//! that it does not take its own dynos for those.
//!
//! It is the soft and the hard limit, which an unprivileged process cannot raise back. Unless
//! we carry a mark ourselves, because this driver is part of somebody's dyno: then the hard
//! limit stays, for it is theirs, and ours is the soft one, of a kind that fits below.

use std::{
    fs,
    mem::MaybeUninit,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::resource::{RLIM_INFINITY, Resource, getrlimit, rlim_t, setrlimit},
    unistd::Uid,
};
use sha2::{Digest as _, Sha256};

use crate::procfs::Procfs;

/// The bits that tell one socket from another.
const TAG: u64 = (1 << 28) - 1;
/// The kind of mark of a driver above which there is none.
const OUTER: u64 = 2 << 28;
/// The kind that fits below.
const INNER: u64 = 1 << 28;

/// Where a driver takes its marks from.
#[derive(Debug)]
pub(crate) struct Marks {
    upper: u64,
    /// The lower half of the first dyno's.
    first: u32,
    hard: Hard,
}

/// What becomes of the hard limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hard {
    AsSoft,
    Stays(rlim_t),
}

/// The mark of one dyno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The soft limit to set: what it is known by.
    pub soft: u64,
    /// The hard limit to set.
    pub hard: u64,
}

/// What a process carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Carried {
    soft: u64,
    hard: u64,
}

/// Whose marks there may be on a machine: those of the drivers of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag(u64);

impl Tag {
    /// The tag of our own user's drivers at `socket`.
    pub(crate) fn of(socket: &Path) -> std::io::Result<Self> {
        let socket = std::path::absolute(socket)?;
        // Another container may have the same path, and its processes are seen from here.
        let folder = fs::metadata(socket.parent().unwrap_or(&socket))?;
        let mut hash = Sha256::new();
        hash.update(Uid::effective().as_raw().to_le_bytes());
        hash.update(folder.dev().to_le_bytes());
        hash.update(folder.ino().to_le_bytes());
        hash.update(socket.as_os_str().as_bytes());
        let hash: [u8; 32] = hash.finalize().into();
        let [a, b, c, d, ..] = hash;
        Ok(Self(u64::from(u32::from_le_bytes([a, b, c, d])) & TAG))
    }

    /// Whether a driver of this socket marked the process.
    pub(crate) fn is_on(self, carried: Carried) -> bool {
        let ours = |limit: u64| [OUTER | self.0, INNER | self.0].contains(&(limit >> 32));
        ours(carried.soft) || ours(carried.hard)
    }
}

impl Marks {
    /// Marks of `tag`, or of a tag of its own.
    ///
    /// # Errors
    /// Where our own hard limit leaves no room for them, and may not be raised.
    pub(crate) fn new(tag: Option<Tag>) -> nix::Result<Self> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_LOCKS)?;
        let (kind, hard) = if let Some(room) = room(hard) {
            room
        } else {
            // An administrator's limit. Root may lift it.
            setrlimit(Resource::RLIMIT_LOCKS, soft, RLIM_INFINITY)?;
            (OUTER, Hard::AsSoft)
        };
        let random = getrandom::u64().map_err(|_| Errno::EIO)?;
        let Tag(tag) = tag.unwrap_or(Tag(random & TAG));
        Ok(Self {
            upper: kind | tag,
            first: u32::try_from(random >> 32).unwrap_or_default(),
            hard,
        })
    }

    /// The mark of the dyno with this number.
    pub(crate) fn of(&self, dyno: u32) -> Mark {
        let lower = self.first.wrapping_add(dyno);
        let soft = self.upper << 32 | u64::from(lower);
        let hard = match self.hard {
            Hard::AsSoft => soft,
            Hard::Stays(hard) => hard,
        };
        Mark { soft, hard }
    }

    /// The numbers of dynos of this driver whose mark the process may carry.
    pub(crate) fn dynos(&self, carried: Carried) -> impl Iterator<Item = u32> {
        // The hard limit is harder to change.
        [carried.hard, carried.soft]
            .into_iter()
            .filter(|limit| limit >> 32 == self.upper)
            .filter_map(|limit| u32::try_from(limit & u64::from(u32::MAX)).ok())
            .map(|lower| lower.wrapping_sub(self.first))
    }
}

/// The kind of marks that fits below our hard limit, and what becomes of that.
fn room(hard: rlim_t) -> Option<(u64, Hard)> {
    match hard {
        RLIM_INFINITY => Some((OUTER, Hard::AsSoft)),
        _ if hard >= OUTER << 32 => Some((INNER, Hard::Stays(hard))),
        _ => None,
    }
}

/// The limits of a process, be they a mark or not; `None` if it is gone.
///
/// # Errors
/// When nobody could look.
pub(crate) fn of(procfs: &Procfs, pid: i32) -> nix::Result<Option<Carried>> {
    match prlimit(pid) {
        Ok(carried) => Ok(Some(carried)),
        // It became another user or group, as a program with the set-group-ID bit does.
        Err(Errno::EPERM) => {
            let limits = procfs.read(&format!("{pid}/limits"))?;
            Ok(limits.and_then(|limits| in_limits(&limits)))
        }
        Err(Errno::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

#[expect(unsafe_code, reason = "nix has no prlimit(2)")]
fn prlimit(pid: i32) -> nix::Result<Carried> {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: the kernel writes a whole rlimit where it answers 0, and reads nothing.
    let limit = unsafe {
        Errno::result(libc::prlimit(
            pid,
            libc::RLIMIT_LOCKS,
            std::ptr::null(),
            limit.as_mut_ptr(),
        ))?;
        limit.assume_init()
    };
    Ok(Carried {
        soft: limit.rlim_cur,
        hard: limit.rlim_max,
    })
}

/// The limits as `proc_pid_limits`(5) has them, for everybody to read.
fn in_limits(text: &str) -> Option<Carried> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max file locks"))?;
    let mut columns = line.split_ascii_whitespace().map(|column| match column {
        "unlimited" => Some(RLIM_INFINITY),
        number => number.parse().ok(),
    });
    Some(Carried {
        soft: columns.next()??,
        hard: columns.next()??,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_a_hard_limit_there_is_room_for_marks_of_another_kind() {
        assert_eq!(room(RLIM_INFINITY), Some((OUTER, Hard::AsSoft)));
        let outer = (OUTER | 7) << 32 | 5;
        let (kind, hard) = room(outer).unwrap();
        assert_eq!((kind, hard), (INNER, Hard::Stays(outer)));
        assert!((INNER | TAG) << 32 | u64::from(u32::MAX) < outer);
        assert_eq!(room((INNER | 7) << 32), None);
        assert_eq!(room(100), None);
    }

    #[test]
    fn a_tag_is_of_a_user_a_folder_and_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let tag = Tag::of(&path("a.sock")).unwrap();
        assert_eq!(Tag::of(&path("a.sock")).unwrap(), tag);
        assert_ne!(Tag::of(&path("b.sock")).unwrap(), tag);
        Tag::of(&path("no/such/folder/a.sock")).unwrap_err();
        let outer = (OUTER | tag.0) << 32 | 9;
        let inner = (INNER | tag.0) << 32 | 9;
        let carried = |soft, hard| Carried { soft, hard };
        assert!(tag.is_on(carried(outer, outer)));
        assert!(tag.is_on(carried(5, outer)), "lowered");
        assert!(tag.is_on(carried(inner, outer + (1 << 32))));
        assert!(!tag.is_on(carried(outer + (1 << 32), RLIM_INFINITY)));
        assert!(!tag.is_on(carried(RLIM_INFINITY, RLIM_INFINITY)));
    }

    #[test]
    fn limits_are_read_from_text_as_from_the_kernel() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             96358                96358                processes \n\
                    Max file locks            2305843009213693952  unlimited            locks     \n";
        let expected = Carried {
            soft: 1 << 61,
            hard: RLIM_INFINITY,
        };
        assert_eq!(in_limits(text), Some(expected));
        let own = fs::read_to_string("/proc/self/limits").unwrap();
        let pid = std::process::id().cast_signed();
        assert_eq!(in_limits(&own), Some(prlimit(pid).unwrap()));
    }

    #[test]
    fn a_dyno_is_known_by_either_limit() {
        let marks = Marks {
            upper: OUTER | 7,
            first: u32::MAX,
            hard: Hard::AsSoft,
        };
        let dynos = |soft, hard| marks.dynos(Carried { soft, hard }).collect::<Vec<_>>();
        let Mark { soft, hard } = marks.of(3);
        assert_eq!(soft, hard);
        assert_eq!(dynos(soft, hard), [3, 3]);
        assert_eq!(dynos(0, hard), [3]);
        assert_eq!(dynos(soft, RLIM_INFINITY), [3]);
        assert!(dynos(soft + (1 << 32), RLIM_INFINITY).is_empty());

        let inner = Marks {
            upper: INNER | 7,
            first: 0,
            hard: Hard::Stays(hard),
        };
        assert_eq!(inner.of(4).hard, hard);
        assert!(inner.of(4).soft < hard);
    }
}
