//! The sweep: what the driver runs in our name and we do not know is stopped and removed.

use tracing::debug;

use crate::{
    driver::{Link, clear},
    dyno::Shared,
    logs::SYSTEM,
};

/// Compares the driver's list with what we know.
pub(super) async fn sweep(shared: &Shared) {
    let link = shared.link.borrow().clone();
    let Link::Up(up) = link else {
        return;
    };
    let is_known = |id: &str| shared.ledger.knows(id);
    let found = |count| {
        let dynos = match count {
            1 => "a dyno".to_owned(),
            many => format!("{many} dynos"),
        };
        let text = format!("Stopping {dynos} that the driver has and hsup does not know");
        shared.logs.note(SYSTEM, text);
    };
    let supervisor_id = shared.supervisor_id.as_str();
    let grace = shared.policy.grace;
    if let Err(status) = clear(&up, supervisor_id, grace, is_known, found).await {
        debug!(code = ?status.code(), "list failed");
    }
}
