//! Connections to the control socket, for as long as hsup lives.
//!
//! Where a process may open few files, accept(2) fails with EMFILE while the connection
//! stays in the queue, so asking again at once would never stop. The stream waits a
//! moment instead; nothing is lost, and no error ends it.
//!
//! Once hsup wants to end nothing more is taken from the queue: it may be the next one's.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    time::{Sleep, sleep},
};
use tokio_stream::Stream;
use tokio_util::sync::WaitForCancellationFutureOwned;

/// How long to leave the queue alone after accept(2) has failed.
const PAUSE: Duration = Duration::from_millis(100);

/// What connections come from.
pub(super) trait Accept: Unpin {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<UnixStream>>;
}

impl Accept for UnixListener {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
        Self::poll_accept(self, cx).map_ok(|(stream, _)| stream)
    }
}

#[derive(Debug)]
pub(super) struct Incoming<L> {
    listener: L,
    pause: Option<Pin<Box<Sleep>>>,
    /// Until hsup wants to end.
    open: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl<L: Accept> Incoming<L> {
    /// Connections until `closing`.
    pub(super) fn new(listener: L, closing: WaitForCancellationFutureOwned) -> Self {
        Self {
            listener,
            pause: None,
            open: Some(Box::pin(closing)),
        }
    }
}

impl<L: Accept> Stream for Incoming<L> {
    type Item = Result<UnixStream, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let is_open = self.open.as_mut();
        if is_open.is_none_or(|closing| closing.as_mut().poll(cx).is_ready()) {
            // An end of the stream would be one of the connections, too. That is the server's to
            // say.
            self.open = None;
            return Poll::Pending;
        }
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok(stream) => return Poll::Ready(Some(Ok(stream))),
                Err(error) => {
                    tracing::warn!(%error, "control connection not accepted yet");
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use tokio::time::Instant;
    use tokio_stream::StreamExt as _;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// A listener of a process that may open no more files for a while.
    struct Full {
        failures: u32,
        asked: u32,
    }

    impl Accept for Full {
        fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
            self.asked += 1;
            if self.asked <= self.failures {
                return Poll::Ready(Err(Errno::EMFILE.into()));
            }
            Poll::Ready(UnixStream::pair().map(|(stream, _)| stream))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lack_of_descriptors_is_waited_out_without_spinning() {
        let start = Instant::now();
        let full = Full {
            failures: 3,
            asked: 0,
        };
        let mut incoming = Incoming::new(full, CancellationToken::new().cancelled_owned());
        assert!(matches!(incoming.next().await, Some(Ok(_))));
        assert_eq!(incoming.listener.asked, 4);
        assert!(start.elapsed() >= PAUSE * 3);
    }

    #[tokio::test(start_paused = true)]
    async fn once_hsup_wants_to_end_nothing_is_taken_from_the_queue() {
        let closing = CancellationToken::new();
        let full = Full {
            failures: 0,
            asked: 0,
        };
        let mut incoming = Incoming::new(full, closing.clone().cancelled_owned());
        assert!(incoming.next().await.is_some());
        closing.cancel();
        let next = tokio::time::timeout(PAUSE, incoming.next()).await;
        assert!(next.is_err(), "{next:?}");
        assert_eq!(incoming.listener.asked, 1);
    }
}
