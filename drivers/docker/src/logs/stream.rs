//! What a dyno writes, as the engine streams it to who is attached.
//!
//! Unlike the log, of which the engine keeps some, a stream holds up the dyno when nobody reads it:
//! however much is written, all of it comes. It ends with the dyno, or when the connection breaks;
//! then the log has what is missing.

use std::sync::atomic::Ordering;

use tokio::io::{self, AsyncRead, AsyncReadExt as _};
use tokio_util::sync::CancellationToken;

use super::{Copy, CopyError, Output};
use crate::{attach::Reads, frames::Cursor, life};

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
        // The end of this connection alone looks the same, and that of the engine, which breaks the
        // call that waits for the dyno, too.
        let ending = async {
            let has_ended = self.has_ended().await;
            if has_ended {
                // However long that takes to be known here.
                ended.cancelled().await;
            }
            has_ended
        };
        let has_ended = tokio::select! {
            has_ended = ending => has_ended,
            () = self.engine.until_suspected(before) => false,
        };
        has_ended && self.engine.suspicions() == before
    }

    /// Whether the engine says that the dyno has. Where its end has closed the stream, the engine
    /// answers when it has noted it: it holds the container's lock from before until then.
    /// <https://github.com/moby/moby/blob/v26.1.5/daemon/monitor.go>, `handleContainerExit`
    async fn has_ended(&self) -> bool {
        let Ok(up) = self.engine.now() else {
            return false;
        };
        match up.api.inspect(self.source.id()).await {
            Ok(found) => !life::is_running(&found.state),
            Err(error) => {
                tracing::debug!(%error, "failed to look at a container");
                false
            }
        }
    }

    /// Passes on what comes to its end.
    async fn pass_on(&mut self, stream: &mut Reads) -> Result<(), CopyError> {
        let mut piece = vec![0; PIECE];
        while let Some(head) = next(stream).await.map_err(CopyError::Stream)? {
            let mut left = head.length as usize;
            while left > 0 {
                let room = left.min(PIECE);
                let length = stream.read(&mut piece[..room]).await;
                let length = length.map_err(CopyError::Stream)?;
                if length == 0 {
                    return Err(CopyError::Stream(io::ErrorKind::UnexpectedEof.into()));
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
            self.count(written);
            bytes = rest;
        }
        Ok(())
    }

    /// Prepares to read on in the log, where the stream broke off.
    pub(super) fn go_on_in_log(&mut self) {
        let both = self.passed.load(Ordering::Relaxed);
        if self.cursor.is_beyond_log(both) {
            tracing::warn!(
                container = self.source.id(),
                output = self.output.name(),
                "what a dyno writes broke off, and its log does not reach back to where: what it \
                 wrote meanwhile is not passed on"
            );
            self.cursor = Cursor::now();
            // Or the next driver takes it for one of which nothing is missing.
            if let Err(error) = self.keep() {
                let error = hsup_driver_kit::errors::chain(&error);
                tracing::warn!(
                    error,
                    "another driver would read a dyno's log from its beginning on"
                );
            }
        }
    }
}

/// The next head; none at the end, which is between two pieces.
async fn next(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Head>> {
    let mut head = [0; Head::SIZE];
    let mut length = 0;
    while length < Head::SIZE {
        match stream.read(&mut head[length..]).await? {
            0 if length == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => length += more,
        }
    }
    Ok(Some(Head::from_bytes(head)))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{PipeReader, Read as _},
        sync::Arc,
        time::Duration,
    };

    use tempfile::TempDir;
    use test_case::test_case;
    use tokio::{
        io::{AsyncWriteExt as _, DuplexStream, duplex, split},
        net::UnixListener,
        time,
    };

    use super::*;
    use crate::{connect::Duplex, context::Host, cursor::Cursors, engine::Engine, logs::Source};

    /// What passes on a stream of stdout, and both of its ends.
    struct Streamed {
        copy: Copy,
        stream: Reads,
        engine: DuplexStream,
        passed_on: PipeReader,
        kept: TempDir,
    }

    const RUNS: &str = r#"{"State": {"Running": true}}"#;
    const HAS_ENDED: &str = r#"{"State": {"Running": false}}"#;
    /// No answer to whoever asks for a container.
    const NO_ANSWER: &str = r#"{"State": null}"#;

    /// An engine that says the same to everybody.
    async fn answer(engine: UnixListener, answer: &str) {
        while let Ok((mut caller, _)) = engine.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if caller.read_buf(&mut head).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let length = answer.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nConnection: close\r\n\
                 Content-Length: {length}\r\n\r\n{answer}"
            );
            // Who does not want it is gone.
            drop(caller.write_all(answer.as_bytes()).await);
        }
    }

    impl Streamed {
        /// One of a dyno of which an engine says this.
        async fn begin(said: &'static str) -> Self {
            let kept = tempfile::tempdir().unwrap();
            let cursors = Cursors::open(Some(kept.path()), "home").unwrap();
            let socket = kept.path().join("engine");
            let listener = UnixListener::bind(&socket).unwrap();
            tokio::spawn(answer(listener, said));
            let engine = Engine::open(Host::Unix(socket));
            let source = Source::Container("c0ffee".to_owned());
            let output = Output::Stdout;
            let cursor = cursors.file(source.id(), output.name()).unwrap();
            let (passed_on, fifo) = std::io::pipe().unwrap();
            let copy = Copy::new(
                engine.await.unwrap(),
                source,
                output,
                fifo.into(),
                cursor,
                Arc::default(),
            );
            let (ours, engine) = duplex(64);
            let (stream, _) = split(Box::new(ours) as Box<dyn Duplex>);
            Self {
                copy: copy.unwrap(),
                stream,
                engine,
                passed_on,
                kept,
            }
        }
    }

    #[test_case(b"\x01\0\0\0\0\0\0\x04text", HAS_ENDED, 0, true, "text"; "the dyno has ended")]
    #[test_case(b"\x01\0\0\0\0\0\0\x04text", HAS_ENDED, 60, true, "text"; "which is heard of late")]
    #[test_case(b"\x01\0\0\0\0\0\0\x04text", RUNS, 60, false, "text"; "the dyno goes on")]
    #[test_case(b"\x01\0\0\0\0\0\0\x04text", RUNS, 0, false, "text"; "and ends soon")]
    #[test_case(b"\x01\0\0\0\0\0\0\x04text", NO_ANSWER, 0, false, "text"; "nobody knows")]
    #[test_case(b"\x01\0\0\0\0\0\0\x05text", HAS_ENDED, 0, false, "text"; "in a piece")]
    #[test_case(b"\x01\0\0\0\0\0", HAS_ENDED, 0, false, ""; "in a head")]
    #[tokio::test(start_paused = true)]
    async fn what_breaks_off_is_not_the_end(
        sent: &[u8],
        said: &'static str,
        ends_in: u64,
        is_whole: bool,
        expected: &str,
    ) {
        let Streamed {
            mut copy,
            stream,
            mut engine,
            mut passed_on,
            kept: _kept,
        } = Streamed::begin(said).await;
        engine.write_all(sent).await.unwrap();
        drop(engine);
        let ended = CancellationToken::new();
        let ends = async {
            time::sleep(Duration::from_secs(ends_in)).await;
            ended.cancel();
        };
        let (followed, ()) = tokio::join!(copy.follow(stream, &ended), ends);
        assert_eq!(followed, is_whole);
        drop(copy);
        let mut all = String::new();
        passed_on.read_to_string(&mut all).unwrap();
        assert_eq!(all, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_behind_an_engines_is_not_known() {
        let Streamed {
            mut copy,
            stream,
            engine,
            passed_on: _passed_on,
            kept: _kept,
        } = Streamed::begin(HAS_ENDED).await;
        drop(engine);
        let (suspected, ended) = (copy.engine.clone(), CancellationToken::new());
        let ends = async {
            time::sleep(Duration::from_mins(1)).await;
            suspected.suspect();
        };
        let (followed, ()) = tokio::join!(copy.follow(stream, &ended), ends);
        assert!(!followed);
    }

    #[test_case(1_000_000, true; "little")]
    #[test_case(80_000_000, false; "more than it keeps")]
    #[tokio::test(start_paused = true)]
    async fn a_log_is_whole_as_long_as_both_outputs_are_in_it(others: u64, is_whole: bool) {
        let Streamed {
            mut copy,
            stream,
            mut engine,
            passed_on: _passed_on,
            kept,
        } = Streamed::begin(RUNS).await;
        engine
            .write_all(b"\x01\0\0\0\0\0\0\x05text\n")
            .await
            .unwrap();
        drop(engine);
        assert!(!copy.follow(stream, &CancellationToken::new()).await);
        // What a driver that begins finds of it is the same.
        assert_eq!(copy.passed.load(Ordering::Relaxed), copy.cursor.size());
        copy.passed.fetch_add(others, Ordering::Relaxed);
        let before = copy.cursor;
        copy.go_on_in_log();
        assert_eq!(copy.cursor == before, is_whole);
        let cursors = Cursors::open(Some(kept.path()), "home").unwrap();
        let (_, again) = cursors.file("c0ffee", Output::Stdout.name()).unwrap();
        assert_eq!(again, copy.cursor);
    }

    #[tokio::test]
    async fn a_head_says_whose_a_piece_is_and_how_long() {
        let mut stream = &b"\x02\0\0\0\0\x01\0\x02"[..];
        let head = next(&mut stream).await.unwrap().unwrap();
        assert_eq!(head.stream, Output::Stderr.number());
        assert_eq!(head.length, 65_538);
        assert_eq!(next(&mut stream).await.unwrap(), None);
    }
}
