//! The signals that `start` answers to.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::signals::StopSignals;

/// Those that end it, and two more.
pub(super) struct Signals {
    stop: StopSignals,
    leave: Signal,
    diagnostics: Signal,
}

/// What a signal asks for.
pub(super) enum Received {
    /// Stop everything; the signal's number.
    Stop(u8),
    /// End, and leave the dynos as they are.
    Leave,
    /// Print the diagnostics.
    Diagnostics,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            stop: StopSignals::new()?,
            leave: signal(SignalKind::user_defined2())?,
            diagnostics: signal(SignalKind::user_defined1())?,
        })
    }

    /// The next one. Of several that wait a stop is the first: it is the stronger word.
    pub(super) async fn next(&mut self) -> Received {
        tokio::select! {
            biased;
            (number, _) = self.stop.next() => Received::Stop(number),
            _ = self.leave.recv() => Received::Leave,
            _ = self.diagnostics.recv() => Received::Diagnostics,
        }
    }

    /// The next one that stops everything; others mean nothing any more.
    pub(super) async fn stop(&mut self) -> u8 {
        loop {
            if let Received::Stop(number) = self.next().await {
                return number;
            }
        }
    }
}
