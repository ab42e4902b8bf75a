//! One of a dyno's outputs on its way to hsup's own, for `hsup run`.
//!
//! A thread of its own, because whoever reads hsup's output may take nothing for hours,
//! and neither the other output nor hsup's answer to a signal may wait for that. Bytes are
//! passed on at once and unchanged, and none is lost on the way: what the reader does not
//! take holds up the dyno, as a pipe of the dyno's own would. An output that cannot be
//! written any more (its reader has gone, the disk is full) is given up, for a copy with a
//! hole is worse than an error; what the dyno goes on writing is then read and thrown away.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    thread,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
    unistd::read,
};
use tokio::sync::watch;

use crate::logs::write_some;

/// What one `read` takes: as much as a pipe holds.
const READ_BYTES: usize = 64 * 1024;
/// What is taken at most once the dyno has ended: nothing that it left can be more, and a
/// process that got away cannot keep hsup there with a flood.
const REST_BYTES: usize = 1024 * 1024;

/// A running copy.
#[derive(Debug)]
pub(super) struct OutputPump {
    last: Arc<EventFd>,
    state: watch::Receiver<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Why the output was given up.
    failed: Option<Errno>,
    ended: bool,
}

impl OutputPump {
    /// Copies `source`, a FIFO that has no end of its own, into `sink`.
    ///
    /// # Errors
    /// When the system refuses the thread or the descriptor it needs.
    pub(super) fn start(source: OwnedFd, sink: OwnedFd) -> io::Result<Self> {
        fcntl(&source, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let last = Arc::new(EventFd::from_value_and_flags(
            0,
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let (tell, state) = watch::channel(State::default());
        let told = Arc::clone(&last);
        thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                pump(&source, sink, &told, &tell);
                tell.send_modify(|state| state.ended = true);
            })?;
        Ok(Self { last, state })
    }

    /// The dyno has ended: what is in the FIFO now is the rest.
    pub(super) fn finish(&self) {
        // Full means that it has been told before.
        let _: nix::Result<usize> = self.last.write(1);
    }

    /// Resolves when the output is given up; never when all of it gets out.
    pub(super) async fn failed(&self) {
        let mut state = self.state.clone();
        if state
            .wait_for(|state| state.failed.is_some())
            .await
            .is_err()
        {
            // The copy ended well.
            std::future::pending::<()>().await;
        }
    }

    /// Why the output was given up, if it was.
    pub(super) fn failure(&self) -> Option<Errno> {
        self.state.borrow().failed
    }

    /// Resolves when there is nothing left to copy.
    pub(super) async fn ended(&self) {
        let mut state = self.state.clone();
        // A sender that is gone has said it.
        let _: Result<_, watch::error::RecvError> =
            state.wait_for(|state| state.ended).await.map(|_| ());
    }
}

/// Copies until there is nothing left of a dyno that has ended.
fn pump(source: &OwnedFd, sink: OwnedFd, last: &EventFd, tell: &watch::Sender<State>) {
    let mut sink = Some(sink);
    let mut buffer = vec![0; READ_BYTES];
    let mut rest = 0;
    while rest < REST_BYTES {
        let is_rest = wait(source, last);
        let count = match read(source, &mut buffer) {
            Ok(count) if count > 0 => count,
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) if !is_rest => continue,
            // Nothing is left, or nobody has the other end any more.
            Ok(_) | Err(Errno::EAGAIN) => return,
            Err(errno) => {
                tracing::warn!(%errno, "cannot read the dyno's output");
                return;
            }
        };
        if is_rest {
            rest += count;
        }
        if let Some(open) = &sink
            && let Err(errno) = write_all(open, &buffer[..count])
        {
            sink = None;
            tell.send_modify(|state| state.failed = Some(errno));
        }
    }
}

fn write_all(sink: &OwnedFd, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        let written = write_some(sink.as_fd(), bytes)?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Waits for something to read; answers whether what comes now is the rest.
fn wait(source: &OwnedFd, last: &EventFd) -> bool {
    loop {
        let mut fds = [
            PollFd::new(last.as_fd(), PollFlags::POLLIN),
            PollFd::new(source.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut fds, PollTimeout::NONE).is_ok() {
            return fds[0].any().unwrap_or(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{PipeReader, PipeWriter, Read as _, Write as _},
        time::Duration,
    };

    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A copy from a pipe, of which hsup has both ends, as it has of a FIFO.
    fn pump_to(sink: impl Into<OwnedFd>) -> (OutputPump, PipeWriter) {
        let (source, dyno) = io::pipe().unwrap();
        let pump = OutputPump::start(source.into(), sink.into()).unwrap();
        (pump, dyno)
    }

    async fn rest(mut reader: PipeReader) -> Vec<u8> {
        let read = move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    }

    #[tokio::test]
    async fn bytes_are_passed_on_at_once_and_unchanged() {
        let (mut reader, sink) = io::pipe().unwrap();
        let (pump, mut dyno) = pump_to(sink);
        dyno.write_all(b"prompt> ").unwrap();
        let mut got = [0; 8];
        // No line has ended, and nothing else will come before this is read.
        reader.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"prompt> ");
        dyno.write_all(b"\0\xff\r\nend").unwrap();
        pump.finish();
        assert_eq!(rest(reader).await, b"\0\xff\r\nend");
        pump.ended().await;
        assert_eq!(pump.failure(), None);
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_waited_for_and_then_gets_everything() {
        let (reader, sink) = io::pipe().unwrap();
        let (pump, mut dyno) = pump_to(sink);
        let block: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let expected = block.clone();
        let writing = tokio::task::spawn_blocking(move || dyno.write_all(&block).unwrap());
        // More than all three pipes hold: this ends because of the reading alone.
        let reading = tokio::spawn(rest(reader));
        timeout(PATIENCE, writing).await.unwrap().unwrap();
        pump.finish();
        timeout(PATIENCE, pump.ended()).await.unwrap();
        assert!(reading.await.unwrap() == expected, "the copy differs");
    }

    #[tokio::test]
    async fn a_reader_that_has_gone_is_told_and_the_dyno_goes_on() {
        let (reader, sink) = io::pipe().unwrap();
        let (pump, mut dyno) = pump_to(sink);
        drop(reader);
        dyno.write_all(b"into the void").unwrap();
        timeout(PATIENCE, pump.failed()).await.unwrap();
        assert_eq!(pump.failure(), Some(Errno::EPIPE));
        let more = vec![b'x'; 1_000_000];
        let writing = tokio::task::spawn_blocking(move || dyno.write_all(&more));
        timeout(PATIENCE, writing).await.unwrap().unwrap().unwrap();
        pump.finish();
        timeout(PATIENCE, pump.ended()).await.unwrap();
    }

    #[tokio::test]
    async fn a_full_disk_is_another_reason_than_a_reader_that_has_gone() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (pump, mut dyno) = pump_to(full);
        dyno.write_all(b"bytes").unwrap();
        timeout(PATIENCE, pump.failed()).await.unwrap();
        assert_eq!(pump.failure(), Some(Errno::ENOSPC));
    }

    #[tokio::test]
    async fn a_process_that_got_away_cannot_flood_for_ever() {
        let null = File::options().write(true).open("/dev/null").unwrap();
        let (pump, mut dyno) = pump_to(null);
        let flood = std::thread::spawn(move || {
            let block = vec![b'x'; 64 * 1024];
            while dyno.write_all(&block).is_ok() {}
        });
        pump.finish();
        timeout(PATIENCE, pump.ended()).await.unwrap();
        flood.join().unwrap();
    }
}
