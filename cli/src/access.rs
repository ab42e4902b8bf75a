//! Who may connect to a socket, for whoever may not.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use nix::unistd::{Gid, Group, Uid, User};

/// What is to be done to connect there: the package's sockets are their group's (unix(7)).
pub(crate) fn advice(socket: &Path) -> String {
    let Ok(metadata) = fs::metadata(socket) else {
        // It is in a folder that is somebody else's.
        return "only whoever started that hsup may".to_owned();
    };
    let user = User::from_uid(Uid::from_raw(metadata.uid())).ok().flatten();
    let user = user.map_or_else(|| metadata.uid().to_string(), |user| user.name);
    let group = Group::from_gid(Gid::from_raw(metadata.gid()))
        .ok()
        .flatten();
    match group {
        Some(group) if metadata.permissions().mode() & 0o020 != 0 && metadata.gid() != 0 => {
            let group = group.name;
            format!(
                "{user} and the members of the group `{group}` may: `adduser NAME {group}` as root, \
                 then log in anew"
            )
        }
        _ => format!("only {user} and root may"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::chown, net::UnixListener};

    use super::*;

    #[test]
    fn whose_it_is_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let me = User::from_uid(Uid::effective()).unwrap().unwrap().name;
        assert_eq!(advice(&path), format!("only {me} and root may"));
        let gid = if Uid::effective().is_root() {
            // Debian's `users`.
            Gid::from_raw(100)
        } else {
            Gid::effective()
        };
        chown(&path, None, Some(gid.as_raw())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
        let group = Group::from_gid(gid).unwrap().unwrap().name;
        assert!(advice(&path).contains(&format!("`adduser NAME {group}`")));
    }

    #[test]
    fn what_cannot_be_looked_at_is_somebody_elses() {
        assert_eq!(
            advice(Path::new("/nowhere/socket")),
            "only whoever started that hsup may"
        );
    }
}
