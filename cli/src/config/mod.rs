//! What hsup goes by where the command line says nothing: variables and files.
//!
//! The options of the command line are the list of all that can be set: `key` derives names,
//! variables and kinds from them, `file` reads TOML by that list, `merge` decides which
//! layer counts, and `resolve` gives what it decided to clap as if it had been typed, so that
//! an option has one parser and one set of words for what it refuses.
//!
//! The first that says something: a flag, a variable, the app's own `hsup.toml`, the user's,
//! `/etc/hsup/hsup.d/*.toml` (of these the last), `/etc/hsup/hsup.toml`, the default.

mod error;
mod file;
pub(crate) mod key;
mod merge;
mod resolve;
pub(crate) mod show;

pub use error::ConfigError;
pub(crate) use key::SOURCES;
pub(crate) use merge::{Origin, Setting};
pub(crate) use resolve::{Places, ResolveError, Resolved, resolve};
