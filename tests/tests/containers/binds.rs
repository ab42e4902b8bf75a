//! Folders of the host in a dyno: those that the operator of the driver allows.

use std::{fs, os::unix::fs::symlink};

use hsup_proto::driver::{Bind, StartRequest};
use tonic::{Code, Status};

use crate::{
    caller::{Caller, says},
    host::Host,
    slugs::{file, pack, with_slug},
};

fn bind(
    host: &Host,
    from: &str,
    to: &str,
    writable: bool,
) -> impl FnOnce(&mut StartRequest) + use<> {
    let bind = one(host, from, to, writable);
    move |request| request.binds = vec![bind]
}

fn one(host: &Host, from: &str, to: &str, writable: bool) -> Bind {
    Bind {
        host_path: host.path(from).to_string_lossy().into_owned(),
        dyno_path: to.to_owned(),
        writable,
    }
}

fn shared(host: &Host) {
    host.write("shared/folder/file", "of the host\n");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(host.path("shared/folder"), open).unwrap();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn what_is_below_an_allowed_folder_is_shown_as_asked() {
    let host = Host::new();
    shared(&host);
    let driver = host.driver_with(|command| {
        command.arg("--allow-bind").arg(host.path("shared"));
    });
    let caller = Caller::new(&host.socket());
    let line = "cat /data/file; (: >/data/new) 2>/dev/null && echo written; true";
    let (said, _) = caller.output("a", line, bind(&host, "shared/folder", "/data", false));
    assert_eq!(said, "of the host\n");
    assert!(!host.path("shared/folder/new").exists());
    let (said, _) = caller.output("b", line, bind(&host, "shared/folder", "/data", true));
    assert_eq!(said, "of the host\nwritten\n");
    assert!(host.path("shared/folder/new").exists());
    // One file, deep in a place that is the dyno's to write to, and one in the stack's /etc.
    for (id, place) in [
        ("c", "/app/deep/in/file"),
        ("d", "/tmp/file"),
        ("e", "/etc/more"),
    ] {
        let line = format!("cat {place}; ls -ld /app | cut -c1-4; : >/app/own && echo own");
        let asked = bind(&host, "shared/folder/file", place, false);
        let (said, _) = caller.output(id, &line, asked);
        assert_eq!(said, "of the host\ndrwx\nown\n", "{place}");
    }
    // What the dyno wrote is the host's, and nothing of the mount is left there.
    assert_eq!(fs::read_dir(host.path("shared/folder")).unwrap().count(), 2);
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_bind_is_as_the_host_changes_it_and_survives_the_driver() {
    let host = Host::new();
    shared(&host);
    let allow = |command: &mut std::process::Command| {
        command.env("LIBCONTAINER_ALLOW_BIND", host.path("shared"));
    };
    let driver = host.driver_with(allow);
    let caller = Caller::new(&host.socket());
    let line = "echo up; read _; cat /data/later";
    let asked = bind(&host, "shared/folder", "/data", false);
    let mut dyno = caller.try_start("a", line, asked).unwrap();
    dyno.wait_for("up");
    driver.kill();
    host.write("shared/folder/later", "later\n");
    let driver = host.driver_with(allow);
    let caller = Caller::new(&host.socket());
    dyno.close();
    caller.wait("a");
    assert_eq!(dyno.said(), "up\nlater\n");
    caller.remove("a");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn hsup_shows_a_folder_to_its_dynos() {
    let host = Host::new();
    shared(&host);
    let driver = host.driver_with(|command| {
        command.arg("--allow-bind").arg(host.path("shared"));
    });
    let asked = format!("{}:/data", host.path("shared/folder").display());
    let output = host.run_with("cat /data/file", |command| {
        command.args(["--bind", &asked]);
    });
    assert_eq!(String::from_utf8_lossy(&output.stdout), "of the host\n");
    let output = host.run_with("true", |command| {
        command.args(["--bind", "/etc:/data"]);
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("--allow-bind"), "{said}");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn anything_else_is_refused_and_takes_nothing() {
    let host = Host::new();
    shared(&host);
    host.write("secret/file", "secret\n");
    symlink(host.path("secret"), host.path("shared/link")).unwrap();
    symlink("../secret", host.path("shared/folder/link")).unwrap();
    // In the stack, /data leads elsewhere.
    fs::create_dir(host.path("work/stacks/test-1/real")).unwrap();
    symlink("real", host.path("work/stacks/test-1/data")).unwrap();
    let driver = host.driver_with(|command| {
        command.arg("--allow-bind").arg(host.path("shared"));
        command.arg("--allow-bind").arg(host.path("work"));
    });
    let caller = Caller::new(&host.socket());
    let refused = |from: &str, to: &str| -> Status {
        let started = caller.try_start("a", "true", bind(&host, from, to, false));
        started
            .err()
            .unwrap_or_else(|| panic!("{from} at {to} was bound"))
    };
    for (from, to, code, words) in [
        (
            "secret",
            "/d",
            Code::PermissionDenied,
            &["--allow-bind", "secret"][..],
        ),
        (
            "shared-too",
            "/d",
            Code::PermissionDenied,
            &["--allow-bind"],
        ),
        (
            "shared/link",
            "/d",
            Code::PermissionDenied,
            &["shared/link"],
        ),
        (
            "shared/link/file",
            "/d",
            Code::PermissionDenied,
            &["shared/link/file"],
        ),
        (
            "shared/folder/link",
            "/d",
            Code::PermissionDenied,
            &["folder/link"],
        ),
        (
            "shared/../secret",
            "/d",
            Code::InvalidArgument,
            &["without `..`"],
        ),
        (
            "shared/none",
            "/d",
            Code::FailedPrecondition,
            &["shared/none"],
        ),
        (
            "shared/folder",
            "/",
            Code::InvalidArgument,
            &["not for binds"],
        ),
        (
            "shared/folder",
            "/proc/sys",
            Code::InvalidArgument,
            &["/proc/sys"],
        ),
        (
            "shared/folder",
            "/dev/shm",
            Code::InvalidArgument,
            &["/dev/shm"],
        ),
        (
            "shared/folder",
            "/data/x",
            Code::InvalidArgument,
            &["/data/x", "a link of the stack"],
        ),
        (
            "shared/folder",
            "/bin/busybox",
            Code::InvalidArgument,
            &["/bin/busybox", "a file in the dyno"],
        ),
        (
            "shared/folder",
            "/etc/passwd/x",
            Code::InvalidArgument,
            &["/etc/passwd/x", "below a file"],
        ),
        (
            "work/stacks",
            "/d",
            Code::PermissionDenied,
            &["work/stacks", "other dynos"],
        ),
    ] {
        let status = refused(from, to);
        assert_eq!(status.code(), code, "{from} at {to}: {status}");
        says(&status, words);
    }
    assert!(caller.list().is_empty());
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_link_of_the_callers_leads_no_bind_anywhere() {
    let host = Host::new();
    shared(&host);
    // Bound to the root of the dyno, the folder would lead whoever makes `/dev` there to `aim`.
    fs::create_dir(host.path("aim")).unwrap();
    symlink(host.path("aim"), host.path("shared/folder/dev")).unwrap();
    symlink("/", host.path("shared/folder/root")).unwrap();
    host.write("one/app/hello", "hello\n");
    symlink("/", host.path("one/app/root")).unwrap();
    let packed = pack(&host, "one");
    let driver = host.driver_with(|command| {
        command.arg("--allow-bind").arg(host.path("shared"));
    });
    let caller = Caller::new(&host.socket());
    let artifact = caller.build(with_slug(&file(&packed), "")).unwrap();
    for (places, words) in [
        (&["/app/root"][..], ["/app/root", "a link of the slug"]),
        (&["/app/root/new"], ["/app/root/new", "a link of the slug"]),
        (&["/data", "/data/root"], ["/data/root", "the bind `/data`"]),
        (&["/data/root", "/data"], ["/data/root", "the bind `/data`"]),
        (&["/data", "/./data/"], ["`/data`", "lies in the bind"]),
        (&["/app", "/app/root"], ["/app/root", "the bind `/app`"]),
    ] {
        let bind = |place: &&str| one(&host, "shared/folder", place, false);
        let started = caller.try_start("a", "true", |request| {
            request.artifact.clone_from(&artifact);
            request.binds = places.iter().map(bind).collect();
        });
        let led = fs::read_dir(host.path("aim")).unwrap().flatten();
        let led: Vec<_> = led.map(|entry| entry.file_name()).collect();
        assert!(led.is_empty(), "{places:?} led to the host: {led:?}");
        let status = started
            .err()
            .unwrap_or_else(|| panic!("{places:?} were bound"));
        assert_eq!(status.code(), Code::InvalidArgument, "{places:?}: {status}");
        says(&status, &words);
    }
    assert!(caller.list().is_empty());
    driver.end();
    host.is_clean();
}
