//! The FIFOs of one dyno, held as the supervisor holds them (driver protocol §11).

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{libc::O_NONBLOCK, sys::stat::Mode, unistd::mkfifo};
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, sleep, timeout},
};

use super::{
    case::{Failure, check},
    kernel::waitable,
};

/// How long a case waits for output that must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// The suite's end of a dyno's stdout or stderr.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    name: String,
    fd: Option<AsyncFd<File>>,
    buffer: Vec<u8>,
}

/// The suite's end of a dyno's stdin.
#[derive(Debug)]
pub struct Stdin {
    path: PathBuf,
    fd: Option<AsyncFd<File>>,
}

/// Makes a FIFO that a dyno of another user may write, in a directory it cannot list.
fn make(path: &Path) -> io::Result<()> {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    // Not as the mode of mkfifo: the umask would take the others' bits away.
    std::fs::set_permissions(path, Permissions::from_mode(0o622))
}

fn open(path: &Path, read: bool, write: bool) -> io::Result<AsyncFd<File>> {
    let mut options = OpenOptions::new();
    options.read(read).write(write).custom_flags(O_NONBLOCK);
    waitable(options.open(path)?)
}

impl Output {
    /// Makes the FIFO `name` in `dir` and holds both its ends.
    pub(crate) fn make(dir: &Path, name: &str, dyno: &str) -> io::Result<Self> {
        let path = dir.join(name);
        make(&path)?;
        let fd = Some(open(&path, true, true)?);
        Ok(Self {
            path,
            name: format!("{name} of {dyno}"),
            fd,
            buffer: Vec::new(),
        })
    }

    /// Lets go of the FIFO, as a supervisor does that is killed.
    pub fn release(&mut self) {
        self.fd = None;
    }

    /// Holds both ends again, as a supervisor does that comes back.
    pub fn reopen(&mut self) -> Result<(), Failure> {
        self.hold(true)
    }

    /// Holds the reading end only, so that the end of file shows that no process of the dyno
    /// has the FIFO open any more.
    pub fn only_read(&mut self) -> Result<(), Failure> {
        self.hold(false)
    }

    fn hold(&mut self, write: bool) -> Result<(), Failure> {
        let fd = open(&self.path, true, write).map_err(|error| Failure {
            on: self.name.clone(),
            expected: "a FIFO that opens".to_owned(),
            observed: error.to_string(),
        })?;
        self.fd = Some(fd);
        Ok(())
    }

    /// How many bytes wait in the FIFO.
    pub fn waiting(&self) -> usize {
        let Some(fd) = &self.fd else { return 0 };
        super::kernel::readable_bytes(fd.get_ref())
    }

