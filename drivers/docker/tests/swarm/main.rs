//! The driver on a swarm of several engines, as a person meets it: hsup, the driver, and machines
//! that are drained, killed and cut off.
//!
//! Each machine is an engine in namespaces of its own, and a cable leads from there to a switch, in
//! whose network hsup and the registry are as well.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like one")]

mod app;
mod cluster;
mod losses;
mod managers;
mod network;
mod refusals;
mod registry;
mod rollouts;
#[path = "../shared/mod.rs"]
mod shared;
mod sixty;
mod spread;
mod watch;
