//! Stacks: where they come from, and the bad ones.

use std::{
    fmt::Write as _,
    fs::{self, File},
};

use hsup_tests::deadline::{self, poll};
use tonic::Code;

use crate::{
    caller::{Caller, release, says},
    host::Host,
    machine::{busybox, left_out, said, tool},
};

/// What makes a file system image of a folder, if it is here.
fn image(kind: &str, folder: &str, image: &str) -> Result<(), String> {
    match kind {
        "ext4" => {
            let file = File::create(image).map_err(|error| error.to_string())?;
            file.set_len(64 << 20).map_err(|error| error.to_string())?;
            tool("mkfs.ext4", &format!("-q -d {folder} {image}"))
        }
        _ => tool(
            "mksquashfs",
            &format!("{folder} {image} -quiet -no-progress"),
        ),
    }
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_stack_is_what_the_list_says() {
    let host = Host::new();
    let folder = host.path("work/stacks/test-1");
    let folder = folder.to_str().unwrap();
    let mut list = String::from("version: 2\nstacks:\n");
    let mut names = Vec::new();
    for (name, kind) in [
        ("tarred", "rootfs-tar"),
        ("blocks", "ext4"),
        ("squashed", "squashfs"),
    ] {
        fs::create_dir_all(format!("{folder}/etc")).unwrap();
        host.write("work/stacks/test-1/etc/kind", &format!("{name}\n"));
        let path = host.path(&format!("{name}.image"));
        let path = path.to_str().unwrap();
        let made = match kind {
            "rootfs-tar" => tool("tar", &format!("-czf {path} -C {folder} .")),
            _ => image(kind, folder, path),
        };
        if let Err(why) = made {
            left_out(&format!("a stack of {kind}: {why}"));
            continue;
        }
        let sum = said("sha256sum", &[path]);
        let sum = sum.split(' ').next().unwrap();
        let entry = format!("name: {name}, version: 7, format: {kind}, sha256: {sum}");
        writeln!(list, "- {{{entry}, url: 'file://{path}'}}").unwrap();
        names.push(name);
    }
    host.write("work/stacks/manifest.yml", &list);
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    for name in names {
        let artifact = caller.build(release(name)).unwrap();
        let run = |request: &mut hsup_proto::driver::StartRequest| request.artifact = artifact;
        let line = "cat /etc/kind; whoami; (: >/etc/new) 2>/dev/null || echo 'read only'";
        let (printed, _) = caller.output(name, line, run);
        assert_eq!(printed, format!("{name}\ndyno\nread only\n"));
    }
    let refused = caller.build(release("none")).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    says(&refused, &["stack none", "manifest.yml", "tarred"]);
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_stack_that_nobody_has_is_told_with_those_that_are_here() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let refused = caller.build(release("none")).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    says(
        &refused,
        &["stack none", "manifest.yml", "stack import", "test"],
    );
    // A name that is none, and could lead elsewhere.
    for name in ["../test", "a/b", ".", "-x"] {
        let refused = caller.build(release(name)).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn an_image_that_was_cut_short_is_named() {
    let host = Host::new();
    let folder = host.path("work/stacks/test-1");
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    for kind in ["ext4", "squashfs"] {
        let path = host.path(&format!("work/stacks/{kind}-1.img"));
        if let Err(why) = image(kind, folder.to_str().unwrap(), path.to_str().unwrap()) {
            left_out(&format!("an image of {kind}: {why}"));
            drop(fs::remove_file(&path));
            continue;
        }
        let file = File::options().write(true).open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        for part in [length / 2, 4096, 100, 0] {
            file.set_len(part).unwrap();
            let refused = caller.build(release(kind)).unwrap_err();
            assert_eq!(
                refused.code(),
                Code::FailedPrecondition,
                "{part}: {refused}"
            );
            says(&refused, &[&format!("{kind}-1.img")]);
        }
    }
    assert_eq!(caller.output("a", "echo well", |_| ()).0, "well\n");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_stack_that_is_not_what_its_checksum_says_is_not_used() {
    let host = Host::new();
    let path = host.path("wrong.tgz");
    let folder = host.path("work/stacks/test-1");
    let words = format!("-czf {} -C {} .", path.display(), folder.display());
    tool("tar", &words).unwrap();
    let list = format!(
        "version: 2\nstacks:\n- {{name: wrong, version: 1, format: rootfs-tar, \
         url: 'file://{}', sha256: {}}}\n",
        path.display(),
        "0".repeat(64)
    );
    host.write("work/stacks/manifest.yml", &list);
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let refused = caller.build(release("wrong")).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    says(&refused, &["wrong.tgz", &"0".repeat(64)]);
    assert!(!host.path("work/stacks/wrong-1").exists());
    // A list that is none is named, and what is here can be used.
    host.write("work/stacks/manifest.yml", "version: 2\nstacks: [1\n");
    let refused = caller.build(release("wrong")).unwrap_err();
    says(&refused, &["manifest.yml"]);
    assert_eq!(caller.output("a", "echo well", |_| ()).0, "well\n");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn every_version_that_a_stack_may_have_is_started() {
    let host = Host::new();
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    for (id, version) in [("a", "2.0~rc1"), ("b", "v1_0+b2")] {
        busybox(&host.path(&format!("work/stacks/other-{version}")));
        let artifact = caller.build(release("other")).unwrap();
        assert_eq!(artifact, format!("other@{version}"));
        let run = |request: &mut hsup_proto::driver::StartRequest| request.artifact = artifact;
        assert_eq!(caller.output(id, "echo well", run).0, "well\n");
        fs::remove_dir_all(host.path(&format!("work/stacks/other-{version}"))).unwrap();
    }
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_stack_that_a_dyno_runs_on_is_not_removed_whether_its_driver_runs_or_not() {
    let host = Host::new();
    busybox(&host.path("work/stacks/idle-1"));
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let mut dyno = caller.start("a", "echo up; read _; cat /etc/hostname");
    dyno.wait_for("up");
    let remove = |stack: &str| {
        let mut command = host.driver_command();
        deadline::output(command.args(["stack", "remove", stack]))
    };
    let is_refused = || {
        let removed = remove("test-1");
        let said = String::from_utf8_lossy(&removed.stderr);
        assert_eq!(removed.status.code(), Some(1), "{said}");
        assert!(said.contains("test-1 is in use by a dyno"), "{said}");
    };
    is_refused();
    driver.end();
    is_refused();
    // What nobody runs on goes.
    assert!(remove("idle-1").status.success());
    assert!(!host.path("work/stacks/idle-1").exists());
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    is_refused();
    dyno.close();
    caller.wait("a");
    assert_eq!(dyno.said(), "up\na\n");
    caller.remove("a");
    let removed = poll(|| remove("test-1").status.success().then_some(()));
    assert!(removed.is_some(), "nobody runs on it any more");
    driver.end();
    host.is_clean();
}
