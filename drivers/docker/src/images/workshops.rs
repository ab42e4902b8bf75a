//! Which containers that images were made in are nobody's any more.
//!
//! A driver that is killed in the middle of a Build leaves one, and so does an engine whose answer
//! is lost that it has made one. Each carries the name of its driver and one of its own: the next
//! driver knows its predecessor's by the first, and a driver its own ones that nobody uses by the
//! second. Those of drivers that never come again go by their age.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bollard::{Docker, query_parameters::ListContainersOptionsBuilder};
use hsup_driver_kit::{clock, errors};
use tokio::time;

use super::{
    error::{Fault, ImageError, fault},
    labels::{DRIVER, NAME, ROLE, WORKSHOP},
};
use crate::{engine::Engine, remove};

/// One of another driver that is older than this, in seconds, is nobody's any more.
const OLD: i64 = 6 * 60 * 60;
/// How long an engine is left alone that does not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// Those of one driver. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Workshops(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// What the driver is called among others on the engine.
    home: String,
    /// The names of those that are in use.
    used: Mutex<HashSet<String>>,
    next: AtomicU64,
}

impl Workshops {
    pub(super) fn new(home: &str) -> Self {
        Self(Arc::new(Inner {
            home: home.to_owned(),
            used: Mutex::default(),
            // Not those of an earlier process.
            next: AtomicU64::new(clock::now_unix_ms().unsigned_abs() << 16),
        }))
    }

    /// A name for a new one, which is in use until that is dropped.
    pub(super) fn name(&self) -> Name {
        let name = self.0.next.fetch_add(1, Ordering::Relaxed).to_string();
        self.used().insert(name.clone());
        Name {
            workshops: self.clone(),
            name,
        }
    }

    fn used(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what an earlier driver left, once the engine answers.
    pub(crate) async fn begin(self, engine: Engine) {
        let docker = engine.docker().await;
        if let Err(error) = self.sweep(&docker).await {
            let error = errors::chain(&error);
            tracing::warn!(
                error,
                "what an earlier driver left of Builds was not removed"
            );
        }
    }

    /// Removes what is nobody's when the engine answers again.
    pub(super) fn sweep_later(&self, engine: Docker) {
        let workshops = self.clone();
        drop(tokio::spawn(async move {
            while workshops.sweep(&engine).await.is_err() {
                time::sleep(PAUSE).await;
            }
        }));
    }

    /// Removes those that are nobody's.
    pub(super) async fn sweep(&self, engine: &Docker) -> Result<(), ImageError> {
        let filters: HashMap<_, _> = [("label", vec![format!("{ROLE}={WORKSHOP}")])].into();
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters);
        let found = engine.list_containers(Some(options.build())).await;
        let found = found.map_err(ImageError::engine("list the containers of", WORKSHOP))?;
        if found.is_empty() {
            return Ok(());
        }
        let now = now(engine).await?;
        for container in found {
            let labels = container.labels.unwrap_or_default();
            let created = container.created.unwrap_or(i64::MAX);
            let is_left = is_left(&labels, created, &self.0.home, &self.used(), now);
            let Some(id) = container.id.filter(|_| is_left) else {
                continue;
            };
            tracing::info!(container = id, "removing what was left of a Build");
            match remove::remove(engine, &id).await {
                // It is being removed already.
                Err(error) if fault(&error) == Fault::Conflict => {}
                removed => removed.map_err(ImageError::engine("remove the container", &id))?,
            }
        }
        Ok(())
    }
}

/// The engine's time in seconds, by which containers are dated; ours may be another.
async fn now(engine: &Docker) -> Result<Option<i64>, ImageError> {
    let info = engine.info().await;
    let info = info.map_err(ImageError::engine("tell", "its time"))?;
    let time = info.system_time.and_then(|text| text.parse().ok());
    Ok(time.map(jiff::Timestamp::as_second))
}

/// Whether a container is nobody's: of the driver `home`, and not `used`, or too old.
fn is_left(
    labels: &HashMap<String, String>,
    created: i64,
    home: &str,
    used: &HashSet<String>,
    now: Option<i64>,
) -> bool {
    let is_ours = labels.get(DRIVER).is_some_and(|driver| driver == home);
    if is_ours {
        return !labels.get(NAME).is_some_and(|name| used.contains(name));
    }
    now.is_some_and(|now| created < now - OLD)
}

/// The name of one that is in use.
#[derive(Debug)]
pub(super) struct Name {
    workshops: Workshops,
    name: String,
}

impl Name {
    /// What is written on it.
    pub(super) fn labels(&self) -> HashMap<String, String> {
        [
            (ROLE, WORKSHOP),
            (DRIVER, &self.workshops.0.home),
            (NAME, &self.name),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.workshops.used().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_uses_is_left() {
        let (ours, other) = (Workshops::new("ours"), Workshops::new("other"));
        let name = ours.name();
        let labels = name.labels();
        let left = |labels: &HashMap<_, _>, created, now| {
            is_left(labels, created, "ours", &ours.used(), now)
        };
        // However old it is.
        assert!(!left(&labels, 0, Some(OLD + 1)));
        drop(name);
        assert!(left(&labels, 100, Some(100)));
        let labels = other.name().labels();
        assert!(!left(&labels, 100, Some(100 + OLD)));
        assert!(left(&labels, 100, Some(101 + OLD)));
        assert!(
            !left(&labels, 100, None),
            "the engine does not say the time"
        );
    }

    #[test]
    fn no_two_have_one_name() {
        let workshops = Workshops::new("home");
        let names = [workshops.name(), workshops.name()];
        assert_eq!(workshops.used().len(), names.len());
    }
}
