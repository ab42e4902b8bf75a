//! `/app`: a folder of the dyno's own over its slug.
//!
//! The slug is mapped to the dyno's user by its mount. Some kernels and file systems have no such
//! mount, and Linux 5.12 to 5.18 make one that no overlay takes as a layer; in all these cases the
//! slug is copied. What has run out, descriptors say, is not told by copying gigabytes.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt as _,
            fs::{
                DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown, lchown, symlink,
            },
        },
    },
    path::Path,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};
use rustix::{fs::CWD, mount::open_tree};

use super::{COPY, MountError, detach, failed, move_mount, set_attributes};

/// How much of a file is copied before it is said that the copy goes on: a slow disk has that
/// written in less time than anybody waits.
const PART: u64 = 16 << 20;

/// A slug, as it lies on the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slug<'a> {
    pub(crate) path: &'a Path,
    /// Who owns its files there.
    pub(crate) owner: u32,
}

/// Whether folders in `own`, on the disk, can be the writable layer of an overlay that is
/// mounted at `at`. They cannot where they are in an overlay themselves, as in a Docker container.
pub(crate) fn probe_at(own: &Path, at: &Path) -> Result<(), MountError> {
    let lower = own.join("lower");
    for folder in [&lower, at] {
        fs::create_dir_all(folder).map_err(failed("make", folder))?;
    }
    let probe = App {
        slug: None,
        own,
        lower: &lower,
        at,
        uid: 0,
    };
    let result = app(&probe, &mut || Ok(())).map(drop);
    detach(at);
    result
}

/// How a slug became the dyno's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapped {
    Mounted,
    /// The kernel or the file system could not do that.
    Copied,
}

/// What is to be mounted as `/app`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct App<'a> {
    pub(crate) slug: Option<Slug<'a>>,
    /// The dyno's folder on the disk; what it writes to `/app` is below it.
    pub(crate) own: &'a Path,
    /// An empty folder, to mount the slug on.
    pub(crate) lower: &'a Path,
    pub(crate) at: &'a Path,
    pub(crate) uid: u32,
}

/// Mounts `/app`, with the slug as the property of the dyno's user. Where that takes a copy,
/// `goes_on` is called again and again meanwhile, and can end it.
pub(crate) fn app(
    app: &App<'_>,
    goes_on: &mut dyn FnMut() -> io::Result<()>,
) -> Result<Mapped, MountError> {
    app_by(&mut Linux, app, goes_on)
}

/// What the kernel is asked for, and may refuse.
trait Kernel {
    /// Shows the slug at `at` as the property of `uid`.
    fn map(&mut self, slug: Slug<'_>, at: &Path, uid: u32) -> io::Result<()>;
    fn overlay(&mut self, at: &Path, options: &OsStr) -> io::Result<()>;
    fn detach(&mut self, at: &Path);
}

/// The one that we run on.
struct Linux;

impl Kernel for Linux {
    fn map(&mut self, slug: Slug<'_>, at: &Path, uid: u32) -> io::Result<()> {
        map(slug, at, uid)
    }

    fn overlay(&mut self, at: &Path, options: &OsStr) -> io::Result<()> {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        let kind = Some("overlay");
        Ok(mount(kind, at, kind, flags, Some(options))?)
    }

    fn detach(&mut self, at: &Path) {
        detach(at);
    }
}

fn app_by(
    kernel: &mut impl Kernel,
    app: &App<'_>,
    goes_on: &mut dyn FnMut() -> io::Result<()>,
) -> Result<Mapped, MountError> {
    let App { lower, at, uid, .. } = *app;
    let upper = app.own.join("upper");
    let work = app.own.join("work");
    for folder in [&upper, &work] {
        fs::DirBuilder::new()
            .mode(0o755)
            .create(folder)
            .map_err(failed("make", folder))?;
    }
    chown(&upper, Some(uid), Some(uid)).map_err(failed("give away", &upper))?;
    let options = [
        b"lowerdir=".as_slice(),
        lower.as_os_str().as_bytes(),
        b",upperdir=",
        upper.as_os_str().as_bytes(),
        b",workdir=",
        work.as_os_str().as_bytes(),
    ]
    .concat();
    let options = OsStr::from_bytes(&options);
    if let Some(slug) = app.slug {
        match kernel.map(slug, lower, uid) {
            Ok(()) => match kernel.overlay(at, options) {
                Ok(()) => return Ok(Mapped::Mounted),
                Err(error) if cannot(&error) => {}
                Err(error) => return Err(failed("mount /app at", at)(error)),
            },
            Err(error) if cannot(&error) || has_no_namespaces(&error) => {}
            Err(error) => return Err(failed("map the slug at", lower)(error)),
        }
        // It is empty again, or is so already.
        kernel.detach(lower);
        copy(slug.path, &upper, uid, goes_on).map_err(failed("copy the slug to", &upper))?;
    }
    let mounted = kernel.overlay(at, options);
    mounted.map_err(failed("mount /app at", at))?;
    Ok(match app.slug {
        None => Mapped::Mounted,
        Some(_) => Mapped::Copied,
    })
}

/// Whether that says that owners cannot be mapped here, and not that something has run out.
fn cannot(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPERM | Errno::EACCES)
    )
}

