//! Which control sockets there are.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{Candidates, Paths, RUNS, SOCKET_PATH_MAX, is_private};

impl Paths {
    /// The control sockets that this user may find, whether or not anybody still serves
    /// them, sorted within each directory. Those of the user's own supervisors are found
    /// wherever they are.
    pub fn find_sockets(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        let Candidates {
            user,
            system,
            temporary,
        } = self.candidates();
        let temporary = is_private(&temporary, self.uid).then_some(temporary);
        for dir in [user, system].into_iter().chain(temporary) {
            let Ok(entries) = fs::read_dir(&dir) else {
                continue;
            };
            let mut sockets: Vec<PathBuf> = entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
                .map(|entry| entry.path())
                .filter(|path| {
                    path.extension()
                        .is_some_and(|extension| extension == "sock")
                })
                .collect();
            sockets.extend(self.linked_sockets(&dir));
            sockets.sort();
            // One socket has many paths: by links in them, or another mount.
            sockets.retain(|socket| seen.insert(Socket::at(socket)));
            found.extend(sockets);
        }
        found
    }

    /// Where the links of our supervisors in this runtime directory lead.
    fn linked_sockets(&self, dir: &Path) -> Vec<PathBuf> {
        let runs = dir.join(RUNS);
        if !is_private(&runs, self.uid) {
            return Vec::new();
        }
        let runs = fs::read_dir(&runs).into_iter().flatten().flatten();
        let links = runs.map(|run| Self::control_link(&run.path()));
        let leads = links.filter_map(|link| {
            let socket = fs::read_link(&link).ok()?;
            // It was bound by the path that somebody typed: `/srv/app/../hsup.sock`.
            let socket = fs::canonicalize(&socket).unwrap_or(socket);
            // What was bound by a relative path may have an absolute one that is too long.
            let fits = socket.as_os_str().len() <= SOCKET_PATH_MAX;
            Some(if fits { socket } else { link })
        });
        leads.collect()
    }
}

/// Which socket it is, whatever its path.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Socket {
    File {
        device: u64,
        inode: u64,
    },
    /// There is none any more.
    Nowhere(PathBuf),
}

impl Socket {
    fn at(path: &Path) -> Self {
        match fs::metadata(path) {
            Ok(metadata) => Self::File {
                device: metadata.dev(),
                inode: metadata.ino(),
            },
            Err(_) => Self::Nowhere(path.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::{
            fs::{PermissionsExt as _, symlink},
            net::UnixListener,
        },
    };

    use super::{
        super::tests::{machine, tempdir},
        *,
    };
    use crate::state::SupervisorId;

    #[test]
    fn sockets_are_found_and_nothing_else() {
        let dir = tempdir();
        let paths = machine(dir.path());
        let runtime = paths.runtime_dir().unwrap();
        let sockets = ["a.sock", "b.sock"].map(|name| runtime.join(name));
        let listeners = sockets
            .each_ref()
            .map(|path| UnixListener::bind(path).unwrap());
        let other = UnixListener::bind(runtime.join("c.other")).unwrap();
        crate::files::write_atomic(&runtime.join("a.sock.lock"), b"1").unwrap();
        crate::files::write_atomic(&runtime.join("d.sock"), b"").unwrap();
        assert_eq!(paths.find_sockets(), sockets);
        drop((listeners, other));
    }

    #[test]
    fn sockets_elsewhere_are_found_by_the_links_of_our_supervisors() {
        let dir = tempdir();
        let paths = machine(dir.path());
        let runtime = paths.runtime_dir().unwrap();
        let near = runtime.join("a.sock");
        let _listener = UnixListener::bind(&near).unwrap();
        let long = format!("/{}/b.sock", "x".repeat(SOCKET_PATH_MAX));
        let links: Vec<_> = ["/elsewhere/c.sock", near.to_str().unwrap(), &long]
            .iter()
            .map(|socket| {
                let run = paths.run_dir(&SupervisorId::random().unwrap()).unwrap();
                let link = Paths::control_link(&run);
                symlink(socket, &link).unwrap();
                link
            })
            .collect();
        // A supervisor whose socket is where it is looked for anyway.
        paths.run_dir(&SupervisorId::random().unwrap()).unwrap();
        let mut expected = vec![PathBuf::from("/elsewhere/c.sock"), near, links[2].clone()];
        expected.sort();
        assert_eq!(paths.find_sockets(), expected);

        let runs = runtime.join(RUNS);
        fs::set_permissions(&runs, Permissions::from_mode(0o770)).unwrap();
        assert_eq!(paths.find_sockets(), [runtime.join("a.sock")]);
    }

    #[test]
    fn a_socket_is_found_once_and_by_its_plainest_path() {
        let dir = tempdir();
        let paths = machine(dir.path());
        let runtime = paths.runtime_dir().unwrap();
        let near = runtime.join("a.sock");
        let _near = UnixListener::bind(&near).unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let far = root.join("far.sock");
        let _far = UnixListener::bind(&far).unwrap();
        symlink(&runtime, root.join("x")).unwrap();
        for socket in ["x/a.sock", "run/../far.sock", "lib/../far.sock"] {
            let run = paths.run_dir(&SupervisorId::random().unwrap()).unwrap();
            symlink(root.join(socket), Paths::control_link(&run)).unwrap();
        }
        // A path that no name tells from another socket's.
        fs::hard_link(&near, runtime.join("b.sock")).unwrap();
        let mut expected = [near, far];
        expected.sort();
        assert_eq!(paths.find_sockets(), expected);
    }
}
