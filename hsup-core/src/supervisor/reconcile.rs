//! The sweep: what the driver runs in our name and we do not know is stopped and removed.
//!
//! The other half of the protocol's reconciliation, what we know and the driver does not, is
//! each dyno's own business: its Wait is answered `NOT_FOUND`.

use std::time::Duration;

use hsup_proto::driver::{ListRequest, RemoveRequest, StopRequest, remove_request::What};
use tracing::{debug, info, warn};

use crate::{
    driver::{Link, Up},
    dyno::Shared,
};

const LIST_WITHIN: Duration = Duration::from_secs(5);

/// Compares the driver's list with what we know.
pub(super) async fn sweep(shared: &Shared) {
    let link = shared.link.borrow().clone();
    let Link::Up(up) = link else {
        return;
    };
    let request = ListRequest {
        supervisor_id: shared.supervisor_id.clone(),
    };
    let list = match up.call(LIST_WITHIN, up.client().list(request)).await {
        Ok(list) => list,
        Err(status) => {
            debug!(code = ?status.code(), "list failed");
            return;
        }
    };
    for dyno in list.dynos {
        if !shared.ledger.knows(&dyno.dyno_id) {
            info!(id = dyno.dyno_id, "stopping an orphan");
            remove_orphan(&up, dyno.dyno_id).await;
        }
    }
}

async fn remove_orphan(up: &Up, dyno_id: String) {
    let stop = StopRequest {
        dyno_id: dyno_id.clone(),
        signal: String::new(),
        grace_ms: 0,
        force: false,
    };
    if let Err(status) = up.client().stop(stop).await {
        warn!(id = dyno_id, code = ?status.code(), "orphan not stopped");
        return;
    }
    let remove = RemoveRequest {
        what: Some(What::DynoId(dyno_id.clone())),
    };
    if let Err(status) = up.client().remove(remove).await {
        warn!(id = dyno_id, code = ?status.code(), "orphan not removed");
    }
}
