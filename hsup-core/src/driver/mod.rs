//! The supervisor's link to its driver: who it is, whether it is there, and the calls.

mod calls;
pub mod demands;
#[cfg(test)]
pub(crate) mod fake;
mod link;
mod options;
mod previous;
mod spec;
mod unowned;
mod up;

pub(crate) use calls::{Pause, Verdict, said, verdict};
pub use link::{DriverLink, LinkSettings, Lives, NOT_YET};
pub use options::{DriverOption, DriverOptions, ParseDriverOptionError};
pub use previous::{DriverNote, Previous};
pub use spec::{DriverSpec, FindDriverError, Found, find};
pub(crate) use unowned::stop_and_remove;
pub use up::{Link, Up, ready, up, up_again};
pub(crate) use up::{QUICK_WITHIN, STOP_BEYOND_GRACE};
