//! Archives that mean harm, or are none.

use std::{fs, io, os::unix::fs::symlink, path::Path};

use hsup_slug::SlugError;
use proptest::prelude::*;
use test_case::test_case;

use crate::{
    archive::{Tar, gzip, noise, small},
    support::{Env, fetch, me, shown, tree},
};

#[test_case(Tar::new().file("/app/a", "x"), "entry `/app/a` has an absolute path"; "absolute")]
#[test_case(Tar::new().file("app/../a", "x"), "entry `app/../a` leads out of the slug with `..`"; "dots")]
#[test_case(Tar::new().file("etc/../../a", "x"), "entry `etc/../../a` leads out"; "dots outside the app")]
#[test_case(Tar::new().symlink("app/l", "/tmp").file("app/l/a", "x"), "entry `app/l/a` would be written through a symbolic link"; "through a link")]
#[test_case(Tar::new().symlink("app/l", ".").file("app/l/a", "x"), "entry `app/l/a` would be written through"; "through a link inside")]
#[test_case(Tar::new().symlink("app/l", "/tmp").dir("app/l/a"), "entry `app/l/a` would be written through"; "a directory through a link")]
#[test_case(Tar::new().symlink("app/l", "/tmp").dir("app/l"), "entry `app/l` would be written through"; "a directory over a link")]
#[test_case(Tar::new().symlink("app", "/tmp").file("app/a", "x"), "entry `app` is not a directory"; "the app is a link")]
#[test_case(Tar::new().file("app", "x"), "entry `app` is not a directory"; "the app is a file")]
#[test_case(Tar::new().file("app/f", "x").file("app/f/a", "x"), "entry `app/f/a` has something on its way"; "beneath a file")]
#[test_case(Tar::new().dir("app/d").file("app/d", "x"), "entry `app/d` would replace a directory"; "a file for a directory")]
#[test_case(Tar::new().dir("app/d").symlink("app/d", "/"), "entry `app/d` would replace a directory"; "a link for a directory")]
#[test_case(Tar::new().file("app/d", "x").dir("app/d"), "entry `app/d` has something on its way"; "a directory for a file")]
#[test_case(Tar::new().hard_link("app/h", "/etc/passwd"), "entry `app/h` is a hard link to a file that is not in the app"; "hard link out")]
#[test_case(Tar::new().hard_link("app/h", "etc/passwd"), "is not in the app"; "hard link beside")]
#[test_case(Tar::new().hard_link("app/h", "app/../../etc/passwd"), "is not in the app"; "hard link up")]
#[test_case(Tar::new().symlink("app/l", "/etc").hard_link("app/h", "app/l/passwd"), "is not in the app"; "hard link through a link")]
#[test_case(Tar::new().hard_link("app/h", "app/later").file("app/later", "x"), "entry `app/h` is a hard link to what is not before it"; "hard link to later")]
#[test_case(Tar::new().dir("app/d").hard_link("app/h", "app/d"), "entry `app/h` is a hard link to a directory"; "hard link to a directory")]
#[test_case(Tar::new().file("app/h", "x").hard_link("app/h", "app/h"), "entry `app/h` is a hard link to itself"; "hard link to itself")]
#[test_case(Tar::new().entry(b'3', b"app/null", b"", 0o666, b""), "entry `app/null` is a device or a FIFO"; "character device")]
#[test_case(Tar::new().entry(b'4', b"app/sda", b"", 0o666, b""), "entry `app/sda` is a device or a FIFO"; "block device")]
#[test_case(Tar::new().entry(b'6', b"app/pipe", b"", 0o666, b""), "entry `app/pipe` is a device or a FIFO"; "fifo")]
#[test_case(Tar::new().entry(b'6', b"etc/pipe", b"", 0o666, b""), "entry `etc/pipe` is a device or a FIFO"; "fifo outside")]
#[test_case(Tar::new().entry(b'S', b"app/sparse", b"", 0o666, b""), "entry `app/sparse` is a sparse file"; "sparse")]
#[test_case(Tar::new().pax(&[("GNU.sparse.major", b"1")]).file("app/s", "x"), "entry `app/s` is a sparse file"; "pax sparse")]
#[test_case(Tar::new().entry(b'V', b"app/volume", b"", 0o666, b""), "entry `app/volume` is of a kind that slugs do not have ('V')"; "unknown")]
#[test_case(Tar::new().pax(&[("path", b"app/a\0b")]).file("app/a", "x"), "entry `app/a\\u{0}b` has a NUL in its name"; "nul")]
#[test_case(Tar::new().pax(&[("path", b"../\x1b[2J")]).file("app/a", "x"), "entry `../\\u{1b}[2J` leads out"; "control characters")]
#[test_case(Tar::new().pax(&[("path", &[b'x'; 300])]).file("app/a", "x"), "has a name that is too long"; "long component")]
#[test_case(Tar::new().pax(&[("path", &[b'/'; 5_000])]).file("app/a", "x"), "has an absolute path"; "long absolute")]
#[test_case(Tar::new().pax(&[("size", b"0")]).file("app/a", "x"), "entry `app/a` has two sizes"; "two sizes")]
#[test_case(Tar::new().symlink("app/l", ""), "entry `app/l` is a symbolic link to nothing"; "empty link")]
#[test_case(Tar::new().entry(b'x', b"x", b"", 0o644, b"99 path=app/b\n"), "an extended header is malformed"; "pax length")]
#[test_case(Tar::new().entry(b'x', b"x", b"", 0o644, b"path"), "an extended header is malformed"; "pax nonsense")]
#[test_case(Tar::new().entry(b'L', b"x", b"", 0o644, &vec![b'a'; 300_000]), "is too long"; "name bomb")]
#[test_case(Tar::new().pax(&[("path", b"app/a")]), "its last entry is missing"; "nothing follows")]
#[test_case(Tar::new(), "it is empty"; "empty")]
#[test_case(Tar::new().file("etc/passwd", "x").file("application", ""), "there is no directory app/ in it"; "no app")]
#[test_case(Tar::new().header(b'0', b"app/big", b"", 0o644, 8_589_934_591), "entry `app/big` is of 8589934591 bytes, more than"; "a huge file")]
#[tokio::test]
async fn refused(tar: Tar, reason: &str) {
    let env = Env::new();
    let outside = env.file("outside", b"as it was");
    let content = tar.tgz();
    let text = shown(env.add_bytes(&content).await);
    assert!(
        text.starts_with("slug refused: ") && text.contains(reason),
        "{text}"
    );
    env.assert_empty();
    // Nor is it a layer.
    let url = env.file("slug.tgz", &content);
    let (refused, _) = env.layer(&fetch(url)).await;
    assert_eq!(shown(refused), text);
    assert_eq!(fs::read(&outside[7..]).unwrap(), b"as it was");
    // The store works as before.
    env.add_bytes(&small()).await.unwrap();
}

