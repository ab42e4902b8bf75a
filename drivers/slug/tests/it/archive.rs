//! Archives made byte by byte, as no honest program makes them.

use std::{fmt::Write as _, io::Write as _};

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};

/// A tar archive in the making.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// One entry; its name and target as they are, cut at 100 bytes.
    pub(crate) fn entry(
        self,
        kind: u8,
        name: &[u8],
        target: &[u8],
        mode: u32,
        data: &[u8],
    ) -> Self {
        let size = data.len() as u64;
        self.header(kind, name, target, mode, size).data(data)
    }

    pub(crate) fn header(
        mut self,
        kind: u8,
        name: &[u8],
        target: &[u8],
        mode: u32,
        size: u64,
    ) -> Self {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name[..name.len().min(100)]);
        put(100, format!("{mode:07o}\0").as_bytes());
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, b"14000000000\0"); // 2021-01-14
        put(148, b"        ");
        put(156, &[kind]);
        put(157, &target[..target.len().min(100)]);
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(header);
        self
    }

    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(b'5', name.as_bytes(), b"", 0o755, b"")
    }

    pub(crate) fn file(self, name: &str, data: &str) -> Self {
        self.entry(b'0', name.as_bytes(), b"", 0o644, data.as_bytes())
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name.as_bytes(), target.as_bytes(), 0o777, b"")
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name.as_bytes(), target.as_bytes(), 0o644, b"")
    }

    /// A PAX header for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length += 1;
            }
            data.extend(format!("{length} {key}=").as_bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.entry(b'x', b"PaxHeaders/x", b"", 0o644, &data)
    }

    pub(crate) fn tar(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }

    pub(crate) fn tgz(self) -> Vec<u8> {
        gzip(&self.tar())
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A small honest slug.
pub(crate) fn small() -> Vec<u8> {
    Tar::new()
        .dir("./app/")
        .file("./app/Procfile", "web: true\n")
        .tgz()
}

/// Bytes that gzip cannot make smaller.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    })
    .take(length)
    .collect()
}

pub(crate) fn big(length: usize) -> Vec<u8> {
    Tar::new()
        .entry(b'0', b"app/noise", b"", 0o644, &noise(length))
        .tgz()
}

pub(crate) fn checksum(bytes: &[u8]) -> hsup_slug::SlugId {
    let mut text = "SHA256:".to_owned();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02X}").unwrap();
    }
    text.parse().unwrap()
}
