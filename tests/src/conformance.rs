//! The conformance suite: does a driver keep the rules of `hsup.driver.v1`?
//!
//! Every [`Case`] cites the rule it checks and speaks to the driver through its socket only, so
//! the suite tests a driver in any language. A Rust driver calls [`run`] from a `#[test]`;
//! everybody else uses the command `hsup-driver-check`.
//!
//! ```text
//! Config ─▶ run ─▶ Session (driver process, two connections, what every call answered)
//!                     │
//!                     └─▶ Context, one per case: its dynos, their FIFOs, their removal
//!                            └─▶ Case::run ─▶ Verdict ─▶ Report ─▶ text, TAP, JSON, JUnit
//! ```
//!
//! Three habits keep verdicts honest: a case that cannot run is *skipped* with its reason and
//! never counted as passed; a case waits for states, with a deadline that names what it waited
//! for; and every answer of the driver is recorded, so that the last chapter can say that no
//! call ever answered UNKNOWN or INTERNAL.

mod calls;
mod case;
mod chapters;
mod config;
mod context;
mod driver;
mod dyno;
mod fifo;
mod follow;
mod interrupt;
mod kernel;
mod output;
mod process;
mod raw;
mod record;
pub mod report;
mod requests;
mod runner;
mod session;

pub use self::{
    calls::{Answer, Calls, Problem},
    case::{Case, Failure, Need, NotPassed, Outcome},
    chapters::all as cases,
    config::{Config, Target},
    context::Context,
    driver::ConnectDriverError,
    dyno::Dyno,
    fifo::Stdin,
    output::Output,
    report::{CaseResult, DriverFacts, Report, Verdict},
    runner::{Listener, Progress, RunError, run, run_with},
};
