//! PID 1 of a dyno.
//!
//! A PID 1 has no default signal actions, and what it does not reap stays: so it is never the
//! command itself. All signals are blocked and taken one by one, hence no handler, and no moment
//! at which one is lost. When the command ends, so does PID 1, and the kernel kills the rest.

use std::{fs::File, io, io::Write as _, os::fd::OwnedFd, process::ExitCode};

use crate::{
    arguments::Init,
    command::{self, CANNOT_RUN},
    outcome::Outcome,
    sys::{self, Fork},
    terminal::Pair,
};

const NAME: &str = "hsup-init";

pub(crate) fn run(wanted: &Init) -> ExitCode {
    sys::set_name(c"hsup-init");
    let mut status = match take_over(wanted.status) {
        Ok(status) => status,
        Err(error) => {
            sys::complain(NAME, &error);
            return ExitCode::from(CANNOT_RUN);
        }
    };
    let outcome = start(wanted).map_or_else(
        |error| {
            sys::complain(NAME, &error);
            Outcome::Code(CANNOT_RUN)
        },
        look_after,
    );
    // Nobody to tell it to: then the one who waits for this process sees how it ended.
    if let Some(status) = &mut status
        && let Err(error) = status.write_all(&outcome.to_wait_status().to_ne_bytes())
    {
        sys::complain(NAME, &error);
    }
    outcome.to_exit_code()
}

/// What must hold before anything of the dyno's own runs.
fn take_over(status: Option<i32>) -> io::Result<Option<File>> {
    // Otherwise the dyno's processes, which have the same uid, could trace this one, read its
    // memory, and write to its descriptors.
    sys::forbid_tracing()?;
    sys::block_all_signals()?;
    // What this process signals is everybody in its pid namespace.
    if std::process::id() != 1 {
        return Err(io::Error::other("is not PID 1 of a pid namespace"));
    }
    let status = status.map(sys::take_descriptor).transpose()?;
    Ok(status.map(File::from))
}

/// Starts the command, and returns its pid.
fn start(wanted: &Init) -> io::Result<i32> {
    let slave = match &wanted.terminal {
        None => None,
        Some(terminal) => {
            let socket = sys::take_descriptor(terminal.socket)?;
            let pair = Pair::open(terminal.rows, terminal.columns)?;
            sys::send_descriptor(&socket, &pair.master)
                .map_err(|error| sys::failed("failed to hand over the terminal", &error))?;
            Some(pair.slave)
        }
    };
    match sys::fork() {
        Ok(Fork::Parent(pid)) => Ok(pid),
        Ok(Fork::Child) => become_command(slave, &wanted.command),
        Err(error) => Err(sys::failed("failed to start a process", &error)),
    }
}

/// In the child: never returns.
fn become_command(terminal: Option<OwnedFd>, words: &[std::ffi::CString]) -> ! {
    let prepared = sys::new_session()
        .and_then(|()| terminal.map_or(Ok(()), sys::become_terminal_of_session))
        .and_then(|()| sys::close_all_but_standard())
        .and_then(|()| sys::reset_signals());
    if let Err(error) = prepared {
        sys::complain(NAME, &error);
        sys::exit_at_once(CANNOT_RUN);
    }
    let failure = command::run(words);
    sys::complain(NAME, &failure);
    sys::exit_at_once(failure.status())
}

/// Hands on signals and reaps, until the command ends.
fn look_after(command: i32) -> Outcome {
    loop {
        let signal = sys::next_signal();
        if signal != libc::SIGCHLD {
            sys::signal_everybody(signal);
        }
        // After every signal: a dyno that sends others all the time must not hide that it ended.
        while let Some((pid, status)) = sys::reap() {
            if pid == command
                && let Some(outcome) = Outcome::from_wait_status(status)
            {
                return outcome;
            }
        }
    }
}
