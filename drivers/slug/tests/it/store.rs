//! What is kept, for whom, and for how long.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    time::Duration,
};

use hsup_slug::{
    Collected, Owner, Patience, Program, Silent, SlugError, SlugId, Step, Store, changed, state,
};
use nix::sys::stat::Mode;
use tokio::time::{Instant, timeout};

use crate::{
    archive::{Tar, big, checksum, small},
    server::{Server, serve},
    support::{Env, fetch, me, owner, program, settings, shown, tree},
};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// Collects until no more than these are in a directory of the store: a process that another test
/// spawns has every lock too, until its `exec`. How much it was.
async fn collected(env: &Env, directory: &str, left: &[String]) -> Collected {
    let collecting = async {
        let mut all = Collected::default();
        while env.names(directory) != left {
            let some = env.store.collect().await.unwrap();
            all.releases += some.releases;
            all.slugs += some.slugs;
        }
        all
    };
    let in_time = timeout(PATIENCE, collecting).await;
    in_time.unwrap_or_else(|_| panic!("{directory} has {:?}", env.names(directory)))
}

/// Removes a user's slug that is not in use, by nobody but such a process.
async fn removed(env: &Env, peer: u32, id: &SlugId) {
    let removing = async {
        while let Err(error) = env.store.remove(peer, id).await {
            assert!(matches!(error, SlugError::InUse(_)), "{error}");
        }
    };
    timeout(PATIENCE, removing).await.expect("it is in use");
}

fn slug(content: &str) -> Vec<u8> {
    Tar::new().file("app/a", content).tgz()
}

