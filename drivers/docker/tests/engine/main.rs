//! The driver with an engine of the tests' own, which they may kill.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like one")]

mod fixture;
mod life;
mod restarts;
mod ways;
