//! Who can reach the socket that a driver makes (docs/driver-rules.md §12, R1).
//!
//! A driver that runs as root and serves others gives the socket to the one user who may call it,
//! or to a group where there are several; nobody else gets as far as being asked who they are.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, Group, Uid};
use thiserror::Error;

/// The group whose members reach a socket that several users may call, unless another is named.
const GROUP: &str = "hsup";

/// Who can reach the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The user that the driver runs as.
    Owner,
    /// This user, whose the socket then is.
    User(Uid),
    /// The members of this group.
    Group(Gid),
}

/// It cannot be told who may reach the socket, or must not be.
#[derive(Debug, Error)]
pub enum AccessError {
    /// There is no such group.
    #[error(
        "there is no group `{0}` (--socket-group): make it with `groupadd {0}`, or name another"
    )]
    NoGroup(String),
    /// The groups could not be read.
    #[error("failed to look up the group `{name}`")]
    Lookup {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Several users, and no group.
    #[error(
        "{0} users may call this driver (--allow-uid), and they need a group that can reach its \
         socket: give --socket-group GROUP, or make the group `{GROUP}`"
    )]
    NoGroupForSeveral(usize),
    /// Somebody else could put another socket in the place of ours, or something worse.
    #[error(
        "the directory `{}` of the socket must be root's, and writable by nobody else: it belongs \
         to uid {owner}, with mode {mode:03o}", path.display()
    )]
    Folder {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
}

impl Access {
    /// What the command line means for a driver of the user `own`: who may call it besides that
    /// one and root, and the group that was named.
    pub(crate) fn choose(
        own: Uid,
        allow: &[Uid],
        group: Option<&str>,
        lookup: impl Fn(&str) -> Result<Option<Gid>, AccessError>,
    ) -> Result<Self, AccessError> {
        if let Some(name) = group {
            let found = lookup(name)?;
            return match found {
                Some(group) => Ok(Self::Group(group)),
                None => Err(AccessError::NoGroup(name.to_owned())),
            };
        }
        if !own.is_root() {
            // It could give the socket to nobody.
            return Ok(Self::Owner);
        }
        let others: HashSet<Uid> = allow.iter().copied().filter(|uid| *uid != own).collect();
        let one = others.iter().copied().next();
        match (others.len(), one) {
            (1, Some(user)) => Ok(Self::User(user)),
            (0, _) => Ok(Self::Owner),
            _ => match lookup(GROUP)? {
                Some(group) => Ok(Self::Group(group)),
                None => Err(AccessError::NoGroupForSeveral(others.len())),
            },
        }
    }

    /// The mode of the socket.
    pub(super) const fn mode(self) -> u32 {
        match self {
            Self::Owner | Self::User(_) => 0o600,
            Self::Group(_) => 0o660,
        }
    }

    pub(super) const fn user(self) -> Option<Uid> {
        match self {
            Self::User(user) => Some(user),
            Self::Owner | Self::Group(_) => None,
        }
    }

    pub(super) const fn group(self) -> Option<Gid> {
        match self {
            Self::Group(group) => Some(group),
            Self::Owner | Self::User(_) => None,
        }
    }

    /// Fails if the folder of a socket that root lets others reach is not root's alone.
    pub(super) fn check_folder(self, socket: &Path) -> Result<(), AccessError> {
        if self == Self::Owner || !Uid::effective().is_root() {
            return Ok(());
        }
        let folder = match socket.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // That there is none is told when the socket is made.
        let Ok(found) = fs::metadata(folder) else {
            return Ok(());
        };
        if found.uid() == 0 && found.mode() & 0o022 == 0 {
            return Ok(());
        }
        Err(AccessError::Folder {
            path: folder.to_owned(),
            owner: found.uid(),
            mode: found.mode() & 0o7777,
        })
    }
}

/// A group by its number or its name, as this machine knows it.
pub(crate) fn group(name: &str) -> Result<Option<Gid>, AccessError> {
    if let Ok(number) = name.parse() {
        return Ok(Some(Gid::from_raw(number)));
    }
    let found = Group::from_name(name).map_err(|errno| AccessError::Lookup {
        name: name.to_owned(),
        source: errno.into(),
    })?;
    Ok(found.map(|group| group.gid))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    const ROOT: u32 = 0;
    const USER: u32 = 1000;

    fn chosen(own: u32, allow: &[u32], group: Option<&str>, hsup: bool) -> Result<Access, String> {
        let allow: Vec<Uid> = allow.iter().copied().map(Uid::from_raw).collect();
        let lookup = |name: &str| {
            Ok(match name {
                "hsup" if hsup => Some(Gid::from_raw(7)),
                "staff" => Some(Gid::from_raw(8)),
                _ => None,
            })
        };
        Access::choose(Uid::from_raw(own), &allow, group, lookup).map_err(|error| error.to_string())
    }

    #[test_case(USER, &[5, 6] => Access::Owner; "who is not root gives nothing away")]
    #[test_case(ROOT, &[] => Access::Owner)]
    #[test_case(ROOT, &[0] => Access::Owner; "root is no other")]
    #[test_case(ROOT, &[5, 0, 5] => Access::User(Uid::from_raw(5)); "one user, named twice")]
    #[test_case(ROOT, &[5, 6] => Access::Group(Gid::from_raw(7)))]
    fn without_a_group_named(own: u32, allow: &[u32]) -> Access {
        chosen(own, allow, None, true).unwrap()
    }

    #[test]
    fn a_group_that_is_named_is_taken() {
        let staff = Access::Group(Gid::from_raw(8));
        assert_eq!(chosen(ROOT, &[5], Some("staff"), true), Ok(staff));
        assert_eq!(chosen(USER, &[5], Some("staff"), true), Ok(staff));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = chosen(ROOT, &[5], Some("nobody-has"), true).unwrap_err();
        assert!(error.contains("groupadd nobody-has"), "{error}");
        let error = chosen(ROOT, &[5, 6], None, false).unwrap_err();
        assert!(error.starts_with("2 users"), "{error}");
        assert!(error.contains("--socket-group"), "{error}");
    }

    #[test]
    fn a_group_may_be_a_number() {
        assert_eq!(group("4711").unwrap(), Some(Gid::from_raw(4711)));
        assert_eq!(group("no-such-group-here").unwrap(), None);
    }
}
