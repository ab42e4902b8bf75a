//! What this crate reads from others, as functions that `fuzz/` feeds: as root, who believes
//! them nothing.

use std::net::Ipv4Addr;

use crate::{dyno::Known, lease::Subnet, order::Answer, sweep::Held};
pub use crate::{
    stack::fuzz::{stack_manifest, stack_texts},
    start::fuzz::container_requests,
};

/// What a target is called, and itself.
pub type Target = (&'static str, fn(&[u8]));

/// Each target, and what it is called.
pub const TARGETS: &[Target] = &[
    ("container_files", container_files),
    ("container_requests", container_requests),
    ("stack_manifest", stack_manifest),
    ("stack_texts", stack_texts),
];

/// What is kept beside a dyno, and what its shim answers: `held.json`, `dyno.json`, the shim's
/// answer and a subnet, whichever it is.
pub fn container_files(text: &[u8]) {
    if let Ok(held) = serde_json::from_slice::<Held>(text) {
        let written = serde_json::to_vec(&held).expect("JSON");
        let again: Held = serde_json::from_slice(&written).expect("what was written");
        assert_eq!(serde_json::to_vec(&again).ok(), Some(written));
        check(held.lease.subnet);
    }
    if let Ok(known) = serde_json::from_slice::<Known>(text) {
        let written = serde_json::to_vec(&known).expect("JSON");
        let again: Known = serde_json::from_slice(&written).expect("what was written");
        assert_eq!(serde_json::to_vec(&again).ok(), Some(written));
    }
    if let Ok(answer) = serde_json::from_slice::<Answer>(text) {
        let written = serde_json::to_vec(&answer).expect("JSON");
        assert_eq!(
            serde_json::from_slice::<Answer>(&written).ok(),
            Some(answer)
        );
    }
    if let Some(subnet) = str::from_utf8(text).ok().and_then(|it| it.parse().ok()) {
        check(subnet);
    }
}

/// A subnet is written as it is read, and has an address for each end of the link.
fn check(subnet: Subnet) {
    assert_eq!(subnet.to_string().parse().ok(), Some(subnet));
    let [host, gateway]: [Ipv4Addr; 2] = [subnet.host(), subnet.gateway()];
    assert_ne!(host, gateway);
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;
