//! Slugs: where they come from, and the bad ones.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    thread,
};

use hsup_proto::driver::Release;
use hsup_tests::deadline::poll;
use tonic::Code;

use crate::{
    caller::{Caller, is_exhausted, release, says},
    host::{Host, OPERATOR},
    machine::{Mount, busybox, said, tool},
};

/// Packs a slug with this text in its file `hello`.
pub(crate) fn slug(host: &Host, name: &str, text: &str) -> PathBuf {
    host.write(&format!("{name}/app/hello"), text);
    pack(host, name)
}

/// Packs the folder `app` in that folder.
pub(crate) fn pack(host: &Host, name: &str) -> PathBuf {
    let (folder, packed) = (host.path(name), host.path(&format!("{name}.tgz")));
    let words = format!("-czf {} -C {} ./app", packed.display(), folder.display());
    tool("tar", &words).unwrap();
    packed
}

pub(crate) fn with_slug(url: &str, checksum: &str) -> Release {
    Release {
        slug_url: url.to_owned(),
        slug_checksum: checksum.to_owned(),
        ..release("test")
    }
}

pub(crate) fn file(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// As a release has it.
pub(crate) fn checksum(path: &Path) -> String {
    let summed = said("sha256sum", &[path.to_str().unwrap()]);
    format!("SHA256:{}", summed.split(' ').next().unwrap())
}

/// Serves a file over HTTP once, whatever is asked for; its URL, without a path.
fn serve(path: &Path) -> String {
    let bytes = fs::read(path).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            bytes.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    format!("http://{address}")
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_slug_comes_from_a_file_or_a_server_and_is_checked() {
    let host = Host::new();
    let (one, two) = (
        slug(&host, "one", "first\n"),
        slug(&host, "two", "second\n"),
    );
    // Http takes nobody to trust.
    let driver = host.driver_with(|command| {
        command.env("SSL_CERT_FILE", host.path("missing.pem"));
    });
    let caller = Caller::new(&host.socket());
    let url = format!("{}/slug.tgz?token=s3cret", serve(&two));
    for (id, release, text) in [
        ("a", with_slug(&file(&one), &checksum(&one)), "first\n"),
        ("b", with_slug(&url, &checksum(&two)), "second\n"),
        ("c", with_slug(&file(&one), ""), "first\n"),
    ] {
        let artifact = caller.build(release).unwrap();
        let line = "cat hello; echo more >>hello; tail -n 1 hello";
        let (printed, _) = caller.output(id, line, |request| request.artifact = artifact);
        assert_eq!(printed, format!("{text}more\n"));
    }
    let wrong = format!("SHA256:{}", "0".repeat(64));
    let url = format!("{}/slug.tgz?token=s3cret", serve(&one));
    for url in [&url, &file(&one)] {
        let refused = caller.build(with_slug(url, &wrong)).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        let text = format!(
            "Checksum does match expected value. Expected: {wrong} Actual: {}",
            checksum(&one)
        );
        says(&refused, &[&text]);
        assert!(!refused.message().contains("s3cret"), "{refused}");
    }
    assert!(!driver.log().contains("s3cret"), "{}", driver.log());
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_bad_slug_is_named_and_does_no_harm() {
    let host = Host::new();
    let good = slug(&host, "good", &"all of it\n".repeat(10_000));
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let half = host.path("half.tgz");
    let bytes = fs::read(&good).unwrap();
    File::create(&half)
        .unwrap()
        .write_all(&bytes[..bytes.len() / 2])
        .unwrap();
    let text = host.path("text.tgz");
    File::create(&text)
        .unwrap()
        .write_all(&b"<html>".repeat(100))
        .unwrap();
    let none = host.path("none.tgz");
    let mut cases = vec![
        (half, vec!["slug"]),
        (text, vec!["gzip"]),
        (none, vec!["none.tgz"]),
    ];
    let outside = host.path("outside");
    for (name, kind, link) in [
        ("./app/../../escape", b'0', ""),
        ("./app/device", b'3', ""),
        ("./app/fifo", b'6', ""),
        ("./app/hard", b'1', "../../../etc/passwd"),
        (outside.to_str().unwrap(), b'0', ""),
    ] {
        let path = archive(&host, cases.len(), name, kind, link);
        cases.push((
            path,
            vec!["slug refused: entry", name.rsplit('/').next().unwrap()],
        ));
    }
    for (path, words) in &cases {
        let refused = caller.build(with_slug(&file(path), ""));
        let refused = refused
            .err()
            .unwrap_or_else(|| panic!("{words:?} was taken"));
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        says(&refused, words);
    }
    assert!(!outside.exists());
    let artifact = caller.build(with_slug(&file(&good), "")).unwrap();
    let (printed, _) = caller.output("a", "wc -l <hello; ls -A", |request| {
        request.artifact = artifact;
    });
    assert_eq!(printed, "10000\nhello\n");
    driver.end();
    host.is_clean();
}

/// An archive of one entry, which no tool would make.
fn archive(host: &Host, number: usize, name: &str, kind: u8, link: &str) -> PathBuf {
    let mut header = [0; 512];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, "00000000000\0");
    put(136, "00000000000\0");
    put(148, "        ");
    put(157, link);
    put(257, "ustar\x0000");
    put(329, "0000001\0");
    put(337, "0000003\0");
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let path = host.path(&format!("bad-{number}.tar"));
    let mut file = File::create(&path).unwrap();
    file.write_all(&header).unwrap();
    file.write_all(&[0; 1024]).unwrap();
    drop(file);
    tool("gzip", path.to_str().unwrap()).unwrap();
    host.path(&format!("bad-{number}.tar.gz"))
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_slug_is_read_as_the_user_who_asks() {
    let host = Host::new();
    let path = slug(&host, "one", "first\n");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let driver = host.driver();
    let operator = Caller::of(OPERATOR, &host.socket());
    let refused = operator.build(with_slug(&file(&path), "")).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    says(&refused, &["one.tgz", "as uid 1000", "ermission denied"]);
    let root = Caller::new(&host.socket());
    let artifact = root.build(with_slug(&file(&path), "")).unwrap();
    // What another user has built is nothing to this one.
    let started = operator.try_start("a", "true", |request| request.artifact = artifact);
    let refused = started.err().unwrap();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    operator.build(with_slug(&file(&path), "")).unwrap();
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_directory_that_has_changed_is_packed_again() {
    let host = Host::new();
    host.write("app/file", "one\n");
    let driver = host.driver();
    assert_eq!(host.says("cat file"), "one\n");
    assert_eq!(host.says("cat file"), "one\n");
    host.write("app/file", "and more\n");
    assert_eq!(host.says("cat file"), "and more\n");
    host.write("app/other", "another\n");
    assert_eq!(host.says("cat other"), "another\n");
    fs::remove_file(host.path("app/file")).unwrap();
    assert_eq!(host.says("ls file 2>/dev/null || echo gone"), "gone\n");
    driver.end();
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_disk_that_is_full_is_told_and_nothing_is_lost() {
    let host = Host::new();
    let good = slug(&host, "good", "well\n");
    let large = host.path("large/app/zeros");
    fs::create_dir_all(large.parent().unwrap()).unwrap();
    File::create(&large)
        .unwrap()
        .write_all(&vec![0; 60 << 20])
        .unwrap();
    let large = pack(&host, "large");
    let small = host.path("small");
    let disk = Mount::new("tmpfs", "size=48m,mode=755", &small);
    busybox(&small.join("work/stacks/test-1"));
    let driver = host.driver_with(|command| {
        command.env("LIBCONTAINER_WORK_DIR", small.join("work"));
    });
    let caller = Caller::new(&host.socket());
    let first = caller.build(with_slug(&file(&good), "")).unwrap();
    let refused = caller.build(with_slug(&file(&large), "")).unwrap_err();
    is_exhausted(&refused, &["no space left", "small/work"]);
    let run = |id: &str, artifact: &str| {
        let run = |request: &mut hsup_proto::driver::StartRequest| {
            artifact.clone_into(&mut request.artifact);
        };
        caller.output(id, "cat hello", run).0
    };
    assert_eq!(run("a", &first), "well\n");
    // There is room again: what was half done is gone, and a small one fits.
    let other = slug(&host, "other", "well again\n");
    let second = caller.build(with_slug(&file(&other), "")).unwrap();
    assert_eq!(run("b", &second), "well again\n");
    disk.change("size=200m");
    let third = caller.build(with_slug(&file(&large), "")).unwrap();
    let size = |request: &mut hsup_proto::driver::StartRequest| request.artifact = third;
    assert_eq!(caller.output("c", "wc -c <zeros", size).0, "62914560\n");
    driver.end();
    drop(disk);
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn a_slug_whose_owner_cannot_be_mapped_is_copied_and_that_is_said() {
    let host = Host::new();
    host.write("one/app/hello", "first\n");
    host.write("one/app/bin/run", "#!/bin/sh\necho run\n");
    let program = host.path("one/app/bin/run");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("bin/run", host.path("one/app/link")).unwrap();
    let packed = pack(&host, "one");
    // An overlay cannot: the kernel refuses to map owners in one.
    for folder in ["overlay/lower", "overlay/upper", "overlay/work"] {
        fs::create_dir_all(host.path(folder)).unwrap();
    }
    let at = |name: &str| host.path("overlay").join(name).display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("lower"),
        at("upper"),
        at("work")
    );
    let slugs = Mount::new("overlay", &options, &host.path("work/slugs"));
    let driver = host.driver();
    let caller = Caller::new(&host.socket());
    let artifact = caller.build(with_slug(&file(&packed), "")).unwrap();
    let line = "id -u; stat -c %u hello bin link | uniq; stat -c %a bin/run; ./link; cat hello; \
                echo more >>hello && rm -r bin && ls";
    // What the first writes is its own, and so is what it removes.
    for id in ["a", "b"] {
        let run = |request: &mut hsup_proto::driver::StartRequest| {
            artifact.clone_into(&mut request.artifact);
        };
        let (printed, _) = caller.output(id, line, run);
        let uid = printed.lines().next().unwrap_or_default();
        let expected = format!("{uid}\n{uid}\n755\nrun\nfirst\nhello\nlink\n");
        assert_eq!(printed, expected);
    }
    assert_eq!(driver.log().matches("the slug was copied").count(), 2);
    driver.end();
    drop(slugs);
    host.is_clean();
}

#[test]
#[ignore = "needs root: it makes containers"]
fn the_slug_of_a_dyno_is_kept_for_as_long_as_it_runs() {
    let host = Host::new();
    let keeps_one = |command: &mut std::process::Command| {
        command.args(["--keep-slugs", "1"]);
    };
    let driver = host.driver_with(keeps_one);
    let caller = Caller::new(&host.socket());
    let build = |caller: &Caller, name: &str| {
        let packed = slug(&host, name, &format!("{name}\n"));
        caller.build(with_slug(&file(&packed), "")).unwrap()
    };
    let tree = |artifact: &str| artifact.split_once(':').unwrap().1.to_owned();
    let first = build(&caller, "first");
    let mut dyno = caller
        .try_start("a", "echo up; read _; cat hello", |request| {
            request.artifact.clone_from(&first);
        })
        .unwrap();
    dyno.wait_for("up");
    build(&caller, "second");
    let third = build(&caller, "third");
    let kept = |artifacts: &[&str]| {
        let mut trees: Vec<_> = artifacts.iter().map(|artifact| tree(artifact)).collect();
        trees.sort();
        assert_eq!(host.names("slugs/trees"), trees);
    };
    kept(&[&first, &third]);
    // Also while no driver runs, and for the next one.
    driver.kill();
    let driver = host.driver_with(keeps_one);
    let caller = Caller::new(&host.socket());
    let fourth = build(&caller, "fourth");
    kept(&[&first, &fourth]);
    dyno.close();
    caller.wait("a");
    assert_eq!(dyno.said(), "up\nfirst\n");
    caller.remove("a");
    // Nobody runs it any more.
    let gone = poll(|| {
        build(&caller, "later");
        (!host.names("slugs/trees").contains(&tree(&first))).then_some(())
    });
    assert!(gone.is_some(), "{:?}", host.names("slugs/trees"));
    driver.end();
    host.is_clean();
}
