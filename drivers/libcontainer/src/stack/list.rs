//! The list of stacks, as it is kept and as it is fetched.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    sync::{Arc, PoisonError},
    time::SystemTime,
};

use hsup_driver_kit::file_url;

use super::{
    StackError, Stacks, fetch,
    manifest::{Manifest, is_remote, shown},
};

/// By which one file is told from what replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
}

impl Stacks {
    /// The list of stacks and where it is from, if there is one.
    pub(super) async fn manifest(&self) -> Result<Option<(Arc<Manifest>, String)>, StackError> {
        let path = self.disk.manifest();
        let origin = path.display().to_string();
        let list = match (self.cached_manifest()?, &self.manifest_url) {
            (Some(manifest), _) => Some((manifest, origin)),
            (None, Some(url)) => {
                let text = manifest_text(url).await?;
                // Before it is kept: a list that is none would be in the way for ever.
                let manifest = Manifest::parse(&text, &shown(url))?;
                let kept = self.disk.keep_manifest(&text);
                kept.map_err(|source| StackError::KeepManifest { path, source })?;
                Some((Arc::new(manifest), shown(url)))
            }
            (None, None) => None,
        };
        Ok(list)
    }

    /// The list that is kept, read again only when it is another file.
    pub(super) fn cached_manifest(&self) -> Result<Option<Arc<Manifest>>, StackError> {
        let path = self.disk.manifest();
        let failed = |source| StackError::ReadManifest {
            path: path.clone(),
            source,
        };
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let stamp = Stamp::of(&metadata);
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, manifest)) = &*cached
            && *of == stamp
        {
            return Ok(Some(Arc::clone(manifest)));
        }
        let text = fs::read_to_string(&path).map_err(failed)?;
        let manifest = Arc::new(Manifest::parse(&text, &path.display().to_string())?);
        *cached = Some((stamp, Arc::clone(&manifest)));
        Ok(Some(manifest))
    }
}

async fn manifest_text(url: &str) -> Result<String, StackError> {
    if is_remote(url) {
        return fetch::text(url).await.map_err(StackError::FetchManifest);
    }
    let path = file_url::path(url).ok_or_else(|| StackError::ManifestUrl { url: shown(url) })?;
    let text = tokio::fs::read_to_string(&path).await;
    text.map_err(|source| StackError::ReadManifest { path, source })
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            length: metadata.len(),
            modified: metadata.modified().ok(),
        }
    }
}
