//! The supervisor's link to its driver: who it is, whether it is there, and the calls.

mod link;
mod spec;
mod up;

pub use link::{DriverLink, Link, LinkSettings, NOT_YET, Previous};
pub use spec::{DriverSpec, FindDriverError, Found, find};
pub use up::{Up, up};
