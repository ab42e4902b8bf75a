//! The Debian package: an `ar` archive of two tar archives, as `deb(5)` has it.

use anyhow::{Context as _, ensure};
use hsup_driver_kit::hex;
use md5::{Digest as _, Md5};

use super::{
    Release, archive,
    layout::{Content, Entry},
};

const CONTROL: &str = include_str!("../../../packaging/debian/control");
const CONFFILES: &str = include_str!("../../../packaging/debian/conffiles");
const SCRIPTS: [(&str, &str); 3] = [
    (
        "postinst",
        include_str!("../../../packaging/debian/postinst"),
    ),
    ("postrm", include_str!("../../../packaging/debian/postrm")),
    ("prerm", include_str!("../../../packaging/debian/prerm")),
];

/// The package of these files.
pub(super) fn package(release: &Release, entries: &[Entry]) -> anyhow::Result<Vec<u8>> {
    let mut control = vec![
        Entry::file("control", 0o644, control(release, entries)?.into_bytes()),
        Entry::file("conffiles", 0o644, CONFFILES.into()),
        Entry::file("md5sums", 0o644, md5sums(entries).into_bytes()),
    ];
    for (name, script) in SCRIPTS {
        control.push(Entry::file(name, 0o755, script.into()));
    }
    let members = [
        ("debian-binary", b"2.0\n".to_vec()),
        (
            "control.tar.gz",
            archive::pack(&control, "", release.epoch, release.size)?,
        ),
        (
            "data.tar.gz",
            archive::pack(entries, "", release.epoch, release.size)?,
        ),
    ];
    let mut package = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        package.extend(member(name, release.epoch, bytes.len()).bytes());
        package.extend(&bytes);
        if bytes.len() % 2 == 1 {
            package.push(b'\n');
        }
    }
    Ok(package)
}

/// The header of a member of an `ar` archive.
fn member(name: &str, epoch: u64, size: usize) -> String {
    format!("{name:<16}{epoch:<12}0     0     100644  {size:<10}`\n")
}

fn control(release: &Release, entries: &[Entry]) -> anyhow::Result<String> {
    let files = || {
        entries.iter().filter_map(|entry| match &entry.content {
            Content::File(bytes) => Some(bytes.as_slice()),
            Content::Link(_) | Content::Folder => None,
        })
    };
    let size: usize = files().map(|bytes| bytes.len().div_ceil(1024)).sum();
    let glibc = files().filter(|bytes| bytes.starts_with(b"\x7fELF"));
    let glibc = glibc.filter_map(newest_glibc).max();
    let (major, minor) = glibc.context("no program says which C library it needs")?;
    let text = CONTROL
        .replace(
            "${VERSION}",
            &format!("{}-{}", release.version, release.revision),
        )
        .replace("${ARCH}", release.architecture.0)
        .replace("${SIZE}", &size.to_string())
        .replace("${GLIBC}", &format!("{major}.{minor}"));
    ensure!(
        !text.contains("${"),
        "something of the control file is not filled in"
    );
    Ok(text)
}

/// The newest version of glibc that a program asks symbols of: its names stand in it.
fn newest_glibc(program: &[u8]) -> Option<(u32, u32)> {
    let names = memchr::memmem::find_iter(program, "GLIBC_");
    let versions = names.filter_map(|at| {
        let name = program.get(at + "GLIBC_".len()..)?;
        let end = name.iter().position(|byte| *byte == 0)?;
        let mut numbers = std::str::from_utf8(name.get(..end)?).ok()?.split('.');
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    });
    versions.max()
}

fn md5sums(entries: &[Entry]) -> String {
    let sums = entries.iter().filter_map(|entry| match &entry.content {
        // Those that people change are looked after by dpkg in another way.
        _ if entry.path.starts_with("etc/") => None,
        Content::File(bytes) => {
            let sum = hex::encode(&Md5::digest(bytes));
            Some(format!("{sum}  {}\n", entry.path))
        }
        Content::Link(_) | Content::Folder => None,
    });
    sums.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release() -> Release {
        Release {
            version: "1.2.3",
            revision: "4".to_owned(),
            architecture: ("amd64", "x86_64"),
            epoch: 7,
            size: archive::Size::Small,
        }
    }

    #[test]
    fn the_control_file_says_what_the_programs_need() {
        let program = b"\x7fELF..GLIBC_2.4\0GLIBC_2.34\0GLIBC_2.17\0GLIBC_PRIVATE\0".to_vec();
        let entries = [Entry::file("usr/bin/x", 0o755, program)];
        let text = control(&release(), &entries).unwrap();
        assert!(text.contains("\nVersion: 1.2.3-4\n"), "{text}");
        assert!(text.contains("libc6 (>= 2.34),"), "{text}");
        assert!(text.contains("\nInstalled-Size: 1\n"), "{text}");
    }

    #[test]
    fn members_are_of_even_length() {
        let program = b"\x7fELFGLIBC_2.34\0".to_vec();
        let entries = [Entry::file("usr/bin/x", 0o755, program)];
        let package = package(&release(), &entries).unwrap();
        let mut rest = package.strip_prefix(b"!<arch>\n").unwrap();
        let mut names = Vec::new();
        while let Some((header, after)) = rest.split_at_checked(60) {
            let header = std::str::from_utf8(header).unwrap();
            assert!(header.ends_with("`\n"), "{header}");
            names.push(header[..16].trim_end().to_owned());
            let size: usize = header[48..58].trim_end().parse().unwrap();
            rest = &after[size.next_multiple_of(2)..];
        }
        assert_eq!(names, ["debian-binary", "control.tar.gz", "data.tar.gz"]);
        assert!(rest.is_empty());
    }

    #[test]
    fn a_configuration_file_has_no_sum() {
        let entries = [
            Entry::file("etc/x", 0o644, b"x".to_vec()),
            Entry::file("usr/x", 0o644, b"x".to_vec()),
        ];
        assert_eq!(
            md5sums(&entries),
            "9dd4e461268c8034f5c8564e155c67a6  usr/x\n"
        );
    }
}
