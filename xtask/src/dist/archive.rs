//! tar archives of the package's files, the same bytes for the same files.

use std::io::Write as _;

use anyhow::Context as _;
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

use super::layout::{Content, Entry};

/// How large an archive may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Small,
    /// It is not for long, and to make it small would take longer than to use it.
    Any,
}

/// An archive of everything, with `prefix` before each path: none, for a file system's root.
pub(super) fn pack(
    entries: &[Entry],
    prefix: &str,
    epoch: u64,
    size: Size,
) -> anyhow::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for entry in entries {
        let path = format!("{prefix}{}", entry.path);
        let mut header = Header::new_gnu();
        header.set_mtime(epoch);
        header.set_mode(entry.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_username("root")?;
        header.set_groupname("root")?;
        let added = match &entry.content {
            Content::Folder => {
                header.set_entry_type(EntryType::Directory);
                header.set_size(0);
                tar.append_data(&mut header, format!("{path}/"), &[][..])
            }
            Content::Link(to) => {
                header.set_entry_type(EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, &path, to)
            }
            Content::File(bytes) => {
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, &path, bytes.as_slice())
            }
        };
        added.with_context(|| format!("failed to pack `{path}`"))?;
    }
    gzip(&tar.into_inner().context("failed to end an archive")?, size)
}

/// Compressed, without a time or a name in it.
pub(super) fn gzip(bytes: &[u8], size: Size) -> anyhow::Result<Vec<u8>> {
    let how = match size {
        Size::Small => Compression::best(),
        Size::Any => Compression::none(),
    };
    let mut gzip = GzBuilder::new().write(Vec::new(), how);
    gzip.write_all(bytes).context("failed to compress")?;
    gzip.finish().context("failed to compress")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn an_archive_has_modes_links_and_folders_of_root_and_no_other_time() {
        let entries = [
            Entry::folder("usr"),
            Entry::file("usr/hsup", 0o755, b"program".to_vec()),
            Entry::link("usr/other", "hsup"),
        ];
        let bytes = pack(&entries, "", 7, Size::Small).unwrap();
        assert_eq!(bytes, pack(&entries, "", 7, Size::Small).unwrap());
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..]));
        let found: Vec<_> = tar
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let header = entry.header().clone();
                assert_eq!((header.mtime().unwrap(), header.uid().unwrap()), (7, 0));
                let path = entry.path().unwrap().display().to_string();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (path, header.mode().unwrap(), header.entry_type(), text)
            })
            .collect();
        let nothing = String::new();
        assert_eq!(
            found,
            [
                (
                    "usr/".to_owned(),
                    0o755,
                    EntryType::Directory,
                    nothing.clone()
                ),
                (
                    "usr/hsup".to_owned(),
                    0o755,
                    EntryType::Regular,
                    "program".to_owned()
                ),
                ("usr/other".to_owned(), 0o777, EntryType::Symlink, nothing),
            ]
        );
    }
}
