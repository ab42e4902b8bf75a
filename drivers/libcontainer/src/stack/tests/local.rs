//! What is here already, by a list or without.

use std::os::unix::fs::MetadataExt as _;

use test_case::test_case;
use tokio::time::Instant;

use super::*;

#[tokio::test]
async fn a_directory_is_used_where_it_is() {
    let work = Work::new();
    let root = work.folder.path().join("my root");
    fs::create_dir(&root).unwrap();
    let url = format!("file://{}", root.display()).replace(' ', "%20");
    let stacks = work.with_one("v1", "directory", &url, "uid: 1000");
    let stack = work.resolve(&stacks).await;
    assert_eq!(stack.image, Image::Directory(root.clone()));
    assert_eq!(stack.uid, Some(1000));
    assert_eq!(stacks.find("s", "v1").unwrap(), Some(stack.clone()));
    assert_eq!(stacks.find("s", "v2").unwrap(), None);
    drop(Stacks::hold(&stack).unwrap());
    fs::remove_dir(&root).unwrap();
    let error = work.error(&stacks).await;
    let expected = format!(
        "the directory `{}` of stack s-v1 is not there",
        root.display()
    );
    assert_eq!(error, expected);
}

#[test_case("a:b")]
#[test_case("a,b")]
#[test_case("a\\b")]
#[tokio::test]
async fn a_directory_that_an_overlay_would_misread_is_refused(name: &str) {
    let work = Work::new();
    let root = work.folder.path().join(name);
    fs::create_dir(&root).unwrap();
    let stacks = work.with_one("v1", "directory", &format!("file://{}", root.display()), "");
    let error = work.error(&stacks).await;
    let names = format!("the field `url` of stack s-v1 names `{}`", root.display());
    assert!(error.starts_with(&names), "{error}");
    assert_eq!(stacks.find("s", "v1").unwrap(), None);
}

#[test_case(<[u8]>::to_vec; "plain")]
#[test_case(gz; "gz")]
#[test_case(zst; "zst")]
#[test_case(|bytes| [gz(&bytes[..5000]), gz(&bytes[5000..])].concat(); "gz of two members")]
#[test_case(|bytes| [zst(&bytes[..5000]), zst(&bytes[5000..])].concat(); "zst of two frames")]
fn an_archive_is_unpacked_once(compress: fn(&[u8]) -> Vec<u8>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let work = Work::new();
        let bytes = compress(&archive(100_000));
        let path = work.folder.path().join("archive");
        write(&path, &bytes);
        let url = format!("file://{}", path.display());
        let stacks = work.with_one("v1", "rootfs-tar", &url, &sha256(&bytes));
        let stack = work.resolve(&stacks).await;
        assert_eq!(stack.image, Image::Directory(work.path("s-v1")));
        assert_eq!(fs::read(work.path("s-v1/bin/sh")).unwrap(), b"#!");
        assert_eq!(
            fs::metadata(work.path("s-v1/noise")).unwrap().len(),
            100_000
        );
        assert_eq!(work.half_made(), [""; 0]);
        // The archive is not needed again, nor used up.
        fs::remove_file(&path).unwrap();
        let inode = fs::metadata(work.path("s-v1")).unwrap().ino();
        assert_eq!(work.resolve(&work.stacks()).await, stack);
        assert_eq!(fs::metadata(work.path("s-v1")).unwrap().ino(), inode);
    });
}

#[tokio::test]
async fn an_archive_cut_short_leaves_nothing() {
    let work = Work::new();
    let bytes = gz(&archive(100_000));
    let path = work.folder.path().join("archive");
    write(&path, &bytes[..bytes.len() / 2]);
    let url = format!("file://{}", path.display());
    let stacks = work.with_one("v1", "rootfs-tar", &url, "size: null");
    let error = work.error(&stacks).await;
    assert!(
        error.contains("its archive could not be unpacked; nothing of it was kept"),
        "{error}"
    );
    assert!(!work.path("s-v1").exists());
    assert_eq!(work.half_made(), [""; 0]);
    assert!(path.exists());
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named() {
    let work = Work::new();
    let stacks = work.with_one("v1", "rootfs-tar", "file:///no/such.tar", "size: null");
    assert_eq!(
        work.error(&stacks).await,
        "stack s-v1 from file:///no/such.tar is not what it should be: failed to open \
         `/no/such.tar`: No such file or directory (os error 2)"
    );
}

#[test_case(<[u8]>::to_vec; "plain")]
#[test_case(gz; "gz, as the original's")]
fn an_image_of_the_originals_list(compress: fn(&[u8]) -> Vec<u8>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let work = Work::new();
        let path = work.folder.path().join("image");
        let image = ext4();
        write(&path, &compress(&image));
        let url = format!("file://{}", path.display());
        let stacks = work.with(&format!("- {{name: s, version: v1, url: '{url}'}}"));
        let stack = work.resolve(&stacks).await;
        let expected = Image::File {
            path: work.path("s-v1.img"),
            filesystem: Filesystem::Ext4,
        };
        assert_eq!(stack.image, expected);
        assert!(fs::read(work.path("s-v1.img")).unwrap() == image);
        assert!(path.exists());
        assert_eq!(stacks.find("s", "v1").unwrap(), Some(stack));
        assert_eq!(work.half_made(), [""; 0]);
    });
}