    /// Reads what is there now; says whether the end of file was reached.
    fn fill(&mut self) -> io::Result<bool> {
        let Some(fd) = &self.fd else { return Ok(true) };
        let mut chunk = [0; 16384];
        loop {
            match fd.get_ref().read(&mut chunk) {
                Ok(0) => return Ok(true),
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until the buffer satisfies `enough`, which returns how many bytes to take.
    async fn take_when(
        &mut self,
        what: &str,
        patience: Duration,
        enough: impl Fn(&[u8]) -> Option<usize>,
    ) -> Result<Vec<u8>, Failure> {
        let deadline = Instant::now() + patience;
        loop {
            let ended = self.fill();
            if let Some(end) = enough(&self.buffer) {
                return Ok(self.buffer.drain(..end).collect());
            }
            let observed = match ended {
                Err(error) => Some(error.to_string()),
                Ok(true) => Some("the end of file".to_owned()),
                Ok(false) => self.readable(deadline).await.err(),
            };
            if let Some(observed) = observed {
                return Err(Failure {
                    on: self.name.clone(),
                    expected: what.to_owned(),
                    observed: format!("{observed}, after {}", shown(&self.buffer)),
                });
            }
        }
    }

    async fn readable(&self, deadline: Instant) -> Result<(), String> {
        let Some(fd) = &self.fd else {
            return Err("a FIFO that is not open".to_owned());
        };
        let patience = deadline.saturating_duration_since(Instant::now());
        match timeout(patience, fd.readable()).await {
            Ok(Ok(mut ready)) => {
                ready.clear_ready();
                Ok(())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("nothing more in time".to_owned()),
        }
    }

    /// The next line, without its newline.
    pub async fn line(&mut self) -> Result<String, Failure> {
        let newline = |bytes: &[u8]| bytes.iter().position(|b| *b == b'\n').map(|at| at + 1);
        let line = self.take_when("a line", PATIENCE, newline).await?;
        Ok(String::from_utf8_lossy(&line[..line.len() - 1]).into_owned())
    }

    /// Waits for a line that is exactly `wanted`.
    pub async fn expect(&mut self, wanted: &str) -> Result<(), Failure> {
        let line = self.line().await?;
        super::case::check_eq(&self.name, &line.as_str(), &wanted)
    }

    /// The next `count` bytes.
    pub async fn bytes(&mut self, count: usize, patience: Duration) -> Result<Vec<u8>, Failure> {
        let what = format!("{count} bytes");
        let enough = |bytes: &[u8]| (bytes.len() >= count).then_some(count);
        self.take_when(&what, patience, enough).await
    }

    /// Everything that is there now: what a supervisor drains once Wait has answered.
    pub fn drain(&mut self) -> Result<Vec<u8>, Failure> {
        self.fill().map_err(|error| Failure {
            on: self.name.clone(),
            expected: "a FIFO that can be drained".to_owned(),
            observed: error.to_string(),
        })?;
        Ok(std::mem::take(&mut self.buffer))
    }

    /// Whether the end of file comes within `patience`. Needs [`Output::only_read`].
    pub async fn ends_within(&mut self, patience: Duration) -> Result<bool, Failure> {
        let deadline = Instant::now() + patience;
        loop {
            let ended = self.fill().map_err(|error| Failure {
                on: self.name.clone(),
                expected: "a FIFO that can be read".to_owned(),
                observed: error.to_string(),
            })?;
            self.buffer.clear();
            if ended {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Stdin {
    /// Makes the FIFO in `dir` and holds both its ends until the dyno has started.
    pub(crate) fn make(dir: &Path) -> io::Result<Self> {
        let path = dir.join("stdin");
        make(&path)?;
        let fd = Some(open(&path, true, true)?);
        Ok(Self { path, fd })
    }

    /// A dyno without one.
    pub(crate) const fn none() -> Self {
        Self {
            path: PathBuf::new(),
            fd: None,
        }
    }

    /// After Start: keeps the writing end only, so that closing it is the end of file.
    pub(crate) fn started(&mut self) -> io::Result<()> {
        if self.fd.is_some() {
            self.fd = Some(open(&self.path, false, true)?);
        }
        Ok(())
    }

    /// Writes all of `bytes`.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let failed = |observed: String| Failure {
            on: "stdin".to_owned(),
            expected: format!("{} bytes taken by the dyno", bytes.len()),
            observed,
        };
        let Some(fd) = &self.fd else {
            return Err(failed("no stdin FIFO".to_owned()));
        };
        let mut rest = bytes;
        while !rest.is_empty() {
            match fd.get_ref().write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let ready = timeout(PATIENCE, fd.writable()).await;
                    match ready {
                        Ok(Ok(mut ready)) => ready.clear_ready(),
                        Ok(Err(error)) => return Err(failed(error.to_string())),
                        Err(_) => return Err(failed("a full FIFO that nobody reads".to_owned())),
                    }
                }
                Err(error) => return Err(failed(error.to_string())),
            }
        }
        Ok(())
    }

    /// Closes the writing end: the dyno's end of file.
    pub fn close(&mut self) {
        self.fd = None;
    }
}

/// The beginning of `bytes` for a report.
fn shown(bytes: &[u8]) -> String {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    format!("{} bytes {head:?}", bytes.len())
}

/// Fails unless `bytes` are the lines that `count` counts, each padded to `width` bytes.
pub(crate) fn check_sequence(
    on: &str,
    bytes: &[u8],
    count: usize,
    width: usize,
) -> Result<(), Failure> {
    check(
        bytes.len() == count * width,
        on,
        format_args!("{} bytes", count * width),
        format_args!("{} bytes", bytes.len()),
    )?;
    for (index, line) in bytes.chunks(width).enumerate() {
        let number = line.split(|b| *b == b' ').next().unwrap_or_default();
        check(
            number == index.to_string().as_bytes() && line.ends_with(b"\n"),
            on,
            format_args!("line {index} in its place"),
            shown(line),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_one_by_one_and_the_end_shows() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = Output::make(dir.path(), "stdout", "d").unwrap();
        let mut writer = OpenOptions::new()
            .write(true)
            .open(dir.path().join("stdout"))
            .unwrap();
        writer.write_all(b"one\ntwo\nrest").unwrap();
        assert_eq!(output.line().await.unwrap(), "one");
        assert_eq!(output.line().await.unwrap(), "two");
        assert_eq!(output.drain().unwrap(), b"rest");
        output.only_read().unwrap();
        assert!(!output.ends_within(Duration::from_millis(20)).await.unwrap());
        drop(writer);
        assert!(output.ends_within(PATIENCE).await.unwrap());
    }

    #[test]
    fn a_lost_line_is_noticed() {
        assert!(check_sequence("x", b"0 a\n1 a\n", 2, 4).is_ok());
        assert!(check_sequence("x", b"0 a\n2 a\n", 2, 4).is_err());
        assert!(check_sequence("x", b"0 a\n", 2, 4).is_err());
    }
}
