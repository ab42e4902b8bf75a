//! Why there is no slug.

use std::{
    io,
    path::{Path, PathBuf},
};

use hsup_driver_kit::errors::is_exhaustion;
use serde::{Deserialize, Serialize};

use crate::id::SlugId;

/// Why a slug could not be fetched, unpacked or used.
///
/// Most of these are said by another process, which is why their causes are text. None holds
/// a URL.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum SlugError {
    /// The URL is of a kind that nobody here fetches.
    #[error("the slug's URL is none: it must begin with https://, http:// or file:///")]
    Url,
    /// The URL is not, or no longer, good: a fresh one may be.
    #[error("`{host}` does not give out the slug: HTTP {status}; its URL may have expired")]
    Refused {
        /// Whom we asked.
        host: String,
        /// 401, 403, 404 or 410.
        status: u16,
    },
    /// The server answered something else than a slug.
    #[error("`{host}` does not give out the slug: HTTP {status}")]
    Http {
        /// Whom we asked.
        host: String,
        /// What it said.
        status: u16,
    },
    /// The server sends us from one place to the next, or from https to http.
    #[error("`{host}` sends on the download of the slug too often, or from https to http")]
    Redirect {
        /// Whom we asked.
        host: String,
    },
    /// The server shows a certificate that this machine does not trust.
    #[error(
        "the slug is not downloaded from `{host}`, which this machine does not trust: {cause}; \
         SSL_CERT_FILE names whom it trusts"
    )]
    Untrusted {
        /// Whom we asked.
        host: String,
        /// What is wrong with the certificate.
        cause: String,
    },
    /// The network, or the server, fails again and again.
    #[error("failed to download the slug from `{host}` ({tries} tries): {cause}")]
    Network {
        /// Whom we asked.
        host: String,
        /// How often.
        tries: u32,
        /// What happened last.
        cause: String,
    },
    /// Nothing came for too long.
    #[error("failed to fetch the slug from `{from}`: not a byte for {seconds} s")]
    Stalled {
        /// The host, or the path.
        from: String,
        /// How long we waited.
        seconds: u64,
    },
    /// It is not what it was when its first part was read.
    #[error("the slug at `{from}` changed while it was read")]
    Changed {
        /// The host, or the path.
        from: String,
    },
    /// A `file://` slug that cannot be read by whom it is for.
    #[error("failed to read slug `{path}` as uid {uid}: {cause}")]
    File {
        /// Which.
        path: PathBuf,
        /// The caller.
        uid: u32,
        /// Why.
        cause: String,
        /// Whether there is no such file, rather than one that may not be read.
        missing: bool,
    },
    /// A directory was named together with a checksum.
    #[error("slug `{path}` is a directory, which has no checksum")]
    DirectoryChecksum {
        /// Which.
        path: PathBuf,
    },
    /// Heroku's R17, in its words, the missing one included.
    #[error(
        "Checksum does match expected value. Expected: SHA256:{expected} Actual: SHA256:{actual}"
    )]
    Checksum {
        /// What the release says.
        expected: SlugId,
        /// What came.
        actual: SlugId,
    },
    /// An entry that no slug has.
    #[error("slug refused: entry `{name}` {reason}")]
    Entry {
        /// Its name, escaped.
        name: String,
        /// What it does.
        reason: String,
    },
    /// Not an archive, or not a whole one, or one without an app.
    #[error("slug refused: {0}")]
    Archive(String),
    /// More than a slug may be.
    #[error("slug refused: it has more than {limit} {of}")]
    TooMuch {
        /// How many.
        limit: u64,
        /// What.
        of: String,
    },
    /// The store's disk is full.
    #[error(
        "no space left in `{store}` to unpack the slug: free some there, or have fewer releases kept"
    )]
    NoSpace {
        /// Where the slugs are.
        store: PathBuf,
    },
    /// A process of ours could not be started, or did not do its work.
    #[error("the process that should {task} failed: {cause}")]
    Helper {
        /// What it was for.
        task: String,
        /// How it ended.
        cause: String,
    },
    /// The machine, or this process, ran out of what a process of ours needs.
    #[error("the process that should {task} cannot be: {cause}")]
    Exhausted {
        /// What it was for.
        task: String,
        /// What there is none of.
        cause: String,
    },
    /// The owner's app is called something that is no name of a file.
    #[error("`{0}` is no name of an app")]
    App(String),
    /// The slug is in use.
    #[error("slug {0} is in use")]
    InUse(SlugId),
    /// The store itself fails.
    #[serde(skip)]
    #[error("failed to {operation} `{path}`")]
    Store {
        /// What was tried.
        operation: String,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl SlugError {
    /// Whether a fresh URL of the same slug may help.
    pub fn wants_fresh_url(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Whether the machine ran out of something, and the same may work later.
    pub fn is_exhaustion(&self) -> bool {
        match self {
            Self::NoSpace { .. } | Self::Exhausted { .. } => true,
            Self::Store { source, .. } => is_exhaustion(source),
            _ => false,
        }
    }

    /// Whether the network is at fault, and the same may work later.
    pub fn is_network(&self) -> bool {
        match self {
            Self::Untrusted { .. } | Self::Network { .. } | Self::Stalled { .. } => true,
            Self::Http { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }

    /// Whether it is the slug, or what was said of it, that must change.
    pub fn is_callers(&self) -> bool {
        matches!(
            self,
            Self::Url
                | Self::File { .. }
                | Self::DirectoryChecksum { .. }
                | Self::Checksum { .. }
                | Self::Entry { .. }
                | Self::Archive(_)
                | Self::TooMuch { .. }
                | Self::App(_)
        )
    }

    /// A process of ours that could not be started, or be talked to.
    pub(crate) fn helper(task: &str, error: &io::Error) -> Self {
        let (task, cause) = (task.to_owned(), error.to_string());
        if is_exhaustion(error) {
            Self::Exhausted { task, cause }
        } else {
            Self::Helper { task, cause }
        }
    }

    /// An error of a call on `path`, which is in the store.
    pub(crate) fn store(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Store {
            operation: operation.to_owned(),
            path,
            source,
        }
    }
}

/// Whether a disk, or somebody's share of it, is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_open_files_there_may_be_fewer_later() {
        let error = |number| SlugError::helper("unpack", &io::Error::from_raw_os_error(number));
        assert!(error(libc::EMFILE).is_exhaustion());
        assert!(error(libc::EAGAIN).is_exhaustion());
        assert!(!error(libc::ENOEXEC).is_exhaustion());
        let store = SlugError::store("open", Path::new("/srv"));
        assert!(store(io::Error::from_raw_os_error(libc::EMFILE)).is_exhaustion());
    }
}
