//! After the supervisor has ended, or is left: everything else ends in order.

use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::sleep;

use super::{
    Running, StartError,
    attend::Attended,
    claim::Folders,
    signals::{Received, Signals},
};
use crate::{
    driver::Link,
    dyno::clear_io,
    logs::{Logs, ShutdownOutcome},
    ports::HostPorts,
    supervisor::Outcome,
};

/// How long the last lines may take to be written when somebody wants hsup to end.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(2);
/// How long the driver may take to forget the last dynos that have ended.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(2);

/// What is said to whoever wants everything stopped when hsup has left the dynos already.
const TOO_LATE: &str = "told to stop the dynos after they were left: they run on; \
    start hsup again and stop that to stop them";

/// Ends the server, the dynos' tasks, the logs and their drains, and removes the folders;
/// answers the exit code.
///
/// # Errors
/// When the supervisor could not begin.
pub(super) async fn wind_up(
    running: Running,
    mut folders: Folders,
    signals: &mut Signals,
    attended: Attended,
) -> Result<u8, StartError> {
    let Attended {
        outcome,
        mut received,
    } = attended;
    let (shared, logs) = (&running.shared, &running.shared.logs);
    running.ending.cancel();
    // Whatever it says now, hsup ends.
    drop(running.server.await);
    if outcome.is_none() {
        // All that the next hsup needs is written down already.
        running.supervision.abort();
        drop(running.supervision.await);
    }
    // Dynos that go on without hsup go on without their tasks.
    let is_over = matches!(outcome, Some(Ok(Ok(_))));
    let within = if is_over {
        FORGOTTEN_WITHIN
    } else {
        Duration::ZERO
    };
    shared.tasks.end(within).await;
    if outcome.is_none() {
        logs.let_go();
        folders.keeps_link = running.socket_stays;
    }
    let is_through = received.is_none() && matches!(outcome, Some(Ok(Ok(Outcome::AllComplete(_)))));
    let patience = async {
        if !is_through {
            return sleep(LAST_LINES_WITHIN).await;
        }
        // Nobody wants hsup to end: its reader has all the time in the world.
        loop {
            match signals.next().await {
                Received::Stop(number) => {
                    received = Some(number);
                    return;
                }
                Received::Leave => return,
                Received::Diagnostics => logs.print(running.diagnostics.dump()),
            }
        }
    };
    if logs.clone().shutdown(patience).await == ShutdownOutcome::CutOff {
        tracing::warn!("output was cut off");
    }
    let stopped = finish_drains(logs, signals, running.tell).await;
    let stopped = stopped.or_else(|| signals.stop().now_or_never());
    // What they wrote last is the next hsup's to read.
    if outcome.is_some() && dynos_ended(&shared.link.borrow()) {
        clear_io(&folders.io, |_| false);
    }
    drop(folders);
    // Before the state directory's lock: who waits for that starts dynos anew where they were.
    *shared.ports() = HostPorts::new();
    if outcome.is_none() && stopped.is_some() {
        (running.tell)(TOO_LATE);
    }
    exit_code(Attended { outcome, received }, stopped)
}

/// Has the log drains send what waits for them, for some seconds or until another signal to stop;
/// answers that.
async fn finish_drains(logs: &Logs, signals: &mut Signals, tell: fn(&str)) -> Option<u8> {
    let mut stopped = None;
    let again = async { stopped = Some(signals.stop().await) };
    for undelivered in logs.finish_drains(again).await {
        tell(&undelivered.to_string());
    }
    stopped
}

/// Whether there was a driver that took all dynos with it.
fn dynos_ended(link: &Link) -> bool {
    matches!(
        link,
        Link::Down {
            dynos_ended: true,
            ..
        }
    )
}

/// What hsup ends with, by how its supervisor did, and by the signal that `stopped` hsup on its
/// way out.
fn exit_code(attended: Attended, stopped: Option<u8>) -> Result<u8, StartError> {
    let Some(outcome) = attended.outcome else {
        return Ok(stopped.map_or(0, |number| 128 + number));
    };
    let outcome = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    Ok(match (outcome, attended.received) {
        (_, Some(number)) => 128 + number,
        (Outcome::AllComplete(code), None) => code,
        (Outcome::ShutDown, None) => 0,
        // What was asked for has not come about.
        (Outcome::Left(_), None) => 1,
    })
}
