//! The supervisor of one app: one task that owns the formation and the releases.
//!
//! ```text
//!   source ──Update──▶            ──▶ dynos (a task each)
//!  hsupctl ──Request─▶ supervisor ◀── Report
//!   driver ──Link────▶            ──▶ history, journal, events
//! ```
//!
//! The pieces that decide are pure. Some are elsewhere: [`crate::lifecycle`] for one dyno,
//! [`crate::releases`] for which release is to run, [`crate::rollout`] for one replacing
//! another. Some are here: `formation.rs` for what is wanted, `course.rs` for how what runs
//! becomes that, `gap.rs` for how long something was missing, `restarts.rs` for whom to answer
//! that dynos are up, and `target` in `rollback.rs` for which release is gone back to.
//! This task knows what runs, feeds them, and carries out what they answer.

mod actor;
mod beginning;
mod building;
mod course;
mod cycling;
mod decisions;
mod dynos;
mod ending;
mod formation;
mod gap;
mod handle;
mod intake;
mod living;
mod release_phase;
mod requests;
mod restarts;
mod rollback;
mod rollout;
mod status;
mod sweep;
#[cfg(test)]
mod tests;
mod usage;
mod waiters;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::sync::{broadcast, mpsc, watch};

pub use handle::SupervisorHandle;
pub(crate) use status::{link as describe_link, release as describe_release};

use crate::{
    driver::{DriverLink, Link},
    dyno::Shared,
    lifecycle::Kind,
    name::ProcessType,
    release::Release,
    rollout::Policy,
    source::Source,
    state::{History, Memory},
};

/// How many events a slow listener may be behind before it gets a new snapshot instead.
const EVENTS: usize = 1024;

/// What a supervisor is made of.
#[derive(Debug)]
pub struct Settings {
    /// The app's name.
    pub app: String,
    /// Where releases come from.
    pub source: Source,
    /// `hsup start web=2 worker`: these types and no others.
    pub explicit: Option<BTreeMap<ProcessType, u32>>,
    /// The number of the first dyno of each type.
    pub start_number: u32,
    /// Whether dynos are started again (`start`) or once (`--oneshot`).
    pub kind: Kind,
    /// How dynos are replaced.
    pub rollouts: Policy,
    /// How long a release command may take; `None`: none is run.
    pub release_timeout: Option<Duration>,
    /// How long dynos run before each is replaced by a fresh one; `None`: for ever.
    pub cycle_every: Option<Duration>,
    /// Where relative slugs are relative to.
    pub base: PathBuf,
    /// What all dynos share, the link's state among it.
    pub shared: Arc<Shared>,
    /// The driver.
    pub link: DriverLink,
    /// The releases so far.
    pub history: History,
    /// What people asked for so far.
    pub memory: Memory,
    /// Dynos that may still run since an earlier life.
    pub survivors: Vec<crate::state::LiveDyno>,
}

/// How a supervisor ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was told to.
    ShutDown,
    /// It was told to, and so many dynos may run on: their driver has not stopped them.
    Left(usize),
    /// `--oneshot`: every dyno has ended; the largest of their exit codes.
    AllComplete(u8),
}

/// A supervisor could not begin its work.
#[derive(Debug, Error)]
pub enum RunError {
    /// There is no driver to run dynos with.
    #[error("{0}")]
    Driver(String),
    /// There is no release that can be run, and none will come.
    #[error("{0}")]
    NoRelease(String),
}

/// Whether `hsup start TYPE…` names types that `release` has dynos of.
///
/// # Errors
/// When there is no such type.
pub fn check_types(
    explicit: &BTreeMap<ProcessType, u32>,
    release: &Release,
) -> Result<(), RunError> {
    formation::check_types(explicit, release)
        .map_err(|error| RunError::NoRelease(error.to_string()))
}

/// A supervisor, ready to run.
#[derive(Debug)]
pub struct Supervisor {
    actor: actor::Actor,
}

impl Supervisor {
    /// Makes a supervisor and the handle to drive it with.
    pub fn new(settings: Settings) -> (Self, SupervisorHandle) {
        let (requests, inbox) = mpsc::channel(64);
        let (events, _) = broadcast::channel(EVENTS);
        let link: watch::Receiver<Link> = settings.link.watch();
        let handle =
            SupervisorHandle::new(requests, events.clone(), Arc::clone(&settings.shared), link);
        let actor = actor::Actor::new(settings, inbox, events);
        (Self { actor }, handle)
    }

    /// Supervises until told to stop; every dyno is gone when it returns.
    ///
    /// # Errors
    /// When it cannot begin: no driver, no release.
    pub async fn run(self) -> Result<Outcome, RunError> {
        self.actor.run().await
    }
}
