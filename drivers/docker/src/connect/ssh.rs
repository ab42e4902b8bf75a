//! A connection to an engine by way of `ssh`, as the `docker` command makes one.

use std::{
    io,
    pin::Pin,
    process::Stdio,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Join, ReadBuf, join},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::Duplex;
use crate::context::Ssh;

/// Runs `docker system dial-stdio` on the other machine, which passes on bytes.
pub(super) fn dial(to: &Ssh) -> io::Result<Box<dyn Duplex>> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a program of this machine, and no dyno"
    )]
    let mut ssh = Command::new("ssh");
    // Nobody is there to be asked.
    ssh.args(["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30"]);
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
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("failed to start ssh: {error}")))?;
    let ends = child.stdout.take().zip(child.stdin.take());
    let (reads, writes) = ends.ok_or_else(|| io::Error::other("ssh has no pipes"))?;
    Ok(Box::new(Dialled {
        streams: join(reads, writes),
        _ssh: child,
    }))
}

/// The streams of an `ssh`, which ends with them.
#[derive(Debug)]
struct Dialled {
    streams: Join<ChildStdout, ChildStdin>,
    _ssh: Child,
}

impl AsyncRead for Dialled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.streams).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.streams).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.streams).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.streams).poll_shutdown(cx)
    }
}