/// Whether that is what a host says that allows no user namespaces, or no more. The mapping is
/// told in one; of an overlay, it would be a full disk.
fn has_no_namespaces(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOSPC | Errno::EUSERS))
}

fn map(slug: Slug<'_>, at: &Path, uid: u32) -> io::Result<()> {
    let tree = open_tree(CWD, slug.path, COPY)?;
    let users = user_namespace(slug.owner, uid)?;
    let flags = libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    set_attributes(&tree, flags, Some(&users), 0)?;
    move_mount(&tree, at)
}

/// A user namespace in which `inside` is `outside` here: what an id-mapped mount is made with.
fn user_namespace(inside: u32, outside: u32) -> io::Result<OwnedFd> {
    let pid = child_in_user_namespace()?;
    let map = format!("{inside} {outside} 1\n");
    let write = |file| {
        let mut file = fs::File::options()
            .write(true)
            .open(format!("/proc/{pid}/{file}"))?;
        file.write_all(map.as_bytes())
    };
    let made = write("uid_map")
        .and_then(|()| write("gid_map"))
        .and_then(|()| fs::File::open(format!("/proc/{pid}/ns/user")));
    // It has done what it was for.
    kill(pid, Signal::SIGKILL)?;
    while waitpid(pid, None) == Err(Errno::EINTR) {}
    Ok(made?.into())
}

/// A child that is in a user namespace of its own and waits to be killed.
#[expect(unsafe_code, reason = "clone(2) with a namespace is no library's")]
fn child_in_user_namespace() -> io::Result<Pid> {
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    // SAFETY: as fork(2), of a process with one thread; the child calls nothing but pause(2).
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid == 0 {
        loop {
            // SAFETY: it takes nothing, and returns after a signal.
            unsafe { libc::pause() };
        }
    }
    Errno::result(pid)
        .map(|pid| Pid::from_raw(i32::try_from(pid).unwrap_or(-1)))
        .map_err(io::Error::from)
}

/// Copies a tree of folders, files and links, as the property of `uid`. What is a hard link to
/// something in it becomes a file of its own.
fn copy(
    from: &Path,
    to: &Path,
    uid: u32,
    goes_on: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        goes_on()?;
        let entry = entry?;
        let target = to.join(entry.file_name());
        let found = entry.metadata()?;
        if found.is_dir() {
            fs::create_dir(&target)?;
            copy(&entry.path(), &target, uid, goes_on)?;
        } else if found.is_symlink() {
            symlink(fs::read_link(entry.path())?, &target)?;
        } else {
            copy_file(&entry.path(), &target, goes_on)?;
        }
        lchown(&target, Some(uid), Some(uid))?;
        if !found.is_symlink() {
            fs::set_permissions(&target, fs::Permissions::from_mode(found.mode() & 0o777))?;
        }
    }
    Ok(())
}

