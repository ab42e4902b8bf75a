//! What the benchmarks run as dynos, and how it is heard of.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    process, thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::Mode,
    unistd::mkfifo,
};

use super::{app, clock};

/// A line's length, its newline included.
pub(super) const LINE_BYTES: usize = 100;
/// Longer than anything takes; then something is broken.
const PATIENCE: u16 = 60_000;
const RECORD_BYTES: usize = 16;

/// A dyno: says that its program runs, to this FIFO or to its standard output, and then nothing.
pub(crate) fn stamp(fifo: Option<&Path>) -> Result<()> {
    let mut record = [0; RECORD_BYTES];
    record[..8].copy_from_slice(&clock::now().to_le_bytes());
    record[8..12].copy_from_slice(&process::id().to_le_bytes());
    let mut fifo = match fifo {
        Some(fifo) => OpenOptions::new().write(true).open(fifo)?,
        None => File::from(io::stdout().as_fd().try_clone_to_owned()?),
    };
    // One small write to a FIFO is never torn (`PIPE_BUF`, pipe(7)).
    fifo.write_all(&record)?;
    drop(fifo);
    loop {
        thread::park();
    }
}

/// A dyno: writes lines of 100 bytes, `block` bytes at a time.
pub(crate) fn write_lines(block: usize, lines: usize) -> Result<()> {
    let line = [&[b'x'; LINE_BYTES - 1][..], b"\n"].concat();
    // Blocks need not end where lines do, so the text goes on behind the last whole line.
    let text = line.repeat(block.div_ceil(LINE_BYTES) + 1);
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut written = 0;
    let total = lines * LINE_BYTES;
    while written < total {
        let from = written % LINE_BYTES;
        let count = block.min(total - written);
        stdout.write_all(&text[from..from + count])?;
        written += count;
    }
    Ok(())
}

/// A dyno: writes numbered lines of 100 bytes in blocks, so many a second or as fast as it can.
pub(crate) fn write_numbered(lines: u32, pace: Option<u32>) -> Result<()> {
    const AT_ONCE: u32 = 40;
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let begun = clock::now();
    let mut block = Vec::new();
    for number in 1..=lines {
        writeln!(block, "{number:x>width$}", width = LINE_BYTES - 1)?;
        if number % AT_ONCE == 0 || number == lines {
            stdout.write_all(&block)?;
            block.clear();
            if let Some(pace) = pace {
                let due = begun + u64::from(number) * 1_000_000_000 / u64::from(pace);
                thread::sleep(Duration::from_nanos(due.saturating_sub(clock::now())));
            }
        }
    }
    Ok(())
}

/// That one program runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    /// When its first instructions ran, by [`clock::now`].
    pub(super) at: u64,
    pub(super) pid: i32,
}

/// Where the stamps arrive.
#[derive(Debug)]
pub(super) struct Stamps {
    path: PathBuf,
    fifo: File,
}

impl Stamps {
    pub(super) fn new(directory: &Path) -> Result<Self> {
        Self::at(directory.join("stamps"))
    }

    /// In a FIFO at this path.
    pub(super) fn at(path: PathBuf) -> Result<Self> {
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).context("failed to make a FIFO")?;
        let fifo = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(&path)?;
        Ok(Self { path, fifo })
    }

    /// The shell line of a dyno that stamps.
    pub(super) fn line(&self) -> Result<String> {
        shell_line(&["stamp".as_ref(), self.path.as_os_str()])
    }

    /// The next stamp.
    pub(super) fn next(&mut self) -> Result<Stamp> {
        let mut record = [0; RECORD_BYTES];
        loop {
            match self.fifo.read(&mut record) {
                Ok(RECORD_BYTES) => break,
                Ok(_) => bail!("half a stamp"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            let mut waiting = [PollFd::new(self.fifo.as_fd(), PollFlags::POLLIN)];
            if poll(&mut waiting, PollTimeout::from(PATIENCE))? == 0 {
                bail!("waited in vain for a dyno to start");
            }
        }
        let [at, pid] = [0, 8].map(|from| {
            let bytes = record[from..from + 8].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes)
        });
        Ok(Stamp {
            at,
            pid: i32::try_from(pid)?,
        })
    }

    pub(super) fn take(&mut self, count: usize) -> Result<Vec<Stamp>> {
        (0..count).map(|_| self.next()).collect()
    }
}

/// The shell line of a dyno that writes lines.
pub(super) fn lines_line(block: usize, lines: usize) -> Result<String> {
    let [block, lines] = [block, lines].map(|number| number.to_string());
    shell_line(&["write-lines".as_ref(), block.as_ref(), lines.as_ref()])
}

/// The shell line of a dyno that writes numbered lines.
pub(super) fn numbered_line(lines: u32, pace: Option<u32>) -> Result<String> {
    let words: Vec<String> = [lines]
        .into_iter()
        .chain(pace)
        .map(|n| n.to_string())
        .collect();
    let words = words.iter().map(OsStr::new);
    let words: Vec<&OsStr> = [OsStr::new("write-numbered")]
        .into_iter()
        .chain(words)
        .collect();
    shell_line(&words)
}

fn shell_line(words: &[&OsStr]) -> Result<String> {
    let program = app::binary("xtask");
    let mut line = "exec".to_owned();
    for word in [&[program.as_os_str()], words].concat() {
        let word = word.to_str().context("a path that is not UTF-8")?;
        line.push(' ');
        line.push_str(word);
    }
    Ok(line)
}
