//! What ends a command before it ends by itself.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Somebody wants the command to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// The number of the signal.
    number: u8,
    /// Its name, which the command gets to see, too.
    pub(super) signal: &'static str,
}

impl Wish {
    /// hsup's exit code, if this is what ended it.
    pub(super) const fn code(self) -> u8 {
        128 + self.number
    }
}

/// The signals that end a command. From the first moment on: one that comes while nobody
/// looks is seen by the next who does.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, std::io::Error> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// The next one. Cancel safe.
    pub(super) async fn next(&mut self) -> Wish {
        let (number, signal) = tokio::select! {
            _ = self.interrupt.recv() => (2, "SIGINT"),
            _ = self.terminate.recv() => (15, "SIGTERM"),
            _ = self.hangup.recv() => (1, "SIGHUP"),
            _ = self.quit.recv() => (3, "SIGQUIT"),
        };
        Wish { number, signal }
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
}
