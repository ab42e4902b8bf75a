//! A stack of the list, made to be here: fetched, verified, unpacked, by one driver at a time.

use std::{
    fs::{self, File},
    path::Path,
    sync::Arc,
    time::Duration,
};

use hsup_driver_kit::file_url;

use super::{
    Event, Image, InstallError, Progress, Stack, StackError, Stacks, fetch,
    install::{self, StopOnDrop},
    lock::FetchLock,
    manifest::{Entry, Format, is_remote, shown},
    name,
};
use crate::dirs::is_plain;

/// How often a driver looks whether another one has fetched what it waits for. It could block in
/// flock(2) instead, but then a Build that is called off would keep a thread.
const LOOK: Duration = Duration::from_millis(100);

impl Stacks {
    /// An entry of the list, here.
    pub(super) async fn have(
        &self,
        entry: &Entry,
        progress: &dyn Progress,
    ) -> Result<Stack, StackError> {
        if let Some(stack) = in_place(entry) {
            return stack;
        }
        if let Some(stack) = self.there(entry)? {
            return Ok(stack);
        }
        let stack = name::joined(&entry.name, &entry.version);
        let lock = self.lock(&stack, progress).await?;
        // Who had the lock before may have fetched it.
        if let Some(stack) = self.there(entry)? {
            return Ok(stack);
        }
        self.fetch(entry, &stack, Arc::new(lock), progress).await?;
        self.there(entry)?.ok_or(StackError::Gone { stack })
    }

    fn there(&self, entry: &Entry) -> Result<Option<Stack>, StackError> {
        let stack = self.disk.stack(&entry.name, &entry.version)?;
        Ok(stack.map(|stack| Stack {
            uid: entry.uid,
            ..stack
        }))
    }

    /// Waits for the right to make a stack.
    pub(super) async fn lock(
        &self,
        stack: &str,
        progress: &dyn Progress,
    ) -> Result<FetchLock, StackError> {
        let path = self.disk.fetch_folder().join(format!("{stack}.lock"));
        let mut is_waiting = false;
        loop {
            match FetchLock::try_take(&path) {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) => {}
                Err(source) => return Err(StackError::Lock { path, source }),
            }
            if !is_waiting {
                progress.report(Event::Waiting { stack });
                is_waiting = true;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn fetch(
        &self,
        entry: &Entry,
        stack: &str,
        lock: Arc<FetchLock>,
        progress: &dyn Progress,
    ) -> Result<(), StackError> {
        let Some(local) = file_url::path(&entry.url) else {
            let part = self.disk.part(stack, entry.checksum);
            // Without a checksum nothing tells whether the rest fits to it.
            if entry.checksum.is_none() {
                let removed = install::remove(&part);
                removed.map_err(|source| StackError::Open {
                    path: part.clone(),
                    source,
                })?;
            }
            let had = fs::metadata(&part).map_or(0, |metadata| metadata.len());
            let fetch = async || {
                let fetched = fetch::file(&entry.url, &part, entry.size, progress).await;
                fetched.map_err(|source| StackError::Fetch {
                    stack: stack.to_owned(),
                    source,
                })?;
                progress.report(Event::Installing { stack });
                self.install(entry, stack, &part, Arc::clone(&lock)).await
            };
            let mut result = fetch().await;
            if had > 0 && matches!(result, Err(StackError::Install { .. })) {
                // What was here already may be of another file, or damaged.
                result = fetch().await;
            }
            return result;
        };
        progress.report(Event::Installing { stack });
        self.install(entry, stack, &local, lock).await
    }

    /// Makes a stack of a file; one that was downloaded is used up.
    async fn install(
        &self,
        entry: &Entry,
        stack: &str,
        path: &Path,
        lock: Arc<FetchLock>,
    ) -> Result<(), StackError> {
        let places = self.disk.places(stack);
        let (path, is_download) = (path.to_owned(), is_remote(&entry.url));
        let (size, checksum, format) = (entry.size, entry.checksum, entry.format.clone());
        let stop = StopOnDrop::default();
        let stopped = stop.0.clone();
        let work = move || {
            let result = (|| {
                let mut file = File::open(&path).map_err(|source| InstallError::Open {
                    path: path.clone(),
                    source,
                })?;
                install::verify(&mut file, &path, size, checksum, &stopped)?;
                let whole = is_download.then_some(path.as_path());
                places.install(file, &path, whole, &format, &stopped)
            })();
            if is_download {
                // It is the stack now, or of no use. A failure leaves it to the next driver.
                drop(install::remove(&path));
            }
            // Until here, whoever still waits for it.
            drop(lock);
            result
        };
        let result = tokio::task::spawn_blocking(work).await;
        result
            .map_err(StackError::Thread)?
            .map_err(|source| StackError::Install {
                stack: stack.to_owned(),
                from: shown(&entry.url),
                source,
            })
    }
}

/// A stack that is used where it is: a directory. `None` if the entry is none.
pub(super) fn in_place(entry: &Entry) -> Option<Result<Stack, StackError>> {
    if entry.format != Format::Directory {
        return None;
    }
    let path = file_url::path(&entry.url)?;
    if !is_plain(&path) {
        return Some(Err(StackError::Characters {
            stack: name::joined(&entry.name, &entry.version),
            path,
        }));
    }
    if !path.is_dir() {
        return Some(Err(StackError::NoDirectory {
            stack: name::joined(&entry.name, &entry.version),
            path,
        }));
    }
    Some(Ok(Stack {
        name: entry.name.clone(),
        version: entry.version.clone(),
        image: Image::Directory(path),
        uid: entry.uid,
    }))
}
