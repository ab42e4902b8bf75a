//! Finding the dynos of an earlier process of this driver again, and clearing away what one
//! left that was killed in the middle of something.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use hsup_driver_kit::{
    errors,
    service::{Record, RecoverError, Recovered},
};
use tokio::time::{Instant, sleep};

use crate::{
    dyno::Contained,
    life::{self, Watch},
    removal,
    runtime::Libcontainer,
    shim, start, sweep,
};

/// How long a shim whose driver was killed may take to find that out, or to start its dyno.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

impl Libcontainer {
    pub(crate) async fn recover_dynos(&self) -> Result<Vec<Recovered<Contained>>, RecoverError> {
        let mut found = Vec::new();
        let own = self.home().dynos()?.into_iter().map(|dir| (dir, true));
        let adopted = self.home().adopted_dynos()?;
        let adopted = adopted.into_iter().map(|dir| (dir, false));
        let mut seen = 0;
        for (dir, is_own) in own.chain(adopted) {
            seen += 1;
            match self.recover(&dir).await {
                // How it ended, nobody comes to ask.
                Ok(Some(recovered)) if !is_own && recovered.dyno.has_ended() => clear(dir).await,
                Ok(Some(recovered)) => found.push(recovered),
                Ok(None) => {
                    tracing::info!(dir = %dir.display(), "clearing away what a start left");
                    clear(dir).await;
                }
                Err(error) => {
                    let error = errors::chain(&*error);
                    tracing::error!(dir = %dir.display(), error, "a dyno could not be found again");
                    clear(dir).await;
                }
            }
        }
        if found.len() < seen {
            self.free_unwritten().await;
        }
        self.clear_containers().await;
        Ok(found)
    }

    /// Frees what was taken for a start that was killed before that was written down: its
    /// directory is gone now, and who has gone has nothing.
    async fn free_unwritten(&self) {
        let driver = self.clone();
        let freed = tokio::task::spawn_blocking(move || driver.leases().free_stale()).await;
        if let Ok(Err(error)) = freed {
            let error = errors::chain(&error);
            tracing::error!(error, "users of dynos that are gone were not freed");
        }
        if let Err(error) = self.network().collect().await {
            let error = errors::chain(&error);
            tracing::error!(
                error,
                "something of the network of dynos that are gone is left"
            );
        }
    }

    /// The dyno of a directory; `None` if it was never started.
    async fn recover(&self, dir: &Path) -> Result<Option<Recovered<Contained>>, RecoverError> {
        if !began(dir).await {
            return Ok(None);
        }
        let record = Record::from_bytes(&fs::read(dir.join(start::RECORD))?)?;
        let dyno = Contained::found(dir.to_owned(), self.hierarchies())?;
        Ok(Some(Recovered { record, dyno }))
    }

    /// Removes what dynos wrote that went with a reboot, or whose start was interrupted. What
    /// cannot be removed is told, and is in nobody's way.
    async fn clear_containers(&self) {
        let driver = self.clone();
        // A dyno may have written a lot.
        let cleared = tokio::task::spawn_blocking(move || {
            let entries = fs::read_dir(driver.work_dir().containers());
            for entry in entries.into_iter().flatten().flatten() {
                let path = entry.path();
                if let Err(error) = driver.clear_container(&path) {
                    let error = errors::chain(&*error);
                    tracing::error!(path = %path.display(), error, "something of a dyno is left");
                }
            }
        });
        drop(cleared.await);
    }

    fn clear_container(&self, path: &Path) -> Result<(), RecoverError> {
        let name = path.file_name().unwrap_or_default();
        if is_aside(name) {
            // Unless its sweep is at work in it: then both remove what they find.
            return Ok(removal::remove(path)?);
        }
        let Some(uid) = name.to_str().and_then(|name| name.parse().ok()) else {
            return Ok(());
        };
        // Aside first: who takes the user while it is being removed makes another.
        let aside = path.with_extension(sweep::ASIDE);
        let moved = self.leases().if_free(uid, || fs::rename(path, &aside))?;
        if let Some(moved) = moved {
            moved?;
            removal::remove(&aside)?;
        }
        Ok(())
    }
}

fn is_aside(name: &OsStr) -> bool {
    Path::new(name).extension() == Some(OsStr::new(sweep::ASIDE))
}

/// Whether the dyno of this directory was started; waits for a shim that is about to.
async fn began(dir: &Path) -> bool {
    let end = Instant::now() + PATIENCE;
    let Ok(watch) = Watch::open(dir, life::LIFE) else {
        return false;
    };
    loop {
        if dir.join(shim::LIFE).exists() {
            return true;
        }
        if !watch.is_held() || Instant::now() >= end {
            return dir.join(shim::LIFE).exists();
        }
        sleep(PAUSE).await;
    }
}

/// Frees all that is held for a directory that has no dyno, and removes it.
async fn clear(dir: PathBuf) {
    // It talks to the kernel for milliseconds.
    let cleared = tokio::task::spawn_blocking(move || sweep::of_failed(&dir));
    drop(cleared.await);
}
