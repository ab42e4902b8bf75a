//! The two smallest processes of a dyno in a container, in one static program: the driver holds
//! it in memory and starts it by descriptor, so that nothing of it must be in the stack image.
//!
//! `hsup-init STATUS TTY_FD ROWS COLUMNS UNSET… -- COMMAND…` is PID 1 of the dyno ([`init`]): the
//! dyno's uid, no capabilities. It starts the command in a session of its own, without the
//! variables `UNSET`, hands every signal on, and reaps. How the command ended it says on the
//! descriptor `STATUS`, or in the file, where its own exit status says less. `TTY_FD` is a socket
//! that a terminal's master is sent to, 0 where standard input is the terminal, -1 for none.
//!
//! `hsup-wait INIT_PID STATUS_FD LIFE_FD DIR_FD OOM_FD… -- SWEEP_FD SWEEP…` waits for it outside
//! ([`wait`]): root's, and as small as can be, for there is one for each dyno, as long as it
//! lives. It writes down how the dyno ended and becomes the process that frees what the dyno held.
//!
//! Which of the two it is, says its first argument, or else the name that it was started by.

mod arguments;
mod command;
mod exit_file;
mod init;
mod outcome;
mod profile;
mod sys;
mod terminal;
mod wait;

use std::process::ExitCode;

use arguments::Role;

fn main() -> ExitCode {
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
