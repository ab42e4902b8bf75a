//! What the router's thread and the handles share.
//!
//! Everything that others ask of the logs goes through here, under one lock that nobody holds
//! while something is written: so it is answered at once, whatever the router waits for.

use std::{
    mem,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use nix::sys::eventfd::EventFd;
use tokio::sync::oneshot;

use super::{
    SYSTEM,
    drain::Queue as DrainQueue,
    line::{Chunk, Origin, counted},
    notes::{Note, Notes, lines_of},
    outlet::Outlet,
    ring::{Rings, Run},
    stderr::Stderr,
    subscription::Queue,
    terminal::Terminal,
};
use crate::name::DynoId;

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Readable while the thread has something to look at here.
    pub(super) wake: EventFd,
    notes_go: NotesGo,
    /// hsup's standard error, where it is a place of its own.
    pub(super) stderr: Option<Stderr>,
    /// And its standard output.
    pub(super) stdout: Option<Outlet>,
}

/// Where hsup's own lines are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotesGo {
    Nowhere,
    /// With the dynos' lines, in the order in which they came: by the router's thread.
    ToTerminal,
    ToStderr,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) rings: Rings,
    pub(super) subscribers: Vec<Arc<Queue>>,
    pub(super) drains: Vec<Arc<DrainQueue>>,
    pub(super) commands: Vec<Command>,
    /// What the terminal has not shown yet.
    notes: Notes,
    /// Whole lines to show as they are. The next ones replace them: who asks twice while
    /// the terminal is stuck wants the later answer.
    text: Option<Vec<u8>>,
    /// The thread has ended, or is about to.
    pub(super) ended: bool,
}

#[derive(Debug)]
pub(super) enum Command {
    Add(Dyno),
    Finish {
        dyno_id: DynoId,
        done: oneshot::Sender<()>,
    },
    /// The longest name that will come.
    Widen(usize),
    /// Reads no more, but for the lines that it has the beginning of.
    LetGo,
    End {
        done: Option<oneshot::Sender<()>>,
    },
}

/// A dyno whose output is to be read.
#[derive(Debug)]
pub(super) struct Dyno {
    pub(super) id: DynoId,
    pub(super) name: Arc<str>,
    pub(super) run: Run,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

impl Shared {
    pub(super) fn new(rings: Rings, wake: EventFd, terminal: Option<&Terminal>) -> Self {
        let stdout = terminal.map(|terminal| terminal.stdout().clone());
        if let Some(stdout) = &stdout {
            stdout.hold(true);
        }
        Self {
            state: Mutex::new(State {
                rings,
                subscribers: Vec::new(),
                drains: Vec::new(),
                commands: Vec::new(),
                notes: Notes::default(),
                text: None,
                ended: false,
            }),
            wake,
            notes_go: match terminal {
                None => NotesGo::Nowhere,
                Some(terminal) if terminal.takes_notes() => NotesGo::ToTerminal,
                Some(_) => NotesGo::ToStderr,
            },
            stderr: terminal.and_then(Terminal::stderr).cloned(),
            stdout,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake(&self) {
        // Full means that it is awake already.
        let _: nix::Result<usize> = self.wake.write(1);
    }

    /// Keeps a line of hsup's own, hands it out and has it shown. Never waits.
    pub(super) fn note(&self, name: &str, text: &str) {
        let at_unix_us = now_unix_us();
        let lines = lines_of(text);
        {
            let mut state = self.lock();
            let state = &mut *state;
            let name = state.rings.append_note(name, at_unix_us, &lines);
            state.publish(&name, Origin::of_note(&name), at_unix_us, &lines);
            if self.notes_go == NotesGo::ToTerminal {
                state.notes.push(Note {
                    name,
                    at_unix_us,
                    lines,
                });
            } else if self.notes_go == NotesGo::ToStderr
                && let Some(stderr) = &self.stderr
            {
                stderr.note(&name, at_unix_us, &lines);
            }
        }
        if self.notes_go == NotesGo::ToTerminal {
            self.wake();
        }
    }

    /// Says that standard output took too long, from another thread than the one that writes it.
    pub(super) fn note_cut(&self) {
        let Some(stdout) = &self.stdout else {
            return;
        };
        let text = match stdout.unwritten() {
            (0, 0) => "What was left for standard output was not written in time".to_owned(),
            // What is still in the dynos' pipes is known to nobody.
            (bytes, 0) => {
                format!(
                    "At least {bytes} bytes of standard output were not written: it took nothing"
                )
            }
            (bytes, lines) => format!(
                "At least {bytes} bytes and {} of standard output were not written: it took nothing",
                counted(lines)
            ),
        };
        self.note(SYSTEM, &text);
    }

    /// Has whole lines shown as they are, on standard error. Never waits.
    pub(super) fn print(&self, text: Vec<u8>) {
        if let Some(stderr) = &self.stderr {
            stderr.text(&text);
        } else {
            self.lock().text = Some(text);
            self.wake();
        }
    }

    /// Takes what the terminal is to show beside the dynos' lines.
    pub(super) fn take_own(&self) -> (Notes, Option<Vec<u8>>) {
        let mut state = self.lock();
        (mem::take(&mut state.notes), state.text.take())
    }

    /// Has lines from now on go to `new` and no more to `old`: none to both, and none to neither.
    pub(super) fn change_drains(
        &self,
        old: Option<&Arc<DrainQueue>>,
        new: Option<&Arc<DrainQueue>>,
    ) {
        let mut state = self.lock();
        state
            .drains
            .retain(|queue| !old.is_some_and(|old| Arc::ptr_eq(queue, old)));
        match new {
            Some(new) if state.ended => new.end(),
            new => state.drains.extend(new.map(Arc::clone)),
        }
        if let Some(stdout) = &self.stdout {
            // Dynos that wait for it would have the drains wait, too.
            stdout.hold(state.drains.is_empty());
        }
    }

    /// Gives the command to the thread, or back when that has ended.
    pub(super) fn send(&self, command: Command) -> Result<(), Command> {
        {
            let mut state = self.lock();
            if state.ended {
                return Err(command);
            }
            state.commands.push(command);
        }
        self.wake();
        Ok(())
    }
}

impl State {
    /// Hands whole lines to every drain, and to every subscriber that wants them.
    pub(super) fn publish(
        &mut self,
        dyno: &Arc<str>,
        origin: Origin,
        at_unix_us: i64,
        lines: &[u8],
    ) {
        if self.subscribers.is_empty() && self.drains.is_empty() {
            return;
        }
        let mut shared: Option<Bytes> = None;
        if !self.drains.is_empty() {
            let bytes = shared.get_or_insert_with(|| Bytes::copy_from_slice(lines));
            let chunk = Chunk {
                at_unix_us,
                origin,
                dyno: Arc::clone(dyno),
                bytes: bytes.clone(),
            };
            let count = chunk.count() as u64;
            for queue in &self.drains {
                queue.push(chunk.clone(), count);
            }
        }
        self.subscribers.retain(|queue| !queue.is_abandoned());
        for queue in &self.subscribers {
            if queue.filter.wants_name(dyno) && queue.filter.wants_source(origin.source) {
                let bytes = shared.get_or_insert_with(|| Bytes::copy_from_slice(lines));
                queue.push(Chunk {
                    at_unix_us,
                    origin,
                    dyno: Arc::clone(dyno),
                    bytes: bytes.clone(),
                });
            }
        }
    }
}

/// Microseconds since 1970.
pub(super) fn now_unix_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    })
}
