//! Finding dynos again: in the engine, by their labels.

use std::collections::HashMap;

use bollard::{
    Docker,
    errors::Error,
    models::ContainerInspectResponse,
    query_parameters::{ListContainersOptionsBuilder, RemoveContainerOptionsBuilder},
};
use hsup_driver_kit::{
    CancellationToken, hex,
    pty::WindowSize,
    service::{Record, RecoverError, Recovered},
};
use thiserror::Error;

use crate::{
    artifact::{Artifact, Kind},
    attach::{self, Streams},
    config,
    dyno::{Contained, Parts, Writing},
    engine, life,
    runtime::DockerDriver,
    start,
    terminal::Remote,
};

/// The dynos of an earlier driver cannot be found.
#[derive(Debug, Error)]
enum FindError {
    #[error("an earlier driver left dynos, and they cannot be found: {0}")]
    Away(String),
    #[error("failed to list containers")]
    List(#[source] Error),
    #[error("failed to look at the container {id}")]
    Inspect { id: String, source: Error },
}

impl DockerDriver {
    /// Every dyno that this driver has started and nobody has removed.
    pub(crate) async fn find_dynos(&self) -> Result<Vec<Recovered<Contained>>, RecoverError> {
        let up = match self.engine().now() {
            Ok(up) => up,
            // Without an engine nothing can have been started, unless it was there before.
            Err(_) if !self.cursors().has_any() => return Ok(Vec::new()),
            Err(status) => return Err(FindError::Away(status.message().to_owned()).into()),
        };
        let label = format!("{}={}", config::DRIVER, self.home());
        let filters = HashMap::from([("label".to_owned(), vec![label])]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let found = up.docker.list_containers(Some(options)).await;
        let mut dynos = Vec::new();
        for container in found.map_err(FindError::List)? {
            let id = container.id.unwrap_or_default();
            let found = match up.docker.inspect_container(&id, None).await {
                Ok(found) => found,
                Err(error) if engine::is_unknown(&error) => continue,
                Err(source) => return Err(FindError::Inspect { id, source }.into()),
            };
            dynos.extend(self.found(&up.docker, id, &found).await);
        }
        Ok(dynos)
    }

    /// One of them, if it is one: a container that never ran is what a start left that was cut
    /// off, and one without a record is nobody's.
    async fn found(
        &self,
        docker: &Docker,
        id: String,
        found: &ContainerInspectResponse,
    ) -> Option<Recovered<Contained>> {
        let config = found.config.clone().unwrap_or_default();
        let labels = config.labels.unwrap_or_default();
        let label = |name: &str| labels.get(name).map_or("", String::as_str);
        let state = found.state.clone().unwrap_or_default();
        let record = hex::decode(label(config::RECORD)).map(|bytes| Record::from_bytes(&bytes));
        let record = match record {
            Some(Ok(record)) if !life::is_new(&state) => record,
            Some(Ok(_)) => {
                tracing::info!(
                    container = id,
                    "removing what a start left that was cut off"
                );
                remove(docker, &id).await;
                self.cursors().forget(&id);
                return None;
            }
            Some(Err(_)) | None => {
                tracing::error!(
                    container = id,
                    "removing a dyno whose record cannot be read"
                );
                remove(docker, &id).await;
                self.cursors().forget(&id);
                return None;
            }
        };
        let gone = CancellationToken::new();
        let is_tty = config.tty.unwrap_or_default();
        let mut terminal = None;
        if is_tty && life::is_running(&state) {
            let connector = self.engine().connector();
            match attach::attach(connector, &id, Streams::Terminal).await {
                Ok(both) => {
                    let size = WindowSize::default();
                    terminal = Some(Remote::new(both, size, gone.clone()));
                }
                Err(error) => {
                    tracing::warn!(container = id, %error, "a dyno's terminal is lost");
                }
            }
        }
        let mut writing = Writing::default();
        if !is_tty {
            let uid = label(config::UID).parse().unwrap_or(u32::MAX);
            let reopened = start::reopen(label(config::IO_DIR), uid);
            let reopened =
                reopened.and_then(|(outputs, reading)| self.writing(&id, outputs, reading));
            match reopened {
                Ok(found) => writing = found,
                Err(status) => {
                    let error = status.message();
                    tracing::warn!(container = id, error, "nobody is told what a dyno writes");
                }
            }
        }
        let artifact = label(config::ARTIFACT).parse::<Artifact>();
        let parts = Parts {
            engine: self.engine().clone(),
            cursors: self.cursors().clone(),
            address: start::address(found, Some(label(config::PORT))),
            kind: artifact.map_or(Kind::Plain, |artifact| artifact.kind),
            id,
            terminal,
        };
        let dyno = Contained::watch(parts, writing, gone);
        Some(Recovered { record, dyno })
    }
}

async fn remove(docker: &Docker, id: &str) {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true);
    if let Err(error) = docker.remove_container(id, Some(options.build())).await {
        tracing::warn!(container = id, %error, "failed to remove a container");
    }
}
