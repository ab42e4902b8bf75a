//! hsup's own standard output and error, as the dynos' lines get there.
//!
//! A dyno's stdout goes to hsup's stdout, its stderr and hsup's own lines to
//! hsup's stderr.  Where both are the same terminal, pipe or open file, everything takes
//! the one way in the order in which it came.
//!
//! The text of a line is passed on as it is, control characters included, on a
//! terminal too: what an app writes for a terminal (colours, most of all) is meant for one.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, atomic::AtomicUsize},
};

use jiff::Timestamp;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::stat::{SFlag, fstat},
};

use super::{
    json::write_json,
    line::{Origin, Source, Stream},
    output::{Lost, Output},
    stderr::Stderr,
    style::{Format, Style},
};

/// hsup's own outputs.
#[derive(Debug)]
pub struct TerminalSettings {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub format: Format,
    /// The local time before the name ([`Format::Prefixed`], and hsup's own lines with [`Format::Bare`]).
    pub timestamps: bool,
    /// A colour for each process type.
    pub colour: bool,
}

impl TerminalSettings {
    /// The standard output and error of this process, with time and without colour.
    ///
    /// # Errors
    /// When the descriptors cannot be duplicated.
    pub fn standard(format: Format) -> io::Result<Self> {
        Ok(Self {
            stdout: io::stdout().as_fd().try_clone_to_owned()?,
            stderr: io::stderr().as_fd().try_clone_to_owned()?,
            format,
            timestamps: true,
            colour: false,
        })
    }
}

#[derive(Debug)]
pub(super) struct Terminal {
    stdout: Output,
    /// `None`: the same place as `stdout`.
    stderr: Option<Stderr>,
    style: Style,
}

impl Terminal {
    /// # Errors
    /// When the system refuses the thread of a standard error that is a place of its own.
    pub(super) fn new(settings: TerminalSettings) -> io::Result<Self> {
        let style = || Style::new(settings.format, settings.timestamps, settings.colour);
        let stderr = if same_place(&settings.stdout, &settings.stderr) {
            None
        } else {
            Some(Stderr::start(settings.stderr, style())?)
        };
        Ok(Self {
            style: style(),
            stdout: Output::new(settings.stdout),
            stderr,
        })
    }

    /// Standard error, where it is a place of its own.
    pub(super) fn stderr(&self) -> Option<&Stderr> {
        self.stderr.as_ref()
    }

    /// Where hsup's own lines go.
    pub(super) fn takes_notes(&self) -> bool {
        self.stderr.is_none() || self.style.format == Format::Json
    }

    /// Makes the column of names wide enough.
    pub(super) fn widen(&mut self, name_len: usize) {
        self.style.widen(name_len);
        if let Some(stderr) = &self.stderr {
            stderr.widen(name_len);
        }
    }

    /// What standard output did not take.
    pub(super) fn lost(&self) -> Option<Lost> {
        self.stdout.lost()
    }

    /// How many bytes the write to standard output that is under way has left.
    pub(super) fn pending(&self) -> Arc<AtomicUsize> {
        self.stdout.pending()
    }

    /// Whole lines of a dyno, each with its `\n`.
    pub(super) fn lines(&mut self, stream: Stream, name: &str, at_unix_us: i64, lines: &[u8]) {
        if self.style.format == Format::Json {
            let origin = Origin {
                source: Source::App,
                stream,
            };
            return self.json(origin, name, at_unix_us, lines);
        }
        match &self.stderr {
            Some(stderr) if stream == Stream::Stderr => stderr.lines(name, at_unix_us, lines),
            _ => {
                let prefix = self.style.before_lines(name, at_unix_us);
                push_lines(&mut self.stdout, prefix, lines);
            }
        }
    }

    /// hsup's own lines, each with its `\n`, where they do not go past it to a standard error
    /// of its own.
    pub(super) fn note(&mut self, name: &str, at_unix_us: i64, lines: &[u8]) {
        if self.style.format == Format::Json {
            return self.json(Origin::of_note(name), name, at_unix_us, lines);
        }
        let prefix = self.style.before_note(name, at_unix_us);
        push_lines(&mut self.stdout, prefix, lines);
    }

    /// Whole lines that are nobody's: as they are.
    pub(super) fn text(&mut self, text: &[u8]) {
        self.stdout.push(b"", text);
    }

    /// Writes what has gathered.
    pub(super) fn flush(&mut self) {
        self.stdout.flush();
    }

    fn json(&mut self, origin: Origin, name: &str, at_unix_us: i64, lines: &[u8]) {
        let at = Timestamp::from_microsecond(at_unix_us)
            .map(|at| format!("{at:.6}"))
            .unwrap_or_default();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            self.stdout
                .compose(|buffer| write_json(buffer, &at, origin, name, line));
        }
    }
}

fn push_lines(output: &mut Output, prefix: &[u8], lines: &[u8]) {
    if prefix.is_empty() {
        return output.push(b"", lines);
    }
    let mut start = 0;
    for newline in memchr::memchr_iter(b'\n', lines) {
        output.push(prefix, &lines[start..=newline]);
        start = newline + 1;
    }
}

/// Whether what is written to two descriptors comes out in the order in which it was written.
///
/// It does for one terminal, pipe or socket.  In a file, each descriptor has its own position,
/// unless one is a copy of the other (`>file 2>&1`) or both append (`>>file 2>>file`).
fn same_place(one: &OwnedFd, other: &OwnedFd) -> bool {
    let (Ok(first), Ok(second)) = (fstat(one), fstat(other)) else {
        return false;
    };
    let kind = SFlag::from_bits_truncate(first.st_mode) & SFlag::S_IFMT;
    let appends = |fd| {
        fcntl(fd, FcntlArg::F_GETFL)
            .is_ok_and(|flags| OFlag::from_bits_retain(flags).contains(OFlag::O_APPEND))
    };
    (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)
        && (kind != SFlag::S_IFREG
            || (appends(one) && appends(other))
            || is_copy(one.as_fd(), other.as_fd()))
}

/// Whether two descriptors are one open file.  A kernel that does not tell means no.
#[expect(unsafe_code, reason = "a system call without a wrapper")]
fn is_copy(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    /// Compares open files.
    const KCMP_FILE: libc::c_int = 0;
    let own = std::process::id();
    // SAFETY: it takes numbers alone, and reads nothing of ours.
    let order = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            own,
            own,
            KCMP_FILE,
            libc::c_long::from(one.as_raw_fd()),
            libc::c_long::from(other.as_raw_fd()),
        )
    };
    order == 0
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};

    use super::*;

    #[test]
    fn a_file_is_one_place_for_copies_and_for_those_that_append() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = |options: &OpenOptions| OwnedFd::from(options.open(file.path()).unwrap());
        let write = || open(File::options().write(true));
        let append = || open(File::options().append(true));
        let one = write();
        assert!(same_place(&one, &one.try_clone().unwrap()));
        assert!(!same_place(&one, &write()));
        assert!(!same_place(&one, &append()));
        assert!(same_place(&append(), &append()));
        let elsewhere = tempfile::tempfile().unwrap().into();
        assert!(!same_place(&one, &elsewhere));
    }
}
