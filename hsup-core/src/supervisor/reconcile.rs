//! The sweep: what the driver has in our name is compared with what we know. A dyno of ours that
//! does not run, by the driver's word, looks for itself; what we do not know is stopped and
//! removed.

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
    let mut dynos = match up.list(shared.supervisor_id.as_str()).await {
        Ok(dynos) => dynos,
        Err(status) => {
            debug!(code = ?status.code(), "list failed");
            return;
        }
    };
    shared.ledger.doubt(&dynos);
    dynos.retain(|dyno| !shared.ledger.knows(&dyno.dyno_id));
    let orphans = match dynos.len() {
        0 => return,
        1 => "a dyno".to_owned(),
        many => format!("{many} dynos"),
    };
    shared.logs.note(
        SYSTEM,
        format!("Stopping {orphans} that the driver has and hsup does not know"),
    );
    clear(&up, &dynos, shared.policy.grace).await;
}
