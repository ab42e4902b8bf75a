//! Removing containers, in one way for all that the driver makes.

use std::time::Duration;

use bollard::{Docker, errors::Error, query_parameters::RemoveContainerOptionsBuilder};
use hsup_driver_kit::errors;
use tokio::time;

use crate::engine;

/// How soon a removal that failed is tried again, at first and at last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Removes a container, however it is, with the volumes that its image declares. One that is not
/// there is removed; one that is being removed is a conflict.
pub(crate) async fn remove(docker: &Docker, container: &str) -> Result<(), Error> {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true);
    let removed = docker.remove_container(container, Some(options.build()));
    match removed.await {
        Err(error) if !engine::is_unknown(&error) => Err(error),
        _ => Ok(()),
    }
}

/// The same however long that takes: the engine may be away, or fail to let go of what is in it.
pub(crate) async fn until_removed<F>(docker: impl Fn() -> F, container: &str)
where
    F: Future<Output = Docker>,
{
    let mut backoff = BACKOFF.0;
    let mut is_told = false;
    while let Err(error) = remove(&docker().await, container).await {
        let is_under_way = engine::code(&error) == Some(409);
        let error = errors::chain(&error);
        if is_told || is_under_way {
            tracing::debug!(container, error, "a container is not removed yet");
        } else {
            tracing::warn!(
                container,
                error,
                "failed to remove a container: trying again"
            );
            is_told = true;
        }
        time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}
