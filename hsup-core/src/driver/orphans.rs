//! The dynos that a driver has of ours and that we do not know: stopped, and removed.
//!
//! The other half of the protocol's reconciliation, what we know and does not run, is each
//! dyno's own business: see `Ledger::doubt`.

use std::time::Duration;

use futures_util::future::join_all;
use hsup_proto::driver::Dyno;
use tracing::{info, warn};

use super::Up;
use crate::lifecycle::Stop;

/// Stops and removes those dynos. What the driver does not stop or remove is left to the next
/// time.
pub(crate) async fn clear(up: &Up, orphans: &[Dyno], grace: Duration) {
    info!(count = orphans.len(), "stopping orphans");
    // All at once: they have one grace period between them, not one each.
    let ends = orphans.iter().map(|dyno| end(up, &dyno.dyno_id, grace));
    join_all(ends).await;
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
