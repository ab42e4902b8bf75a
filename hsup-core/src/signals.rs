//! The signals that ask hsup to end, whatever it does.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM, SIGHUP and SIGQUIT, from the moment on when this is made.
#[derive(Debug)]
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
}

impl StopSignals {
    /// Begins to receive them.
    ///
    /// # Errors
    /// What the system refuses.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// The next one's number and name. Cancel safe.
    pub(crate) async fn next(&mut self) -> (u8, &'static str) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => (2, "SIGINT"),
            _ = self.terminate.recv() => (15, "SIGTERM"),
            _ = self.hangup.recv() => (1, "SIGHUP"),
            _ = self.quit.recv() => (3, "SIGQUIT"),
        }
    }
}
