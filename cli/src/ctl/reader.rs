//! Whether anybody still reads what is written.
//!
//! `hsupctl logs -t | head -1` must end when head does, not with the line after: on an app
//! that says nothing, that one never comes, and only a write would tell.

use std::{
    future::pending,
    os::fd::{AsFd as _, OwnedFd},
    thread,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::sync::oneshot;

/// Resolves when the reader of a pipe or a socket has gone, or a terminal was hung up; never
/// for what has no reader.
pub(super) async fn gone(output: OwnedFd) {
    let (tell, told) = oneshot::channel();
    // Not one of the runtime's threads, for whose end it would wait.
    let watcher = thread::Builder::new().spawn(move || {
        if wait(&output).is_ok() {
            // Whoever wanted to know may have ended first.
            let _ = tell.send(());
        }
    });
    if watcher.is_err() || told.await.is_err() {
        // Then the next write tells.
        pending::<()>().await;
    }
}

/// With no event asked for, poll(2) returns for the end of the other side only.
fn wait(output: &OwnedFd) -> nix::Result<()> {
    let mut polled = [PollFd::new(output.as_fd(), PollFlags::empty())];
    loop {
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            other => return other.map(|_| ()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, os::unix::net::UnixStream, time::Duration};

    use tokio::time::timeout;

    use super::*;

    async fn noticed(reader: impl Sized, writer: impl Into<OwnedFd>) {
        let gone = gone(writer.into());
        tokio::pin!(gone);
        let early = timeout(Duration::from_millis(50), &mut gone).await;
        assert!(early.is_err(), "gone while there is a reader");
        drop(reader);
        let late = timeout(Duration::from_secs(30), &mut gone).await;
        assert!(late.is_ok(), "a reader that has gone is not noticed");
    }

    #[tokio::test]
    async fn a_reader_that_goes_is_noticed_without_a_write() {
        let (reader, writer) = io::pipe().unwrap();
        noticed(reader, writer).await;
        let (reader, writer) = UnixStream::pair().unwrap();
        noticed(reader, writer).await;
    }
}
