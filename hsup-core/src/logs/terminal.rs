//! hsup's own standard output and error, as the dynos' lines get there.
//!
//! A dyno's stdout goes to hsup's stdout, its stderr and hsup's own lines to
//! hsup's stderr. Where both are the same terminal, pipe or open file, everything takes
//! the one way in the order in which it came.
//!
//! The text of a line is passed on as it is, control characters included, on a
//! terminal too: what an app writes for a terminal (colours, most of all) is meant for one.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::stat::{SFlag, fstat},
};
use tokio::sync::oneshot;

use super::{
    SYSTEM,
    json::write_json,
    line::{Origin, Source, Stream, counted_past},
    outlet::{Bounds, News, Outlet},
    shared::{Shared, now_unix_us},
    stderr::Stderr,
    style::{Format, Style},
};

/// What may wait for standard output: enough for the burst of a crash, and for a reader that
/// turns away for a moment.
const ROOM: usize = 4 << 20;
const KEPT: usize = 128 * 1024;
/// How long standard output may take nothing until nobody waits for it any more.
const PATIENCE: Duration = Duration::from_secs(10);
/// Said when its lines are dropped.
pub(super) const STUCK: &str = "Standard output takes too little: the dynos go on, and \
     `hsupctl logs` has their last lines";

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
    /// How long standard output may take nothing before the dynos do not wait for it any more.
    pub patience: Duration,
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
            patience: PATIENCE,
        })
    }
}

#[derive(Debug)]
pub(super) struct Terminal {
    stdout: Outlet,
    /// Where that leads to, until its thread begins.
    stdout_fd: Option<OwnedFd>,
    /// `None`: the same place as `stdout`.
    stderr: Option<Stderr>,
    style: Style,
    /// Lines as JSON, on their way to `stdout`.
    json: Vec<u8>,
}

impl Terminal {
    /// Without the thread of standard output, which has to know whom to tell.
    ///
    /// # Errors
    /// When the system refuses the thread of a standard error that is a place of its own.
    pub(super) fn new(settings: TerminalSettings) -> io::Result<Self> {
        let style = || Style::new(settings.format, settings.timestamps, settings.colour);
        let stderr = if same_place(&settings.stdout, &settings.stderr) {
            None
        } else {
            Some(Stderr::start(settings.stderr, style())?)
        };
        let stdout = Outlet::new(Bounds {
            room: ROOM,
            kept: KEPT,
            patience: settings.patience,
        });
        Ok(Self {
            style: style(),
            stdout,
            stdout_fd: Some(settings.stdout),
            stderr,
            json: Vec::new(),
        })
    }

    /// Begins to write standard output, and to tell people what happens to it.
    ///
    /// # Errors
    /// When the system refuses the thread.
    pub(super) fn begin(&mut self, shared: &Arc<Shared>) -> io::Result<()> {
        let Some(fd) = self.stdout_fd.take() else {
            return Ok(());
        };
        let format = self.style.format;
        let shared = Arc::downgrade(shared);
        self.stdout.write_to(
            fd,
            "stdout",
            move |dropped| notice(format, dropped),
            move |news| {
                if let Some(shared) = shared.upgrade() {
                    shared.note(SYSTEM, &words(news));
                }
            },
        )
    }

    /// Standard output.
    pub(super) fn stdout(&self) -> &Outlet {
        &self.stdout
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

    /// Whole lines of a dyno, each with its `\n`; waits where standard output holds.
    pub(super) fn lines(&mut self, stream: Stream, name: &str, at_unix_us: i64, lines: &[u8]) {
        if self.style.format == Format::Json {
            let origin = Origin {
                source: Source::App,
                stream,
            };
            self.compose(origin, name, at_unix_us, lines);
            return self.stdout.push_held(b"", &self.json);
        }
        match &self.stderr {
            Some(stderr) if stream == Stream::Stderr => stderr.lines(name, at_unix_us, lines),
            _ => {
                let prefix = self.style.before_lines(name, at_unix_us);
                self.stdout.push_held(prefix, lines);
            }
        }
    }

    /// hsup's own lines, each with its `\n`, where they do not go past it to a standard error
    /// of its own.
    pub(super) fn note(&mut self, name: &str, at_unix_us: i64, lines: &[u8]) {
        if self.style.format == Format::Json {
            self.compose(Origin::of_note(name), name, at_unix_us, lines);
            return self.stdout.push(b"", &self.json);
        }
        let prefix = self.style.before_note(name, at_unix_us);
        self.stdout.push(prefix, lines);
    }

    /// Whole lines that are nobody's: as they are.
    pub(super) fn text(&mut self, text: &[u8]) {
        self.stdout.push(b"", text);
    }

    /// Has what has gathered written; answers whether people should know that lines are missing.
    pub(super) fn flush(&self) -> bool {
        self.stdout.flush()
    }

    /// Lets nothing more in; each of `done` is dropped at the end.
    pub(super) fn close(&self, done: Vec<oneshot::Sender<()>>) {
        self.stdout.close(done);
    }

    /// Makes objects of lines.
    fn compose(&mut self, origin: Origin, name: &str, at_unix_us: i64, lines: &[u8]) {
        self.json.clear();
        self.json.shrink_to(KEPT);
        let at = json_time(at_unix_us);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            write_json(&mut self.json, &at, origin, name, line);
        }
    }
}

fn json_time(at_unix_us: i64) -> String {
    Timestamp::from_microsecond(at_unix_us)
        .map(|at| format!("{at:.6}"))
        .unwrap_or_default()
}

/// The line that stands in standard output where others are missing.
fn notice(format: Format, dropped: u64) -> Vec<u8> {
    let text = format!(
        "{} not written here: standard output took too little",
        counted_past(dropped)
    );
    if format == Format::Json {
        let mut object = Vec::new();
        let at = json_time(now_unix_us());
        write_json(
            &mut object,
            &at,
            Origin::of_note(SYSTEM),
            SYSTEM,
            text.as_bytes(),
        );
        return object;
    }
    format!("hsup: {text}\n").into_bytes()
}

/// What people are told of standard output.
fn words(news: News) -> String {
    match news {
        News::Flows { dropped } => {
            format!(
                "Standard output takes lines again; {} not written",
                counted_past(dropped)
            )
        }
        News::Fails(lost) => {
            let what = if lost.is_for_now() {
                "takes no more"
            } else {
                "is gone"
            };
            let why = lost.why.desc();
            format!(
                "Standard output {what} ({why}): the dynos go on, and `hsupctl logs` has their last lines"
            )
        }
        News::Ends(lost) => {
            let (bytes, why) = (lost.bytes, lost.why.desc());
            format!("{bytes} bytes of standard output were not written: {why}")
        }
    }
}

/// Whether what is written to two descriptors comes out in the order in which it was written.
///
/// It does for one terminal, pipe or socket. In a file, each descriptor has its own position,
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

/// Whether two descriptors are one open file. A kernel that does not tell means no.
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
