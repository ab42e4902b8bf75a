//! Batches into a file that is put aside when it is full: `app.log`, `app.log.1`, `app.log.2`, …
//!
//! A batch is in the file as a whole or not at all: a write that fails is taken back.  Whoever
//! moves or removes the file (logrotate) gets a new one at the next batch.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{batch::Batch, retry::Answer, target::FilePlace};

/// Lines may say anything: they are for their owner and group.
const MODE: u32 = 0o640;

#[derive(Debug)]
pub(super) struct RotatedFile {
    place: FilePlace,
    open: Option<Open>,
    /// How much of the batch with this id is written: a part may fill the last file.
    written: (String, usize),
}

#[derive(Debug)]
struct Open {
    file: File,
    size: u64,
    dev_ino: (u64, u64),
}

impl RotatedFile {
    pub(super) const fn new(place: FilePlace) -> Self {
        Self {
            place,
            open: None,
            written: (String::new(), 0),
        }
    }

    pub(super) fn deliver(&mut self, batch: &Batch) -> Answer {
        if self.written.0 != batch.id {
            self.written = (batch.id.clone(), 0);
        }
        match self.write(&batch.body) {
            Ok(()) => Answer::Taken,
            Err(error) => {
                self.open = None;
                Answer::Broken(error.to_string())
            }
        }
    }

    fn write(&mut self, body: &[u8]) -> io::Result<()> {
        while self.written.1 < body.len() {
            let rest = &body[self.written.1..];
            let max_size = self.place.max_size;
            let open = self.open()?;
            let room = max_size.saturating_sub(open.size);
            let part = whole_lines(rest, usize::try_from(room).unwrap_or(usize::MAX));
            if part == 0 && open.size > 0 {
                self.rotate()?;
                continue;
            }
            // A single line that is longer than a file may be has one of its own.
            let part = if part == 0 { first_line(rest) } else { part };
            let size = open.size;
            if let Err(error) = open.file.write_all(&rest[..part]) {
                // What is there of it would be there twice after the next try.
                open.file.set_len(size)?;
                return Err(error);
            }
            open.size += part as u64;
            self.written.1 += part;
        }
        Ok(())
    }

    /// The file, opened anew when it is not at its path any more.
    fn open(&mut self) -> io::Result<&mut Open> {
        let path = &self.place.path;
        let is_there = |open: &Open| {
            fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == open.dev_ino)
        };
        let open = match self.open.take().filter(is_there) {
            Some(open) => open,
            None => open(path)?,
        };
        Ok(self.open.insert(open))
    }

    /// Puts the file aside, and the oldest one away.
    fn rotate(&mut self) -> io::Result<()> {
        self.open = None;
        let aside = |number: u32| {
            let mut name = self.place.path.clone().into_os_string();
            if number > 0 {
                name.push(format!(".{number}"));
            }
            PathBuf::from(name)
        };
        if self.place.keep == 0 {
            return fs::remove_file(&self.place.path);
        }
        for number in (0..self.place.keep).rev() {
            match fs::rename(aside(number), aside(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<Open> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(MODE)
        // A FIFO would be waited for.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    Ok(Open {
        file,
        size: found.len(),
        dev_ino: (found.dev(), found.ino()),
    })
}

/// How many bytes of whole lines there are in the first `room` bytes.
fn whole_lines(body: &[u8], room: usize) -> usize {
    if body.len() <= room {
        return body.len();
    }
    memchr::memrchr(b'\n', &body[..room]).map_or(0, |at| at + 1)
}

fn first_line(body: &[u8]) -> usize {
    memchr::memchr(b'\n', body).map_or(body.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::logs::drain::queue::{Announcement, Tally};

    fn batch(id: &str, body: impl Into<String>) -> Batch {
        Batch {
            id: id.to_owned(),
            body: body.into().into(),
            messages: 1,
            lines: Tally::default(),
            announcement: Announcement::default(),
        }
    }

    fn file(folder: &TempDir, max_size: u64, keep: u32) -> (RotatedFile, impl Fn(&str) -> String) {
        let path = folder.path().join("log");
        let place = FilePlace {
            path: path.clone(),
            max_size,
            keep,
        };
        let read = move |end: &str| {
            let mut name = path.clone().into_os_string();
            name.push(end);
            fs::read_to_string(name).unwrap_or_default()
        };
        (RotatedFile::new(place), read)
    }

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_goes() {
        let folder = TempDir::new().unwrap();
        let (mut file, read) = file(&folder, 10, 2);
        for (id, body) in [
            ("a", "1111\n2222\n3333\n4444\n"),
            ("b", "5555\n6666\n7777\n"),
        ] {
            assert_eq!(file.deliver(&batch(id, body)), Answer::Taken);
        }
        assert_eq!(read(""), "7777\n");
        assert_eq!(read(".1"), "5555\n6666\n");
        assert_eq!(read(".2"), "3333\n4444\n");
        assert_eq!(read(".3"), "");
        assert_eq!(
            file.deliver(&batch("c", "a long line alone\n")),
            Answer::Taken
        );
        assert_eq!(read(""), "a long line alone\n");
        assert_eq!(read(".1"), "7777\n");
    }

    #[test]
    fn none_kept_is_one_file() {
        let folder = TempDir::new().unwrap();
        let (mut file, read) = file(&folder, 10, 0);
        assert_eq!(
            file.deliver(&batch("a", "1111\n2222\n3333\n")),
            Answer::Taken
        );
        assert_eq!((read(""), read(".1")), ("3333\n".to_owned(), String::new()));
    }

    #[test]
    fn what_was_there_counts_and_a_file_that_was_moved_is_made_anew() {
        let folder = TempDir::new().unwrap();
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.path().join("log"))
            .unwrap()
            .write_all(b"before\n")
            .unwrap();
        let (mut file, read) = file(&folder, 12, 1);
        assert_eq!(file.deliver(&batch("a", "1111\n")), Answer::Taken);
        assert_eq!(read(""), "before\n1111\n");
        fs::rename(folder.path().join("log"), folder.path().join("taken")).unwrap();
        assert_eq!(file.deliver(&batch("b", "2222\n")), Answer::Taken);
        assert_eq!(read(""), "2222\n");
    }

    #[test]
    fn what_cannot_be_written_can_be_tried_again() {
        let folder = TempDir::new().unwrap();
        let (mut file, read) = file(&folder, 100, 1);
        fs::create_dir(folder.path().join("log")).unwrap();
        let batch = batch("a", "1111\n");
        assert!(matches!(file.deliver(&batch), Answer::Broken(_)));
        fs::remove_dir(folder.path().join("log")).unwrap();
        assert_eq!(file.deliver(&batch), Answer::Taken);
        assert_eq!(read(""), "1111\n");
    }
}
