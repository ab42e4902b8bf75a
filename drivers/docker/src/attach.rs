//! The streams of a container that are not read from its log: what it reads, its terminal, and what
//! it writes where that is to lose nothing.
//!
//! The engine answers a call with the bytes themselves, both ways, on the same connection. The
//! client library reads them as lines, which the bytes of a terminal are not.

use std::{os::fd::OwnedFd, time::Duration};

use nix::unistd::read;
use serde::Deserialize;
use tokio::{
    io::{
        self, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, Interest, ReadHalf, WriteHalf,
        split,
    },
    time,
};

use crate::{
    connect::{Connector, Duplex, TIMEOUT},
    logs::non_blocking,
};

/// Longest head of an answer.
const HEAD: usize = 8 << 10;
/// How much is read at a time.
const PIECE: usize = 16 << 10;

/// Which streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Streams {
    Stdin,
    Stdout,
    Stderr,
    Terminal,
}

pub(crate) type Reads = ReadHalf<Box<dyn Duplex>>;
pub(crate) type Writes = WriteHalf<Box<dyn Duplex>>;

/// Attaches to a container, whose id is the engine's.
pub(crate) async fn attach(
    connector: &Connector,
    id: &str,
    what: Streams,
) -> io::Result<(Reads, Writes)> {
    let streams = match what {
        Streams::Stdin => "stdin=1",
        Streams::Stdout => "stdout=1",
        Streams::Stderr => "stderr=1",
        Streams::Terminal => "stdin=1&stdout=1&stderr=1",
    };
    let path = format!("/containers/{id}/attach?stream=1&{streams}");
    let upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\n";
    // The latter is an older engine's.
    let connection = post(connector, &path, upgrade, &["101", "200"]).await?;
    Ok(split(connection))
}

/// Has Podman get a container ready to be attached to, which Docker's engine always is.
pub(crate) async fn initialise(connector: &Connector, id: &str) -> io::Result<()> {
    let path = format!("/v4.0.0/libpod/containers/{id}/init");
    // The latter: it was done already.
    post(connector, &path, "Connection: close\r\n", &["204", "304"]).await?;
    Ok(())
}

/// A connection whose answer begins with one of the codes, and of which nothing is read but the
/// head. An engine that gives no answer is not waited for.
async fn post(
    connector: &Connector,
    path: &str,
    headers: &str,
    codes: &[&str],
) -> io::Result<Box<dyn Duplex>> {
    let asking = ask(connector, path, headers, codes);
    let answer = time::timeout(Duration::from_secs(TIMEOUT), asking).await;
    answer.map_err(|_| {
        let text = format!("the engine did not answer within {TIMEOUT} s");
        io::Error::new(io::ErrorKind::TimedOut, text)
    })?
}

async fn ask(
    connector: &Connector,
    path: &str,
    headers: &str,
    codes: &[&str],
) -> io::Result<Box<dyn Duplex>> {
    let mut connection = connector.connect().await?;
    let request =
        format!("POST {path} HTTP/1.1\r\nHost: docker\r\n{headers}Content-Length: 0\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let head = head(&mut connection).await?;
    match head.split(' ').nth(1) {
        Some(code) if codes.contains(&code) => Ok(connection),
        _ => {
            // Why, as far as it comes at once.
            let mut body = vec![0; PIECE];
            let length = connection.read(&mut body).await.unwrap_or_default();
            let body = serde_json::from_slice(&body[..length]).unwrap_or(Refusal::default());
            let answer = head.lines().next().unwrap_or_default();
            let why = body.message;
            let text = format!("the engine answered `{answer}` {why}");
            Err(io::Error::other(text.trim_end().to_owned()))
        }
    }
}

/// What an engine says when it does not do what it was asked for.
#[derive(Default, Deserialize)]
struct Refusal {
    message: String,
}

/// Reads the head of an answer, and nothing of what comes after it.
async fn head(connection: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > HEAD {
            return Err(io::Error::other("the engine's answer has no end"));
        }
        head.push(connection.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Passes on what the supervisor writes, to its end.
pub(crate) async fn feed(fifo: OwnedFd, mut container: Writes) -> io::Result<()> {
    let fifo = non_blocking(fifo, Interest::READABLE)?;
    let mut piece = vec![0; PIECE];
    loop {
        let mut ready = fifo.readable().await?;
        let Ok(length) = ready.try_io(|fifo| Ok(read(fifo.get_ref(), &mut piece)?)) else {
            continue;
        };
        match length? {
            0 => return container.shutdown().await,
            length => container.write_all(&piece[..length]).await?,
        }
    }
}

/// Reads what nobody wants, to its end, which is the connection's. Podman sends what the dyno
/// writes to whoever is attached, and holds the dyno up when that is not taken.
pub(crate) async fn drain(mut container: Reads) {
    // One that broke off has come to its end.
    drop(io::copy(&mut container, &mut io::sink()).await);
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::context::Host;

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_says_nothing_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let _silent = UnixListener::bind(&path).unwrap();
        let connector = Connector::new(&Host::Unix(path)).unwrap();
        let attached = attach(&connector, "c0ffee", Streams::Terminal).await;
        assert_eq!(attached.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn nothing_after_the_head_is_taken_for_it() {
        let mut answer = &b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\n\r\n\r\nbytes"[..];
        let head = head(&mut answer).await.unwrap();
        assert!(head.ends_with("tcp\r\n\r\n"), "{head}");
        assert_eq!(answer, b"\r\n\r\nbytes");
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_none() {
        let mut answer = &b"HTTP/1.1 101"[..];
        let error = head(&mut answer).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
