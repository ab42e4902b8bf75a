//! PID 1 of a dyno.
//!
//! A PID 1 has no default signal actions, and what it does not reap stays: so it is never the
//! command itself. All signals are blocked and taken one by one, hence no handler, and no moment
//! at which one is lost. When the command ends, so does PID 1, and the kernel kills the rest.

use std::{
    ffi::{CString, OsStr},
    fs::{File, OpenOptions},
    io,
    io::Write as _,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    },
    process::ExitCode,
};

use crate::{
    arguments::{Init, Status, Terminal, Text},
    command::{self, CANNOT_RUN},
    outcome::Outcome,
    sys::{self, Fork},
    terminal::Pair,
};

const NAME: &str = "hsup-init";

pub(crate) fn run(wanted: &Init) -> ExitCode {
    sys::set_name(c"hsup-init");
    let status = match take_over(&wanted.status) {
        Ok(status) => status,
        Err(error) => {
            sys::complain(NAME, &error);
            return ExitCode::from(CANNOT_RUN);
        }
    };
    for text in &wanted.texts {
        // A dyno can do without.
        if let Err(error) = write(text) {
            sys::complain(NAME, &error);
        }
    }
    let outcome = start(wanted).map_or_else(
        |error| {
            sys::complain(NAME, &error);
            Outcome::Code(CANNOT_RUN)
        },
        look_after,
    );
    if let Err(error) = tell(status, outcome) {
        sys::complain(NAME, &error);
    }
    outcome.to_exit_code()
}

/// Where the command's status goes.
enum Told {
    Pipe(File),
    File(CString),
}

fn tell(told: Told, outcome: Outcome) -> io::Result<()> {
    let mut file = match told {
        Told::Pipe(pipe) => pipe,
        Told::File(path) => {
            let path = OsStr::from_bytes(path.as_bytes());
            let mut how = OpenOptions::new();
            // The dyno may have put anything there: nothing that this process would wait for.
            let how = how
                .write(true)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
            how.open(path)
                .map_err(|error| sys::failed("failed to open the file for the status", &error))?
        }
    };
    file.write_all(&outcome.to_wait_status().to_ne_bytes())
}

/// What must hold before anything of the dyno's own runs.
fn take_over(status: &Status) -> io::Result<Told> {
    // Otherwise the dyno's processes, which have the same uid, could trace this one, read its
    // memory, and write to its descriptors.
    sys::forbid_tracing()?;
    sys::block_all_signals()?;
    // What this process signals is everybody in its pid namespace.
    if std::process::id() != 1 {
        return Err(io::Error::other("is not PID 1 of a pid namespace"));
    }
    Ok(match status {
        Status::Descriptor(number) => Told::Pipe(sys::take_descriptor(*number)?.into()),
        Status::File(path) => Told::File(path.clone()),
    })
}

/// Says in a file what it is to say.
fn write(text: &Text) -> io::Result<()> {
    let mut how = OpenOptions::new();
    how.write(true)
        .truncate(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    how.open(&text.path)
        .and_then(|mut file| file.write_all(&text.content))
        .map_err(|error| sys::failed("failed to write who the dyno is", &error))
}

/// Starts the command, and returns its pid.
fn start(wanted: &Init) -> io::Result<i32> {
    let slave = match &wanted.terminal {
        None => None,
        Some(Terminal {
            socket: None,
            rows,
            columns,
        }) => {
            let terminal = io::stdin().as_fd().try_clone_to_owned()?;
            // Before the command can look.
            sys::set_terminal_size(&terminal, *rows, *columns)
                .map_err(|error| sys::failed("failed to set the size of a terminal", &error))?;
            // A terminal is one session's: the command's, from now on.
            sys::give_up_terminal()?;
            Some(terminal)
        }
        Some(Terminal {
            socket: Some(socket),
            rows,
            columns,
        }) => {
            let socket = sys::take_descriptor(*socket)?;
            let pair = Pair::open(*rows, *columns)?;
            sys::send_descriptor(&socket, &pair.master)
                .map_err(|error| sys::failed("failed to hand over the terminal", &error))?;
            Some(pair.slave)
        }
    };
    match sys::fork() {
        Ok(Fork::Parent(pid)) => Ok(pid),
        Ok(Fork::Child) => become_command(slave, wanted),
        Err(error) => Err(sys::failed("failed to start a process", &error)),
    }
}

/// In the child: never returns.
fn become_command(terminal: Option<OwnedFd>, wanted: &Init) -> ! {
    let prepared = sys::new_session()
        .and_then(|()| terminal.map_or(Ok(()), sys::become_terminal_of_session))
        .and_then(|()| sys::close_all_but_standard())
        .and_then(|()| sys::reset_signals());
    if let Err(error) = prepared {
        sys::complain(NAME, &error);
        sys::exit_at_once(CANNOT_RUN);
    }
    for name in &wanted.unset {
        sys::unset(name);
    }
    let failure = command::run(&wanted.command);
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
