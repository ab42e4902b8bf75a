//! The overlay network of each app: its dynos reach each other on every node, and those of other
//! apps do not.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bollard::{
    Docker,
    errors::Error,
    models::NetworkCreateRequest,
    query_parameters::{InspectNetworkOptions, ListNetworksOptionsBuilder},
};
use hsup_driver_kit::{Status, errors, hex};
use sha2::{Digest as _, Sha256};
use thiserror::Error as ThisError;
use tokio::{sync::Mutex, time};
use tokio_util::task::TaskTracker;

use crate::{
    config,
    engine::{self, Engine},
    runtime::DockerDriver,
};

/// How often it is tried to remove a network that the Swarm still takes to be in use, and how long
/// is waited in between.
const TRIES: usize = 120;
const PAUSE: Duration = Duration::from_secs(1);
/// How long a driver that is told to end stays for that: less than hsup gives it.
const LAST_TRIES: Duration = Duration::from_secs(5);
/// Longer than any name that people read.
const LONGEST_APP: usize = 32;

/// The networks of this driver's apps. They are there as long as a dyno is.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    /// How many dynos an app has, by its network. Held while one is made or removed.
    dynos: Mutex<HashMap<String, usize>>,
    /// Those that leave.
    leaving: TaskTracker,
}

/// There is no network for an app.
#[derive(Debug, ThisError)]
enum NetworkError {
    #[error(transparent)]
    Call(Error),
    #[error("there is a network `{0}` already, which this driver did not make: remove it")]
    Other(String),
}

/// What the network of an app is called: of two drivers' or users' apps of the same name, too.
fn name(home: &str, uid: u32, app: &str) -> String {
    let hash = Sha256::digest(format!("{home} {uid} {app}"));
    let fits = |one: char| {
        if one.is_ascii_alphanumeric() {
            one
        } else {
            '-'
        }
    };
    let app: String = app.chars().take(LONGEST_APP).map(fits).collect();
    format!("hsup-{app}-{}", hex::encode(&hash[..8]))
}

/// A dyno's place in the network of its app, which is there until the last of these has ended.
#[derive(Debug)]
pub(crate) struct Membership {
    driver: DockerDriver,
    network: String,
    has_ended: AtomicBool,
}

impl Membership {
    /// The network, as the engine calls it.
    pub(crate) fn network(&self) -> &str {
        &self.network
    }

    /// Says that nothing of the dyno is in there any more, once or more often.
    pub(crate) fn end(&self) {
        if self.has_ended.swap(true, Ordering::Relaxed) {
            return;
        }
        let (driver, network) = (self.driver.clone(), self.network.clone());
        let leaving = self.driver.networks().leaving.clone();
        drop(leaving.spawn(async move {
            driver.networks().leave(driver.engine(), &network).await;
        }));
    }
}

impl DockerDriver {
    /// A place in the network of this user's app, which is made if there is none.
    pub(super) async fn enter_network(
        &self,
        docker: &Docker,
        uid: u32,
        app: &str,
    ) -> Result<Membership, Status> {
        let network = self.network_name(uid, app);
        let entered = self.networks().enter(docker, &network, self.home());
        match entered.await {
            Ok(()) => Ok(self.membership(network)),
            Err(NetworkError::Call(error)) => {
                Err(self.failed("make the network of an app", &error))
            }
            Err(error @ NetworkError::Other(_)) => {
                Err(Status::failed_precondition(error.to_string()))
            }
        }
    }

    /// The same if another dyno has one already: alone there is nobody to be reached.
    pub(crate) async fn join_network(&self, uid: u32, app: &str) -> Option<Membership> {
        let network = self.network_name(uid, app);
        let is_there = self.networks().join(&network).await;
        is_there.then(|| self.membership(network))
    }

    /// That of a dyno that was found again.
    pub(crate) async fn found_network(&self, uid: u32, app: &str) -> Membership {
        let network = self.network_name(uid, app);
        let docker = self.engine().docker().await;
        let found = self.networks().found(&docker, &network, self.home());
        if let Err(error) = found.await {
            let error = errors::chain(&error);
            tracing::warn!(network, error, "failed to look for the network of an app");
        }
        self.membership(network)
    }

    /// What the network of this user's app is called, whether it is there or not.
    pub(crate) fn network_name(&self, uid: u32, app: &str) -> String {
        name(self.home(), uid, app)
    }

    fn membership(&self, network: String) -> Membership {
        Membership {
            driver: self.clone(),
            network,
            has_ended: AtomicBool::new(false),
        }
    }
}

