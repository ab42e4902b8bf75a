//! The supervisor's link to its driver: who it is, whether it is there, and the calls.

mod calls;
pub mod demands;
#[cfg(test)]
pub(crate) mod fake;
mod link;
mod options;
mod orphans;
mod previous;
mod spec;
mod up;

pub(crate) use calls::{Pause, Verdict, said, verdict};
pub use link::{DriverLink, LinkSettings, Lives, NOT_YET};
pub use options::{DriverOption, DriverOptions, ParseDriverOptionError};
pub(crate) use orphans::clear;
pub use previous::{DriverNote, Previous};
pub use spec::{DriverSpec, FindDriverError, Found, find};
pub use up::{Link, Up, ready, up, up_again};
pub(crate) use up::{QUICK_WITHIN, STOP_BEYOND_GRACE};