#[tokio::test]
async fn only_who_added_a_slug_has_it() {
    let env = Env::new();
    let id = env.add_bytes(&small()).await.unwrap();
    assert!(env.store.get(me().uid, &id).unwrap().is_some());
    assert!(env.store.get(me().uid + 1, &id).unwrap().is_none());
    assert!(
        env.store
            .get(me().uid, &checksum(b"other"))
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn knowing_a_checksum_is_not_having_the_slug() {
    let env = Env::new();
    let id = env.add_bytes(&small()).await.unwrap();
    let stranger = Owner::new(me().uid + 1, "app").unwrap();
    let mut wanted = fetch(env.file("another.tgz", &slug("x")));
    wanted.checksum = Some(id);
    let error = env
        .store
        .add(&wanted, &stranger, &Silent)
        .await
        .unwrap_err();
    assert!(matches!(error, SlugError::Checksum { .. }), "{error}");
    assert!(env.store.get(me().uid + 1, &id).unwrap().is_none());
    // Who does have it, has it then, and no second tree is made.
    let inode = || {
        fs::metadata(env.path("slugs/trees").join(id.to_string()))
            .unwrap()
            .ino()
    };
    let before = inode();
    let mut wanted = fetch(env.file("the-same.tgz", &small()));
    wanted.checksum = Some(id);
    env.store.add(&wanted, &stranger, &Silent).await.unwrap();
    assert!(env.store.get(me().uid + 1, &id).unwrap().is_some());
    assert_eq!(inode(), before);
}

#[tokio::test]
async fn what_a_user_has_is_not_fetched_again() {
    let body = small();
    let id = checksum(&body);
    let server =
        Server::new(move |_, request, stream| serve(stream, request, &body, "", usize::MAX));
    let env = Env::new();
    let mut wanted = fetch(server.url());
    wanted.checksum = Some(id);
    for _ in 0..3 {
        env.add(&wanted).await.unwrap();
    }
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn two_stores_unpack_a_slug_once() {
    let body = big(3_000_000);
    let id = checksum(&body);
    let served = body.clone();
    let server =
        Server::new(move |_, request, stream| serve(stream, request, &served, "", usize::MAX));
    let env = Env::new();
    let other = Store::open(&env.path("slugs"), settings()).unwrap();
    let mut wanted = fetch(server.url());
    wanted.checksum = Some(id);
    let owner = owner();
    let (one, two, three) = tokio::join!(
        env.add(&wanted),
        other.add(&wanted, &owner, &Silent),
        other.add(&wanted, &owner, &Silent),
    );
    assert_eq!([one.unwrap(), two.unwrap(), three.unwrap()], [id; 3]);
    assert_eq!(server.requests().len(), 1);
    assert_eq!(env.names("trees"), [id.to_string()]);
    assert_eq!(env.names("staging"), Vec::<String>::new());
    assert_eq!(env.names("trash"), Vec::<String>::new());
}

#[tokio::test]
async fn a_download_without_a_checksum_is_unpacked_once_too() {
    let body = big(300_000);
    let id = checksum(&body);
    let served = body.clone();
    let server =
        Server::new(move |_, request, stream| serve(stream, request, &served, "", usize::MAX));
    let env = Env::new();
    let wanted = fetch(server.url());
    let (one, two) = tokio::join!(env.add(&wanted), env.add(&wanted));
    assert_eq!([one.unwrap(), two.unwrap()], [id; 2]);
    let unpacked = env
        .said
        .bytes
        .lock()
        .unwrap()
        .iter()
        .filter(|(step, done, _)| *step == Step::Unpack && *done == body.len() as u64)
        .count();
    assert_eq!(unpacked, 2, "the last bytes, and the end, of one unpacking");
}

#[tokio::test]
async fn what_is_in_use_stays() {
    let mut settings = settings();
    settings.keep = 1;
    let env = Env::with(settings);
    let first = env.add_bytes(&slug("1")).await.unwrap();
    let used = env.store.get(me().uid, &first).unwrap().unwrap();
    let second = env.add_bytes(&slug("2")).await.unwrap();
    let third = env.add_bytes(&slug("3")).await.unwrap();
    // The second is too old, the first is too, but in use.
    let mut kept = [first.to_string(), third.to_string()];
    kept.sort();
    collected(&env, "trees", &kept).await;
    assert!(env.store.get(me().uid, &second).unwrap().is_none());
    let error = env.store.remove(me().uid, &first).await.unwrap_err();
    assert!(
        matches!(error, SlugError::InUse(id) if id == first),
        "{error}"
    );
    // As long as any copy of the lock is open, as in a process that has inherited it.
    let inherited = used.lock.try_clone().unwrap();
    drop(used);
    assert_eq!(env.store.collect().await.unwrap(), Collected::default());
    assert!(env.store.get(me().uid, &first).unwrap().is_some());
    drop(inherited);
    let one = Collected {
        releases: 1,
        slugs: 1,
    };
    let left = [third.to_string()];
    assert_eq!(collected(&env, "trees", &left).await, one);
    assert_eq!(env.names("trash"), Vec::<String>::new());
}

#[tokio::test]
async fn each_app_keeps_its_own() {
    let mut settings = settings();
    settings.keep = 1;
    let env = Env::with(settings);
    let id = env.add_bytes(&slug("1")).await.unwrap();
    let wanted = fetch(env.file("other.tgz", &slug("2")));
    for owner in [
        Owner::new(me().uid, "other"),
        Owner::new(me().uid + 1, "app"),
    ] {
        env.store
            .add(&wanted, &owner.unwrap(), &Silent)
            .await
            .unwrap();
    }
    assert!(env.store.get(me().uid, &id).unwrap().is_some());
    let other = checksum(&slug("2"));
    removed(&env, me().uid, &other).await;
    assert!(env.store.get(me().uid, &other).unwrap().is_none());
    assert!(env.store.get(me().uid + 1, &other).unwrap().is_some());
    removed(&env, me().uid + 1, &other).await;
    collected(&env, "trees", &[id.to_string()]).await;
    // Twice is once.
    env.store.remove(me().uid + 1, &other).await.unwrap();
    for app in ["", ".", "..", "a/b", "a\n"] {
        assert!(Owner::new(1, app).is_err(), "{app:?}");
    }
}

#[tokio::test]
async fn what_a_crash_left_goes() {
    let env = Env::new();
    let half = env.path("slugs/staging/half");
    fs::create_dir_all(half.join("root/app/deep")).unwrap();
    fs::create_dir_all(env.path("slugs/staging/not-even-begun")).unwrap();
    fs::create_dir_all(env.path("slugs/trash/old/it")).unwrap();
    fs::create_dir_all(env.path("slugs/staging/living/root")).unwrap();
    let living = File::open(env.path("slugs/staging/living/root")).unwrap();
    living.lock().unwrap();
    let store = Store::open(&env.path("slugs"), settings()).unwrap();
    store.tidy().unwrap();
    assert_eq!(env.names("staging"), ["living"]);
    assert_eq!(env.names("trash"), Vec::<String>::new());
    drop(living);
    collected(&env, "staging", &[]).await;
    env.assert_empty();
}

#[tokio::test]
async fn giving_up_ends_everything() {
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
    {
        let add = env.add(&wanted);
        tokio::pin!(add);
        let staging = env.path("slugs/staging");
        let begun = async {
            while !tree(&staging)
                .iter()
                .any(|(name, _)| name.ends_with("noise"))
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            result = &mut add => panic!("{result:?}"),
            result = timeout(PATIENCE, begun) => result.expect("it was never begun"),
        }
    }
    let children = || {
        let own = format!("/proc/self/task/{}/children", nix::unistd::gettid());
        fs::read_to_string(own).unwrap()
    };
    let gone = async {
        while !env.names("staging").is_empty()
            || !env.names("trash").is_empty()
            || !children().is_empty()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("something is left");
    env.assert_empty();
}

#[tokio::test]
async fn a_directory_is_a_slug() {
    let env = Env::new();
    let source = env.path("source");
    fs::create_dir_all(source.join(".git/objects")).unwrap();
    fs::create_dir_all(source.join("bin")).unwrap();
    env.file("source/Procfile", b"web: bin/web\n");
    env.file("source/bin/web", b"#!/bin/sh\n");
    env.file("source/.git/HEAD", b"ref\n");
    let long = format!("source/{}", "l".repeat(200));
    env.file(&long, b"long");
    fs::set_permissions(source.join("bin/web"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(source.join("bin/web"), source.join("bin/web2")).unwrap();
    std::os::unix::fs::symlink("/a/../b//c", source.join("odd")).unwrap();
    std::os::unix::fs::symlink("t".repeat(300), source.join("far")).unwrap();
    nix::unistd::mkfifo(&source.join("fifo"), Mode::S_IRUSR).unwrap();
    let wanted = fetch(format!("file://{}/", source.display()));
    let id = env.add(&wanted).await.unwrap();
    let slug = env.store.get(me().uid, &id).unwrap().unwrap();
    let mut expected = tree(&env.path("source/bin"));
    expected.clear();
    for (name, content) in [
        (".git/", ""),
        (".git/HEAD", "ref\n"),
        (".git/objects/", ""),
        ("Procfile", "web: bin/web\n"),
        ("bin/", ""),
        ("bin/web", "#!/bin/sh\n"),
        ("bin/web2", "#!/bin/sh\n"),
        ("odd@", "/a/../b//c"),
    ] {
        expected.push((name.to_owned(), content.to_owned()));
    }
    expected.push(("far@".to_owned(), "t".repeat(300)));
    expected.push((long[7..].to_owned(), "long".to_owned()));
    expected.sort();
    assert_eq!(tree(&slug.path), expected);
    let stat = |name: &str| fs::symlink_metadata(slug.path.join(name)).unwrap();
    assert_eq!(stat("bin/web").ino(), stat("bin/web2").ino());
    assert_eq!(stat("bin/web").mode() & 0o7777, 0o755);
    assert_eq!(
        stat("Procfile").mtime(),
        fs::metadata(source.join("Procfile")).unwrap().mtime()
    );
    assert_eq!(
        stat("bin").mtime(),
        fs::metadata(source.join("bin")).unwrap().mtime()
    );
    assert!(
        env.said
            .notes
            .lock()
            .unwrap()
            .iter()
            .any(|note| note == "`fifo` is a socket, FIFO or device, and left out of the slug")
    );
    let notes = env.said.notes.lock().unwrap().join("\n");
    assert!(
        notes.contains("dropped: 1 file(s), the first is `app/bin/web`"),
        "{notes}"
    );
    // The same tree is the same slug; another is another.
    assert_eq!(env.add(&wanted).await.unwrap(), id);
    env.file("source/Procfile", b"web: bin/web2\n");
    assert_ne!(env.add(&wanted).await.unwrap(), id);
    let mut wanted = wanted;
    wanted.checksum = Some(id);
    assert!(shown(env.add(&wanted).await).contains("is a directory, which has no checksum"));
}

#[tokio::test]
async fn files_that_are_no_slugs() {
    let env = Env::new();
    fs::create_dir(env.path("dir")).unwrap();
    nix::unistd::mkfifo(&env.path("fifo"), Mode::S_IRUSR).unwrap();
    env.file("file", b"");
    let url = |name: &str| fetch(format!("file://{}/{name}?SECRET", env.dir.path().display()));
    for (name, reason) in [
        ("none.tgz", "No such file or directory"),
        ("fifo", "it is no regular file"),
        ("dir", "it is a directory, whose URL ends in a slash"),
        ("file/", "Not a directory"),
    ] {
        let text = shown(env.add(&url(name)).await);
        assert!(text.contains(reason) && text.contains(name), "{text}");
        assert!(!text.contains("SECRET"), "{text}");
    }
    // A link to what a process has open is none that a caller may name.
    let text = shown(env.add(&fetch("file:///proc/self/fd/3".to_owned())).await);
    assert!(text.contains("Too many levels of symbolic links"), "{text}");
    env.assert_empty();
}

#[tokio::test]
async fn a_change_is_seen() {
    let env = Env::new();
    let look = async |path: &str| {
        let patience = Patience::default();
        changed(&program(), &me(), &env.path(path), &patience)
            .await
            .unwrap()
    };
    fs::create_dir_all(env.path("source/bin")).unwrap();
    env.file("source/bin/web", b"one");
    let first = look("source").await;
    assert_eq!(look("source").await, first);
    let file = look("source/bin/web").await;
    let time = fs::metadata(env.path("source/bin/web"))
        .unwrap()
        .modified()
        .unwrap();
    let touch = |time| {
        File::options()
            .write(true)
            .open(env.path("source/bin/web"))
            .unwrap()
            .set_modified(time)
            .unwrap();
    };
    touch(time + Duration::from_nanos(1));
    let second = look("source").await;
    assert_ne!(second, first);
    assert_ne!(look("source/bin/web").await, file);
    touch(time);
    assert_eq!(look("source").await, first);
    assert_eq!(look("source/bin/web").await, file);
    fs::set_permissions(
        env.path("source/bin/web"),
        fs::Permissions::from_mode(0o700),
    )
    .unwrap();
    assert_ne!(look("source").await, first);
    let error = changed(&program(), &me(), &env.path("none"), &Patience::default())
        .await
        .unwrap_err();
    assert!(
        matches!(error, SlugError::File { missing: true, .. }),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_takes_too_long_to_look_at_has_changed() {
    // It never says a word.
    let silent = Program::at(Path::new("/usr/bin/yes")).unwrap();
    let look = async || state(&silent, &me(), Path::new("/")).await.unwrap();
    let begun = Instant::now();
    let first = look().await;
    // Callers of a Build wait so long for its first answer.
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert_ne!(look().await, first);
}

#[tokio::test]
async fn nobody_else_reaches_inside() {
    let env = Env::new();
    env.add_bytes(&small()).await.unwrap();
    let mode = |path: &str| fs::metadata(env.path(path)).unwrap().mode() & 0o777;
    for directory in [
        "slugs",
        "slugs/trees",
        "slugs/staging",
        "slugs/refs",
        "slugs/trash",
    ] {
        assert_eq!(mode(directory), 0o700, "{directory}");
    }
}

#[tokio::test]
async fn an_add_can_be_given_to_another_thread() {
    let env = std::sync::Arc::new(Env::new());
    let url = env.file("slug.tgz", &small());
    let add = tokio::spawn(async move { env.add(&fetch(url)).await });
    add.await.unwrap().unwrap();
}