#[test_case(b"", "it is cut short"; "nothing")]
#[test_case(b"#!/bin/sh\nexit\n", "it is no gzip archive"; "a script")]
#[test_case(&gzip(b"not an archive, but longer than nothing")[..], "it is cut short"; "no archive")]
#[test_case(&gzip(&[b'x'; 2_000])[..], "it is no tar archive"; "no archive, and long")]
#[test_case(&small()[..60], "it is cut short"; "gzip cut")]
#[test_case(&gzip(&Tar::new().file("app/a", &"x".repeat(2_000)).0[..1_000])[..], "it is cut short"; "tar cut")]
#[tokio::test]
async fn no_archive(content: &[u8], reason: &str) {
    let env = Env::new();
    let text = shown(env.add_bytes(content).await);
    assert!(
        text.starts_with("slug refused: ") && text.contains(reason),
        "{text}"
    );
    env.assert_empty();
}

#[tokio::test]
async fn a_flipped_bit_is_found() {
    let mut content = Tar::new()
        .entry(b'0', b"app/noise", b"", 0o644, &noise(100_000))
        .tgz();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    let env = Env::new();
    assert!(shown(env.add_bytes(&content).await).starts_with("slug refused"));
    env.assert_empty();
}

#[tokio::test]
async fn bombs_do_not_go_off() {
    let mut settings = crate::support::settings();
    settings.limits.max_bytes = 1_000_000;
    settings.limits.max_file_bytes = 600_000;
    settings.limits.max_entries = 1_000;
    let env = Env::with(settings);
    let half = "x".repeat(500_000);
    let bombs = [
        (
            Tar::new()
                .file("app/a", &half)
                .file("app/b", &half)
                .file("app/c", &half),
            "1000000 bytes, unpacked",
        ),
        (
            Tar::new()
                .file("etc/a", &half)
                .file("etc/b", &half)
                .file("etc/c", &half),
            "1000000 bytes, unpacked",
        ),
        (
            Tar::new().file("app/a", &"x".repeat(700_000)),
            "more than the 600000 that a file may have",
        ),
        (
            (0..1_001).fold(Tar::new(), |tar, n| tar.file(&format!("app/{n}"), "")),
            "more than 1000 entries",
        ),
        (
            (0..600).fold(Tar::new(), |tar, n| {
                tar.pax(&[("path", b"app/x")]).file(&n.to_string(), "")
            }),
            "more than 1000 entries",
        ),
        (
            Tar(Tar::new().file("app/a", "").tar()).data(&vec![0; 2_000_000]),
            "1000000 bytes, unpacked",
        ),
    ];
    for (bomb, reason) in bombs {
        let text = shown(env.add_bytes(&bomb.tgz()).await);
        assert!(text.contains(reason), "{text}");
        env.assert_empty();
    }
}

