//! What of a dyno lies in folders of its own: the upper layer of its root, and what it writes.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use hsup_driver_kit::{Status, errors, proto::StartRequest};

use super::{StartError, files};
use crate::{binds::Opened, lease::Lease, net, removal, shim::Places, stack};

/// The upper layer of the dyno's root: what differs from the stack, and what is mounted on.
pub(super) fn skeleton(
    dir: &Path,
    stack_root: &Path,
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
        ("etc/heroku/dyno", identity(request)),
    ];
    for (name, text) in texts {
        let path = top.join(name);
        fs::File::create(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(files("write", &path))?;
    }
    for (number, bind) in binds.iter().enumerate() {
        mount_point(&places.bind(number), bind.is_folder)?;
        bind_point(top, stack_root, &bind.dyno_path, bind.is_folder)?;
    }
    Ok(())
}

/// Who the dyno is, as Heroku's `/etc/heroku/dyno` has it: what its environment does not tell is
/// empty there, too.
fn identity(request: &StartRequest) -> String {
    let told = |name: &str| request.env.get(name).map_or("", String::as_str);
    let identity = serde_json::json!({
        "dyno": {
            "id": request.dyno_id,
            "name": format!("{}.{}", request.process_type, request.process_number),
        },
        "app": { "id": told("HEROKU_APP_ID"), "name": request.app },
        "release": {
            "id": request.release,
            "commit": told("HEROKU_SLUG_COMMIT"),
            "description": told("HEROKU_SLUG_DESCRIPTION"),
        },
    });
    format!("{identity}\n")
}

/// The dyno's own folder on the disk. One that is there is left over from before a crash: the
/// user that it is named after is ours now.
pub(super) fn own_folder(own: &Path) -> Result<(), StartError> {
    removal::remove(own).map_err(files("clear", own))?;
    let made = fs::DirBuilder::new().mode(0o700).create(own);
    made.map_err(files("make", own))
}

/// Something to mount on in the dyno, if the stack has nothing there. A link on the way is the
/// stack's, and would be hidden.
fn bind_point(
    top: &Path,
    stack_root: &Path,
    dyno_path: &Path,
    is_folder: bool,
) -> Result<(), Status> {
    let inside = dyno_path.strip_prefix("/").unwrap_or(dyno_path);
    if inside.starts_with("app") || inside.starts_with("tmp") || inside.starts_with("var/tmp") {
        // Mounted over, and writable: it is made there.
        return Ok(());
    }
    let mut at = PathBuf::new();
    for part in inside {
        at.push(part);
        if fs::symlink_metadata(stack_root.join(&at)).is_ok_and(|found| found.is_symlink()) {
            return Err(Status::invalid_argument(format!(
                "the bind path `{}` goes through a link of the stack: name where that leads",
                dyno_path.display()
            )));
        }
    }
    mount_point(&top.join(inside), is_folder)?;
    Ok(())
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
    use super::*;

    #[test]
    fn a_dyno_finds_who_it_is_in_heroku_s_form() {
        let mut request = StartRequest {
            dyno_id: "web-1-abc".to_owned(),
            app: "shop".to_owned(),
            release: 18,
            process_type: "web".to_owned(),
            process_number: 1,
            ..StartRequest::default()
        };
        let secret = ("DATABASE_URL".to_owned(), "hunter2".to_owned());
        let commit = ("HEROKU_SLUG_COMMIT".to_owned(), "46f55628".to_owned());
        request.env.extend([secret, commit]);
        assert_eq!(
            identity(&request),
            "{\"dyno\":{\"id\":\"web-1-abc\",\"name\":\"web.1\"},\
             \"app\":{\"id\":\"\",\"name\":\"shop\"},\
             \"release\":{\"id\":18,\"commit\":\"46f55628\",\"description\":\"\"}}\n"
        );
    }
}
