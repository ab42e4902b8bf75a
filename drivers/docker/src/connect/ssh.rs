//! A connection to an engine by way of `ssh`, as the `docker` command makes one.

use std::{
    fmt, io,
    pin::Pin,
    process::Stdio,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::BoxFuture;
use thiserror::Error;
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, BufReader, Join, ReadBuf,
        join,
    },
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{Duplex, SILENCE, SILENCES};
use crate::context::Ssh;

/// How long an ssh that has ended may take to say why: what it left running may hold its stderr.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);
/// How much of a line that it says is read.
const LINE: u64 = 1024;

/// There is no connection, for ssh made none; why, in its own words.
#[derive(Debug, Error)]
#[error("ssh ended: {0}")]
pub(super) struct Ended(String);

/// Runs `docker system dial-stdio` on the other machine, which passes on bytes.
pub(super) fn dial(to: &Ssh) -> io::Result<Box<dyn Duplex>> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a program of this machine, and no dyno"
    )]
    let mut ssh = Command::new("ssh");
    // Nobody is there to be asked.
    ssh.args(["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30"]);
    for (option, value) in [
        ("ServerAliveInterval", SILENCE),
        ("ServerAliveCountMax", SILENCES),
    ] {
        ssh.arg("-o").arg(format!("{option}={value}"));
    }
    if let Some(user) = &to.user {
        ssh.args(["-l", user]);
    }
    if let Some(port) = to.port {
        ssh.args(["-p", &port.to_string()]);
    }
    ssh.args(["--", &to.host, "docker", "system", "dial-stdio"]);
    let mut child = ssh
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("failed to start ssh: {error}")))?;
    let ends = child.stdout.take().zip(child.stdin.take());
    let ends = ends.zip(child.stderr.take());
    let ((reads, writes), says) = ends.ok_or_else(|| io::Error::other("ssh has no pipes"))?;
    // It is read all the time: an ssh that says much must not be held up.
    let said = AbortOnDropHandle::new(tokio::spawn(last_line(says)));
    Ok(Box::new(Dialled {
        streams: join(reads, writes),
        is_connected: false,
        last_words: Some(Box::pin(async {
            let said = timeout(LAST_WORDS_WITHIN, said).await;
            let said = said.ok().and_then(Result::ok).and_then(Result::ok);
            said.filter(|said| !said.is_empty())
                .unwrap_or_else(|| "it did not say why".to_owned())
        })),
        _ssh: child,
    }))
}

/// What the machine's name is, which ssh may know by another one (`HostName` of `ssh_config(5)`).
pub(super) async fn machine(to: &Ssh) -> io::Result<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a program of this machine, and no dyno"
    )]
    let mut ssh = Command::new("ssh");
    let asked = ssh.args(["-G", "--", &to.host]).stdin(Stdio::null());
    let said = asked.kill_on_drop(true).output().await?.stdout;
    let said = String::from_utf8_lossy(&said);
    let name = said.lines().find_map(|line| line.strip_prefix("hostname "));
    name.map(str::to_owned)
        .ok_or_else(|| io::Error::other("ssh does not know its name"))
}

/// The last thing that it says.
async fn last_line(says: ChildStderr) -> io::Result<String> {
    let mut says = BufReader::new(says);
    let mut last = String::new();
    loop {
        let mut line = Vec::new();
        if (&mut says).take(LINE).read_until(b'\n', &mut line).await? == 0 {
            return Ok(last);
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim();
        if !line.is_empty() {
            tracing::debug!(line, "ssh says");
            last = line.to_owned();
        }
    }
}

/// The streams of an `ssh`, which ends with them.
struct Dialled {
    streams: Join<ChildStdout, ChildStdin>,
    /// Whether the other machine has said anything.
    is_connected: bool,
    /// Until they are told.
    last_words: Option<BoxFuture<'static, String>>,
    _ssh: Child,
}

impl Dialled {
    /// Why a connection ended that never was one.
    fn ended(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Error>> {
        let last_words = self.last_words.as_mut().filter(|_| !self.is_connected);
        let Some(last_words) = last_words else {
            return Poll::Ready(None);
        };
        let last_words = ready!(last_words.as_mut().poll(cx));
        self.last_words = None;
        Poll::Ready(Some(io::Error::other(Ended(last_words))))
    }
}

impl fmt::Debug for Dialled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialled").finish_non_exhaustive()
    }
}

impl AsyncRead for Dialled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.streams).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            self.is_connected = true;
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(ready!(self.ended(cx)).map_or(Ok(()), Err))
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match ready!(Pin::new(&mut self.streams).poll_write(cx, bytes)) {
            // It may end before it was written to.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                Poll::Ready(Err(ready!(self.ended(cx)).unwrap_or(error)))
            }
            written => Poll::Ready(written),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.streams).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.streams).poll_shutdown(cx)
    }
}