impl Networks {
    /// Counts a dyno in, and makes the network if there is none.
    async fn enter(&self, docker: &Docker, name: &str, home: &str) -> Result<(), NetworkError> {
        let mut dynos = self.dynos.lock().await;
        let count = dynos.entry(name.to_owned()).or_default();
        if *count == 0 {
            make(docker, name, home).await?;
        }
        *count += 1;
        Ok(())
    }

    /// Counts a dyno in if the network is there, and says whether it is.
    async fn join(&self, name: &str) -> bool {
        match self.dynos.lock().await.get_mut(name) {
            Some(count) if *count > 0 => {
                *count += 1;
                true
            }
            _ => false,
        }
    }

    /// Counts in a dyno that was found again, if it is in there: one that another version of the
    /// driver has started may be in one of another name.
    async fn found(&self, docker: &Docker, name: &str, home: &str) -> Result<(), NetworkError> {
        let mut dynos = self.dynos.lock().await;
        match dynos.get_mut(name) {
            Some(count) => *count += 1,
            None if is_there(docker, name, home).await? => {
                dynos.insert(name.to_owned(), 1);
            }
            None => {}
        }
        Ok(())
    }

    /// Counts a dyno out; with the last one the network goes.
    async fn leave(&self, engine: &Engine, name: &str) {
        if let Some(count) = self.dynos.lock().await.get_mut(name) {
            *count = count.saturating_sub(1);
        }
        // The Swarm takes it to be in use until the last task's container is gone.
        for _ in 0..TRIES {
            let docker = engine.docker().await;
            let mut dynos = self.dynos.lock().await;
            if dynos.get(name) != Some(&0) {
                return;
            }
            match docker.remove_network(name).await {
                Err(error) if !engine::is_unknown(&error) => {
                    tracing::debug!(network = name, %error, "a network is still in use");
                }
                _ => {
                    dynos.remove(name);
                    return;
                }
            }
            drop(dynos);
            time::sleep(PAUSE).await;
        }
        tracing::warn!(network = name, "the network of an app was left behind");
    }

    /// Waits a moment for those that leave. What they leave behind nevertheless, the next driver
    /// removes when it begins.
    pub(crate) async fn close(&self) {
        self.leaving.close();
        drop(time::timeout(LAST_TRIES, self.leaving.wait()).await);
    }

    /// Removes the networks that no dyno is left of, but for those of dynos that were found again.
    pub(super) async fn clear(&self, docker: &Docker, home: &str) -> Result<(), Error> {
        let dynos = self.dynos.lock().await;
        let label = format!("{}={home}", config::DRIVER);
        let filters = [("label", vec![label])].into();
        let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
        for network in docker.list_networks(Some(options)).await? {
            if let Some(name) = network.name
                && !dynos.contains_key(&name)
                && let Err(error) = docker.remove_network(&name).await
            {
                tracing::warn!(network = name, %error, "the network of an app was left behind");
            }
        }
        Ok(())
    }
}

async fn make(docker: &Docker, name: &str, home: &str) -> Result<(), NetworkError> {
    if is_there(docker, name, home).await? {
        return Ok(());
    }
    let request = NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("overlay".to_owned()),
        // For people who look for what is wrong: `docker run --network`.
        attachable: Some(true),
        labels: Some([(config::DRIVER.to_owned(), home.to_owned())].into()),
        ..NetworkCreateRequest::default()
    };
    match docker.create_network(request).await {
        // Somebody was faster.
        Err(error) if engine::code(&error) == Some(409) && is_there(docker, name, home).await? => {
            Ok(())
        }
        made => made.map(drop).map_err(NetworkError::Call),
    }
}

/// Whether the driver that is called `home` has made it. A name is no secret: another's network
/// would show whoever made it all that dynos say to each other.
async fn is_there(docker: &Docker, name: &str, home: &str) -> Result<bool, NetworkError> {
    let found = docker.inspect_network(name, None::<InspectNetworkOptions>);
    match found.await {
        Ok(found) => {
            let labels = found.labels.unwrap_or_default();
            let is_ours = labels.get(config::DRIVER).is_some_and(|it| it == home);
            let other = || NetworkError::Other(name.to_owned());
            is_ours.then_some(true).ok_or_else(other)
        }
        Err(error) if engine::is_unknown(&error) => Ok(false),
        Err(error) => Err(NetworkError::Call(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_for_the_engine() {
        assert!(name("home", 7, "My app/2").starts_with("hsup-My-app-2-"));
        assert_eq!(name("home", 7, &"a".repeat(99)).len(), 5 + 32 + 17);
        assert_ne!(name("home", 7, "a/b"), name("home", 7, "a-b"));
        assert_ne!(name("home", 7, "shop"), name("home", 8, "shop"));
    }
}
