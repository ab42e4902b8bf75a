//! What is wrong with a configuration. No value of a secret is ever in here.

use std::{fmt, path::PathBuf};

use hsup_core::files::ReadFileError;
use thiserror::Error;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub path: PathBuf,
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// hsup cannot go by its configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("failed to read the configuration")]
    Read(#[source] ReadFileError),

    #[error("failed to look for configuration in `{}`", .path.display())]
    List {
        path: PathBuf,
        source: std::io::Error,
    },

    #[error("{}: the text is not UTF-8", .path.display())]
    NotUtf8 { path: PathBuf },

    #[error(
        "`{}` belongs to user {uid}: an app's own file counts if it is yours or root's",
        .path.display()
    )]
    Stranger { path: PathBuf, uid: u32 },

    #[error("{place}: {problem}")]
    Syntax { place: Place, problem: String },

    #[error("{place}: unknown key `{key}`{}", did_you_mean(nearest.as_deref()))]
    UnknownKey {
        place: Place,
        key: String,
        nearest: Option<String>,
    },

    #[error("{place}: `{key}` says which app is meant, and an app's own file cannot")]
    NotInAppsFile { place: Place, key: String },

    /// Each is a variable, or a place and a key.
    #[error("{one} and {other} contradict each other: only one of them can count")]
    Rivals { one: String, other: String },

    /// `from` is a variable, or a place and a key.
    #[error("{from}: {problem}")]
    Value { from: String, problem: String },
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest
        .map(|key| format!(": did you mean `{key}`?"))
        .unwrap_or_default()
}
