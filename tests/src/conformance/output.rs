//! What a dyno writes: read from a FIFO, held as the supervisor holds it (docs/driver-rules.md
//! §11), or from Logs where the driver has none.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::unix::AsyncFd,
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender, error::TryRecvError},
    time::{Instant, sleep, timeout},
};

use super::{
    case::{Failure, check},
    fifo::{make, open},
};

/// How long a case waits for output that must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// The suite's end of a dyno's stdout or stderr.
#[derive(Debug)]
pub struct Output {
    name: String,
    source: Source,
    buffer: Vec<u8>,
}

/// Where the bytes come from.
#[derive(Debug)]
enum Source {
    Fifo {
        path: PathBuf,
        fd: Option<AsyncFd<File>>,
    },
    /// Whoever follows the dyno's Logs has the other end; closed when they end.
    Logs(UnboundedReceiver<Vec<u8>>),
}

impl Output {
    /// Makes the FIFO `name` in `dir` and holds both its ends.
    pub(crate) fn make(dir: &Path, name: &str, dyno: &str) -> io::Result<Self> {
        let path = dir.join(name);
        make(&path)?;
        let fd = Some(open(&path, true, true)?);
        Ok(Self::new(name, dyno, Source::Fifo { path, fd }))
    }

    /// What is sent to the other end, until that is closed.
    pub(crate) fn of_logs(name: &str, dyno: &str) -> (UnboundedSender<Vec<u8>>, Self) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (sender, Self::new(name, dyno, Source::Logs(receiver)))
    }

    fn new(name: &str, dyno: &str, source: Source) -> Self {
        Self {
            name: format!("{name} of {dyno}"),
            source,
            buffer: Vec::new(),
        }
    }

    /// Lets go of the FIFO, as a supervisor does that is killed.
    pub fn release(&mut self) {
        if let Source::Fifo { fd, .. } = &mut self.source {
            *fd = None;
        }
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
        let Source::Fifo { path, fd } = &mut self.source else {
            return Err(self.failed("a FIFO", &"the dyno has Logs"));
        };
        match open(path, true, write) {
            Ok(opened) => *fd = Some(opened),
            Err(error) => return Err(self.failed("a FIFO that opens", &error)),
        }
        Ok(())
    }

    fn failed(&self, expected: &str, observed: &dyn fmt::Display) -> Failure {
        Failure {
            on: self.name.clone(),
            expected: expected.to_owned(),
            observed: observed.to_string(),
        }
    }

    /// How many bytes wait in the FIFO.
    pub fn waiting(&self) -> usize {
        match &self.source {
            Source::Fifo { fd: Some(fd), .. } => super::kernel::readable_bytes(fd.get_ref()),
            Source::Fifo { fd: None, .. } | Source::Logs(_) => 0,
        }
    }

    /// Reads what is there now; says whether the end was reached.
    fn fill(&mut self) -> io::Result<bool> {
        match &mut self.source {
            Source::Fifo { fd: None, .. } => Ok(true),
            Source::Fifo { fd: Some(fd), .. } => {
                let mut chunk = [0; 16384];
                loop {
                    match fd.get_ref().read(&mut chunk) {
                        Ok(0) => return Ok(true),
                        Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            return Ok(false);
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            Source::Logs(chunks) => loop {
                match chunks.try_recv() {
                    Ok(chunk) => self.buffer.extend(chunk),
                    Err(error) => return Ok(error == TryRecvError::Disconnected),
                }
            },
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
                Ok(true) => Some("its end".to_owned()),
                Ok(false) => self.readable(deadline).await.err(),
            };
            if let Some(observed) = observed {
                let observed = format!("{observed}, after {}", shown(&self.buffer));
                return Err(self.failed(what, &observed));
            }
        }
    }

    async fn readable(&mut self, deadline: Instant) -> Result<(), String> {
        let patience = deadline.saturating_duration_since(Instant::now());
        let late = |_| "nothing more in time".to_owned();
        match &mut self.source {
            Source::Fifo { fd: None, .. } => Err("a FIFO that is not open".to_owned()),
            Source::Fifo { fd: Some(fd), .. } => {
                let ready = timeout(patience, fd.readable()).await.map_err(late)?;
                ready.map_err(|error| error.to_string())?.clear_ready();
                Ok(())
            }
            Source::Logs(chunks) => {
                // At the end there is nothing to add, and `fill` tells it.
                let chunk = timeout(patience, chunks.recv()).await.map_err(late)?;
                self.buffer.extend(chunk.unwrap_or_default());
                Ok(())
            }
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

    /// Everything that there is once Wait has answered: a supervisor drains the FIFO, or reads
    /// Logs to their end.
    pub async fn drain(&mut self) -> Result<Vec<u8>, Failure> {
        if let Source::Logs(_) = self.source {
            let deadline = Instant::now() + PATIENCE;
            while !matches!(self.fill(), Ok(true)) {
                if let Err(observed) = self.readable(deadline).await {
                    return Err(self.failed("the end of Logs, as the dyno has exited", &observed));
                }
            }
        } else if let Err(error) = self.fill() {
            return Err(self.failed("a FIFO that can be drained", &error));
        }
        Ok(std::mem::take(&mut self.buffer))
    }

    /// Whether the end of file comes within `patience`. Needs [`Output::only_read`].
    pub async fn ends_within(&mut self, patience: Duration) -> Result<bool, Failure> {
        let deadline = Instant::now() + patience;
        loop {
            let ended = match self.fill() {
                Ok(ended) => ended,
                Err(error) => return Err(self.failed("a FIFO that can be read", &error)),
            };
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
    use std::{fs::OpenOptions, io::Write as _};

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
        assert_eq!(output.drain().await.unwrap(), b"rest");
        output.only_read().unwrap();
        assert!(!output.ends_within(Duration::from_millis(20)).await.unwrap());
        drop(writer);
        assert!(output.ends_within(PATIENCE).await.unwrap());
    }

    #[tokio::test]
    async fn logs_are_drained_to_their_end() {
        let (logs, mut output) = Output::of_logs("stdout", "d");
        logs.send(b"one\nre".to_vec()).unwrap();
        assert_eq!(output.line().await.unwrap(), "one");
        let ending = async {
            logs.send(b"st".to_vec()).unwrap();
            drop(logs);
        };
        let (rest, ()) = tokio::join!(output.drain(), ending);
        assert_eq!(rest.unwrap(), b"rest");
        assert!(output.line().await.is_err());
    }

    #[test]
    fn a_lost_line_is_noticed() {
        assert!(check_sequence("x", b"0 a\n1 a\n", 2, 4).is_ok());
        assert!(check_sequence("x", b"0 a\n2 a\n", 2, 4).is_err());
        assert!(check_sequence("x", b"0 a\n", 2, 4).is_err());
    }
}
