//! What a Start leaves that failed, which is to be no dyno's.
//!
//! A container that runs and that nobody knows of would be a twin of the dyno that is started in
//! its place: so it is removed even if the engine must be waited for.

use std::time::Duration;

use bollard::errors::Error;
use tokio::time;

use crate::{
    api::Container,
    config,
    engine::{self, Up},
    life,
    remove::{remove, until_removed},
    runtime::DockerDriver,
};

/// How long a failed call is not repeated.
const PAUSE: Duration = Duration::from_millis(200);
/// How often a removal is looked for that is under way.
const TRIES: u32 = 50;

impl DockerDriver {
    /// Removes what a Start left: now, or as soon as the engine can. By its id, for by then another
    /// may have its name.
    pub(crate) async fn undo(&self, id: String) {
        if let Ok(up) = self.engine().now() {
            match remove(&up.docker, &id).await {
                Ok(()) => return self.cursors().forget(&id),
                Err(error) if engine::code(&error).is_none() => self.engine().suspect(),
                Err(_) => {}
            }
        }
        let driver = self.clone();
        tokio::spawn(async move {
            until_removed(|| driver.engine().docker(), &id).await;
            driver.cursors().forget(&id);
        });
    }

    /// Makes room for a container of this name; `false` if what has it is somebody else's. One that
    /// never ran is nobody's, and neither is one of ours: whose dyno has its name is not started.
    pub(crate) async fn make_room(&self, up: &Up, name: &str) -> Result<bool, Error> {
        let mut tries = 0..TRIES;
        loop {
            let found = match up.api.inspect(name).await {
                Ok(found) => found,
                Err(error) if engine::is_unknown(&error) => return Ok(true),
                Err(error) => return Err(error),
            };
            if !self.made(&found) && !life::is_new(&found.state) {
                return Ok(false);
            }
            match remove(&up.docker, &found.id).await {
                // It is being removed already.
                Err(error) if engine::code(&error) == Some(409) && tries.next().is_some() => {
                    time::sleep(PAUSE).await;
                }
                removed => return removed.map(|()| true),
            }
        }
    }

    /// Whether it is this driver that made a container.
    fn made(&self, container: &Container) -> bool {
        let driver = container.config.labels.get(config::DRIVER);
        driver.is_some_and(|driver| driver == self.home())
    }
}
