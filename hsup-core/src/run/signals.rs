//! What ends a command before it ends by itself: signals, and wishes over the control socket.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::signals::StopSignals;

/// Somebody wants the command to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// The number of the signal.
    number: u8,
    /// Its name, which the command gets to see, too.
    pub(super) signal: &'static str,
    pub(super) from: Origin,
}

/// Where a wish comes from, and so what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A signal to hsup, which then ends as one that it ended.
    Signal,
    /// A stop of the dyno with this grace: hsup's end is like the dyno's.
    Stop(Duration),
    /// The same of hsup, whose last output has no more time then.
    Shutdown(Duration),
}

impl Wish {
    /// As SIGTERM would, but from elsewhere.
    pub(super) const fn terminate(from: Origin) -> Self {
        Self {
            number: 15,
            signal: "SIGTERM",
            from,
        }
    }

    /// hsup's exit code, if this is what ended it.
    pub(super) const fn code(self) -> u8 {
        128 + self.number
    }

    /// Between this signal and SIGKILL: a signal that is not the first wish takes none of the
    /// usual.
    pub(super) const fn grace(self, usual: Duration, is_first: bool) -> Duration {
        match self.from {
            Origin::Stop(grace) | Origin::Shutdown(grace) => grace,
            Origin::Signal if is_first => usual,
            Origin::Signal => Duration::ZERO,
        }
    }
}

/// Wishes from elsewhere. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Wisher(mpsc::UnboundedSender<Wish>);

impl Wisher {
    pub(super) fn send(&self, wish: Wish) {
        // Whoever would hear it has ended, which is what was wished.
        let _: Result<(), mpsc::error::SendError<Wish>> = self.0.send(wish);
    }
}

/// The signals that end a command, and other wishes. From the first moment on: one that comes
/// while nobody looks is seen by the next who does.
#[derive(Debug)]
pub(super) struct Signals {
    stop: StopSignals,
    wisher: Wisher,
    wishes: mpsc::UnboundedReceiver<Wish>,
}

impl Signals {
    pub(super) fn new() -> Result<Self, std::io::Error> {
        let (wisher, wishes) = mpsc::unbounded_channel();
        Ok(Self {
            stop: StopSignals::new()?,
            wisher: Wisher(wisher),
            wishes,
        })
    }

    /// For wishes from elsewhere.
    pub(super) fn wisher(&self) -> Wisher {
        self.wisher.clone()
    }

    /// The next one. Cancel safe.
    pub(super) async fn next(&mut self) -> Wish {
        let (number, signal) = tokio::select! {
            stop = self.stop.next() => stop,
            // We have a sender ourselves: it never ends.
            Some(wish) = self.wishes.recv() => return wish,
        };
        Wish {
            number,
            signal,
            from: Origin::Signal,
        }
    }

    /// The next one that is for hsup itself, once its dyno is down. Cancel safe.
    pub(super) async fn next_for_hsup(&mut self) -> Wish {
        loop {
            let wish = self.next().await;
            if !matches!(wish.from, Origin::Stop(_)) {
                return wish;
            }
        }
    }

    /// Does something, unless it is to end first.
    ///
    /// # Errors
    /// With hsup's exit code when the work was given up.
    pub(super) async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Result<T, u8> {
        tokio::select! {
            biased;
            result = work => Ok(result),
            wish = self.next() => Err(wish.code()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use nix::sys::signal::{Signal::SIGHUP, raise};

    use super::*;

    #[tokio::test]
    async fn a_signal_ends_what_is_not_through_also_one_that_came_before_anybody_looked() {
        let mut signals = Signals::new().unwrap();
        raise(SIGHUP).unwrap();
        assert_eq!(signals.unless(pending::<()>()).await, Err(129));
        assert_eq!(signals.unless(async { "done" }).await, Ok("done"));
    }

    #[tokio::test]
    async fn a_wish_is_heard_like_a_signal_and_a_stop_is_not_for_hsup() {
        let mut signals = Signals::new().unwrap();
        let grace = Duration::from_secs(3);
        let stop = Wish::terminate(Origin::Stop(grace));
        let shutdown = Wish::terminate(Origin::Shutdown(grace));
        signals.wisher().send(stop);
        assert_eq!(signals.unless(pending::<()>()).await, Err(143));
        signals.wisher().send(stop);
        signals.wisher().send(shutdown);
        assert_eq!(signals.next_for_hsup().await, shutdown);
    }

    #[test]
    fn only_a_signal_that_is_not_the_first_wish_has_no_grace() {
        let (usual, own) = (Duration::from_secs(30), Duration::from_secs(3));
        let signal = Wish::terminate(Origin::Signal);
        assert_eq!(signal.grace(usual, true), usual);
        assert_eq!(signal.grace(usual, false), Duration::ZERO);
        let stop = Wish::terminate(Origin::Stop(own));
        assert_eq!(stop.grace(usual, true), own);
        assert_eq!(stop.grace(usual, false), own);
    }
}
