//! Finding the dynos of an earlier driver on the Swarm.

use std::collections::HashMap;

use bollard::{errors::Error, query_parameters::ListServicesOptionsBuilder};
use hsup_driver_kit::{
    hex,
    service::{Record, Recovered},
};
use thiserror::Error as ThisError;

use super::{
    cluster::{self, LookError},
    dyno::{Parts, Placed},
    network, spec, stop,
    task::Fate,
};
use crate::{config, dyno::Writing, engine::Up, logs::Source, runtime::DockerDriver, start};

/// The dynos on the Swarm cannot be found.
#[derive(Debug, ThisError)]
pub(crate) enum FindError {
    #[error("an earlier driver left dynos on a Swarm, which cannot be looked at")]
    Look(#[from] LookError),
    #[error("failed to list services")]
    List(#[source] Error),
}

impl DockerDriver {
    /// Every dyno that this driver has started on the Swarm and nobody has removed.
    pub(crate) async fn find_services(&self, up: &Up) -> Result<Vec<Recovered<Placed>>, FindError> {
        match cluster::manager(up).await {
            Ok(_) => {}
            // There may be none, and never have been one.
            Err(LookError::NoManager) if !self.cursors().has_any() => return Ok(Vec::new()),
            Err(LookError::NoManager) if !self.is_on_swarm() => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let label = format!("{}={}", config::DRIVER, self.home());
        let filters = [("label", vec![label])].into();
        let options = ListServicesOptionsBuilder::new().filters(&filters).build();
        let services = up.docker.list_services(Some(options)).await;
        let services = services.map_err(FindError::List)?;
        if services.is_empty() {
            let cleared = self.networks().clear(&up.docker, self.home()).await;
            cleared.map_err(FindError::List)?;
            return Ok(Vec::new());
        }
        self.cluster().begin();
        // The first look that finds anything.
        let mut views = self.cluster().views();
        while views.changed().await.is_ok() {
            if self.cluster().ready().is_ok() {
                break;
            }
        }
        let mut dynos = Vec::new();
        for service in services {
            let labels = service
                .spec
                .and_then(|spec| spec.labels)
                .unwrap_or_default();
            let id = service.id.unwrap_or_default();
            dynos.extend(self.found_service(id, &labels).await);
        }
        let cleared = self.networks().clear(&up.docker, self.home()).await;
        cleared.map_err(FindError::List)?;
        Ok(dynos)
    }

    /// One of them, if it is one: a service that has not run is what a Start left that was cut off.
    async fn found_service(
        &self,
        service: String,
        labels: &HashMap<String, String>,
    ) -> Option<Recovered<Placed>> {
        let label = |name: &str| labels.get(name).map_or("", String::as_str);
        let uid = label(config::UID).parse().unwrap_or(u32::MAX);
        let network = network::name(self.home(), uid, label(config::APP));
        self.networks().found(&network).await;
        let record = hex::decode(label(config::RECORD)).map(|bytes| Record::from_bytes(&bytes));
        let fate = self.cluster().view().fate(&service);
        let record = match (record, fate) {
            (Some(Ok(record)), Some(Fate::Running | Fate::Ended(_))) => record,
            (Some(Ok(_)), _) => {
                tracing::info!(service, "removing what a start left that was cut off");
                self.give_up(service, network);
                return None;
            }
            (Some(Err(_)) | None, _) => {
                tracing::error!(service, "removing a dyno whose record cannot be read");
                self.give_up(service, network);
                return None;
            }
        };
        let source = Source::Service(service.clone(), self.cluster().clone());
        let reopened = start::reopen(label(config::IO_DIR), uid);
        let writing = reopened.and_then(|(outputs, kept)| self.writing(&source, outputs, kept));
        let writing = writing.unwrap_or_else(|status| {
            let error = status.message();
            tracing::warn!(service, error, "nobody is told what a dyno writes");
            Writing::default()
        });
        let parts = Parts {
            driver: self.clone(),
            service,
            network,
            has_port: label(config::TYPE) == spec::WEB && !label(config::PORT).is_empty(),
        };
        Some(Recovered {
            record,
            dyno: Placed::watch(parts, writing),
        })
    }

    fn give_up(&self, service: String, network: String) {
        let driver = self.clone();
        drop(tokio::spawn(async move {
            stop::retire(driver.engine(), driver.cluster(), &service).await;
            driver.cursors().forget(&service);
            driver.networks().leave(driver.engine(), &network).await;
        }));
    }
}
