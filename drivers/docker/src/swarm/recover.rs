//! Finding the dynos of an earlier driver on the Swarm.

use std::{collections::HashMap, time::Duration};

use bollard::{errors::Error, models::Service, query_parameters::ListServicesOptionsBuilder};
use futures_util::future::join_all;
use hsup_driver_kit::{
    errors, hex,
    service::{Record, Recovered},
};
use tokio::time;

use super::{
    dyno::{Parts, Placed},
    fate::Fate,
    manager::{self, LookError, Part},
    network::Membership,
    spec, stop,
};
use crate::{
    config,
    dyno::Writing,
    engine::{self, Up},
    logs::Source,
    runtime::DockerDriver,
    start,
};

/// How long a Swarm is left alone that does not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// How long is waited for a start that was cut off to be gone.
const LONGEST: Duration = Duration::from_mins(1);

impl DockerDriver {
    /// Every dyno that this driver has started on the Swarm and nobody has removed.
    pub(crate) async fn find_services(&self) -> Vec<Recovered<Placed>> {
        let services = self.services().await;
        let known = services.iter().filter_map(|service| service.id.as_deref());
        self.cursors().keep_services(&known.collect::<Vec<_>>());
        let mut dynos = Vec::new();
        if !services.is_empty() {
            let _hold = self.cluster().hold();
            let mut views = self.cluster().views();
            // The first look that finds anything.
            while views.changed().await.is_ok() && self.cluster().looked().is_err() {}
            // What has to be ended may take its time, and is not the only one.
            let found = services.into_iter().map(|service| async move {
                let labels = service.spec.and_then(|spec| spec.labels);
                let id = service.id.unwrap_or_default();
                self.found_service(id, &labels.unwrap_or_default()).await
            });
            dynos.extend(join_all(found).await.into_iter().flatten());
        }
        let docker = self.engine().docker().await;
        if let Err(error) = self.networks().clear(&docker, self.home()).await {
            let error = errors::chain(&error);
            tracing::debug!(error, "failed to look for networks that were left behind");
        }
        dynos
    }

    /// The services that this driver has made.
    ///
    /// They go on while the manager is away, or has no quorum, and nothing here need know of them: a
    /// reboot clears what is kept. So whatever part of a Swarm may have some is waited for, or they
    /// would be started a second time.
    async fn services(&self) -> Vec<Service> {
        let is_expected = self.is_on_swarm() || self.cursors().has_services();
        let mut is_told = false;
        let services = loop {
            let up = self.engine().up().await;
            let error = match list(&up, self.home()).await {
                Ok(services) => break services,
                Err(error) => error,
            };
            if engine::code(&error).is_none() {
                self.engine().suspect();
            }
            let trouble = match manager::part(&up).await {
                Ok(Part::None) => break Vec::new(),
                Ok(Part::Worker) if !is_expected => break Vec::new(),
                Ok(Part::Worker) => LookError::NoManager,
                Ok(Part::Manager) | Err(_) => LookError::Call(error),
            };
            let trouble = errors::chain(&trouble);
            if !is_told {
                let error = &trouble;
                tracing::warn!(error, "waiting for the Swarm, to find its dynos again");
                is_told = true;
            }
            self.cluster().is_awaited(Some(trouble));
            time::sleep(PAUSE).await;
        };
        self.cluster().is_awaited(None);
        services
    }

    /// One of them, if it is one: a service that has not run is what a Start left that was cut off.
    async fn found_service(
        &self,
        service: String,
        labels: &HashMap<String, String>,
    ) -> Option<Recovered<Placed>> {
        let label = |name: &str| labels.get(name).map_or("", String::as_str);
        let uid = label(config::UID).parse().unwrap_or(u32::MAX);
        let membership = self.found_network(uid, label(config::APP)).await;
        let record = hex::decode(label(config::RECORD)).map(|bytes| Record::from_bytes(&bytes));
        let fate = self.cluster().view().fate(&service);
        let record = match (record, fate) {
            (Some(Ok(record)), Some(Fate::Running | Fate::Ended(_) | Fate::Changed)) => record,
            (Some(Ok(_)), _) => {
                tracing::info!(service, "removing what a start left that was cut off");
                self.give_up(service, membership).await;
                return None;
            }
            (Some(Err(_)) | None, _) => {
                tracing::error!(service, "removing a dyno whose record cannot be read");
                self.give_up(service, membership).await;
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
            membership,
            has_port: label(config::TYPE) == spec::WEB && !label(config::PORT).is_empty(),
        };
        Some(Recovered {
            record,
            dyno: Placed::watch(parts, writing),
        })
    }

    async fn give_up(&self, service: String, membership: Membership) {
        let driver = self.clone();
        let retiring = tokio::spawn(async move {
            stop::retire(driver.engine(), driver.cluster(), &service).await;
            driver.cursors().forget(&service);
            membership.end();
        });
        // Nobody knows of it, and another one is started at once.
        drop(time::timeout(LONGEST, retiring).await);
    }
}

/// The services that have the label of the driver that is called `home`.
async fn list(up: &Up, home: &str) -> Result<Vec<Service>, Error> {
    let filters = [("label", vec![format!("{}={home}", config::DRIVER)])].into();
    let options = ListServicesOptionsBuilder::new().filters(&filters).build();
    up.docker.list_services(Some(options)).await
}
