//! Binds: folders of the host that a dyno may see (docs/driver-rules.md §12, R7).
//!
//! Only what lies below a prefix that whoever started this driver has named, and neither in nor
//! around the driver's own directories, which hold what others' dynos have; and nothing
//! through a link, since a folder below a prefix may be the caller's to change. What was looked
//! at is what is mounted: it is held open from then on.
//!
//! The same holds for where it is mounted: a bind in another one would be mounted where links
//! in that one's folder lead.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use hsup_driver_kit::{Status, proto};
use nix::{
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{SFlag, fstat},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::mounts;

/// Where nothing may be mounted: the dyno's own places, and what isolates it.
const RESERVED: &[&str] = &["/proc", "/sys", "/dev"];

/// The most binds that a dyno may have: their descriptors go to its shim in one message.
const MOST: usize = 48;

/// A bind, as the one who makes the container needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bind {
    /// Where it is found.
    pub(crate) source: PathBuf,
    pub(crate) dyno_path: PathBuf,
    pub(crate) writable: bool,
}

/// A bind that may not be.
#[derive(Debug, Error)]
pub(crate) enum BindError {
    #[error("`{}` in the dyno is not for binds", .0.display())]
    Reserved(PathBuf),
    #[error(
        "the bind `{}` is below no prefix that this driver allows; \
         whoever starts it can allow one with --allow-bind PREFIX", .0.display()
    )]
    NotAllowed(PathBuf),
    #[error(
        "the bind `{}` would show what is the driver's: its directories hold what other dynos have",
        .0.display()
    )]
    Driver(PathBuf),
    #[error(
        "the bind path `{}` lies in the bind `{}`: give each a place of its own",
        inner.display(),
        outer.display()
    )]
    Nested { inner: PathBuf, outer: PathBuf },
    #[error("{0} binds are too many for a dyno, which may have {MOST}")]
    TooMany(usize),
    #[error("failed to open `{}` for a bind", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("`{}` is neither a directory nor a regular file", .0.display())]
    NotAFile(PathBuf),
}

impl From<BindError> for Status {
    fn from(error: BindError) -> Self {
        let text = hsup_driver_kit::errors::chain(&error);
        match error {
            BindError::Reserved(_) | BindError::Nested { .. } | BindError::TooMany(_) => {
                Self::invalid_argument(text)
            }
            BindError::NotAllowed(_) | BindError::NotAFile(_) | BindError::Driver(_) => {
                Self::permission_denied(text)
            }
            BindError::Open { source, .. } if hsup_driver_kit::errors::is_exhaustion(&source) => {
                Self::resource_exhausted(text)
            }
            BindError::Open { source, .. } => match source.raw_os_error() {
                // A link on the way, which could lead out.
                Some(libc::ELOOP | libc::EXDEV) => Self::permission_denied(text),
                _ => Self::failed_precondition(text),
            },
        }
    }
}

/// What was opened, and how it is to be mounted.
#[derive(Debug)]
pub(crate) struct Opened {
    /// A mount of it, which is nowhere yet.
    pub(crate) tree: OwnedFd,
    pub(crate) is_folder: bool,
    pub(crate) dyno_path: PathBuf,
    pub(crate) writable: bool,
}

/// What of the host may be bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds<'a> {
    /// Something below one of these.
    pub(crate) prefixes: &'a [PathBuf],
    /// The driver's own directories, by their real paths.
    pub(crate) own: [&'a Path; 2],
}

/// Looks at the binds of a dyno and opens them.
pub(crate) fn open(binds: &[proto::Bind], bounds: Bounds<'_>) -> Result<Vec<Opened>, BindError> {
    if binds.len() > MOST {
        return Err(BindError::TooMany(binds.len()));
    }
    apart(binds)?;
    binds.iter().map(|bind| open_one(bind, bounds)).collect()
}

/// Looks that no bind lies in another one, whichever comes first.
fn apart(binds: &[proto::Bind]) -> Result<(), BindError> {
    for (at, bind) in binds.iter().enumerate() {
        let inner = Path::new(bind.place());
        let others = binds.iter().enumerate().filter(|(other, _)| *other != at);
        let mut others = others.map(|(_, other)| Path::new(other.place()));
        if let Some(outer) = others.find(|outer| inner.starts_with(outer)) {
            return Err(BindError::Nested {
                inner: inner.to_owned(),
                outer: outer.to_owned(),
            });
        }
    }
    Ok(())
}

