//! The two smallest processes of a dyno in a container, in one static program: the driver holds
//! it in memory and starts it by descriptor, so that nothing of it must be in the stack image.
//!
//! `hsup-init STATUS TTY_FD ROWS COLUMNS UNSET… FILE=TEXT… -- COMMAND…` is PID 1 of the dyno
//! (`init`): the dyno's uid, no capabilities. It starts the command in a session of its own,
//! without the variables `UNSET`, hands every signal on, and reaps. The files are there, and get
//! their texts first. How the command ended it says on the descriptor `STATUS`, or in the file: its
//! own exit status says less. `TTY_FD` is a socket that a terminal's master is sent to,
//! 0 where standard input is the terminal, -1 for none.
//!
//! `hsup-wait INIT_PID STATUS_FD LIFE_FD DIR_FD STDOUT_FD STDERR_FD OOM_FD… -- SWEEP_FD SWEEP…`
//! waits for it outside (`wait`): root's, and as small as can be, for there is one for each dyno, as
//! long as it lives. It writes down how the dyno ended, sees to it that what the dyno wrote is kept
//! for whoever has not read it yet (-1: it has a terminal), and becomes the process that frees what
//! the dyno held.
//!
//! Which of the two it is, says its first argument, or else the name that it was started by.
//!
//! `hsup-shim` ([`shim`]) is a program of its own, on the same system calls: the parent of a dyno
//! without a container, for drivers that run plain processes.

mod arguments;
mod command;
mod exit_file;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod init;
mod outcome;
mod profile;
pub mod shim;
mod sys;
mod terminal;
mod unread;
mod wait;

use std::process::ExitCode;

use arguments::Role;

/// The two roles; see the crate.
pub fn main() -> ExitCode {
    let arguments = match sys::arguments().and_then(|all| Ok(arguments::parse(&all)?)) {
        Ok(role) => role,
        Err(error) => {
            sys::complain("hsup-init", &error);
            return ExitCode::from(command::CANNOT_RUN);
        }
    };
    match arguments {
        Role::Init(init) => init::run(&init),
        Role::Wait(wait) => wait::run(&wait),
    }
}
