//! The dynos that a driver has of ours and that we do not know: stopped, and removed.
//!
//! The other half of the protocol's reconciliation, what we know and does not run, is each
//! dyno's own business: see `Ledger::doubt`.

use std::time::Duration;

use futures_util::future::join_all;
use hsup_proto::driver::Dyno;
use tonic::{Code, Status};
use tracing::{info, warn};

use super::Up;
use crate::lifecycle::Stop;

/// Stops and removes those dynos. What the driver does not stop or remove is left to the next
/// time.
///
/// # Errors
/// What the driver said of one that it did not stop.
pub(crate) async fn stop_and_remove(
    up: &Up,
    unowned: &[Dyno],
    grace: Duration,
) -> Result<(), Status> {
    info!(count = unowned.len(), "stopping orphans");
    // All at once: they have one grace period between them, not one each.
    let ends = unowned.iter().map(|dyno| end(up, &dyno.dyno_id, grace));
    join_all(ends).await.into_iter().collect()
}

async fn end(up: &Up, dyno_id: &str, grace: Duration) -> Result<(), Status> {
    let warn = |status: &Status| {
        let (code, message) = (status.code(), status.message());
        warn!(id = dyno_id, ?code, message, "orphan not ended");
    };
    let stopped = up.stop(dyno_id, Stop::Gracefully { grace }).await;
    // One that there is not any more has ended.
    let stopped = stopped.or_else(|status| match status.code() {
        Code::NotFound => Ok(()),
        _ => Err(status),
    });
    stopped.inspect_err(warn)?;
    // It runs no more, whatever is left of it.
    drop(up.remove(dyno_id).await.inspect_err(warn));
    Ok(())
}
