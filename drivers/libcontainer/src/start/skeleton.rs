//! What of a dyno lies in folders of its own: the upper layer of its root, and what it writes.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use hsup_driver_kit::{Status, errors, identity, proto::StartRequest};

use super::{StartError, files};
use crate::{binds::Opened, lease::Lease, net, removal, shim::Places, stack};

/// The upper layer of the dyno's root: what differs from the stack, and what is mounted on.
pub(super) fn skeleton(
    dir: &Path,
    stack_root: &Path,
    slug: Option<&Path>,
    lease: &Lease,
    resolv_conf: String,
    request: &StartRequest,
    binds: &[Opened],
) -> Result<(), Status> {
    let hostname = &request.dyno_id;
    let places = Places::new(dir);
    for place in [&places.root, &places.slug, &places.app, &places.binds] {
        fs::create_dir(place).map_err(files("make", place))?;
    }
    let top = &places.skeleton;
    for folder in ["app", "dev", "etc/heroku", "proc", "sys", "tmp", "var/tmp"] {
        let folder = top.join(folder);
        fs::create_dir_all(&folder).map_err(files("make", &folder))?;
    }
    let accounts = stack::accounts(stack_root, lease.uid, lease.uid)
        .map_err(|error| Status::failed_precondition(errors::chain(&error)))?;
    let texts = [
        ("etc/passwd", accounts.passwd),
        ("etc/group", accounts.group),
        ("etc/hosts", net::hosts(hostname, lease.subnet.host())),
        ("etc/resolv.conf", resolv_conf),
        ("etc/hostname", format!("{hostname}\n")),
        ("etc/heroku/dyno", identity::text(request)),
    ];
    for (name, text) in texts {
        let path = top.join(name);
        fs::File::create(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(files("write", &path))?;
    }
    let lower = Lower {
        top,
        stack: stack_root,
        slug,
    };
    for (number, bind) in binds.iter().enumerate() {
        mount_point(&places.bind(number), bind.is_folder)?;
        bind_point(lower, bind)?;
    }
    Ok(())
}

/// The dyno's own folder on the disk. One that is there is left over from before a crash: the
/// user that it is named after is ours now.
pub(super) fn own_folder(own: &Path) -> Result<(), StartError> {
    removal::remove(own).map_err(files("clear", own))?;
    let made = fs::DirBuilder::new().mode(0o700).create(own);
    made.map_err(files("make", own))
}

/// Something to mount on in the dyno, if the stack or the slug has nothing there.
fn bind_point(lower: Lower<'_>, bind: &Opened) -> Result<(), Status> {
    lower.takes(&bind.dyno_path, bind.is_folder)?;
    let inside = bind.dyno_path.strip_prefix("/").unwrap_or(&bind.dyno_path);
    if inside.starts_with("app") || inside.starts_with("tmp") || inside.starts_with("var/tmp") {
        // Mounted over, and writable: it is made there.
        return Ok(());
    }
    mount_point(&lower.top.join(inside), bind.is_folder)?;
    Ok(())
}

/// What is below a bind.
#[derive(Clone, Copy, Debug)]
struct Lower<'a> {
    /// What is above the stack.
    top: &'a Path,
    stack: &'a Path,
    slug: Option<&'a Path>,
}

impl Lower<'_> {
    /// Whether a folder, or a file, can be mounted at that path of the dyno. There is no link on
    /// the way: one of the stack would be hidden, and one of the slug would lead who mounts, root
    /// on this host, wherever the caller likes.
    fn takes(self, dyno_path: &Path, is_folder: bool) -> Result<(), Status> {
        let refused = |what: &str| {
            let path = dyno_path.display();
            Err(Status::invalid_argument(format!(
                "the bind path `{path}` {what}"
            )))
        };
        let inside = dyno_path.strip_prefix("/").unwrap_or(dyno_path);
        let mut at = PathBuf::new();
        for part in inside {
            at.push(part);
            let Some(found) = self.look(&at) else {
                continue;
            };
            if found.is_symlink() {
                return refused(if at.starts_with("app") {
                    "goes through a link of the slug: name where that leads"
                } else {
                    "goes through a link of the stack: name where that leads"
                });
            }
            if at != inside && !found.is_dir() {
                return refused("is below a file");
            }
            if at == inside && found.is_dir() != is_folder {
                return refused(if is_folder {
                    "is a file in the dyno, and a folder on the host"
                } else {
                    "is a folder in the dyno, and a file on the host"
                });
            }
        }
        Ok(())
    }

    /// What the dyno would see there.
    fn look(self, at: &Path) -> Option<fs::Metadata> {
        let look = |path: PathBuf| fs::symlink_metadata(path).ok();
        match at.strip_prefix("app") {
            Ok(in_app) if in_app != Path::new("") => {
                self.slug.and_then(|slug| look(slug.join(in_app)))
            }
            // In memory, and empty.
            _ if at.starts_with("tmp") || at.starts_with("var/tmp") => look(self.top.join(at)),
            _ => look(self.top.join(at)).or_else(|| look(self.stack.join(at))),
        }
    }
}

fn mount_point(at: &Path, is_folder: bool) -> Result<(), StartError> {
    let made = if is_folder {
        fs::create_dir_all(at)
    } else {
        at.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::File::create(at).map(drop))
    };
    made.map_err(files("make", at))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use test_case::test_case;

    use super::*;

    #[test_case("/data/new", true, None; "nothing is there")]
    #[test_case("/etc", true, None; "a folder of the stack")]
    #[test_case("/etc/motd", false, None; "a file of the stack")]
    #[test_case("/app/Procfile", false, None; "a file of the slug")]
    #[test_case("/app/new/file", false, None; "nothing of the slug")]
    #[test_case("/etc/motd", true, Some("`/etc/motd` is a file in the dyno"); "a folder onto a file")]
    #[test_case("/etc", false, Some("`/etc` is a folder in the dyno"); "a file onto a folder")]
    #[test_case("/etc/motd/x", true, Some("is below a file"); "below a file")]
    #[test_case("/app/Procfile/x", false, Some("is below a file"); "below a file of the slug")]
    #[test_case("/app/Procfile", true, Some("is a file in the dyno"); "a folder onto a file of the slug")]
    #[test_case("/lib/x", true, Some("goes through a link of the stack"); "through a link")]
    #[test_case("/lib", true, Some("goes through a link of the stack"); "onto a link")]
    #[test_case("/app/lib/x", true, Some("goes through a link of the slug"); "through a link of the slug")]
    #[test_case("/app/lib", true, Some("goes through a link of the slug"); "onto a link of the slug")]
    #[test_case("/app/lost", false, Some("goes through a link of the slug"); "onto a link that leads nowhere")]
    fn where_a_bind_may_be(path: &str, is_folder: bool, refused: Option<&str>) {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["top/app", "stack/etc", "slug"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        for name in ["stack/etc/motd", "slug/Procfile"] {
            fs::File::create(at(name)).unwrap();
        }
        symlink("usr/lib", at("stack/lib")).unwrap();
        symlink("/", at("slug/lib")).unwrap();
        symlink("/no/such/file", at("slug/lost")).unwrap();
        let slug = at("slug");
        let lower = Lower {
            top: &at("top"),
            stack: &at("stack"),
            slug: Some(&slug),
        };
        let answer = lower.takes(Path::new(path), is_folder);
        match refused {
            None => answer.unwrap(),
            Some(text) => {
                let status = answer.unwrap_err();
                assert_eq!(status.code(), Status::invalid_argument("").code());
                assert!(status.message().contains(text), "{status}");
            }
        }
    }
}
