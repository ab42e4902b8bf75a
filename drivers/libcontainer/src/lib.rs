//! The driver that runs dynos in containers.
//!
//! ```text
//!   calls ──▶ Runtime (runtime.rs): stack/ slugs, lease/ user and address, net/, start.rs
//!                 │ order.rs
//!                 ▼
//!             shim.rs: mounts.rs spec.rs seccomp.rs ── libcontainer ──▶ hsup-init, the dyno
//!                 │ exec                                                  ▲
//!                 ▼                                                       │ life.rs, dyno.rs
//!             hsup-wait ── exec ──▶ sweep.rs: cgroup.rs, net/, lease/     the driver, any driver
//! ```
//!
//! One program in several roles: the driver, which serves and never calls libcontainer; one shim
//! for each dyno, which does, and becomes the process that waits for the dyno; the sweep, which
//! that becomes at the dyno's end; the helpers of `hsup-slug`; and `stack`, for people. What
//! lies where is told in `dirs.rs`.

mod answers;
mod artifact;
mod binds;
mod cgroup;
mod dirs;
mod dyno;
mod forsaken;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod lease;
mod life;
mod locked;
mod mounted;
mod mounts;
pub mod net;
mod order;
mod recover;
mod removal;
mod runtime;
mod seccomp;
mod settings;
mod shim;
mod spec;
pub mod stack;
mod start;
mod sweep;

use std::{ffi::OsString, process::ExitCode};

use hsup_driver_kit::{Program, log, secrecy};
use nix::sys::stat::{Mode, umask};

use self::{runtime::Libcontainer, settings::Settings};

/// What it is called, in every role.
const NAME: &str = "hsup-driver-libcontainer";

/// Runs the program in the role that its arguments name; `args` begin with its own name.
///
/// As a driver it ends with 0 after SIGTERM or when idle as a child, 1 when it cannot run, 2 for
/// a bad command line.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    secrecy::keep();
    // What a dyno finds is to be read by its user, and written to by nobody else, whatever the
    // umask of who started us. What is secret is made with its own mode; a socket is given its.
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let args: Vec<_> = args.into_iter().collect();
    if let Some(code) = hsup_slug::role(args.iter().cloned()) {
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    let rest = args.get(1..).unwrap_or_default();
    match rest.first().and_then(|word| word.to_str()) {
        Some(shim::ROLE) => {
            log::begin_errors(NAME);
            shim::main(&rest[1..])
        }
        Some(sweep::ROLE) => {
            log::begin_errors(NAME);
            sweep::main(&rest[1..])
        }
        Some("stack") => stack::command(rest[1..].iter().cloned()),
        _ => serve(rest),
    }
}

fn serve(args: &[OsString]) -> ExitCode {
    let about = "Runs the dynos of hsup in containers; it has to be root.\n\n\
                 `hsup-driver-libcontainer stack --help` tells of the stacks that they run on. Users and\n\
                 addresses come from LIBCONTAINER_DYNO_UID_MIN, LIBCONTAINER_DYNO_UID_MAX (3000 to 11000)\n\
                 and LIBCONTAINER_DYNO_SUBNET (172.16.0.28/12); LIBCONTAINER_DYNO_ALLOW opens what dynos\n\
                 may reach besides the world, LIBCONTAINER_DYNO_EXTRA_INTERFACE and \
                 LIBCONTAINER_DYNO_EXTRA_ROUTES\nadd to their network.";
    Program::new(NAME, env!("CARGO_PKG_VERSION"), about)
        .as_root("makes namespaces and users")
        .value(
            settings::WORK_DIR,
            "DIR",
            "Where stacks, slugs and what dynos write are kept\n\
             [LIBCONTAINER_WORK_DIR; default: /var/lib/hsup]",
        )
        .value(
            settings::RUN_DIR,
            "DIR",
            "Where the dynos that run are kept, in memory\n\
             [LIBCONTAINER_RUN_DIR; default: hsup-libcontainer in /run or /dev/shm]",
        )
        .value(
            settings::STACKS_MANIFEST,
            "URL",
            "The list of stacks to be had, unless the work directory holds one\n\
             [LIBCONTAINER_STACKS_MANIFEST]",
        )
        .value(
            settings::ALLOW_BIND,
            "PREFIX",
            "Let dynos see folders of this host below PREFIX (can be repeated)\n\
             [LIBCONTAINER_ALLOW_BIND, separated by colons; default: none]",
        )
        .value(
            settings::KEEP_SLUGS,
            "N",
            "How many slugs of each app are kept [LIBCONTAINER_KEEP_SLUGS; default: 5]",
        )
        .value(
            settings::TMP_SIZE,
            "SIZE",
            "How large /tmp and /var/tmp of a dyno may become, each; they are in memory\n\
             [LIBCONTAINER_DYNO_TMP_SIZE; default: 512m]",
        )
        .value(
            settings::CGROUP_PARENT,
            "PATH",
            "The cgroup below which every dyno has its own\n\
             [LIBCONTAINER_CGROUP_PARENT; default: /hsup]",
        )
        .main(args.iter().cloned(), async |given| {
            let settings = Settings::new(&given, |name| std::env::var_os(name))?;
            let callers = given.allowed().iter().map(|uid| uid.as_raw());
            Libcontainer::open(settings, callers, given.socket()).await
        })
}
