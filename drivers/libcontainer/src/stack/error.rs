//! Why a stack could not be had.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::{
    EngineError, FetchError, ImageError, InstallError, ManifestError, NameError, StackName,
};

/// A stack could not be had.
#[derive(Debug, Error)]
pub enum StackError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("failed to prepare the folder of stacks `{}`", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("failed to look through the stacks in `{}`", .path.display())]
    Look { path: PathBuf, source: io::Error },
    #[error("failed to read the list of stacks `{}`", .path.display())]
    ReadManifest { path: PathBuf, source: io::Error },
    #[error("failed to keep the list of stacks as `{}`", .path.display())]
    KeepManifest { path: PathBuf, source: io::Error },
    #[error("failed to fetch the list of stacks")]
    FetchManifest(#[source] FetchError),
    #[error(
        "--stacks-manifest is `{url}`, which is no URL of a list of stacks: it must be \
         `https://`, `http://` or `file:///`"
    )]
    ManifestUrl { url: String },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(
        "stack {stack} is not here (here: {here}), and there is no list to find it by: put one \
         at `{}`, or give its URL with --stacks-manifest; or put the stack itself at `{}`, or import it from a \
         Docker engine with `hsup-driver-libcontainer stack import`",
        .manifest.display(),
        .directory.display()
    )]
    NoManifest {
        stack: StackName,
        here: String,
        manifest: PathBuf,
        directory: PathBuf,
    },
    #[error("stack {stack} is not in the list {origin}, which has {known}")]
    Unknown {
        stack: StackName,
        origin: String,
        known: String,
    },
    #[error("no version of stack {stack} in the list {origin} can be used here: {reasons}")]
    PassedOver {
        stack: StackName,
        origin: String,
        reasons: String,
    },
    #[error(
        "the field `url` of stack {stack} names `{}`, which has one of the characters `:`, `,` and \
         `\\`, which overlay file systems give a meaning: choose another directory",
        .path.display()
    )]
    Characters { stack: String, path: PathBuf },
    #[error("the directory `{}` of stack {stack} is not there", .path.display())]
    NoDirectory { stack: String, path: PathBuf },
    #[error("`{}` is no stack image", .path.display())]
    Image { path: PathBuf, source: ImageError },
    #[error("failed to lock `{}`", .path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("failed to fetch stack {stack}")]
    Fetch { stack: String, source: FetchError },
    #[error("stack {stack} from {from} is not what it should be")]
    Install {
        stack: String,
        from: String,
        source: InstallError,
    },
    #[error("stack {stack} was just removed")]
    Gone { stack: String },
    #[error("stack {stack} is in use by a dyno")]
    InUse { stack: String },
    #[error("there is no stack {stack} in `{}`", .folder.display())]
    NotThere { stack: String, folder: PathBuf },
    #[error("failed to remove stack {stack}")]
    Remove { stack: String, source: io::Error },
    #[error("failed to import `{reference}` from the Docker engine")]
    Import {
        reference: String,
        source: EngineError,
    },
    #[error("failed to wait for what unpacks the stack")]
    Thread(#[source] tokio::task::JoinError),
}
