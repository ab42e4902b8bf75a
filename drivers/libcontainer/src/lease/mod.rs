//! What a dyno borrows from the host: a uid, and a /30 of IPv4 addresses.
//!
//! A lease is two files under the work directory, `uids/<uid>` and `subnets/<network>`. Each
//! is made with `O_EXCL` and holds the path of its owner, the run directory of the dyno. No
//! driver is needed to keep a lease, so a dyno keeps its own when the driver is gone, and a
//! lease whose owner no longer exists is stale: [`Leases::free_stale`] finds those that a
//! crash or a reboot left behind.
//!
//! Which uids and which subnets there are, and which subnet belongs to which uid, is decided
//! without a file in [`uids`](UidRange) and [`pool`](Pool); [`Leases`] does the rest.

mod locks;
mod pool;
mod uids;

pub use self::{
    locks::{LeaseError, Leases},
    pool::{Pool, PoolError, SUBNET_VARIABLE, Span, Subnet},
    uids::{UID_MAX_VARIABLE, UID_MIN_VARIABLE, UidError, UidRange, named},
};

use serde::{Deserialize, Serialize};

/// What one dyno has borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The user that the dyno's processes are.
    pub uid: u32,
    /// The addresses of the dyno and of its gateway.
    pub subnet: Subnet,
    /// All subnets of the pool that this one is from: what was set up for the pool as a whole
    /// goes with the last lease in it.
    pub pool: Span,
}
