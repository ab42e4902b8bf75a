use std::{process::Command, thread};

use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;

use super::*;

/// A mount that goes with the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Makes an image of a small root file system with the program of that name.
fn image(folder: &TempDir, program: &str, package: &str, args: &[&str]) -> PathBuf {
    let root = folder.path().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    File::create(root.join("etc/stack")).unwrap();
    let path = folder.path().join("s-1.img");
    #[expect(clippy::disallowed_methods, reason = "a tool, not a dyno")]
    let mut command = Command::new(program);
    let args = args.iter().map(|arg| match *arg {
        "ROOT" => root.as_os_str(),
        "IMAGE" => path.as_os_str(),
        arg => arg.as_ref(),
    });
    let output = command.args(args).output();
    let output = output.unwrap_or_else(|error| {
        panic!("{program} is needed to make the image, from the package {package}: {error}")
    });
    assert!(output.status.success(), "{program}: {output:?}");
    path
}

fn ext4(folder: &TempDir) -> PathBuf {
    // With a journal, and with a superblock that a test can change.
    let args = [
        "-q",
        "-F",
        "-O",
        "has_journal,^metadata_csum",
        "-d",
        "ROOT",
        "IMAGE",
        "16M",
    ];
    image(folder, "mkfs.ext4", "e2fsprogs", &args)
}

fn squashfs(folder: &TempDir) -> PathBuf {
    let args = ["ROOT", "IMAGE", "-quiet", "-no-progress"];
    image(folder, "mksquashfs", "squashfs-tools", &args)
}

fn stack(path: &Path, filesystem: Filesystem) -> Stack {
    Stack {
        name: "s".parse().unwrap(),
        version: "1".parse().unwrap(),
        image: Image::File {
            path: path.to_owned(),
            filesystem,
        },
        uid: None,
    }
}

/// The options of a mount as the kernel has them, and what is mounted.
fn mounted(at: &Path) -> (String, String) {
    let all = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = all
        .lines()
        .find(|line| line.split(' ').nth(1) == at.to_str());
    let fields: Vec<_> = line.unwrap().split(' ').collect();
    (fields[3].to_owned(), fields[0].to_owned())
}

/// Whether a loop device has no file any more.
fn is_free(device: &str) -> bool {
    let name = device.strip_prefix("/dev/").unwrap();
    !Path::new(&format!("/sys/block/{name}/loop/backing_file")).exists()
}

fn is_mounted_and_gone(path: &Path, filesystem: Filesystem) {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("at/1");
    let root = mount(&stack(path, filesystem), &at).unwrap();
    let mount = Mounted(root.clone());
    assert_eq!(root, at);
    assert!(root.join("etc/stack").is_file());
    let (options, device) = mounted(&at);
    for option in ["ro", "nosuid", "nodev", "noatime"] {
        assert!(
            options.split(',').any(|it| it == option),
            "{option}: {options}"
        );
    }
    let error = File::create(root.join("new")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    drop(mount);
    // The kernel lets go of it in its own time, which nothing tells of.
    let mut tries = 0;
    while !is_free(&device) {
        tries += 1;
        assert!(tries < 500, "{device} is still attached");
        thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
#[ignore = "needs root: mounts a loop device"]
fn an_ext4_image_is_mounted() {
    let folder = tempfile::tempdir().unwrap();
    is_mounted_and_gone(&ext4(&folder), Filesystem::Ext4);
}

#[test]
#[ignore = "needs root: mounts a loop device"]
fn a_squashfs_image_is_mounted() {
    let folder = tempfile::tempdir().unwrap();
    is_mounted_and_gone(&squashfs(&folder), Filesystem::Squashfs);
}

#[test]
#[ignore = "needs root: mounts a loop device"]
fn a_journal_that_is_not_empty_is_no_trouble() {
    use std::os::unix::fs::FileExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = ext4(&folder);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    // needs_recovery in s_feature_incompat: as when it was copied while it was mounted.
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1024 + 0x60).unwrap();
    file.write_all_at(&[byte[0] | 0x4], 1024 + 0x60).unwrap();
    is_mounted_and_gone(&path, Filesystem::Ext4);
}

#[test]
#[ignore = "needs root: mounts loop devices"]
fn many_at_once_each_get_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let path = squashfs(&folder);
    let mounts: Vec<_> = (0..16)
        .map(|number| {
            let (stack, at) = (
                stack(&path, Filesystem::Squashfs),
                folder.path().join(number.to_string()),
            );
            thread::spawn(move || Mounted(mount(&stack, &at).unwrap()))
        })
        .collect();
    let mounts: Vec<_> = mounts
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    for mount in &mounts {
        assert!(mount.0.join("etc/stack").is_file());
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s-1.img");
    File::create(&path).unwrap();
    let error = mount(&stack(&path, Filesystem::Ext4), &folder.path().join("at")).unwrap_err();
    assert_eq!(
        hsup_driver_kit::errors::chain(&error),
        format!(
            "`{}` is no stack image: it is neither an ext4 nor a squashfs file system",
            path.display()
        )
    );
    assert!(!folder.path().join("at").exists());
}

#[test]
fn a_directory_is_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mut stack = stack(folder.path(), Filesystem::Ext4);
    stack.image = Image::Directory(folder.path().to_owned());
    assert_eq!(mount(&stack, Path::new("/nowhere")).unwrap(), folder.path());
    stack.image = Image::Directory(folder.path().join("gone"));
    assert!(matches!(
        mount(&stack, Path::new("/nowhere")),
        Err(MountError::NotDirectory { .. })
    ));
}