#[tokio::test]
async fn without_a_list_the_newest_here_is_used() {
    let work = Work::new();
    let stacks = work.stacks();
    for directory in ["s-v9", "s-v10", "s-x-v11", "t-v12"] {
        fs::create_dir(work.path(directory)).unwrap();
    }
    // Of another kind, or no stack at all.
    write(&work.path("s-v13"), b"");
    fs::create_dir(work.path("s-v14.img")).unwrap();
    let stack = work.resolve(&stacks).await;
    assert_eq!(stack.version.as_str(), "v10");
    assert_eq!(
        stacks.find("s", "v9").unwrap().unwrap().version.as_str(),
        "v9"
    );
    assert_eq!(stacks.find("s", "v13").unwrap(), None);
    assert_eq!(stacks.find("../s", "v9").unwrap(), None);
    // A list that does not have it changes nothing; one that has, decides.
    let stacks = work.with("- {name: t, version: v1, url: 'file:///t.img'}");
    assert_eq!(work.resolve(&stacks).await.version.as_str(), "v10");
    let stacks = work.with("- {name: s, version: v9, url: 'file:///s.img'}");
    assert_eq!(work.resolve(&stacks).await.version.as_str(), "v9");
}

#[tokio::test]
async fn without_a_list_and_without_the_stack_all_ways_are_named() {
    let work = Work::new();
    let error = work.error(&work.stacks()).await;
    let folder = work.path("");
    let expected = format!(
        "stack s is not here (here: none), and there is no list to find it by: put one at \
         `{0}manifest.yml`, or give its URL with --stacks-manifest; or put the stack itself at `{0}s-VERSION`, or \
         import it from a Docker engine with `hsup-driver-libcontainer stack import`",
        folder.display()
    );
    assert_eq!(error, expected);
}

#[tokio::test]
async fn an_unknown_stack_is_told_from_those_that_there_are() {
    let work = Work::new();
    let stacks = work.with("- {name: t, version: v1, url: 'file:///t.img'}");
    let manifest = work.path("manifest.yml");
    let expected = format!(
        "stack s is not in the list {}, which has t",
        manifest.display()
    );
    assert_eq!(work.error(&stacks).await, expected);
    let stacks = work.with_one("v1", "directory", "file:///", "arch: s390x");
    let expected = format!(
        "no version of stack s in the list {} can be used here: version v1: it is for s390x",
        manifest.display()
    );
    assert_eq!(work.error(&stacks).await, expected);
}

#[tokio::test]
async fn a_broken_list_is_an_error_unless_the_stack_is_here() {
    let work = Work::new();
    let stacks = work.with("version: 2\nstacks: nothing");
    let error = work.error(&stacks).await;
    assert!(
        error.contains("manifest.yml is no list of stacks"),
        "{error}"
    );
    fs::create_dir(work.path("s-v1")).unwrap();
    assert_eq!(work.resolve(&stacks).await.version.as_str(), "v1");
    assert!(work.reported("is no list of stacks"));
    assert_eq!(
        stacks.find("s", "v1").unwrap().unwrap().version.as_str(),
        "v1"
    );
}

#[tokio::test]
async fn an_image_here_that_is_cut_short_is_named() {
    let work = Work::new();
    let stacks = work.stacks();
    let image = ext4();
    write(&work.path("s-v1.img"), &image[..image.len() - 1]);
    let expected = format!(
        "`{}` is no stack image: it is cut short: the ext4 file system has 1048576 bytes, the \
         file 1048575",
        work.path("s-v1.img").display()
    );
    assert_eq!(work.error(&stacks).await, expected);
    assert_eq!(stacks.find("s", "v1").unwrap(), None);
}

