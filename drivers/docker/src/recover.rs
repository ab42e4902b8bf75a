//! Finding dynos again: in the engine, by their labels.

use std::sync::Arc;

use bollard::errors::Error;
use hsup_driver_kit::{
    CancellationToken, hex,
    pty::WindowSize,
    service::{Record, RecoverError, Recovered},
};
use thiserror::Error;

use crate::{
    any::AnyDyno,
    api::Container,
    artifact::{Artifact, Kind},
    attach::{self, Streams},
    config,
    dyno::{Contained, Parts, Writing},
    engine, life,
    logs::Source,
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
    pub(crate) async fn find_dynos(&self) -> Result<Vec<Recovered<AnyDyno>>, RecoverError> {
        let up = match self.engine().now() {
            Ok(up) => up,
            Err(_) if self.is_on_swarm() => self.engine().up().await,
            // Without an engine nothing can have been started, unless it was there before.
            Err(_) if !self.cursors().has_any() => return Ok(Vec::new()),
            Err(status) => return Err(FindError::Away(status.message().to_owned()).into()),
        };
        let ids = up.api.labelled(config::DRIVER, self.home()).await;
        let mut dynos = Vec::new();
        for id in ids.map_err(FindError::List)? {
            match up.api.inspect(&id).await {
                // A task of a service: the service is the dyno.
                Ok(found) if found.config.labels.contains_key(config::SERVICE) => {}
                Ok(found) => {
                    let found = self.found(id, &found).await;
                    dynos.extend(found.map(|Recovered { record, dyno }| Recovered {
                        record,
                        dyno: AnyDyno::Contained(dyno),
                    }));
                }
                Err(error) if engine::is_unknown(&error) => {}
                Err(source) => return Err(FindError::Inspect { id, source }.into()),
            }
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
        let networks = &found.network_settings.networks;
        let membership = self.found_network(uid, label(config::APP), |network| {
            networks.contains_key(network)
        });
        let membership = membership.await.map(Arc::new);
        let is_tty = config.tty;
        let mut terminal = None;
        if is_tty && life::is_running(state) {
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
            address: start::address(found, Some(label(config::PORT))),
            kind: artifact.map_or(Kind::Plain, |artifact| artifact.kind),
            id,
            terminal,
            membership,
        };
        let dyno = Contained::watch(parts, writing, gone);
        Some(Recovered { record, dyno })
    }
}