#[tokio::test]
async fn a_million_entries_end_at_the_limit() {
    let env = Env::new();
    // Outside of the app: what is read, rather than what the disk takes, is tried here.
    let one = Tar::new().file("etc/a", "").0;
    let bomb = gzip(&one.repeat(1_000_000));
    let text = shown(env.add_bytes(&bomb).await);
    assert!(text.contains("more than 500000 entries"), "{text}");
    env.assert_empty();
}

#[tokio::test]
async fn what_is_legal_is_unpacked() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let long = format!("./app/{}/{}", "d".repeat(150), "f".repeat(200));
    let mut name = long.clone().into_bytes();
    name.push(0);
    let tar = Tar::new()
        .entry(
            b'g',
            b"pax_global_header",
            b"",
            0o644,
            b"52 comment=0123456789012345678901234567890123456789\n",
        )
        .file("./README", "outside")
        .entry(b'5', b"./app/", b"", 0o500, b"")
        .entry(b'0', b"app/run", b"", 0o6755, b"first")
        .hard_link("app/run2", "./app/run")
        .entry(b'0', b"app/run", b"", 0o6755, b"second")
        .symlink("app/out", "/etc/passwd")
        .symlink("app/up", "../../..")
        .hard_link("app/out2", "app/out")
        .file("app/deep/er/file", "x")
        .entry(b'5', b"app/deep", b"", 0, b"")
        .entry(b'L', b"././@LongLink", b"", 0o644, &name)
        .file("cut", "long")
        .pax(&[("path", "app/ünïcödé".as_bytes()), ("mtime", b"1.5")])
        .file("cut", "pax")
        .entry(b'\0', b"app/old", b"", 0o444, b"old")
        .symlink("app/gone", "x")
        .file("app/gone", "a file now");
    let env = Env::new();
    // Two members make one gzip file.
    let bytes = tar.tar();
    let id = env
        .add_bytes(&[gzip(&bytes[..700]), gzip(&bytes[700..])].concat())
        .await
        .unwrap();
    let slug = env.store.get(me().uid, &id).unwrap().unwrap();
    let expected = [
        ("deep/", ""),
        ("deep/er/", ""),
        ("deep/er/file", "x"),
        ("gone", "a file now"),
        ("old", "old"),
        ("out2@", "/etc/passwd"),
        ("out@", "/etc/passwd"),
        ("run", "second"),
        ("run2", "first"),
        ("up@", "../../.."),
        ("ünïcödé", "pax"),
    ];
    let mut expected: Vec<_> = expected
        .map(|(name, content)| (name.to_owned(), content.to_owned()))
        .into();
    expected.push((format!("{}/", "d".repeat(150)), String::new()));
    expected.push((long[6..].to_owned(), "long".to_owned()));
    expected.sort();
    assert_eq!(tree(&slug.path), expected);
    let stat = |name: &str| fs::symlink_metadata(slug.path.join(name)).unwrap();
    assert_eq!(stat("run").permissions().mode() & 0o7777, 0o755);
    let notes = env.said.notes.lock().unwrap().join("");
    assert!(
        notes.ends_with("dropped: 2 file(s), the first is `app/run`"),
        "{notes}"
    );
    assert_eq!(stat("old").permissions().mode() & 0o7777, 0o444);
    assert_eq!(stat("deep").permissions().mode() & 0o7777, 0o700);
    assert_eq!(stat("").permissions().mode() & 0o7777, 0o700);
    assert_eq!(stat("ünïcödé").mtime(), 1);
    let then = 0o14_000_000_000;
    for name in ["", "run", "out", "deep", "old"] {
        assert_eq!(stat(name).mtime(), then, "{name}");
    }
    assert_eq!(stat("run").uid(), slug.owner_uid);
    assert_eq!(stat("out").gid(), slug.owner_gid);
}

