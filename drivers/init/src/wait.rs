//! The parent of a dyno's PID 1: waits, writes down how the dyno ended, and becomes the process
//! that frees what it held.
//!
//! Only SIGKILL ends it: as long as it lives, so does the exit status. The descriptors that it
//! inherited stay open, for to hold them is part of its work: a lock on the slug, both ends of
//! the pipes, the terminal. That signals are ignored, the one that sweeps inherits.

use std::{
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{OwnedFd, RawFd},
        unix::fs::FileExt as _,
    },
    process::ExitCode,
    thread,
    time::Duration,
};

use crate::{
    arguments::Wait,
    exit_file::{Exit, ExitFile},
    outcome::Outcome,
    sys,
    unread::Unread,
};

const NAME: &str = "hsup-wait";
/// How long a full file system may keep the end of a dyno from being known.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) fn run(wanted: &Wait) -> ExitCode {
    sys::ignore_signals();
    let error = match Held::take(wanted) {
        Ok(held) => {
            // From here on it is what it is called.
            sys::set_name(c"hsup-wait");
            held.wait(wanted)
        }
        Err(error) => error,
    };
    sys::complain(NAME, &error);
    ExitCode::FAILURE
}

/// The descriptors that have a meaning here.
struct Held {
    status: File,
    life: OwnedFd,
    exit: ExitFile,
    outputs: Unread,
    oom: Vec<File>,
    sweep: OwnedFd,
}

impl Held {
    fn take(wanted: &Wait) -> io::Result<Self> {
        let files = |numbers: &[RawFd]| {
            let numbers = numbers.iter();
            let files = numbers.map(|number| sys::take_descriptor(*number).map(File::from));
            files.collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            status: sys::take_descriptor(wanted.status)?.into(),
            life: sys::take_descriptor(wanted.life)?,
            exit: ExitFile::reserve(sys::take_descriptor(wanted.directory)?.into()),
            outputs: Unread::of(files(&wanted.outputs)?),
            oom: files(&wanted.oom)?,
            sweep: sys::take_descriptor(wanted.sweep)?,
        })
    }

    /// Comes back only if there is nobody to sweep.
    fn wait(mut self, wanted: &Wait) -> io::Error {
        // Not reaped yet: until the status is written, nobody else gets the pid.
        match sys::wait_for(wanted.init) {
            Ok(status) => self.write_down(status),
            Err(error) => sys::complain(NAME, &sys::failed("failed to wait for PID 1", &error)),
        }
        // Before the end is known: who is told of it may come for the rest, or end the driver.
        self.outputs.keep(c"hsup-wait keeps", self.exit.directory());
        drop(self.life);
        while sys::reap().is_some() {}
        let error = sys::execute_descriptor(&self.sweep, &wanted.sweep_arguments);
        sys::failed("failed to start the sweep", &error)
    }

    fn write_down(&mut self, init: i32) {
        let Some(outcome) = outcome(said(&mut self.status), init) else {
            return sys::complain(NAME, &"PID 1 ended in no way that there is");
        };
        let exit = Exit::now(outcome, self.oom.iter().any(was_out_of_memory));
        for remaining in (0..TRIES).rev() {
            match self.exit.write(&exit) {
                Ok(()) => return,
                Err(_) if remaining > 0 => thread::sleep(PAUSE),
                Err(error) => {
                    sys::complain(
                        NAME,
                        &sys::failed("failed to write the exit status", &error),
                    );
                }
            }
        }
    }
}

/// What PID 1 said of the command, else how it ended itself: it was killed, then.
fn outcome(said: Option<i32>, init: i32) -> Option<Outcome> {
    said.and_then(Outcome::from_wait_status)
        .or_else(|| Outcome::from_wait_status(init))
}

/// PID 1 has ended, so what it had to say is in the pipe. Who else may have the writing end open
/// is not waited for.
fn said(status: &mut File) -> Option<i32> {
    sys::never_block(status).ok()?;
    let mut bytes = [0; 8];
    let length = status.read(&mut bytes).ok()?;
    let bytes: [u8; 4] = bytes[..length].try_into().ok()?;
    Some(i32::from_ne_bytes(bytes))
}

/// Reads `memory.events` of cgroup v2 or `memory.oom_control` of v1.
fn was_out_of_memory(file: &File) -> bool {
    let mut bytes = [0; 1024];
    let length = file.read_at(&mut bytes, 0).unwrap_or_default();
    counts_a_kill(&bytes[..length])
}

fn counts_a_kill(text: &[u8]) -> bool {
    let mut lines = text.split(|byte| *byte == b'\n');
    let count = lines.find_map(|line| line.strip_prefix(b"oom_kill "));
    count.is_some_and(|count| count.iter().any(|byte| *byte != b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_status_counts_before_that_of_pid_1() {
        assert_eq!(outcome(Some(7 << 8), 0), Some(Outcome::Code(7)));
        assert_eq!(outcome(Some(15), 9), Some(Outcome::Signal(15)));
        assert_eq!(outcome(None, 9), Some(Outcome::Signal(9)));
        // Not a status: whoever wrote it was not PID 1.
        assert_eq!(outcome(Some(-1), 9), Some(Outcome::Signal(9)));
    }

    #[test]
    fn a_kill_for_want_of_memory_is_seen_in_both_kinds_of_cgroup() {
        for (text, killed) in [
            (
                "low 0\nhigh 0\nmax 12\noom 3\noom_kill 0\noom_group_kill 2\n",
                false,
            ),
            ("low 0\nhigh 0\nmax 12\noom 3\noom_kill 10\n", true),
            ("oom_kill_disable 1\nunder_oom 0\noom_kill 0\n", false),
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", true),
            ("oom_kill_disable 1\nunder_oom 1\n", false),
            ("", false),
        ] {
            assert_eq!(counts_a_kill(text.as_bytes()), killed, "{text}");
        }
    }
}
