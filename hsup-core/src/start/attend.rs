//! While the supervisor works: what signals ask of it, until it ends or is left.

use std::time::Duration;

use tokio::{task::JoinError, time::timeout};

use super::{
    Running,
    signals::{Received, Signals},
};
use crate::{
    control::Control as _,
    logs::SYSTEM,
    notify::{self, News},
    supervisor::{Outcome, RunError, SupervisorHandle},
};

/// How long after the word to leave a stop still counts.
const SECOND_THOUGHTS: Duration = Duration::from_millis(20);
/// How long the supervisor may take to write down what is not written yet before hsup leaves.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// What came of it.
pub(super) struct Attended {
    /// How the supervisor ended; `None`: hsup ends, and nothing else does.
    pub(super) outcome: Option<Result<Result<Outcome, RunError>, JoinError>>,
    /// The last signal to stop.
    pub(super) received: Option<u8>,
}

/// Has the supervisor do what signals ask for, until it has ended or hsup leaves.
pub(super) async fn attend(running: &mut Running, signals: &mut Signals) -> Attended {
    let (handle, logs) = (&running.handle, &running.shared.logs);
    let grace = running.shared.policy.grace;
    let mut received: Option<u8> = None;
    let outcome = loop {
        tokio::select! {
            outcome = &mut running.supervision => break Some(outcome),
            signal = signals.next() => match signal {
                Received::Stop(number) => {
                    let again = received.replace(number).is_some();
                    notify::tell(News::Stopping { grace });
                    shut_down(handle, again);
                }
                // What is being stopped is not left, also before the supervisor has heard of it.
                Received::Leave if received.is_some() => {}
                Received::Leave => {
                    let may = timeout(LEAVE_WITHIN, handle.leave()).await;
                    if matches!(may, Ok(Err(_))) {
                        continue;
                    }
                    notify::tell(News::Stopping { grace: Duration::ZERO });
                    // Whoever has changed their mind, or has sent both at once, is still heard.
                    if let Ok(number) = timeout(SECOND_THOUGHTS, signals.stop()).await {
                        received = Some(number);
                        notify::tell(News::Stopping { grace });
                        shut_down(handle, false);
                        continue;
                    }
                    logs.note(SYSTEM, leaving(running.shared.policy.linger));
                    break None;
                }
                Received::Diagnostics => logs.print(running.diagnostics.dump()),
            },
        }
    };
    Attended { outcome, received }
}

/// Asks the supervisor to stop everything; the second time at once.
fn shut_down(handle: &SupervisorHandle, again: bool) {
    let handle = handle.clone();
    tokio::spawn(async move {
        let request = hsup_proto::control::ShutdownRequest {
            grace_ms: again.then_some(0),
        };
        // It may have ended already.
        drop(handle.shutdown(request).await);
    });
}

/// What becomes of the dynos that hsup leaves.
fn leaving(linger: Duration) -> String {
    let until = if linger.is_zero() {
        "for the next hsup".to_owned()
    } else {
        let time = jiff::SignedDuration::try_from(linger).unwrap_or(jiff::SignedDuration::MAX);
        format!("for an hsup that is started within {time:#}")
    };
    format!("Leaving the dynos as they are, {until}")
}
