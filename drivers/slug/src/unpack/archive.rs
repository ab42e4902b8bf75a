//! Reading a tar archive that a stranger made: ustar, GNU's long names, PAX.
//!
//! The `tar` crate reads the headers. Its own iterator is not used, because it takes a long
//! name or a PAX header of any size into memory.

use std::{
    borrow::Cow,
    io::{self, Read},
};

use tar::{EntryType, Header};

use super::{UnpackError, too_much};
use crate::error::SlugError;

const BLOCK: u64 = 512;
/// Longer than a name may be, and than all that PAX has to say of an honest file.
const LONGEST_EXTENSION: u64 = 256 * 1024;

/// The set-user-ID and set-group-ID bits (inode(7)).
const SETS_ID: u32 = 0o6000;
/// The latest time that ext4 can keep, in 2446.
const LATEST: i64 = 15_032_385_535;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Symlink,
    HardLink,
    Device,
    Sparse,
    Unknown(u8),
}

/// An entry, all that is said of it put together.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) target: Vec<u8>,
    pub(super) kind: Kind,
    /// The permission bits, and only they.
    pub(super) mode: u32,
    /// It was to have its owner's or its group's rights, whoever executes it.
    pub(super) sets_id: bool,
    /// Seconds since 1970.
    pub(super) mtime: i64,
    pub(super) size: u64,
}

/// What an extension says of the entry that follows it.
#[derive(Debug, Default)]
struct Extension {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    mtime: Option<i64>,
    size: Option<u64>,
    is_sparse: bool,
}

/// An archive as it is read, one entry after the other.
#[derive(Debug)]
pub(super) struct Archive<R> {
    input: R,
    /// What is left of the current entry, and of the block that it ends in.
    left: u64,
    padding: u64,
    entries: u64,
    max_entries: u64,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(input: R, max_entries: u64) -> Self {
        Self {
            input,
            left: 0,
            padding: 0,
            entries: 0,
            max_entries,
        }
    }

