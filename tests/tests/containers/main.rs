//! The libcontainer driver as a person meets it: hsup, the driver, and a real kernel.
//!
//! Every test has a work directory, a run directory and addresses of its own, and looks at its
//! end that the host is as it was: links, mounts, cgroups, nftables, directories, processes.
//! All of them need root. The stack is made of this machine's busybox.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod allocation;
mod binds;
mod caller;
mod conformance;
mod container;
mod heroku;
mod host;
mod https;
mod isolation;
mod leftovers;
mod limits;
mod machine;
mod running;
mod secrets;
mod slugs;
mod stacks;
mod survival;
