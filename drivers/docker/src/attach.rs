//! The streams of a container that are not read from its log: what it reads, and its terminal.
//!
//! The engine answers a call with the bytes themselves, both ways, on the same connection. The
//! client library takes them for lines; a terminal's are none.

use std::{io, os::fd::OwnedFd};

use nix::unistd::read;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, Interest, ReadHalf, WriteHalf, split,
};

use crate::{
    connect::{Connector, Duplex},
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
    let mut connection = connector.connect().await?;
    let output = match what {
        Streams::Stdin => "",
        Streams::Terminal => "&stdout=1&stderr=1",
    };
    let request = format!(
        "POST /containers/{id}/attach?stream=1&stdin=1{output} HTTP/1.1\r\n\
         Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await?;
    let head = head(&mut connection).await?;
    match head.split(' ').nth(1) {
        // The latter is an older engine's.
        Some("101" | "200") => Ok(split(connection)),
        _ => Err(io::Error::other(format!(
            "the engine answered `{}`",
            head.lines().next().unwrap_or_default()
        ))),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
