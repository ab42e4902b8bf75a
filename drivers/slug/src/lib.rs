//! Slugs: fetched, verified, unpacked once, and kept for as long as somebody uses them.
//!
//! ```text
//!              front (the driver, root; async)
//!    fetch ────── bytes ──▶ hash, count ────── bytes ──▶ unpack
//!    the peer for file://,                               an unprivileged uid, its root
//!    an unprivileged uid for http(s)                     is the staging directory
//! ```
//!
//! Both ends are processes of their own, re-executions of the driver's binary: a `file://` URL
//! is opened with no more rights than the caller has, and whoever parses an archive or an HTTP
//! answer that a stranger made has none at all. The front only hands bytes on, and it alone
//! computes the hash that a slug is known by, for a process of the caller's uid must not be
//! able to say what is in the store under which name.
//!
//! ```no_run
//! # use hsup_slug::*;
//! # use std::{path::Path, process::ExitCode};
//! # async fn example(url: String, checksum: Option<SlugId>) -> Result<(), SlugError> {
//! // First thing in main, before any thread is started:
//! if let Some(code) = hsup_slug::role(std::env::args_os()) {
//!     std::process::exit(code);
//! }
//! let store = Store::open(Path::new("/var/lib/hsup/slugs"), Settings::new(2_999))?;
//! let fetch = Fetch::new(url, checksum, Peer::of_uid(1_000, 1_000));
//! let id = store.add(&fetch, &Owner::new(1_000, "app")?, &Silent).await?;
//! let slug = store.get(1_000, &id)?; // `slug.lock` held: in use
//! # Ok(()) }
//! ```
//!
//! - [`Store::add`] fetches, verifies and unpacks; equal slugs are unpacked once, also by
//!   several drivers. Dropping the future kills its processes and removes what was half made.
//! - [`Store::get`], [`Store::remove`], [`Store::collect`]: what is kept, and for how long.
//! - [`layer()`] gives a slug out as a layer of an image, as it comes.
//! - [`Stream`] is the verified stream alone, for who wants something else than a tree.
//! - [`web`] is what other downloads of a driver need, too.
//! - [`changed`] tells whether a directory or file is still what it was, and [`state()`] the same
//!   in the time that a Build has for it.
//!
//! The URL of a slug is a secret (it is presigned). It reaches the process that fetches through
//! a socket, and neither an error nor a note ever holds more of it than its host. The path of a
//! `file://` URL is none: its owner has to know which one it was.

mod changed;
mod error;
mod feed;
mod fetch;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod helper;
mod id;
mod layer;
mod pack;
mod privilege;
mod progress;
mod store;
mod unpack;
mod walk;
pub mod web;
mod wire;

use std::ffi::OsString;

pub use self::{
    changed::{changed, state},
    error::SlugError,
    fetch::{Fetch, Patience, Stream},
    helper::Program,
    id::{BadId, SlugId},
    layer::{LayerError, Layering, identify, layer},
    privilege::Peer,
    progress::{Progress, Silent, Step},
    store::{Collected, Limits, Owner, Settings, Slug, Store},
};

/// Does the work of a process that this crate has started, and returns its exit status; `None`
/// if this process is none of those.
///
/// A driver's `main` calls it before anything else: the process is still privileged, and
/// changes its user for all its threads.
pub fn role(args: impl IntoIterator<Item = OsString>) -> Option<i32> {
    let mut args = args.into_iter().skip(1);
    if args.next()? != helper::ARGUMENT {
        return None;
    }
    Some(wire::serve())
}
