//! Stacks fetched from a real server and found on a real disk.

mod local;
mod remote;
mod server;

use std::{
    fs::File,
    io,
    sync::PoisonError,
    time::{Duration, SystemTime},
};

use hsup_driver_kit::hex;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::{lock::FetchLock, *};

/// A work directory, and what was reported.
struct Work {
    folder: TempDir,
    reports: Mutex<Vec<String>>,
}

impl Progress for Work {
    fn report(&self, event: Event<'_>) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.push(format!("{event:?}"));
    }
}

impl Work {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            reports: Mutex::default(),
        }
    }

    fn stacks(&self) -> Stacks {
        Stacks::open(self.folder.path(), None).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("stacks").join(name)
    }

    /// Opens the stacks with a list.
    fn with(&self, manifest: &str) -> Stacks {
        let stacks = self.stacks();
        write(&self.path("manifest.yml"), manifest.as_bytes());
        stacks
    }

    /// With the list of one version of the stack `s`.
    fn with_one(&self, version: &str, format: &str, url: &str, checksum: &str) -> Stacks {
        let fields = format!("name: s, version: {version}, format: {format}, url: '{url}'");
        self.with(&format!(
            "version: 2\nstacks:\n- {{{fields}, {checksum}}}\n"
        ))
    }

    async fn resolve(&self, stacks: &Stacks) -> Stack {
        stacks.resolve("s", self).await.unwrap()
    }

    async fn error(&self, stacks: &Stacks) -> String {
        let error = stacks.resolve("s", self).await.unwrap_err();
        hsup_driver_kit::errors::chain(&error)
    }

    /// What is in the folder of stacks that is no stack: nothing, when nobody is at work.
    fn half_made(&self) -> Vec<String> {
        let folder = fs::read_dir(self.path(".fetch")).unwrap();
        folder
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    fn reported(&self, what: &str) -> bool {
        let reports = self.reports.lock().unwrap();
        reports.iter().any(|report| report.contains(what))
    }
}

fn write(path: &Path, bytes: &[u8]) {
    use io::Write as _;
    File::create(path).unwrap().write_all(bytes).unwrap();
}

/// The archive of a root file system with a file of that size, which does not compress.
fn archive(size: usize) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    let mut add = |path: &str, kind: EntryType, mode: u32, data: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(nix::unistd::geteuid().as_raw().into());
        header.set_gid(nix::unistd::getegid().as_raw().into());
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, path, data).unwrap();
    };
    add("bin", EntryType::Directory, 0o755, b"");
    add("bin/sh", EntryType::Regular, 0o755, b"#!");
    let mut seed: u32 = 1;
    let noise: Vec<u8> = (0..size)
        .map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed.to_be_bytes()[0]
        })
        .collect();
    add("noise", EntryType::Regular, 0o644, &noise);
    builder.into_inner().unwrap()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    use io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// The field of a list that holds the checksum.
fn sha256(bytes: &[u8]) -> String {
    format!("sha256: {}", hex::encode(&Sha256::digest(bytes)))
}

/// An ext4 image, and where it was made.
fn ext4() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    #[expect(clippy::disallowed_methods, reason = "a tool, not a dyno")]
    let mut command = std::process::Command::new("mkfs.ext4");
    // Where an ordinary user's PATH may not look.
    command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let output = command.args(["-q", "-F"]).arg(&path).arg("1M").output();
    let output = output.unwrap_or_else(|error| {
        panic!("mkfs.ext4 is needed to make the image, from the package e2fsprogs: {error}")
    });
    assert!(output.status.success(), "{output:?}");
    fs::read(path).unwrap()
}