fn open_one(bind: &proto::Bind, bounds: Bounds<'_>) -> Result<Opened, BindError> {
    let (host, dyno) = allowed(bind, bounds)?;
    let failed = |errno: nix::errno::Errno| BindError::Open {
        path: host.to_owned(),
        source: errno.into(),
    };
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let fd = openat2(AT_FDCWD, host, how).map_err(failed)?;
    let kind = SFlag::from_bits_truncate(fstat(&fd).map_err(failed)?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFDIR && kind != SFlag::S_IFREG {
        return Err(BindError::NotAFile(host.to_owned()));
    }
    let tree = mounts::tree_of(&fd, bind.writable).map_err(|source| BindError::Open {
        path: host.to_owned(),
        source,
    })?;
    Ok(Opened {
        tree,
        is_folder: kind == SFlag::S_IFDIR,
        dyno_path: dyno.to_owned(),
        writable: bind.writable,
    })
}

/// Whether the paths of a bind are ones that may be: absolute and without `..` they are, by the
/// kit's check of the request.
pub(crate) fn allowed<'a>(
    bind: &'a proto::Bind,
    bounds: Bounds<'_>,
) -> Result<(&'a Path, &'a Path), BindError> {
    let host = Path::new(&bind.host_path);
    let dyno = Path::new(bind.place());
    if dyno == Path::new("/") || RESERVED.iter().any(|place| dyno.starts_with(place)) {
        return Err(BindError::Reserved(dyno.to_owned()));
    }
    let mut prefixes = bounds.prefixes.iter();
    if !prefixes.any(|prefix| host.starts_with(prefix)) {
        return Err(BindError::NotAllowed(host.to_owned()));
    }
    // Links are not followed, so this is where it leads.
    let is_own = |own: &&Path| host.starts_with(own) || own.starts_with(host);
    if bounds.own.iter().any(is_own) {
        return Err(BindError::Driver(host.to_owned()));
    }
    Ok((host, dyno))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use test_case::test_case;

    use super::*;

    fn bind(host: &str, dyno: &str) -> proto::Bind {
        proto::Bind {
            host_path: host.to_owned(),
            dyno_path: dyno.to_owned(),
            writable: false,
        }
    }

    fn bounds(prefixes: &[PathBuf]) -> Bounds<'_> {
        Bounds {
            prefixes,
            own: [Path::new("/var/lib/hsup"), Path::new("/run/hsup")],
        }
    }

    #[test_case("/srv/data", true)]
    #[test_case("/var/lib/other", true)]
    #[test_case("/", false; "around everything")]
    #[test_case("/var/lib", false; "around the work directory")]
    #[test_case("/var/lib/hsup", false; "the work directory")]
    #[test_case("/var/lib/hsup/containers/3000", false; "in the work directory")]
    #[test_case("/run", false; "around the run directory")]
    #[test_case("/run/hsup/x", false; "in the run directory")]
    fn what_is_the_drivers_is_shown_to_nobody(host: &str, may: bool) {
        let prefixes = [PathBuf::from("/")];
        let bind = bind(host, "/data");
        let answer = allowed(&bind, bounds(&prefixes));
        assert_eq!(!matches!(answer, Err(BindError::Driver(_))), may);
        assert_eq!(answer.is_ok(), may);
    }

    #[test]
    fn as_many_as_fit_into_a_message_may_be() {
        let binds = vec![bind("/srv", ""); MOST + 1];
        let prefixes = [PathBuf::from("/srv")];
        let error = open(&binds, bounds(&prefixes)).unwrap_err();
        assert!(error.to_string().contains("49 binds"), "{error}");
    }

    #[test_case("/srv/data", "", true)]
    #[test_case("/srv/data/x", "/data", true)]
    #[test_case("/srv/database", "/data", false; "a prefix is whole names")]
    #[test_case("/srv/data", "/", false)]
    #[test_case("/srv/data", "/proc/sys", false)]
    #[test_case("/srv/data", "/dev", false)]
    #[test_case("/etc", "/data", false)]
    fn which_paths_may_be(host: &str, dyno: &str, may: bool) {
        let prefixes = [PathBuf::from("/srv/data")];
        assert_eq!(allowed(&bind(host, dyno), bounds(&prefixes)).is_ok(), may);
    }

    #[test]
    fn without_a_prefix_nothing_may() {
        let error = open(&[bind("/srv", "")], bounds(&[])).unwrap_err();
        assert!(error.to_string().contains("--allow-bind"), "{error}");
    }

    #[test_case("/data", "/data/x", true; "the outer one first")]
    #[test_case("/data/x/y", "/data", true; "the inner one first")]
    #[test_case("/data", "/./data/", true; "the same place")]
    #[test_case("/data", "/database", false; "a place is whole names")]
    #[test_case("/data/x", "/data/y", false; "side by side")]
    fn no_bind_lies_in_another(one: &str, other: &str, is_refused: bool) {
        let binds = [bind("/srv/none", one), bind("/srv/none", other)];
        let error = open(&binds, bounds(&[PathBuf::from("/srv")])).unwrap_err();
        assert_eq!(
            matches!(error, BindError::Nested { .. }),
            is_refused,
            "{error}"
        );
    }

    #[test]
    fn a_link_below_a_prefix_leads_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let prefix = folder.path().canonicalize().unwrap();
        symlink("/etc", prefix.join("out")).unwrap();
        let host = prefix.join("out");
        let error = open(&[bind(host.to_str().unwrap(), "/x")], bounds(&[prefix])).unwrap_err();
        let refused = Status::permission_denied("");
        assert_eq!(Status::from(error).code(), refused.code());
    }
}