fn copy_file(
    from: &Path,
    to: &Path,
    goes_on: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<()> {
    let (from, mut to) = (File::open(from)?, File::create_new(to)?);
    while io::copy(&mut (&from).take(PART), &mut to)? == PART {
        goes_on()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use nix::unistd::Uid;
    use test_case::test_case;

    use super::*;

    /// A kernel that mounts nothing, and refuses.
    #[derive(Default)]
    struct Fake {
        map: Option<Errno>,
        /// Of what is mapped.
        overlay: Option<Errno>,
        /// In any case.
        every_overlay: Option<Errno>,
        is_mapped: bool,
    }

    impl Kernel for Fake {
        fn map(&mut self, _: Slug<'_>, _: &Path, _: u32) -> io::Result<()> {
            if let Some(errno) = self.map {
                return Err(errno.into());
            }
            self.is_mapped = true;
            Ok(())
        }

        fn overlay(&mut self, _: &Path, _: &OsStr) -> io::Result<()> {
            let of_mapped = self.overlay.filter(|_| self.is_mapped);
            let refused = of_mapped.or(self.every_overlay);
            refused.map_or(Ok(()), |errno| Err(errno.into()))
        }

        fn detach(&mut self, _: &Path) {
            self.is_mapped = false;
        }
    }

    /// A slug, and where it becomes a dyno's.
    struct Places(tempfile::TempDir);

    impl Places {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            for name in ["slug/bin", "own", "lower", "at"] {
                fs::create_dir_all(folder.path().join(name)).unwrap();
            }
            let program = folder.path().join("slug/bin/web");
            let mut file = File::create(&program).unwrap();
            file.write_all(b"#!").unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            symlink("bin/web", folder.path().join("slug/link")).unwrap();
            Self(folder)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn app(
            &self,
            kernel: &mut Fake,
            goes_on: &mut dyn FnMut() -> io::Result<()>,
        ) -> Result<Mapped, MountError> {
            // Whoever is not root can give files to nobody else.
            let uid = Uid::current().as_raw();
            let (slug, own) = (self.path("slug"), self.path("own"));
            let slug = Slug {
                path: &slug,
                owner: uid,
            };
            let app = App {
                slug: Some(slug),
                own: &own,
                lower: &self.path("lower"),
                at: &self.path("at"),
                uid,
            };
            app_by(kernel, &app, goes_on)
        }

        fn copied(&self) -> bool {
            self.path("own/upper/bin/web").exists()
        }
    }

    #[test]
    fn what_can_be_mapped_is_not_copied() {
        let places = Places::new();
        let mapped = places.app(&mut Fake::default(), &mut || Ok(()));
        assert_eq!(mapped.unwrap(), Mapped::Mounted);
        assert!(!places.copied());
    }

    #[test]
    fn a_mapping_that_no_overlay_takes_is_undone_and_the_slug_copied() {
        let places = Places::new();
        let mut kernel = Fake {
            overlay: Some(Errno::EINVAL),
            ..Fake::default()
        };
        let mapped = places.app(&mut kernel, &mut || Ok(()));
        assert_eq!(mapped.unwrap(), Mapped::Copied);
        assert!(!kernel.is_mapped);
        let program = places.path("own/upper/bin/web");
        assert_eq!(fs::read(&program).unwrap(), b"#!");
        let mode = fs::metadata(&program).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        let link = fs::read_link(places.path("own/upper/link")).unwrap();
        assert_eq!(link, Path::new("bin/web"));
    }

    #[test_case(Errno::EINVAL => true; "a file system without")]
    #[test_case(Errno::EOPNOTSUPP => true; "not supported")]
    #[test_case(Errno::ENOSYS => true; "an old kernel")]
    #[test_case(Errno::EPERM => true; "forbidden")]
    #[test_case(Errno::ENOSPC => true; "no user namespaces")]
    #[test_case(Errno::EMFILE => false; "no descriptors")]
    #[test_case(Errno::ENFILE => false; "no descriptors at all")]
    #[test_case(Errno::EAGAIN => false; "no processes")]
    #[test_case(Errno::ENOMEM => false; "no memory")]
    fn a_slug_that_cannot_be_mapped_is_copied(errno: Errno) -> bool {
        let places = Places::new();
        let mut kernel = Fake {
            map: Some(errno),
            ..Fake::default()
        };
        let mapped = places.app(&mut kernel, &mut || Ok(()));
        if let Err(error) = &mapped {
            assert_eq!(error.source.raw_os_error(), Some(errno as i32), "{error}");
        }
        assert_eq!(mapped.is_ok(), places.copied());
        places.copied()
    }

    #[test_case(Errno::ENOMEM)]
    #[test_case(Errno::ENOSPC; "a full disk")]
    fn an_overlay_that_is_refused_for_another_reason_is_told(errno: Errno) {
        let places = Places::new();
        let mut kernel = Fake {
            every_overlay: Some(errno),
            ..Fake::default()
        };
        let error = places.app(&mut kernel, &mut || Ok(())).unwrap_err();
        assert!(error.to_string().contains("mount /app"), "{error}");
        assert!(!places.copied());
    }

    #[test]
    fn a_copy_ends_when_nobody_wants_it() {
        let places = Places::new();
        let mut kernel = Fake {
            map: Some(Errno::ENOSYS),
            ..Fake::default()
        };
        let gone = || Err(io::ErrorKind::BrokenPipe.into());
        let error = places.app(&mut kernel, &mut { gone }).unwrap_err();
        assert!(error.to_string().contains("copy the slug"), "{error}");
        assert!(!places.copied());
    }

    #[test]
    fn a_large_file_is_copied_in_parts_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let mut file = File::create(&from).unwrap();
        // With a hole, so that it takes no room.
        file.set_len(PART + 1).unwrap();
        file.write_all(b"begin").unwrap();
        let mut parts = 0;
        let mut goes_on = || {
            parts += 1;
            Ok(())
        };
        copy_file(&from, &to, &mut goes_on).unwrap();
        assert_eq!(parts, 1);
        assert_eq!(fs::metadata(&to).unwrap().len(), PART + 1);
        let mut begin = [0; 5];
        File::open(&to).unwrap().read_exact(&mut begin).unwrap();
        assert_eq!(&begin, b"begin");
    }
}
