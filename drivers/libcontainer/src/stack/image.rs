//! What a stack's file is: which file system, and whether all of it is there.
//!
//! A file says itself what it is, better than the name it has or what a list says of it.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek as _},
    os::unix::fs::FileExt as _,
};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use thiserror::Error;

/// The file systems that a stack can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filesystem {
    Ext4,
    Squashfs,
}

impl Filesystem {
    /// What mount(2) calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Squashfs => "squashfs",
        }
    }
}

/// A file is no image that could be mounted.
#[derive(Debug, Error)]
pub enum ImageError {
    #[error("failed to read the image")]
    Read(#[source] io::Error),
    #[error("it is neither an ext4 nor a squashfs file system")]
    Unknown,
    #[error("it is cut short: the {} file system has {expected} bytes, the file {actual}", .kind.name())]
    Short {
        kind: Filesystem,
        expected: u64,
        actual: u64,
    },
}

/// As much of the beginning as there is to look at.
const HEAD: usize = 2048;

/// Which file system the file is.
pub(super) fn probe(file: &File) -> Result<Filesystem, ImageError> {
    let length = file.metadata().map_err(ImageError::Read)?.len();
    let mut head = [0; HEAD];
    let there = usize::try_from(length).map_or(HEAD, |length| length.min(HEAD));
    file.read_exact_at(&mut head[..there], 0)
        .map_err(ImageError::Read)?;
    examine(&head, length)
}

/// Decides by the superblock: ext4's is at 1024, squashfs' at 0, all in little endian.
fn examine(head: &[u8; HEAD], length: u64) -> Result<Filesystem, ImageError> {
    let word = |at: usize| {
        u64::from(u32::from_le_bytes([
            head[at],
            head[at + 1],
            head[at + 2],
            head[at + 3],
        ]))
    };
    let (kind, expected) = if &head[..4] == b"hsqs" {
        // bytes_used
        (Filesystem::Squashfs, word(40) | word(44) << 32)
    } else if head[1024 + 0x38..1024 + 0x3A] == [0x53, 0xEF] {
        let is_64bit = word(1024 + 0x60) & 0x80 != 0;
        let high = if is_64bit { word(1024 + 0x150) } else { 0 };
        let blocks = word(1024 + 0x4) | high << 32;
        // s_log_block_size: the kernel takes up to 64 KiB.
        let size = 1024 << word(1024 + 0x18).min(6);
        (Filesystem::Ext4, blocks.saturating_mul(size))
    } else {
        return Err(ImageError::Unknown);
    };
    if length < expected {
        return Err(ImageError::Short {
            kind,
            expected,
            actual: length,
        });
    }
    Ok(kind)
}

/// What the file holds, uncompressed if it is gz or zst.
pub(super) fn plain(mut file: File) -> io::Result<Box<dyn Read + Send>> {
    let mut magic = [0; 4];
    let length = file.metadata()?.len().min(4);
    let there = usize::try_from(length).unwrap_or(4);
    file.read_exact_at(&mut magic[..there], 0)?;
    file.rewind()?;
    let file = BufReader::with_capacity(256 * 1024, file);
    decoded(file, magic)
}

fn decoded(
    reader: impl BufRead + Send + 'static,
    magic: [u8; 4],
) -> io::Result<Box<dyn Read + Send>> {
    Ok(match magic {
        [0x1F, 0x8B, ..] => Box::new(MultiGzDecoder::new(reader)),
        ZSTD => Box::new(Frames {
            frame: Some(StreamingDecoder::new(reader).map_err(io::Error::other)?),
        }),
        _ => Box::new(reader),
    })
}

/// What a zst file begins with.
const ZSTD: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// A zst file, which may have several frames: `pzstd` makes such. The decoder reads one.
struct Frames<R: BufRead> {
    frame: Option<StreamingDecoder<R, FrameDecoder>>,
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(frame) = &mut self.frame {
            let length = frame.read(buffer)?;
            if length > 0 || buffer.is_empty() {
                return Ok(length);
            }
            let Some(ended) = self.frame.take() else {
                break;
            };
            let (mut reader, decoder) = ended.into_parts();
            // The decoder counts it, and leaves it to us to compare.
            if let Some(expected) = decoder.get_checksum_from_data()
                && decoder.get_calculated_checksum() != Some(expected)
            {
                let text = "the checksum of a zst frame is wrong";
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            if !reader.fill_buf()?.is_empty() {
                let next = StreamingDecoder::new(reader).map_err(io::Error::other)?;
                self.frame = Some(next);
            }
        }
        Ok(0)
    }
}

/// Whether a file is compressed, by its beginning.
pub(super) fn is_compressed(file: &File) -> io::Result<bool> {
    let mut magic = [0; 4];
    if file.metadata()?.len() < 4 {
        return Ok(false);
    }
    file.read_exact_at(&mut magic, 0)?;
    Ok(matches!(magic, [0x1F, 0x8B, ..] | ZSTD))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ext4(blocks: u32) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[1024 + 0x38] = 0x53;
        head[1024 + 0x39] = 0xEF;
        head[1024 + 4..1024 + 8].copy_from_slice(&blocks.to_le_bytes());
        head[1024 + 0x18] = 2;
        head
    }

    #[test]
    fn an_image_says_what_it_is() {
        assert_eq!(examine(&ext4(10), 40_960).unwrap(), Filesystem::Ext4);
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(b"hsqs");
        head[40] = 200;
        assert_eq!(examine(&head, 4096).unwrap(), Filesystem::Squashfs);
        let error = examine(&[0; HEAD], 4096).unwrap_err().to_string();
        assert_eq!(error, "it is neither an ext4 nor a squashfs file system");
    }

    #[test]
    fn a_short_one_is_told() {
        let error = examine(&ext4(10), 40_959).unwrap_err().to_string();
        assert_eq!(
            error,
            "it is cut short: the ext4 file system has 40960 bytes, the file 40959"
        );
        // The high half of the number of blocks counts only where the feature says so.
        let mut head = ext4(10);
        head[1024 + 0x150] = 1;
        assert!(examine(&head, 40_960).is_ok());
        head[1024 + 0x60] = 0x80;
        assert!(examine(&head, 40_960).is_err());
    }
}