/// Unpacks a layer as an engine does: blindly, and the last of a name counts.
fn unpack(layer: &[u8], root: &Path) {
    let mut archive = tar::Archive::new(layer);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = root.join(entry.path().unwrap());
        let kind = entry.header().entry_type();
        let is_there = fs::symlink_metadata(&path).is_ok();
        if kind.is_dir() {
            if !is_there {
                fs::create_dir(&path).unwrap();
            }
            continue;
        }
        if is_there {
            fs::remove_file(&path).unwrap();
        }
        let target = entry.link_name().unwrap();
        match target {
            Some(target) if kind.is_symlink() => symlink(target, &path).unwrap(),
            Some(target) => fs::hard_link(root.join(target), &path).unwrap(),
            None => {
                let mut file = fs::File::create_new(&path).unwrap();
                io::copy(&mut entry, &mut file).unwrap();
            }
        }
    }
}

/// Names of which some are the same, some lead through others, and some lead out.
fn name() -> impl Strategy<Value = String> {
    let component = prop_oneof![
        4 => Just("a"), 4 => Just("b"), 1 => Just(".."), 1 => Just("."), 1 => Just(""),
    ];
    let rest = proptest::collection::vec(component, 0..4);
    (
        prop_oneof![8 => Just("app"), 1 => Just(""), 1 => Just(".."), 1 => Just("etc")],
        rest,
    )
        .prop_map(|(first, rest)| [vec![first], rest].concat().join("/"))
}

fn entry() -> impl Strategy<Value = (u8, String, String, u32)> {
    let kinds = prop_oneof![Just(b'0'), Just(b'1'), Just(b'2'), Just(b'2'), Just(b'5')];
    let target = prop_oneof![
        name(),
        Just("..".to_owned()),
        Just("../..".to_owned()),
        Just("/".to_owned())
    ];
    // An ordinary user has to read them afterwards.
    let modes = (0_u32..0o7777).prop_map(|mode| mode | 0o400);
    (kinds, name(), target, modes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// As an ordinary user too, for whom nothing but the way that files are opened keeps it in.
    #[test]
    fn nothing_is_written_outside(entries in proptest::collection::vec(entry(), 1..12)) {
        let env = Env::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tar = entries.iter().fold(Tar::new(), |tar, (kind, name, target, mode)| {
            let data: &[u8] = if *kind == b'0' { b"payload" } else { b"" };
            tar.entry(*kind, name.as_bytes(), target.as_bytes(), *mode, data)
        });
        let content = tar.tgz();
        let result = runtime.block_on(env.add_bytes(&content));
        // What is made of it as a layer is the same, or refused for the same reason.
        let url = env.file("slug.tgz", &content);
        let (made, layer) = runtime.block_on(env.layer(&fetch(url)));
        match (&result, made) {
            (Ok(id), Ok(made)) => {
                prop_assert_eq!(*id, made);
                let slug = env.store.get(me().uid, id).unwrap().unwrap();
                let unpacked = tempfile::tempdir().unwrap();
                unpack(&layer, unpacked.path());
                prop_assert_eq!(tree(&slug.path), tree(&unpacked.path().join("app")));
            }
            (Err(error), Err(other)) => prop_assert_eq!(error.to_string(), other.to_string()),
            (result, made) => prop_assert!(false, "{:?}, but {:?}", result, made),
        }
        if let Err(error) = &result {
            prop_assert!(matches!(error, SlugError::Entry { .. } | SlugError::Archive(_)), "{}", error);
            env.assert_empty();
        }
        // All that there is, is in the tree's own app.
        let files = tree(env.dir.path());
        for (name, content) in &files {
            if content == "payload" || name.ends_with('@') {
                let id = result.as_ref().unwrap();
                prop_assert!(name.starts_with(&format!("slugs/trees/{id}/root/app/")), "{}", name);
            }
        }
    }

    #[test]
    fn noise_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2_000), compressed: bool) {
        let env = Env::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let bytes = if compressed { gzip(&bytes) } else { bytes };
        prop_assert!(runtime.block_on(env.add_bytes(&bytes)).is_err());
        env.assert_empty();
    }
}
