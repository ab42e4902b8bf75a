//! Artifacts: a directory, by the key of its Build (docs/driver-rules.md §8).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use hsup_proto::driver::{BuildRequest, Release};
use tempfile::TempDir;
use tonic::Status;

use crate::Fault;

/// What a Build depends on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    app: String,
    stack: String,
    options: BTreeMap<String, String>,
    image: String,
    slug: String,
    /// Size and time of change of a slug without a checksum.
    changed: Option<(u64, SystemTime)>,
}

/// What was built.
#[derive(Debug, Default)]
pub(crate) struct Builds {
    artifacts: BTreeMap<Key, String>,
    directories: BTreeMap<String, PathBuf>,
    made: u64,
    copies: Vec<TempDir>,
}

impl Builds {
    /// The artifact of a release: a name for the directory that its slug is.
    pub(crate) fn build(
        &mut self,
        request: &BuildRequest,
        fault: Option<Fault>,
    ) -> Result<String, Status> {
        if let Some(option) = request.options.keys().next() {
            let message = format!("option `{option}` is not known");
            return Err(Status::invalid_argument(message));
        }
        let Some(release) = &request.release else {
            return Err(Status::invalid_argument("release is missing"));
        };
        let checksum = &release.slug_checksum;
        if !is_checksum(checksum) && fault != Some(Fault::TakesAnyChecksum) {
            return Err(Status::invalid_argument("slug_checksum is none"));
        }
        let url = release.slug_url.split('?').next().unwrap_or_default();
        let missing = fault == Some(Fault::TakesMissingSlug);
        let directory = url.strip_prefix("file://").map(PathBuf::from);
        let Some(directory) = directory.filter(|path| path.is_dir() || missing) else {
            if fault == Some(Fault::OneArtifact)
                && let Some(first) = self.directories.keys().next()
            {
                return Ok(first.clone());
            }
            return Err(Status::failed_precondition("the slug is no directory"));
        };
        let key = key(request, release, url, &directory, fault);
        let known = match fault {
            Some(Fault::BuildsDiffer) => None,
            Some(Fault::OneArtifact) => self.directories.keys().next(),
            _ => self.artifacts.get(&key),
        };
        if let Some(artifact) = known {
            return Ok(artifact.clone());
        }
        let directory = if fault == Some(Fault::SlugIsKept) {
            self.copy(&directory)?
        } else {
            directory
        };
        self.made += 1;
        let artifact = format!("slug-{}", self.made);
        self.directories.insert(artifact.clone(), directory);
        self.artifacts.insert(key, artifact.clone());
        Ok(artifact)
    }

    fn copy(&mut self, directory: &Path) -> Result<PathBuf, Status> {
        let copied = copy_of(directory);
        let copy = copied.map_err(|error| Status::failed_precondition(error.to_string()))?;
        let path = copy.path().to_owned();
        self.copies.push(copy);
        Ok(path)
    }

    /// Where dynos of an artifact run.
    pub(crate) fn directory(&self, artifact: &str) -> Option<&Path> {
        self.directories.get(artifact).map(PathBuf::as_path)
    }

    /// Forgets an artifact.
    pub(crate) fn remove(&mut self, artifact: &str) {
        self.directories.remove(artifact);
        self.artifacts.retain(|_, made| made != artifact);
    }
}

fn key(
    request: &BuildRequest,
    release: &Release,
    url: &str,
    directory: &Path,
    fault: Option<Fault>,
) -> Key {
    let found = fs::metadata(directory).ok();
    let changed = found.and_then(|found| Some((found.len(), found.modified().ok()?)));
    let slug = match fault {
        Some(Fault::QueryInKey) => &release.slug_url,
        _ if release.slug_checksum.is_empty() => url,
        _ => &release.slug_checksum,
    };
    let of_file = release.slug_checksum.is_empty() && fault != Some(Fault::SlugIsKept);
    Key {
        app: release.app.clone(),
        stack: release.stack.clone(),
        options: request.options.clone(),
        image: release.image.clone(),
        slug: slug.to_owned(),
        changed: changed.filter(|_| of_file),
    }
}

/// `SHA256:<hex>`, or nothing.
fn is_checksum(text: &str) -> bool {
    let hex = text.strip_prefix("SHA256:").unwrap_or_default();
    let is_hex = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    text.is_empty() || is_hex
}

/// A directory with copies of the files of another.
pub(crate) fn copy_of(directory: &Path) -> std::io::Result<TempDir> {
    let copy = tempfile::Builder::new().prefix("naive-").tempdir()?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        fs::copy(entry.path(), copy.path().join(entry.file_name()))?;
    }
    Ok(copy)
}
