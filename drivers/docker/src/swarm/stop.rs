//! Taking a dyno from the Swarm: first from every node, then from its books.

use std::time::Duration;

use bollard::{
    Docker,
    errors::Error,
    models::{ServiceSpec, TaskSpecPlacement},
    query_parameters::{InspectServiceOptions, UpdateServiceOptionsBuilder},
};
use hsup_driver_kit::errors;
use tokio::time;

use super::{cluster::Cluster, fate::NOWHERE, manager::LookError, spec::ATTEMPT};
use crate::engine::{self, Engine};

/// How long a failed call is not repeated.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a Swarm is left alone that has lost its leader.
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked for what an unanswered call left, with that pause: a manager finds out
/// within twenty seconds that it is alone.
const UNDO_LOOKS: usize = 60;
/// How often a change is tried that somebody else's change came before.
const TRIES: usize = 20;

/// Ends the task of a service, in order: its first process gets SIGTERM, and SIGKILL after the
/// grace that the service was made with. A service that is not there has ended.
///
/// The Swarm finds no node for the task that would come next, and there is never one.
async fn stop(docker: &Docker, service: &str) -> Result<(), Error> {
    let mut tries = 0..TRIES;
    loop {
        let found = docker.inspect_service(service, None::<InspectServiceOptions>);
        let found = match found.await {
            Err(error) if engine::is_unknown(&error) => return Ok(()),
            found => found?,
        };
        let spec = found.spec.unwrap_or_default();
        if is_nowhere(&spec) {
            return Ok(());
        }
        let version = found
            .version
            .and_then(|version| version.index)
            .unwrap_or_default();
        let options = UpdateServiceOptionsBuilder::new()
            .version(i32::try_from(version).unwrap_or_default())
            .build();
        match docker
            .update_service(service, nowhere(spec), options, None)
            .await
        {
            Err(error) if engine::is_unknown(&error) => return Ok(()),
            Err(error) if is_out_of_date(&error) && tries.next().is_some() => {
                time::sleep(PAUSE).await;
            }
            stopped => return stopped.map(drop),
        }
    }
}

/// The same service, for no node.
fn nowhere(mut spec: ServiceSpec) -> ServiceSpec {
    let template = spec.task_template.get_or_insert_default();
    template.placement = Some(TaskSpecPlacement {
        constraints: Some(vec![NOWHERE.to_owned()]),
        ..TaskSpecPlacement::default()
    });
    spec
}

fn is_nowhere(spec: &ServiceSpec) -> bool {
    let placement = spec
        .task_template
        .as_ref()
        .and_then(|task| task.placement.as_ref());
    let constraints = placement.and_then(|placement| placement.constraints.as_ref());
    constraints.is_some_and(|constraints| constraints.iter().any(|one| one == NOWHERE))
}

/// Somebody changed it since it was looked at.
fn is_out_of_date(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { message, .. }
        if message.contains("out of sequence"))
}

/// Removes a service; one that is not there is removed.
pub(super) async fn remove(docker: &Docker, service: &str) -> Result<(), Error> {
    match docker.delete_service(service).await {
        Err(error) if !engine::is_unknown(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Ends a service, and waits until nothing of it runs, whoever had that begun.
pub(super) async fn silence(engine: &Engine, cluster: &Cluster, service: &str) {
    let _haste = cluster.hurry();
    until(engine, service, Change::Stop).await;
    let mut views = cluster.views();
    // One that began before it was stopped does not count.
    let mut looks = 0;
    while views.changed().await.is_ok() {
        if cluster.looked().is_err() {
            continue;
        }
        looks += 1;
        if views.borrow_and_update().is_silent(service) && looks > 1 {
            return;
        }
    }
}

/// Ends what a Start left that failed, and removes it once nothing of it runs: whatever is started
/// in its place has no twin.
pub(super) async fn retire(engine: &Engine, cluster: &Cluster, service: &str) {
    silence(engine, cluster, service).await;
    until(engine, service, Change::Remove).await;
}

/// The same for the service of this name, if there is one.
pub(super) async fn retire_named(
    engine: &Engine,
    cluster: &Cluster,
    name: &str,
) -> Result<(), Error> {
    let docker = engine.docker().await;
    let found = docker.inspect_service(name, None::<InspectServiceOptions>);
    match found.await {
        Ok(found) => retire(engine, cluster, &found.id.unwrap_or_default()).await,
        Err(error) if engine::is_unknown(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Looks for what a call to make a service of this name left that was not answered: the Swarm may
/// carry it out when nobody waits for it any more. `attempt` is what the call wrote on it.
pub(super) async fn undo(engine: &Engine, cluster: &Cluster, name: &str, attempt: &str) {
    let mut looks = 0..UNDO_LOOKS;
    loop {
        let docker = engine.docker().await;
        let found = docker.inspect_service(name, None::<InspectServiceOptions>);
        match found.await {
            Ok(found) => {
                let labels = found.spec.and_then(|spec| spec.labels).unwrap_or_default();
                if labels.get(ATTEMPT).is_some_and(|label| label == attempt) {
                    retire(engine, cluster, &found.id.unwrap_or_default()).await;
                }
                return;
            }
            // A manager that does not know yet that it leads no more says so, too.
            Err(error) if engine::is_unknown(&error) => {
                if looks.next().is_none() {
                    return;
                }
            }
            Err(error) if engine::code(&error).is_none() => engine.suspect(),
            Err(_) => {}
        }
        time::sleep(LONG_PAUSE).await;
    }
}

/// What is done to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Stop,
    Remove,
}

impl Change {
    const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Remove => "remove",
        }
    }
}

/// Does that until the manager has taken it.
pub(super) async fn until(engine: &Engine, service: &str, change: Change) {
    let mut is_told = false;
    loop {
        let docker = engine.docker().await;
        let done = match change {
            Change::Stop => stop(&docker, service).await,
            Change::Remove => remove(&docker, service).await,
        };
        let Err(error) = done else { return };
        // A Swarm without a leader has enough to do.
        let is_answer = engine::code(&error).is_some();
        if !is_answer {
            engine.suspect();
        }
        if !is_told {
            let error = match LookError::of(error) {
                // In the engine's own words: it has answered, perhaps.
                LookError::Call(error) => errors::chain(&error),
                other => errors::chain(&other),
            };
            let change = change.name();
            tracing::warn!(
                service,
                error,
                "failed to {change} a dyno on the Swarm: trying again"
            );
            is_told = true;
        }
        time::sleep(if is_answer { LONG_PAUSE } else { PAUSE }).await;
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::TaskSpec;

    use super::*;

    #[test]
    fn a_service_for_no_node_is_the_same_otherwise() {
        let spec = ServiceSpec {
            name: Some("web".to_owned()),
            task_template: Some(TaskSpec {
                force_update: Some(7),
                ..TaskSpec::default()
            }),
            ..ServiceSpec::default()
        };
        assert!(!is_nowhere(&spec));
        let stopped = nowhere(spec);
        assert!(is_nowhere(&stopped));
        assert_eq!(stopped.name.as_deref(), Some("web"));
        assert_eq!(stopped.task_template.unwrap().force_update, Some(7));
    }
}
