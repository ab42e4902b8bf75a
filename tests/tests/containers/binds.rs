//! Folders of the host in a dyno: those that the operator of the driver allows.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{OpenOptionsExt as _, symlink},
    },
    path::{Path, PathBuf},
    thread,
};

use hsup_proto::driver::{Bind, StartRequest};
use hsup_tests::deadline::poll;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tonic::{Code, Status};

use crate::{
    caller::{Caller, says},
    host::Host,
    machine::left_out,
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

#[test]
#[ignore = "needs root: it makes containers"]
fn a_file_system_that_hangs_keeps_nobody_else_waiting() {
    let host = Host::new();
    let Some(mut hung) = Hung::at(&host.path("hung")) else {
        return left_out("what hangs: this machine has no fuse");
    };
    let driver = host.driver_with(|command| {
        command.arg("--allow-bind").arg(host.path("hung"));
    });
    let caller = Caller::new(&host.socket());
    // Who waits for a file system, with a bind or with FIFOs.
    let waits = |id: &'static str, change: &dyn Fn(&mut StartRequest)| {
        let caller = Caller::new(&host.socket());
        let mut request = caller.request(id, "true");
        change(&mut request);
        move || caller.ask(request)
    };
    let bound = waits("a", &|request| {
        request.tty = true;
        request.binds = vec![one(&host, "hung/folder", "/data", false)];
    });
    let opened = waits("b", &|request| {
        request.io_dir = host.path("hung/io").to_string_lossy().into_owned();
    });
    thread::scope(|scope| {
        let bound = scope.spawn(bound);
        assert_eq!(hung.asked(), "folder");
        let opened = scope.spawn(opened);
        assert_eq!(hung.asked(), "io");
        assert_eq!(caller.output("c", "echo well", |_| ()).0, "well\n");
        drop(hung);
        for refused in [bound, opened] {
            says(&refused.join().unwrap().unwrap_err(), &["hung/"]);
        }
    });
    assert!(caller.list().is_empty());
    driver.end();
    host.is_clean();
}

/// A file system (fuse(4)) in which nobody finds out whether anything is there.
struct Hung {
    device: File,
    at: PathBuf,
}

impl Hung {
    fn at(path: &Path) -> Option<Self> {
        fs::create_dir(path).unwrap();
        let mut options = File::options();
        options
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK);
        let device = options.open("/dev/fuse").ok()?;
        let fd = device.as_raw_fd();
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
        let (none, flags) = (Some("hung"), MsFlags::empty());
        mount(none, path, Some("fuse"), flags, Some(options.as_str())).unwrap();
        let mut hung = Self {
            device,
            at: path.to_owned(),
        };
        hung.begin();
        Some(hung)
    }

    /// Answers what the kernel asks first (`FUSE_INIT`): which version, and that several may look
    /// for something at a time.
    fn begin(&mut self) {
        const LENGTH: u32 = 80;
        const FUSE_PARALLEL_DIROPS: u32 = 1 << 18;
        let asked = self.read();
        let (to, error) = (&asked[8..16], 0_u32);
        let mut answer = [LENGTH, error].map(u32::to_ne_bytes).concat();
        answer.extend(to);
        answer.extend(
            [7, 31, 0, FUSE_PARALLEL_DIROPS]
                .map(u32::to_ne_bytes)
                .concat(),
        );
        answer.resize(80, 0);
        self.device.write_all(&answer).unwrap();
    }

    fn read(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 16];
        let length = poll(|| self.device.read(&mut bytes).ok());
        bytes.truncate(length.expect("somebody looks for something"));
        bytes
    }

    /// The next name that somebody looks for (`FUSE_LOOKUP`), and waits.
    fn asked(&mut self) -> String {
        const FUSE_LOOKUP: u32 = 1;
        loop {
            let asked = self.read();
            if asked[4..8] == FUSE_LOOKUP.to_ne_bytes() {
                let name = asked[40..].strip_suffix(b"\0").unwrap();
                return String::from_utf8(name.to_owned()).unwrap();
            }
        }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        // Who waits is told that it is gone, for nobody has the device any more.
        umount2(&self.at, MntFlags::MNT_DETACH | MntFlags::MNT_FORCE).unwrap();
    }
}
