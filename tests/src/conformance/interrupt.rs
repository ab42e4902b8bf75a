//! The signals that end a run before its time.

use std::{future::poll_fn, io, task::Poll};

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

use super::kernel::is_ignored;

/// Resolves with the first signal that asks for the end. One that this process was started
/// with ignored, as nohup does it with SIGHUP, asks for nothing.
pub(crate) async fn interrupted() -> io::Result<Signal> {
    let mut listening = Vec::new();
    for wanted in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        if !is_ignored(wanted) {
            let kind = SignalKind::from_raw(wanted as i32);
            listening.push((wanted, signal(kind)?));
        }
    }
    poll_fn(|cx| {
        for (wanted, received) in &mut listening {
            if received.poll_recv(cx).is_ready() {
                return Poll::Ready(Ok(*wanted));
            }
        }
        Poll::Pending
    })
    .await
}
