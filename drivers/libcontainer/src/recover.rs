//! Finding the dynos of an earlier process of this driver again, and clearing away what one
//! left that was killed in the middle of something.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    thread,
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
    runtime::{Libcontainer, PROBE},
    start, sweep,
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
                // Nobody will come to ask how it ended.
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

    /// Moves what dynos wrote aside that went with a reboot, or whose start was interrupted, and
    /// removes it while the driver serves: it may be a lot. What cannot be removed is told, and is
    /// in nobody's way.
    async fn clear_containers(&self) {
        let driver = self.clone();
        let moved = tokio::task::spawn_blocking(move || {
            let entries = fs::read_dir(driver.work_dir().containers());
            let entries = entries.into_iter().flatten().flatten();
            let left = entries.filter_map(|entry| {
                let path = entry.path();
                let aside = driver.move_aside(&path);
                aside.unwrap_or_else(|error| told(&path, &*error))
            });
            left.collect::<Vec<_>>()
        });
        let left = moved.await.unwrap_or_default();
        if left.is_empty() {
            return;
        }
        // A thread that the end of the driver does not wait for: the next one goes on.
        let removing = thread::Builder::new().name("remove".to_owned());
        let removing = removing.spawn(move || {
            for path in left {
                if let Err(error) = removal::remove(&path) {
                    told::<()>(&path, &error);
                }
            }
        });
        if let Err(error) = removing {
            tracing::error!(%error, "what dynos have written is left to the next driver");
        }
    }

    /// What of the folder of dynos is to be removed, and is nobody's by then.
    fn move_aside(&self, path: &Path) -> Result<Option<PathBuf>, RecoverError> {
        let name = path.file_name().unwrap_or_default();
        match Left::of(name) {
            // Unless its sweep is at work in it: then both remove what they find.
            Left::Aside => Ok(Some(path.to_owned())),
            Left::Probe { pid } => {
                let is_gone = !Path::new("/proc").join(pid.to_string()).exists();
                Ok(is_gone.then(|| path.to_owned()))
            }
            Left::OfUser { uid } => {
                // Who takes the user while it is being removed makes another.
                let aside = free_name(path);
                let moved = self.leases().if_free(uid, || fs::rename(path, &aside))?;
                Ok(moved.transpose()?.map(|()| aside))
            }
            Left::Unknown => Ok(None),
        }
    }
}

/// What an entry of the folder of dynos is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// It is being removed.
    Aside,
    /// A driver tries out there what the file system can.
    Probe { pid: u32 },
    /// What this user's dyno writes.
    OfUser { uid: u32 },
    /// None of ours.
    Unknown,
}

impl Left {
    fn of(name: &OsStr) -> Self {
        if Path::new(name).extension() == Some(OsStr::new(sweep::ASIDE)) {
            return Self::Aside;
        }
        let name = name.to_str().unwrap_or_default();
        if let Some(pid) = name.strip_prefix(PROBE) {
            return pid.parse().map_or(Self::Unknown, |pid| Self::Probe { pid });
        }
        name.parse()
            .map_or(Self::Unknown, |uid| Self::OfUser { uid })
    }
}

/// A name beside `path` for what is being removed, that nothing has.
fn free_name(path: &Path) -> PathBuf {
    let name = |number: u32| path.with_extension(format!("{number}.{}", sweep::ASIDE));
    let is_free = |name: &PathBuf| fs::symlink_metadata(name).is_err();
    (0..u32::MAX)
        .map(name)
        .find(is_free)
        .unwrap_or_else(|| name(0))
}

fn told<T>(path: &Path, error: &(dyn std::error::Error + 'static)) -> Option<T> {
    let error = errors::chain(error);
    tracing::error!(path = %path.display(), error, "something of a dyno is left");
    None
}

/// Whether the dyno of this directory was started; waits for a shim that is about to.
async fn began(dir: &Path) -> bool {
    let end = Instant::now() + PATIENCE;
    let Ok(watch) = Watch::open(dir, life::LIFE) else {
        return false;
    };
    loop {
        if life::was_started(dir) {
            return true;
        }
        if !watch.is_held() || Instant::now() >= end {
            return life::was_started(dir);
        }
        sleep(PAUSE).await;
    }
}

/// Frees all that is held for a directory that has no dyno, and removes it.
pub(crate) async fn clear(dir: PathBuf) {
    // It talks to the kernel for milliseconds.
    let cleared = tokio::task::spawn_blocking(move || sweep::of_failed(&dir));
    drop(cleared.await);
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("3000.gone" => Left::Aside)]
    #[test_case("3000.0.gone" => Left::Aside)]
    #[test_case("3000.1000.web-1.gone" => Left::Aside)]
    #[test_case("probe-17" => Left::Probe { pid: 17 })]
    #[test_case("probe-x" => Left::Unknown)]
    #[test_case("3000" => Left::OfUser { uid: 3000 })]
    #[test_case("lost+found" => Left::Unknown)]
    fn what_is_found_among_what_dynos_write(name: &str) -> Left {
        Left::of(OsStr::new(name))
    }

    #[test]
    fn what_is_moved_aside_takes_nobodys_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("3000");
        assert_eq!(free_name(&path), folder.path().join("3000.0.gone"));
        fs::create_dir(folder.path().join("3000.0.gone")).unwrap();
        assert_eq!(free_name(&path), folder.path().join("3000.1.gone"));
    }
}
