//! Finding dynos again: in the engine, by their labels.

use std::{sync::Arc, time::Duration};

use bollard::errors::Error;
use hsup_driver_kit::{
    CancellationToken, errors, hex,
    service::{Record, RecoverError, Recovered},
};
use thiserror::Error;
use tokio::time;

use crate::{
    any::AnyDyno,
    api::Container,
    artifact::{Artifact, Kind},
    attach::{self, Streams},
    config,
    dyno::{Contained, Parts, Writing},
    engine::{self, Up},
    life::{self, Known},
    logs::Source,
    runtime::DockerDriver,
    start,
    terminal::Remote,
};

/// How long an engine is left alone that did not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// The dynos of an earlier driver cannot be found.
#[derive(Debug, Error)]
enum FindError {
    #[error("failed to list containers")]
    List(#[source] Error),
    #[error("failed to look at the container {id}")]
    Inspect { id: String, source: Error },
}

impl FindError {
    /// The engine did not answer.
    fn is_away(&self) -> bool {
        match self {
            Self::List(error) | Self::Inspect { source: error, .. } => {
                engine::code(error).is_none()
            }
        }
    }
}

async fn list_containers(up: &Up, home: &str) -> Result<Vec<(String, Container)>, FindError> {
    let ids = up.api.labelled(config::DRIVER, home).await;
    let mut containers = Vec::new();
    for id in ids.map_err(FindError::List)? {
        match up.api.inspect(&id).await {
            Ok(found) => containers.push((id, found)),
            Err(error) if engine::is_unknown(&error) => {}
            Err(source) => return Err(FindError::Inspect { id, source }),
        }
    }
    Ok(containers)
}

impl DockerDriver {
    /// Every dyno that this driver has started and nobody has removed. An engine that is away is
    /// waited for: it may have some that run.
    pub(crate) async fn find_dynos(&self) -> Result<Vec<Recovered<AnyDyno>>, RecoverError> {
        let mut dynos = Vec::new();
        for (id, found) in self.find_containers().await? {
            // A task of a service: the service is the dyno.
            if found.config.labels.contains_key(config::SERVICE) {
                continue;
            }
            let found = self.found(id, &found).await;
            dynos.extend(found.map(|Recovered { record, dyno }| Recovered {
                record,
                dyno: AnyDyno::Contained(dyno),
            }));
        }
        let placed = self.find_services().await;
        dynos.extend(
            placed
                .into_iter()
                .map(|Recovered { record, dyno }| Recovered {
                    record,
                    dyno: AnyDyno::Placed(dyno),
                }),
        );
        Ok(dynos)
    }

    /// What the engine has with this driver's label.
    async fn find_containers(&self) -> Result<Vec<(String, Container)>, FindError> {
        loop {
            let up = self.engine().up().await;
            match list_containers(&up, self.home()).await {
                Err(error) if error.is_away() => {
                    let error = errors::chain(&error);
                    tracing::debug!(error, "waiting for the engine, to find its dynos again");
                    self.engine().suspect();
                    time::sleep(PAUSE).await;
                }
                found => return found,
            }
        }
    }

    /// One of them, if it is one: a container that never ran is what a start left that was cut
    /// off, and one without a record is nobody's.
    async fn found(&self, id: String, found: &Container) -> Option<Recovered<Contained>> {
        let Container { state, config, .. } = found;
        let label = |name: &str| config.labels.get(name).map_or("", String::as_str);
        let record = hex::decode(label(config::RECORD)).map(|bytes| Record::from_bytes(&bytes));
        let record = match record {
            Some(Ok(record)) if !life::is_new(state) => record,
            Some(Ok(_)) => {
                tracing::info!(
                    container = id,
                    "removing what a start left that was cut off"
                );
                self.undo(id).await;
                return None;
            }
            Some(Err(_)) | None => {
                tracing::error!(
                    container = id,
                    "removing a dyno whose record cannot be read"
                );
                self.undo(id).await;
                return None;
            }
        };
        let gone = CancellationToken::new();
        let uid = label(config::UID).parse().unwrap_or(u32::MAX);
        let app = label(config::APP);
        let networks = &found.network_settings.networks;
        let membership = if networks.contains_key(&self.network_name(uid, app)) {
            Some(Arc::new(self.found_network(uid, app).await))
        } else {
            None
        };
        let is_tty = config.tty;
        let mut terminal = None;
        if is_tty && life::is_running(state) {
            let connector = self.engine().connector();
            match attach::attach(connector, &id, Streams::Terminal).await {
                Ok(both) => {
                    let engine = self.engine();
                    let found = Remote::new(engine.clone(), id.clone(), both, gone.clone());
                    // Until somebody sets another one it has the one that it had.
                    found.keep_size(engine.clone(), id.clone(), gone.clone());
                    terminal = Some(found);
                }
                Err(error) => {
                    tracing::warn!(container = id, %error, "a dyno's terminal is lost");
                }
            }
        }
        let mut writing = Writing::default();
        if !is_tty {
            let reopened = start::reopen(label(config::IO_DIR), uid);
            let source = Source::Container(id.clone());
            let reopened =
                reopened.and_then(|(outputs, reading)| self.writing(&source, outputs, reading));
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
            address: match self.places().find().await {
                Ok(place) => start::address(found, Some(label(config::PORT)), place),
                Err(error) => Err(errors::chain(&error)),
            },
            kind: artifact.map_or(Kind::Plain, |artifact| artifact.kind),
            known: if self.cursors().has_ended(&id) {
                Known::SinceItsEnd
            } else {
                Known::Unseen
            },
            id,
            terminal,
            membership,
        };
        let dyno = Contained::watch(parts, writing, gone);
        Some(Recovered { record, dyno })
    }
}
