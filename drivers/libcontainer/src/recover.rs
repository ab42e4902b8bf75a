//! Finding the dynos of an earlier process of this driver again, and clearing away what one
//! left that was killed in the middle of something.
//!
//! What runs is never cleared away. Where a dyno cannot be taken over, for want of descriptors
//! say, the driver does not begin: the dyno goes on, and whoever runs the driver finds out.

use std::{
    error::Error,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use hsup_driver_kit::{
    errors,
    service::{Record, RecordError, RecoverError, Recovered},
};
use thiserror::Error;
use tokio::time::{Instant, sleep};

use crate::{
    dyno::Contained,
    life::{self, Watch},
    order::Life,
    removal,
    runtime::{Libcontainer, PROBE},
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
                // Nobody will come to ask how it ended.
                Ok(Some(recovered)) if !is_own && recovered.dyno.has_ended() => clear(dir).await,
                Ok(Some(recovered)) => found.push(recovered),
                Ok(None) => {
                    tracing::info!(dir = %dir.display(), "clearing away what a start left");
                    clear(dir).await;
                }
                Err(error) => match fate(&*error, &has_ended(&dir), is_own) {
                    Fate::Cleared => {
                        let error = errors::chain(&*error);
                        tracing::error!(
                            dir = %dir.display(), error, "how a dyno ended cannot be found out"
                        );
                        clear(dir).await;
                    }
                    Fate::Stays => {
                        let error = errors::chain(&*error);
                        tracing::error!(
                            dir = %dir.display(), error, "a dyno of a driver that is gone stays"
                        );
                    }
                    Fate::Told => {
                        // With the descriptors that they have, more can be said.
                        drop(found);
                        return Err(NotTakenOver::new(dir, error).into());
                    }
                },
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
        if !began(dir).await? {
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
async fn began(dir: &Path) -> Result<bool, RecoverError> {
    let end = Instant::now() + PATIENCE;
    let watch = match Watch::open(dir, life::LIFE) {
        Ok(watch) => Some(watch),
        // Its start had not come that far.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    loop {
        // Looked at first: who has let go has started the dyno by then, or never will.
        let is_held = watch.as_ref().is_some_and(Watch::is_held);
        if life::was_started(dir)? {
            return Ok(true);
        }
        if !is_held {
            return Ok(false);
        }
        if Instant::now() >= end {
            return Err(Box::new(UnderWay));
        }
        sleep(PAUSE).await;
    }
}

/// Whether the dyno of this directory, which was started, has ended.
fn has_ended(dir: &Path) -> io::Result<bool> {
    match Watch::open(dir, life::LIFE) {
        Ok(watch) => Ok(!watch.is_held()),
        // It was being removed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// A shim has not ended, nor started its dyno.
#[derive(Debug, Error)]
#[error("a start is still under way {} s after its driver has gone", PATIENCE.as_secs())]
struct UnderWay;

/// A dyno that may run could not be found again.
#[derive(Debug, Error)]
#[error(
    "the dyno in `{}` goes on and cannot be taken over: {way} and start the driver again, or end \
     the dyno ({end})",
    dir.display()
)]
struct NotTakenOver {
    dir: PathBuf,
    way: &'static str,
    end: String,
    source: RecoverError,
}

impl NotTakenOver {
    fn new(dir: PathBuf, source: RecoverError) -> Self {
        let life = fs::read(dir.join(shim::LIFE)).ok();
        let life = life.and_then(|life| serde_json::from_slice::<Life>(&life).ok());
        let end = match life {
            Some(life) => format!("kill -9 {}", life.init),
            None => "kill the processes that have its folder in their command line".to_owned(),
        };
        Self {
            way: way_out(&*source),
            dir,
            end,
            source,
        }
    }
}

fn way_out(error: &(dyn Error + 'static)) -> &'static str {
    if let Some(RecordError::Format(_)) = error.downcast_ref() {
        return "install the version that started it";
    }
    match error.downcast_ref().and_then(io::Error::raw_os_error) {
        Some(libc::EMFILE) => "allow the driver more open files (LimitNOFILE=, ulimit -n)",
        Some(libc::ENFILE) => "allow this host more open files (sysctl fs.file-max)",
        _ => "mend what is said below",
    }
}

/// What becomes of a dyno that could not be found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It has ended, and nobody will ever read how.
    Cleared,
    /// It may run, and nobody asks for it.
    Stays,
    /// It may run, or may be read later: the driver does not begin.
    Told,
}

fn fate(error: &(dyn Error + 'static), has_ended: &io::Result<bool>, is_own: bool) -> Fate {
    // What is not there, or is something else: no kernel has refused it.
    let is_for_good = match error.downcast_ref::<io::Error>() {
        Some(error) => error.kind() == io::ErrorKind::NotFound || error.raw_os_error().is_none(),
        None => error.is::<RecordError>(),
    };
    match has_ended {
        Ok(true) if is_for_good => Fate::Cleared,
        _ if is_own => Fate::Told,
        _ => Fate::Stays,
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

    fn os(errno: i32) -> RecoverError {
        io::Error::from_raw_os_error(errno).into()
    }

    fn of_format(format: u32) -> RecoverError {
        RecordError::Format(format).into()
    }

    #[test_case(&*of_format(2), &Ok(false), true => Fate::Told; "it runs")]
    #[test_case(&*of_format(2), &Ok(true), true => Fate::Cleared; "it has ended")]
    #[test_case(&*of_format(2), &Err(io::ErrorKind::Other.into()), true => Fate::Told; "it may run")]
    #[test_case(&*of_format(2), &Ok(false), false => Fate::Stays; "nobody comes for it")]
    #[test_case(&io::Error::from(io::ErrorKind::InvalidData), &Ok(true), true => Fate::Cleared; "no JSON")]
    #[test_case(&*os(libc::ENOENT), &Ok(true), true => Fate::Cleared; "half of it was removed")]
    #[test_case(&*os(libc::EMFILE), &Ok(true), true => Fate::Told; "how it ended can be read later")]
    #[test_case(&*os(libc::EMFILE), &Ok(false), true => Fate::Told; "it runs and cannot be read")]
    #[test_case(&UnderWay, &Ok(false), true => Fate::Told; "it is being started")]
    fn what_becomes_of_a_dyno_that_is_not_found_again(
        error: &(dyn Error + 'static),
        has_ended: &io::Result<bool>,
        is_own: bool,
    ) -> Fate {
        fate(error, has_ended, is_own)
    }

    #[tokio::test]
    async fn what_was_never_started_is_told_from_what_cannot_be_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!began(dir.path()).await.unwrap(), "its start ended early");
        let (watch, writer) = Watch::make(dir.path(), life::LIFE).unwrap();
        drop(writer);
        assert!(!began(dir.path()).await.unwrap(), "its shim ended");
        fs::File::create(dir.path().join(shim::LIFE)).unwrap();
        assert!(began(dir.path()).await.unwrap());
        drop(watch);
        fs::remove_file(dir.path().join(life::LIFE)).unwrap();
        std::os::unix::fs::symlink(life::LIFE, dir.path().join(life::LIFE)).unwrap();
        let error = began(dir.path()).await.unwrap_err();
        assert_eq!(fate(&*error, &has_ended(dir.path()), true), Fate::Told);
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_does_not_end_is_not_taken_for_one_that_never_was() {
        let dir = tempfile::tempdir().unwrap();
        let _held = Watch::make(dir.path(), life::LIFE).unwrap();
        let error = began(dir.path()).await.unwrap_err();
        assert!(error.is::<UnderWay>(), "{error}");
    }

    #[test]
    fn who_is_told_is_told_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let said = |error| NotTakenOver::new(dir.path().to_owned(), error).to_string();
        assert!(said(os(libc::EMFILE)).contains("LimitNOFILE"));
        assert!(said(of_format(2)).contains("the version that started it"));
        let life = r#"{"init":17,"waiter":16,"terminal":null,"copied":false}"#;
        let mut file = fs::File::create(dir.path().join(shim::LIFE)).unwrap();
        io::Write::write_all(&mut file, life.as_bytes()).unwrap();
        assert!(said(os(libc::EIO)).contains("kill -9 17"));
    }

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
