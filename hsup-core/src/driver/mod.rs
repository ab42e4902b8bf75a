//! The supervisor's link to its driver: who it is, whether it is there, and the calls.

pub mod demands;
mod link;
mod spec;

pub use link::{DriverLink, Link, LinkSettings, NOT_YET, Previous, Up, up};
pub use spec::{DriverSpec, FindDriverError, Found, find};
