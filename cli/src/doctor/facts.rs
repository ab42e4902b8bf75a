//! What `hsup doctor` has seen of this machine: plain data, of which nothing is judged yet.

use std::{collections::BTreeSet, path::PathBuf};

use hsup_core::{ports, run::Introduction};

use super::judge::Wanted;

/// The whole of it.
#[derive(Clone, Debug)]
pub struct Facts {
    pub kernel: Kernel,
    pub cgroups: Cgroups,
    pub user: User,
    /// The directory for sockets and FIFOs, or why there is none.
    pub runtime_dir: Result<PathBuf, String>,
    pub control_sockets: Vec<(PathBuf, Answer)>,
    pub drivers: Vec<Driver>,
    /// hsup's package is installed: there is no source to build anything from.
    pub packaged: bool,
    pub stacks: Stacks,
    pub limits: Limits,
    /// The ports that dynos get first.
    pub ports: Vec<(u16, ports::State)>,
}

/// What a dyno in a container has of its own.
pub const NAMESPACES: [&str; 5] = ["cgroup", "ipc", "mnt", "net", "pid"];

#[derive(Clone, Debug)]
pub struct Kernel {
    /// `6.12.3-amd64`.
    pub release: String,
    /// The kinds of [`NAMESPACES`] that there are.
    pub namespaces: BTreeSet<&'static str>,
    /// What a seccomp filter may do.
    pub seccomp: BTreeSet<String>,
    pub overlay: Presence,
    pub nf_tables: Presence,
    pub veth: Presence,
    pub ipvlan: Presence,
}

/// Whether the kernel has a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Here,
    /// As a module that is loaded when it is needed.
    Loadable,
    Absent,
    Unknown,
}

#[derive(Clone, Debug)]
pub struct Cgroups {
    pub layout: Layout,
    pub controllers: BTreeSet<String>,
    /// The cgroup of version 2 that hsup is in; none where there is no version 2.
    pub own: Option<PathBuf>,
    /// Whether cgroups can be made in it.
    pub writable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    None,
    /// Version 1.
    Legacy,
    /// Version 1, with a tree of version 2 that has few controllers or none.
    Hybrid,
    /// Version 2.
    Unified,
}

#[derive(Clone, Debug)]
pub struct User {
    pub uid: u32,
    /// Empty: it has none.
    pub name: String,
    pub groups: Vec<String>,
}

/// What there is at a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An hsup listens, or systemd does so for it.
    Listens,
    /// Nobody listens any more.
    LeftBehind,
    /// It may not be connected to, but in this way.
    Forbidden(String),
}

/// A driver that was asked.
#[derive(Clone, Debug)]
pub struct Driver {
    /// What it is shown as: its name, or whatever it was named by.
    pub name: String,
    /// Which one it is, as far as it said so.
    pub kind: Wanted,
    pub way: Way,
    pub health: Health,
}

/// How a driver is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// hsup starts it.
    Child,
    /// At a socket: somebody else starts it.
    Socket,
    /// At the socket of the package's unit, which starts it when it is asked.
    PackagedSocket,
}

/// How a driver does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    NotInstalled,
    /// There is no such driver, and why.
    Unknown(String),
    /// It does not answer.
    Silent(String),
    Answers(Introduction),
}

/// The stacks of the libcontainer driver.
#[derive(Clone, Debug)]
pub struct Stacks {
    pub folder: PathBuf,
    /// Their names, or why nobody can tell.
    pub names: Result<Vec<String>, Unread>,
    /// There is a list of stacks to fetch.
    pub manifest: bool,
}

/// Why the stacks are not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    Missing,
    /// Only root may look.
    Forbidden,
    Failed(String),
}

#[derive(Clone, Debug)]
pub struct Limits {
    /// How far the limit of open files can be raised.
    pub open_files: u64,
    /// How many processes this user may have; none: any number.
    pub processes: Option<u64>,
    /// Whether a directory can be watched, and if not, why.
    pub inotify: Result<(), String>,
}
