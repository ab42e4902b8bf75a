//! Whether the engine is a manager of a Swarm that hsup can use, and what is the matter if not.

use std::time::Duration;

use bollard::{
    errors::Error,
    models::{LocalNodeState, SwarmInfo},
};
use hsup_driver_kit::{Status, errors};
use thiserror::Error as ThisError;
use tokio::time;

use crate::engine::Up;

/// How many tasks of a service the Swarm must keep: the one that has ended, and the one that waits
/// in vain.
const HISTORY: i64 = 2;
/// How long a manager may take to answer: one without a quorum may never.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// The Swarm cannot be looked at.
#[derive(Debug, ThisError)]
pub(crate) enum LookError {
    #[error("the Swarm's manager does not answer")]
    Call(#[source] Error),
    #[error("the Swarm's manager did not answer within {} s", PATIENCE.as_secs())]
    Late,
    #[error("the engine is about to be a manager of its Swarm again, or cannot: see `docker info`")]
    Preparing,
    #[error(
        "the engine is no manager of a Swarm: make it one with `docker swarm init` or \
         `docker swarm join`, or name one that is, with DOCKER_HOST or --host"
    )]
    NoManager,
    #[error(
        "the Swarm forgets tasks as soon as they have ended, and how: have it keep some, with \
         `docker swarm update --task-history-limit 5`"
    )]
    NoHistory,
}

impl LookError {
    /// What a call that failed says of the Swarm.
    pub(super) fn of(error: Error) -> Self {
        match &error {
            // Its way out is that of a worker, too, and of one that has left; but not of one that
            // has just begun, or has lost the others.
            Error::DockerResponseServerError { message, .. }
                if message.contains("not a swarm manager")
                    && !message.contains("being prepared") =>
            {
                Self::NoManager
            }
            _ => Self::Call(error),
        }
    }
}

/// What the engine is in a Swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It is in none.
    None,
    Worker,
    /// Also one that is not sure yet, is locked, or fails: it may have been a manager before.
    Manager,
}

/// What the engine itself says of that: it needs no Swarm that answers for it.
pub(super) async fn part(up: &Up) -> Result<Part, LookError> {
    if up.traits.is_podman {
        return Ok(Part::None);
    }
    let info = time::timeout(PATIENCE, up.docker.info()).await;
    let info = info.map_err(|_| LookError::Late)?;
    let swarm = info.map_err(LookError::Call)?.swarm;
    Ok(part_in(&swarm.unwrap_or_default()))
}

fn part_in(swarm: &SwarmInfo) -> Part {
    match swarm.local_node_state {
        None | Some(LocalNodeState::EMPTY | LocalNodeState::INACTIVE) => Part::None,
        Some(LocalNodeState::ACTIVE) if swarm.control_available != Some(true) => Part::Worker,
        Some(_) => Part::Manager,
    }
}

/// The node that the engine is, if it is a manager of a Swarm that hsup can use.
pub(crate) async fn manager(up: &Up) -> Result<String, LookError> {
    let asking = async {
        let info = up.docker.info().await.map_err(LookError::Call)?;
        let swarm = info.swarm.unwrap_or_default();
        let id = match &swarm.node_id {
            Some(id) if swarm.control_available == Some(true) && !id.is_empty() => id.clone(),
            _ if part_in(&swarm) == Part::Manager => return Err(LookError::Preparing),
            _ => return Err(LookError::NoManager),
        };
        let swarm = up.docker.inspect_swarm().await.map_err(LookError::of)?;
        let orchestration = swarm.spec.and_then(|spec| spec.orchestration);
        let kept = orchestration.and_then(|kept| kept.task_history_retention_limit);
        if kept.is_some_and(is_too_short) {
            return Err(LookError::NoHistory);
        }
        Ok(id)
    };
    let asked = time::timeout(PATIENCE, asking).await;
    asked.map_err(|_| LookError::Late)?
}

/// Whether a Swarm that keeps so many tasks forgets some too early. A negative number is all of them.
fn is_too_short(history: i64) -> bool {
    (0..HISTORY).contains(&history)
}

impl From<LookError> for Status {
    fn from(error: LookError) -> Self {
        let text = errors::chain(&error);
        match error {
            LookError::NoManager | LookError::NoHistory => Self::failed_precondition(text),
            LookError::Call(_) | LookError::Late | LookError::Preparing => Self::unavailable(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("inactive", false, Part::None)]
    #[test_case("active", false, Part::Worker)]
    #[test_case("active", true, Part::Manager)]
    #[test_case("pending", false, Part::Manager; "one that begins")]
    #[test_case("pending", true, Part::Manager; "one that the others are away of")]
    #[test_case("locked", false, Part::Manager)]
    #[test_case("error", false, Part::Manager; "one that fails for now")]
    fn only_who_is_in_no_swarm_has_nothing_there(state: &str, control: bool, expected: Part) {
        let info = serde_json::json!({"LocalNodeState": state, "ControlAvailable": control});
        assert_eq!(part_in(&serde_json::from_value(info).unwrap()), expected);
    }

    #[test_case(-1, false; "all of them")]
    #[test_case(0, true)]
    #[test_case(1, true)]
    #[test_case(2, false)]
    #[test_case(5, false)]
    fn the_swarm_must_keep_two_tasks(history: i64, expected: bool) {
        assert_eq!(is_too_short(history), expected);
    }

    #[test_case(
        "This node is not a swarm manager. Use \"docker swarm init\" or …",
        true
    )]
    #[test_case(
        "This node is not a swarm manager. Manager is being prepared or has trouble connecting …",
        false
    )]
    #[test_case("Swarm is encrypted and needs to be unlocked", false)]
    fn who_is_no_manager_is_told_what_is_the_matter(said: &str, expected: bool) {
        let error = Error::DockerResponseServerError {
            status_code: 503,
            message: said.to_owned(),
        };
        let found = LookError::of(error);
        assert_eq!(matches!(found, LookError::NoManager), expected, "{found:?}");
    }
}
