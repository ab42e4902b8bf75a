//! Batches into a file that is put aside when it is full: `app.log`, `app.log.1`, `app.log.2`, …
//!
//! A batch is in the file as a whole or not at all: a write that fails is taken back. Whoever
//! moves or removes the file (logrotate) gets a new one at the next batch.
//!
//! Two writers of one file would take back each other's lines, and put aside each other's files.
//! So a writer holds a lock on the file, and a second one waits for it as for a full disk.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
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
                Answer::Unwritten(error.to_string())
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
            open.append(&rest[..part])?;
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
        // Locked until it has another name.
        let _full = self.open.take();
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

impl Open {
    /// Writes all of it or nothing.
    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let mut size = self.size;
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(written) => {
                    size += written as u64;
                    bytes = &bytes[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // What is there of it would be there twice after the next try. Behind it
                    // are lines of somebody who knows of no lock: then it stays.
                    if self.file.metadata()?.len() == size {
                        self.file.set_len(self.size)?;
                    }
                    return Err(error);
                }
            }
        }
        self.size = size;
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
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(io::Error::other(in_use(&found))),
        // A file system without locks has none for anybody.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    let dev_ino = (found.dev(), found.ino());
    // Whoever had the lock may have put it aside since it was opened.
    let at_path = fs::metadata(path)?;
    if (at_path.dev(), at_path.ino()) != dev_ino {
        return Err(io::Error::other("it was put aside just now"));
    }
    let mut open = Open {
        // What the one before wrote last is there by now.
        size: at_path.len(),
        file,
        dev_ino,
    };
    if ends_within_a_line(path, open.size) {
        // It was killed in a write, and its half a line would spoil our first.
        open.append(b"\n")?;
    }
    Ok(open)
}

/// One that may be written and not read is taken for a whole one.
fn ends_within_a_line(path: &Path, size: u64) -> bool {
    let Some(at) = size.checked_sub(1) else {
        return false;
    };
    let mut last = [b'\n'];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut last, at));
    read.is_ok() && last != [b'\n']
}

/// Says who writes to a file that is locked, as far as the kernel tells.
fn in_use(file: &fs::Metadata) -> String {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    match lock_holder(&locks, file.dev(), file.ino()) {
        Some(pid) if pid == std::process::id() => {
            "another log drain of this hsup writes to it".to_owned()
        }
        Some(pid) => {
            format!("process {pid} writes to it, and so two would spoil each other's lines")
        }
        None => {
            "another process writes to it, and so two would spoil each other's lines".to_owned()
        }
    }
}

/// Who has a lock on the file, by `/proc/locks` (proc(5)):
/// `1: FLOCK  ADVISORY  WRITE 4711 08:01:131090 0 EOF`.
fn lock_holder(locks: &str, dev: u64, ino: u64) -> Option<u32> {
    let file = format!("{:02x}:{:02x}:{ino}", libc::major(dev), libc::minor(dev));
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let is_held = words.next() == Some("FLOCK");
        let pid = words.nth(2)?.parse().ok()?;
        (is_held && words.next() == Some(&*file)).then_some(pid)
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
    use std::time::Duration;

    use tempfile::TempDir;
    use tokio::time::Instant;

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
    fn half_a_line_of_one_that_was_killed_spoils_no_other() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("log");
        crate::files::write_atomic(&path, b"before\nhal").unwrap();
        let (mut file, read) = file(&folder, 100, 1);
        for (id, line) in [("a", "1111\n"), ("b", "2222\n")] {
            assert_eq!(file.deliver(&batch(id, line)), Answer::Taken);
        }
        assert_eq!(read(""), "before\nhal\n1111\n2222\n");
    }

    #[test]
    fn a_second_one_waits_until_the_first_has_let_go() {
        let folder = TempDir::new().unwrap();
        let (mut first, read) = file(&folder, 100, 1);
        let (mut second, _) = file(&folder, 100, 1);
        assert_eq!(first.deliver(&batch("a", "1111\n")), Answer::Taken);
        let refused = second.deliver(&batch("b", "2222\n"));
        let why = "another log drain of this hsup writes to it";
        assert_eq!(refused, Answer::Unwritten(why.to_owned()));
        assert_eq!(first.deliver(&batch("c", "3333\n")), Answer::Taken);
        drop(first);
        // A process that another test spawns meanwhile holds the lock too, until its `exec`.
        let deadline = Instant::now() + Duration::from_mins(1);
        while second.deliver(&batch("b", "2222\n")) != Answer::Taken {
            assert!(Instant::now() < deadline, "the first holds it");
        }
        assert_eq!(read(""), "1111\n3333\n2222\n");
    }

    #[test]
    fn what_others_wrote_behind_a_half_batch_stays() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("log");
        let mut opened = open(&path).unwrap();
        opened.append(b"ours\n").unwrap();
        // As a full disk has it: the descriptor takes nothing.
        opened.file = File::open(&path).unwrap();
        let mut other = OpenOptions::new().append(true).open(&path).unwrap();
        other.write_all(b"theirs\n").unwrap();
        assert!(opened.append(b"more\n").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "ours\ntheirs\n");
    }

    #[test]
    fn the_holder_of_a_lock_is_found_by_device_and_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fd:00:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 4711 08:01:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 4712 08:01:78 0 EOF\n";
        let holder = |ino| lock_holder(locks, libc::makedev(8, 1), ino);
        assert_eq!((holder(77), holder(78)), (Some(4711), None));
        assert_eq!(lock_holder(locks, libc::makedev(0xfd, 0), 77), None);
    }

    #[test]
    fn what_cannot_be_written_can_be_tried_again() {
        let folder = TempDir::new().unwrap();
        let (mut file, read) = file(&folder, 100, 1);
        fs::create_dir(folder.path().join("log")).unwrap();
        let batch = batch("a", "1111\n");
        assert!(matches!(file.deliver(&batch), Answer::Unwritten(_)));
        fs::remove_dir(folder.path().join("log")).unwrap();
        assert_eq!(file.deliver(&batch), Answer::Taken);
        assert_eq!(read(""), "1111\n");
    }
}
