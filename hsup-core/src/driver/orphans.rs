//! The dynos that a driver has of ours and that we do not know: stopped, and removed.
//!
//! The other half of the protocol's reconciliation, what we know and the driver does not, is
//! each dyno's own business: its Wait is answered `NOT_FOUND`.

use std::time::Duration;

use futures_util::future::join_all;
use tonic::Status;
use tracing::{info, warn};

use super::Up;
use crate::lifecycle::Stop;

/// Stops and removes all that the driver has of `supervisor_id` and `is_known` does not know;
/// `found` hears first how many there are.
///
/// # Errors
/// When the driver does not tell what it has. What it does not stop or remove is left to the
/// next time.
pub(crate) async fn clear(
    up: &Up,
    supervisor_id: &str,
    grace: Duration,
    is_known: impl Fn(&str) -> bool,
    found: impl FnOnce(usize),
) -> Result<(), Status> {
    let mut orphans = up.list(supervisor_id).await?;
    orphans.retain(|dyno| !is_known(&dyno.dyno_id));
    if orphans.is_empty() {
        return Ok(());
    }
    info!(count = orphans.len(), "stopping orphans");
    found(orphans.len());
    // All at once: they have one grace period between them, not one each.
    let ends = orphans.iter().map(|dyno| end(up, &dyno.dyno_id, grace));
    join_all(ends).await;
    Ok(())
}

async fn end(up: &Up, dyno_id: &str, grace: Duration) {
    let ended = async {
        up.stop(dyno_id, Stop::Gracefully { grace }).await?;
        up.remove(dyno_id).await
    };
    if let Err(status) = ended.await {
        warn!(id = dyno_id, code = ?status.code(), message = status.message(), "orphan not ended");
    }
}
