//! What a dyno writes, as the engine streams it to who is attached.
//!
//! Unlike the log, of which the engine keeps some, a stream holds up the dyno when nobody reads it:
//! however much is written, all of it comes. It ends with the dyno, or when the connection breaks;
//! then the log has what is missing.

use tokio::io::{self, AsyncRead, AsyncReadExt as _};
use tokio_util::sync::CancellationToken;

use super::{Copy, CopyError, Output};
use crate::{attach::Reads, frames::Cursor};

/// How much is read at a time.
const PIECE: usize = 64 << 10;

/// Before each piece that the engine sends: whose it is, and how long.
/// <https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerAttach>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    stream: u8,
    length: u32,
}

impl Head {
    const SIZE: usize = 8;

    fn from_bytes([stream, _, _, _, a, b, c, d]: [u8; Self::SIZE]) -> Self {
        Self {
            stream,
            length: u32::from_be_bytes([a, b, c, d]),
        }
    }
}

impl Output {
    /// How the engine calls it in a head.
    const fn number(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }
}

impl Copy {
    /// Passes on what comes, until the dyno `ended` or its log is to be read for the rest. Whether
    /// nothing is missing.
    pub(super) async fn follow(&mut self, mut stream: Reads, ended: &CancellationToken) -> bool {
        let before = self.engine.suspicions();
        match self.pass_on(&mut stream).await {
            Ok(()) => {}
            Err(error) => {
                let error = hsup_driver_kit::errors::chain(&error);
                tracing::warn!(error, "what a dyno writes broke off");
                return false;
            }
        }
        // The end of an engine looks the same. It breaks the call that waits for the dyno, too.
        tokio::select! {
            () = ended.cancelled() => {}
            () = self.engine.until_suspected(before) => {}
        }
        self.engine.suspicions() == before
    }

    /// Passes on what comes to its end.
    async fn pass_on(&mut self, stream: &mut Reads) -> Result<(), CopyError> {
        let mut piece = vec![0; PIECE];
        while let Some(head) = next(stream).await {
            let mut left = head.length as usize;
            while left > 0 {
                let room = left.min(PIECE);
                let length = stream.read(&mut piece[..room]).await.unwrap_or_default();
                if length == 0 {
                    return Ok(());
                }
                left -= length;
                if head.stream == self.output.number() {
                    self.pass_on_piece(&piece[..length]).await?;
                }
            }
        }
        Ok(())
    }

    async fn pass_on_piece(&mut self, mut bytes: &[u8]) -> Result<(), CopyError> {
        while !bytes.is_empty() {
            let length = self.write(bytes).await.map_err(CopyError::Write)?;
            let (written, rest) = bytes.split_at(length);
            self.cursor = self.cursor.streamed(written);
            self.keep()?;
            self.count(length);
            bytes = rest;
        }
        Ok(())
    }

    /// Prepares to read on in the log, where the stream broke off.
    pub(super) fn go_on_in_log(&mut self) {
        if self.cursor.is_beyond_log() {
            tracing::warn!(
                container = self.source.id(),
                output = self.output.name(),
                "what a dyno writes broke off, and its log does not reach back to where: what it \
                 wrote meanwhile is not passed on"
            );
            self.cursor = Cursor::now();
        }
    }
}

/// The next head; none at the end. A stream that breaks off has come to its end.
async fn next(stream: &mut (impl AsyncRead + Unpin)) -> Option<Head> {
    let mut head = [0; Head::SIZE];
    let read: io::Result<_> = stream.read_exact(&mut head).await;
    read.ok().map(|_| Head::from_bytes(head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_head_says_whose_a_piece_is_and_how_long() {
        let mut stream = &b"\x02\0\0\0\0\x01\0\x02rest"[..];
        let head = next(&mut stream).await.unwrap();
        assert_eq!(head.stream, Output::Stderr.number());
        assert_eq!(head.length, 65_538);
        assert_eq!(next(&mut stream).await, None);
    }
}
