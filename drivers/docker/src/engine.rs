//! The engine: where it is, and whether it answers.
//!
//! One task asks it now and then, more often while it does not answer, and keeps what it said
//! in memory: nobody else waits for an engine that is down, unless they want to.

use std::{sync::Arc, time::Duration};

use bollard::{API_DEFAULT_VERSION, Docker, errors::Error};
use hsup_driver_kit::{Status, errors};
use tokio::{
    sync::{Notify, watch},
    time,
};

use crate::{
    api::{self, Api},
    connect::{Connector, TlsError},
    context::Host,
};

/// How long the engine may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked while it answers.
const LOOK: Duration = Duration::from_secs(10);
/// How soon it is asked again when it does not, at first and at last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// An engine that answers.
#[derive(Clone, Debug)]
pub(crate) struct Up {
    pub(crate) docker: Docker,
    pub(crate) api: Api,
    pub(crate) traits: Traits,
}

/// What one engine has and another has not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traits {
    /// Podman's: it has other ways to keep logs.
    pub(crate) is_podman: bool,
    /// Containers go on while it is down, and it learns how they ended.
    pub(crate) live_restore: bool,
}

/// The engine. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host: Host,
    connector: Connector,
    state: watch::Sender<Result<Up, String>>,
    /// Somebody saw it fail.
    suspected: Notify,
    /// How often anybody did.
    suspicions: watch::Sender<u64>,
}

impl Engine {
    /// Asks the engine at `host` for the first time, and from then on.
    pub(crate) async fn open(host: Host) -> Result<Self, TlsError> {
        let connector = Connector::new(&host)?;
        let first = ask(&host, &connector).await;
        if let Err(reason) = &first {
            tracing::warn!(%host, reason, "the engine does not answer");
        }
        let engine = Self(Arc::new(Inner {
            host,
            connector,
            state: watch::Sender::new(first),
            suspected: Notify::new(),
            suspicions: watch::Sender::new(0),
        }));
        tokio::spawn(look(Arc::downgrade(&engine.0)));
        Ok(engine)
    }

    pub(crate) fn connector(&self) -> &Connector {
        &self.0.connector
    }

    /// Whether it answered last, and if not why.
    pub(crate) fn ready(&self) -> Result<(), String> {
        match &*self.0.state.borrow() {
            Ok(_) => Ok(()),
            Err(reason) => Err(reason.clone()),
        }
    }

    /// The engine, if it answered last.
    pub(crate) fn now(&self) -> Result<Up, Status> {
        let state = self.0.state.borrow();
        state.clone().map_err(Status::unavailable)
    }

    /// The engine, once it answers.
    pub(crate) async fn up(&self) -> Up {
        let mut state = self.0.state.subscribe();
        loop {
            if let Ok(up) = &*state.borrow_and_update() {
                return up.clone();
            }
            if state.changed().await.is_err() {
                // We ourselves hold the sender.
                std::future::pending::<()>().await;
            }
        }
    }

    /// What makes calls, once it answers.
    pub(crate) async fn docker(&self) -> Docker {
        self.up().await.docker
    }

    /// A call did not come through: it is asked at once, unless it is known to be down.
    pub(crate) fn suspect(&self) {
        self.0.suspicions.send_modify(|count| *count += 1);
        self.0.suspected.notify_one();
    }

    /// How often a call did not come through.
    pub(crate) fn suspicions(&self) -> u64 {
        *self.0.suspicions.borrow()
    }

    /// Waits until that is more often than `before`.
    pub(crate) async fn until_suspected(&self, before: u64) {
        let mut suspicions = self.0.suspicions.subscribe();
        // We ourselves hold the sender.
        drop(suspicions.wait_for(|count| *count > before).await);
    }
}

/// Asks again and again, as long as the driver is there.
async fn look(engine: std::sync::Weak<Inner>) {
    let mut backoff = BACKOFF.0;
    loop {
        let Some(inner) = engine.upgrade() else {
            return;
        };
        if inner.state.borrow().is_ok() {
            backoff = BACKOFF.0;
            tokio::select! {
                () = time::sleep(LOOK) => {}
                () = inner.suspected.notified() => {}
            }
        } else {
            time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
        let answer = ask(&inner.host, &inner.connector).await;
        let was_up = inner.state.borrow().is_ok();
        match &answer {
            Err(reason) if was_up => {
                tracing::warn!(host = %inner.host, reason, "the engine does not answer any more");
            }
            Ok(_) if !was_up => tracing::info!(host = %inner.host, "the engine answers"),
            _ => {}
        }
        // Who waits for it is woken only by a change.
        inner.state.send_if_modified(|state| {
            let changed = state.is_ok() != answer.is_ok();
            *state = answer;
            changed
        });
    }
}

/// Asks the engine who it is, in a version of the API that it has.
async fn ask(host: &Host, connector: &Connector) -> Result<Up, String> {
    let asking = async {
        let caller = connector.caller();
        let greeting = api::greet(&caller).await?;
        let version = greeting.version.ok_or(Error::APIVersionParseError {})?;
        let version = if version < *API_DEFAULT_VERSION {
            &version
        } else {
            API_DEFAULT_VERSION
        };
        let docker = caller.docker(version)?;
        // Podman's containers have a process each that waits for them.
        let live_restore = greeting.is_podman
            || docker
                .info()
                .await?
                .live_restore_enabled
                .unwrap_or_default();
        Ok::<_, Error>(Up {
            docker,
            api: Api::new(caller, version),
            traits: Traits {
                is_podman: greeting.is_podman,
                live_restore,
            },
        })
    };
    match time::timeout(PATIENCE, asking).await {
        Ok(Ok(up)) => Ok(up),
        Ok(Err(error)) => Err(format!(
            "the engine at {host} does not answer: {}",
            errors::chain(&error)
        )),
        Err(_) => Err(format!(
            "the engine at {host} did not answer within {} s",
            PATIENCE.as_secs()
        )),
    }
}

/// The engine answered, whatever it said.
pub(crate) const fn code(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// There is no such container or image.
pub(crate) fn is_unknown(error: &Error) -> bool {
    code(error) == Some(404)
}

/// A call that failed, in the protocol's words.
pub(crate) fn status(operation: &str, error: &Error) -> Status {
    let text = format!("failed to {operation}: {}", errors::chain(error));
    match code(error) {
        Some(400) => Status::invalid_argument(text),
        Some(404 | 409) => Status::failed_precondition(text),
        Some(403) => Status::permission_denied(text),
        Some(_) if text.contains("no space left") || text.contains("cannot allocate memory") => {
            Status::resource_exhausted(text)
        }
        // An engine that fails, or is not there: it is tried again.
        _ => Status::unavailable(text),
    }
}