#[test]
fn what_is_in_use_is_not_removed() {
    let work = Work::new();
    let stacks = work.stacks();
    fs::create_dir_all(work.path("s-v1/etc")).unwrap();
    write(&work.path("s-v1.img"), &ext4());
    let stack = stacks.find("s", "v1").unwrap().unwrap();
    let held = Stacks::hold(&stack).unwrap();
    let error = stacks.remove("s-v1").unwrap_err().to_string();
    assert_eq!(error, "stack s-v1 is in use by a dyno");
    assert!(work.path("s-v1/etc").exists() && work.path("s-v1.img").exists());
    drop(held);
    // A process that another test spawns meanwhile holds it too, until its `exec`.
    let deadline = Instant::now() + Duration::from_mins(1);
    while let Err(error) = stacks.remove("s-v1") {
        let in_use = matches!(error, StackError::InUse { .. });
        assert!(in_use && Instant::now() < deadline, "{error}");
    }
    assert!(!work.path("s-v1").exists() && !work.path("s-v1.img").exists());
    assert_eq!(work.half_made(), [""; 0]);
    assert!(matches!(
        stacks.remove("s-v1"),
        Err(StackError::NotThere { .. })
    ));
    assert!(matches!(
        stacks.remove("../s"),
        Err(StackError::NotThere { .. })
    ));
    assert!(matches!(Stacks::hold(&stack), Err(StackError::Lock { .. })));
}

#[test]
fn what_dead_drivers_left_is_collected() {
    let work = Work::new();
    let _stacks = work.stacks();
    let names = [
        "s-v1.new",
        "s-v1.lock",
        "t-v1.new",
        "s-v1.00.part",
        "u-v1.00.part",
    ];
    let paths = names.map(|name| work.path(".fetch").join(name));
    fs::create_dir_all(paths[0].join("bin")).unwrap();
    for path in &paths[1..] {
        write(path, b"");
    }
    // Somebody is at work on this one; and this one began a while ago.
    let lock = FetchLock::try_take(&work.path(".fetch/t-v1.lock")).unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    File::open(&paths[4])
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    let _stacks = work.stacks();
    let mut left = work.half_made();
    left.sort();
    assert_eq!(left, ["s-v1.00.part", "t-v1.lock", "t-v1.new"]);
    drop(lock);
}

#[test]
fn what_is_here_is_listed() {
    let work = Work::new();
    let stacks = work.stacks();
    write(&work.path("s-v10.img"), &ext4());
    write(&work.path("s-v9.img"), b"broken");
    fs::create_dir_all(work.path("r-1/bin")).unwrap();
    stacks
        .disk
        .set_primary(&"s".parse().unwrap(), &"v10".parse().unwrap())
        .unwrap();
    let list = stacks.list().unwrap();
    let shown: Vec<_> = list
        .iter()
        .map(|it| (it.name.as_str(), it.version.as_str(), it.format, it.primary))
        .collect();
    let expected = [
        ("r", "1", "directory", false),
        ("s", "v9", "broken", false),
        ("s", "v10", "ext4", true),
    ];
    assert_eq!(shown, expected);
    assert!(list[2].bytes > 0);
    stacks.remove("s-v10").unwrap();
    assert_eq!(stacks.disk.primary(&"s".parse().unwrap()), None);
}

/// A small disk, which goes with the test.
struct Disk(PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root: mounts a small disk"]
async fn a_full_disk_is_told_and_freed() {
    let work = Work::new();
    let path = work.folder.path().join("archive");
    write(&path, &archive(3_000_000));
    fs::create_dir(work.path("")).unwrap();
    nix::mount::mount(
        Some("none"),
        &work.path(""),
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("size=2m"),
    )
    .unwrap();
    let _disk = Disk(work.path(""));
    let url = format!("file://{}", path.display());
    let stacks = work.with_one("v1", "rootfs-tar", &url, "size: null");
    let error = work.error(&stacks).await;
    assert!(
        error.contains("failed to make `noise`: No space left on device"),
        "{error}"
    );
    assert!(!work.path("s-v1").exists());
    assert_eq!(work.half_made(), [""; 0]);
    let free = nix::sys::statvfs::statvfs(&work.path("")).unwrap();
    assert!(free.blocks_free() * 10 > free.blocks() * 9);
}

#[test]
fn a_driver_may_wait_for_a_stack_in_any_of_its_threads() {
    fn is_send<T: Send>(_: &T) {}
    let work = Work::new();
    let stacks = work.stacks();
    is_send(&stacks.resolve("s", &work));
}

#[tokio::test]
async fn the_one_stack_of_a_list_is_the_only_one() {
    let work = Work::new();
    assert_eq!(work.stacks().names().await.unwrap(), []);
    let stacks = work.with_one("v1", "directory", "file:///srv/s", "arch: amd64");
    let names = async || {
        let names = stacks.names().await.unwrap();
        names.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names().await, ["s"]);
    // What is here is what there is.
    fs::create_dir(work.path("mine-1")).unwrap();
    assert_eq!(names().await, ["mine"]);
}

#[test]
fn what_cannot_be_looked_at_is_not_gone() {
    let work = Work::new();
    let stacks = work.stacks();
    std::os::unix::fs::symlink("s-v1.img", work.path("s-v1.img")).unwrap();
    let error = stacks.find("s", "v1").unwrap_err();
    assert!(matches!(error, StackError::Look { .. }), "{error}");
    assert_eq!(stacks.find("s", "v2").unwrap(), None);
}
