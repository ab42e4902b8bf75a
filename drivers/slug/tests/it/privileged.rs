//! What only root can show: who does the work, and what it may not.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use hsup_slug::{Fetch, Patience, Peer, Silent, Store, changed};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount, umount},
};
use tokio::time::{Instant, timeout};

use crate::{
    archive::{Tar, big, checksum, small},
    server::{Server, serve},
    support::{Env, UNPACKER, fetch, me, owner, program, settings, shown},
};

const PEER: u32 = 64_998;
const PATIENCE: Duration = Duration::from_mins(1);

fn as_peer(url: String, groups: &[u32]) -> Fetch {
    let peer = Peer {
        uid: PEER,
        gid: PEER,
        groups: Some(groups.to_vec()),
    };
    let mut fetch = fetch(url);
    fetch.peer = peer;
    fetch
}

#[tokio::test]
#[ignore = "needs root: it starts processes of other users"]
async fn a_file_is_opened_as_the_caller() {
    let env = Env::new();
    let url = env.file("slug.tgz", &small());
    let path = env.path("slug.tgz");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let text = shown(env.add(&as_peer(url.clone(), &[])).await);
    assert!(
        text.ends_with("slug.tgz` as uid 64998: Permission denied (os error 13)"),
        "{text}"
    );
    let look = || async {
        changed(
            &program(),
            &as_peer(url.clone(), &[]).peer,
            &path,
            &Patience::default(),
        )
        .await
    };
    assert!(look().await.is_err());
    // Its groups count, and none of ours do.
    chown(&path, Some(0), Some(64_996)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    shown(env.add(&as_peer(url.clone(), &[])).await);
    env.add(&as_peer(url.clone(), &[64_996])).await.unwrap();
    chown(&path, Some(PEER), Some(0)).unwrap();
    env.add(&as_peer(url, &[])).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root: it starts processes of other users"]
async fn a_directory_is_packed_as_the_caller() {
    let env = Env::new();
    fs::create_dir(env.path("source")).unwrap();
    env.file("source/own", b"x");
    env.file("source/roots", b"x");
    fs::set_permissions(env.path("source/roots"), fs::Permissions::from_mode(0o600)).unwrap();
    let url = format!("file://{}/", env.path("source").display());
    let text = shown(env.add(&as_peer(url, &[])).await);
    assert!(
        text.contains("source/roots` as uid 64998: Permission denied"),
        "{text}"
    );
    env.assert_empty();
}

/// The crate's processes that are children of this one, by what they do: other tests have
/// theirs.
fn processes(task: &str) -> impl Iterator<Item = PathBuf> {
    let cmdline = format!("hsup-slug\0slug-helper\0{task}\0");
    let parent = format!("\nPPid:\t{}\n", std::process::id());
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.map(|entry| entry.path()).filter(move |path| {
        let status = fs::read_to_string(path.join("status")).unwrap_or_default();
        let words = fs::read(path.join("cmdline")).unwrap_or_default();
        status.contains(&parent) && words == cmdline.as_bytes()
    })
}

/// Whether the process has a connection to this port.
fn speaks_to(process: &Path, port: u16) -> bool {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let inodes: Vec<String> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.len() > 9 && fields[2].ends_with(&format!(":{port:04X}")))
        .map(|fields| format!("socket:[{}]", fields[9]))
        .collect();
    let open = fs::read_dir(process.join("fd"))
        .into_iter()
        .flatten()
        .flatten();
    open.filter_map(|fd| fs::read_link(fd.path()).ok())
        .any(|target| inodes.iter().any(|inode| target == Path::new(inode)))
}

fn assert_harmless(process: &Path, uid: u32) {
    let status = fs::read_to_string(process.join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once(':')
            .unwrap()
            .1
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    let four = format!("{uid} {uid} {uid} {uid}");
    assert_eq!(
        (field("Uid"), field("Gid"), field("Groups")),
        (four.clone(), four, String::new())
    );
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    let environment = fs::read(process.join("environ")).unwrap();
    for variable in environment
        .split(|byte| *byte == 0)
        .filter(|one| !one.is_empty())
    {
        assert!(
            variable.starts_with(b"SSL_CERT_"),
            "{}",
            variable.escape_ascii()
        );
    }
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    // Not dumpable: root's, so that nobody of its uid may trace it.
    assert_eq!(fs::metadata(process.join("environ")).unwrap().uid(), 0);
}

#[tokio::test]
#[ignore = "needs root: it starts processes of other users"]
async fn who_fetches_and_unpacks_can_do_nothing_else() {
    let body = big(3_000_000);
    let id = checksum(&body);
    let server = Server::new(move |_, request, stream| {
        serve(stream, request, &body, "", 2_000_000)?;
        std::thread::park();
        Ok(())
    });
    let env = Env::new();
    let mut wanted = fetch(server.url());
    wanted.checksum = Some(id);
    let add = env.add(&wanted);
    let looked = async {
        let staging = env.path("slugs/staging");
        while !crate::support::tree(&staging)
            .iter()
            .any(|(name, _)| name.ends_with("noise"))
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let root = |process: &PathBuf| fs::read_link(process.join("root")).unwrap_or_default();
        let unpacks = processes("unpack the slug")
            .find(|process| root(process).starts_with(&staging))
            .unwrap();
        assert_harmless(&unpacks, UNPACKER);
        // The data, the directory, nothing, the socket, and the file it writes.
        let mut open: Vec<PathBuf> = fs::read_dir(unpacks.join("fd"))
            .unwrap()
            .map(|fd| fs::read_link(fd.unwrap().path()).unwrap())
            .collect();
        open.retain(|path| !path.starts_with(&staging));
        assert!(open.len() <= 5, "{open:?}");
        // Ours speaks to that server; others may be those of a file, and root's.
        let port = server
            .host
            .rsplit_once(':')
            .unwrap()
            .1
            .parse::<u16>()
            .unwrap();
        let fetches = processes("fetch the slug").find(|process| speaks_to(process, port));
        assert_harmless(&fetches.unwrap(), UNPACKER);
    };
    tokio::select! {
        result = add => panic!("{result:?}"),
        result = timeout(PATIENCE, looked) => result.expect("it was never begun"),
    }
}

#[tokio::test]
#[ignore = "needs root: it starts processes of other users"]
async fn files_are_the_unpackers() {
    let env = Env::new();
    let id = env
        .add_bytes(
            &Tar::new()
                .dir("app/d")
                .file("app/d/f", "x")
                .symlink("app/l", "x")
                .tgz(),
        )
        .await
        .unwrap();
    let slug = env.store.get(me().uid, &id).unwrap().unwrap();
    assert_eq!((slug.owner_uid, slug.owner_gid), (UNPACKER, UNPACKER));
    for name in ["", "d", "d/f", "l"] {
        let stat = fs::symlink_metadata(slug.path.join(name)).unwrap();
        assert_eq!((stat.uid(), stat.gid()), (UNPACKER, UNPACKER), "{name}");
    }
}

#[test]
#[ignore = "needs root: nobody else can be it"]
fn root_does_not_unpack() {
    let mut settings = settings();
    settings.uid = 0;
    let dir = tempfile::tempdir().unwrap();
    let error = Store::open(dir.path(), settings).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("another uid has to be configured"),
        "{error}"
    );
}

/// A file system of its own, until it is dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // What another test forks just now has this one's files until it is a program.
        let begun = Instant::now();
        while let Err(error) = umount(&self.0) {
            assert!(
                error == Errno::EBUSY && begun.elapsed() < PATIENCE,
                "the file system of the test cannot be unmounted: {error}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[tokio::test]
#[ignore = "needs root: it mounts a small file system"]
async fn a_full_disk_is_named_and_left_as_it_was() {
    let env = Env::new();
    let small_disk = env.path("small");
    fs::create_dir(&small_disk).unwrap();
    mount(
        Some("none"),
        &small_disk,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=4m,mode=755"),
    )
    .unwrap();
    let mounted = Mounted(small_disk.clone());
    let directory = small_disk.join("slugs");
    {
        let store = Store::open(&directory, settings()).unwrap();
        let url = env.file("big.tgz", &big(8_000_000));
        let mut wanted = fetch(url);
        for checksum in [None, Some(checksum(&big(8_000_000)))] {
            wanted.checksum = checksum;
            let error = store.add(&wanted, &owner(), &Silent).await.unwrap_err();
            assert!(error.is_exhaustion(), "{error}");
            let text = error.to_string();
            assert!(
                text.contains(&directory.display().to_string()) && text.contains("free some"),
                "{text}"
            );
            for kind in ["staging", "trees", "trash"] {
                assert_eq!(
                    fs::read_dir(directory.join(kind)).unwrap().count(),
                    0,
                    "{kind}"
                );
            }
        }
        // Nor does a download fit that has to be kept before it is known.
        let body = big(8_000_000);
        let server =
            Server::new(move |_, request, stream| serve(stream, request, &body, "", usize::MAX));
        let error = store
            .add(&fetch(server.url()), &owner(), &Silent)
            .await
            .unwrap_err();
        assert!(error.is_exhaustion(), "{error}");
        let url = env.file("fits.tgz", &big(1_000_000));
        store.add(&fetch(url), &owner(), &Silent).await.unwrap();
    }
    drop(mounted);
}
