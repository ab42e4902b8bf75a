//! A small file out of a container: the engine gives it as an archive.

use std::{
    io::{self, Read as _},
    pin::pin,
};

use bollard::{
    Docker, errors::Error, query_parameters::DownloadFromContainerOptionsBuilder as Options,
};
use futures_util::StreamExt as _;

/// The archive of a file, or as much of it as comes until `enough` bytes are there: the file may
/// be a dyno's own, and of any size.
pub(crate) async fn archive_of(
    docker: &Docker,
    container: &str,
    path: &str,
    enough: usize,
) -> Result<Vec<u8>, Error> {
    let options = Options::new().path(path).build();
    let mut download = pin!(docker.download_from_container(container, Some(options)));
    let mut archive = Vec::new();
    while archive.len() < enough
        && let Some(piece) = download.next().await
    {
        archive.extend_from_slice(&piece?);
    }
    Ok(archive)
}

/// The bytes of the first file of an archive; empty if that begins with something else, or holds
/// nothing.
pub(crate) fn first_file(archive: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(entry) = tar::Archive::new(archive).entries()?.next() {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            entry.read_to_end(&mut bytes)?;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use tar::{Builder, EntryType, Header};

    use super::*;

    fn archive(kind: EntryType, content: &[u8]) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        let mut archive = Builder::new(Vec::new());
        archive.append_data(&mut header, "name", content).unwrap();
        archive.into_inner().unwrap()
    }

    #[test]
    fn only_a_file_has_bytes() {
        assert_eq!(
            first_file(&archive(EntryType::Regular, b"text")).unwrap(),
            b"text"
        );
        assert_eq!(first_file(&archive(EntryType::Symlink, b"")).unwrap(), b"");
        assert_eq!(first_file(b"").unwrap(), b"");
        assert!(first_file(&[b'x'; 512]).is_err());
    }

    #[test]
    fn of_an_archive_that_was_cut_there_is_what_came() {
        let archive = archive(EntryType::Regular, &[b'x'; 1000]);
        assert_eq!(first_file(&archive[..612]).unwrap(), [b'x'; 100]);
    }
}