    /// The next entry; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut extension = Extension::default();
        let mut is_extended = false;
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                if is_extended {
                    return Err(bad("its last entry is missing").into());
                }
                return Ok(None);
            };
            // An extension is as much work as an entry.
            self.entries += 1;
            if self.entries > self.max_entries {
                return Err(too_much(self.max_entries, "entries").into());
            }
            let size = header.entry_size().map_err(bad_header)?;
            self.expect(size)?;
            let kind = header.entry_type();
            match kind {
                EntryType::GNULongName => extension.name = Some(self.text(size)?),
                EntryType::GNULongLink => extension.target = Some(self.text(size)?),
                EntryType::XHeader => {
                    let records = self.extension(size)?;
                    extension.read(&records)?;
                }
                // What a header says of all entries at once does not matter here.
                EntryType::XGlobalHeader => continue,
                _ => return entry(&header, size, extension).map(Some),
            }
            is_extended = true;
        }
    }

    /// The bytes of the current entry.
    pub(super) fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    /// Reads what follows the archive, which is nothing but padding as a rule.
    pub(super) fn finish(mut self, most: u64) -> Result<(), UnpackError> {
        let read = io::copy(&mut (&mut self.input).take(most), &mut io::sink());
        match read.map_err(UnpackError::Read)? {
            rest if rest >= most => Err(too_much(most, "bytes, unpacked").into()),
            _ => Ok(()),
        }
    }

    fn header(&mut self) -> Result<Option<Header>, UnpackError> {
        let mut header = Header::new_old();
        let mut read = 0;
        let bytes = header.as_mut_bytes();
        while read < bytes.len() {
            match self.input.read(&mut bytes[read..]) {
                Ok(0) if read == 0 => return Ok(None),
                Ok(0) => return Err(UnpackError::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(UnpackError::Read(error)),
            }
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = bytes[..148]
            .iter()
            .chain(&bytes[156..])
            .map(|byte| u32::from(*byte))
            .sum::<u32>()
            + 8 * u32::from(b' ');
        if header.cksum().map_err(bad_header)? != sum {
            return Err(bad("it is no tar archive: the checksum of a header is wrong").into());
        }
        Ok(Some(header))
    }

    /// There are so many bytes to come.
    fn expect(&mut self, size: u64) -> Result<(), UnpackError> {
        self.left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
        // The sum must be a number.
        if size.checked_add(BLOCK).is_none() {
            return Err(bad("an entry is bigger than anything can be").into());
        }
        Ok(())
    }

    fn skip(&mut self) -> Result<(), UnpackError> {
        let rest = self.left + self.padding;
        let skipped = io::copy(&mut (&mut self.input).take(rest), &mut io::sink())
            .map_err(UnpackError::Read)?;
        if skipped < rest {
            return Err(UnpackError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        if size > LONGEST_EXTENSION {
            return Err(bad("a name, or what is said of an entry, is too long").into());
        }
        let mut bytes = Vec::new();
        self.data()
            .read_to_end(&mut bytes)
            .map_err(UnpackError::Read)?;
        Ok(bytes)
    }

    /// A long name, up to its NUL.
    fn text(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        let mut text = self.extension(size)?;
        if text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }
}

/// What header and extensions say together.
fn entry(header: &Header, size: u64, extension: Extension) -> Result<Entry, UnpackError> {
    let name = extension
        .name
        .unwrap_or_else(|| header.path_bytes().into_owned());
    let target = extension.target.unwrap_or_else(|| {
        let target = header.link_name_bytes();
        target.map(Cow::into_owned).unwrap_or_default()
    });
    let refused = |reason: &str| SlugError::Entry {
        name: super::escaped(&name),
        reason: reason.to_owned(),
    };
    // Two readers of the same archive would see two archives.
    if extension.size.is_some_and(|other| other != size) {
        return Err(refused("has two sizes").into());
    }
    let kind = match header.entry_type() {
        _ if extension.is_sparse => Kind::Sparse,
        // An old archive says directory with a slash only.
        EntryType::Regular if name.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Char | EntryType::Block | EntryType::Fifo => Kind::Device,
        EntryType::GNUSparse => Kind::Sparse,
        other => Kind::Unknown(other.as_byte()),
    };
    let mode = header
        .mode()
        .map_err(|_| refused("has a mode that is no number"))?;
    let mtime = extension
        .mtime
        .or_else(|| i64::try_from(header.mtime().ok()?).ok());
    Ok(Entry {
        name,
        target,
        kind,
        mode: mode & 0o777,
        sets_id: kind == Kind::File && mode & SETS_ID != 0,
        mtime: mtime.unwrap_or(0).clamp(0, LATEST),
        size,
    })
}

impl Extension {
    /// PAX: records of `LENGTH KEY=VALUE\n`.
    fn read(&mut self, mut records: &[u8]) -> Result<(), SlugError> {
        let malformed = || bad("an extended header is malformed");
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ');
            let length = space
                .and_then(|at| std::str::from_utf8(&records[..at]).ok()?.parse().ok())
                .ok_or_else(malformed)?;
            let start = space.unwrap_or(0) + 1;
            let record = records
                .get(start..length)
                .and_then(|record| record.strip_suffix(b"\n"))
                .ok_or_else(malformed)?;
            let equals = record.iter().position(|byte| *byte == b'=');
            let equals = equals.ok_or_else(malformed)?;
            self.record(&record[..equals], &record[equals + 1..]);
            records = &records[length..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) {
        let number = || -> Option<&str> { std::str::from_utf8(value).ok()?.split('.').next() };
        match key {
            b"path" => self.name = Some(value.to_vec()),
            b"linkpath" => self.target = Some(value.to_vec()),
            // Where it is no number, the header's own counts.
            b"mtime" => self.mtime = number().and_then(|text| text.parse().ok()),
            b"size" => self.size = Some(number().and_then(|t| t.parse().ok()).unwrap_or(u64::MAX)),
            _ if key.starts_with(b"GNU.sparse.") => self.is_sparse = true,
            _ => {}
        }
    }
}

/// The bytes of an entry: all of them, or an error.
#[derive(Debug)]
pub(super) struct Data<'a, R>(&'a mut Archive<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.0.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.0.input.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.left -= read as u64;
        Ok(read)
    }
}

fn bad(reason: &str) -> SlugError {
    SlugError::Archive(reason.to_owned())
}

#[expect(clippy::needless_pass_by_value, reason = "it is used with map_err")]
fn bad_header(error: io::Error) -> UnpackError {
    bad(&format!("it is no tar archive: {error}")).into()
}
