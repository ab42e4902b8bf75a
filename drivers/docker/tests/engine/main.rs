//! The driver with an engine of the tests' own, which they may kill.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like one")]

mod door;
mod far;
mod fixture;
mod images;
mod life;
mod registry;
mod restarts;
#[path = "../shared/mod.rs"]
mod shared;
mod swarm;
mod ways;
