//! A shim, as the driver has it: a process that waits for an order and answers once.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, net::UnixStream as StdStream},
    },
    path::Path,
    time::Duration,
};

use hsup_driver_kit::spawn::{Spawn, Ties};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};
use tokio::{io::AsyncReadExt as _, net::UnixStream, time::timeout};

use super::StartError;
use crate::{
    NAME,
    order::{self, Answer},
    shim,
};

/// The longest answer of a shim.
const LONGEST_ANSWER: usize = 64 << 10;

/// A shim that was started. Without an order it ends when it is dropped.
#[derive(Debug)]
pub(super) struct ShimProcess {
    // Closed before it is waited for.
    pub(super) socket: StdStream,
    child: Child,
}

/// A process that is reaped when this is dropped.
#[derive(Debug)]
struct Child(Pid);

impl Child {
    /// Leaves that to others.
    fn stays(self) {
        std::mem::forget(self);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let pid = self.0;
        tokio::task::spawn_blocking(move || waitpid(pid, None));
    }
}

impl ShimProcess {
    pub(super) fn pid(&self) -> Pid {
        self.child.0
    }

    pub(super) fn spawn(dir: &Path) -> Result<Self, StartError> {
        let (ours, theirs) = StdStream::pair().map_err(StartError::Shim)?;
        let word = |text: &[u8]| CString::new(text).map_err(|error| StartError::Shim(error.into()));
        let argv = [
            word(NAME.as_bytes())?,
            word(shim::ROLE.as_bytes())?,
            word(dir.as_os_str().as_bytes())?,
        ];
        let log = std::io::stderr();
        let spawned = Spawn {
            program: c"/proc/self/exe",
            argv: &argv,
            // Nothing of ours is anything to a dyno.
            env: &[],
            cwd: Some(c"/"),
            fds: &[theirs.as_fd(), log.as_fd(), log.as_fd()],
            // It outlives us.
            ties: Ties::None,
            mark: None,
            open_files: None,
            cgroup: None,
        }
        .spawn();
        let spawned = spawned.map_err(StartError::Shim)?;
        Ok(Self {
            socket: ours,
            child: Child(spawned.pid),
        })
    }

    /// What it answers; killed when it has not by then, and what it has made is found by what is
    /// written down.
    pub(super) async fn answer_within(
        self,
        patience: Duration,
    ) -> Result<(order::Life, Option<OwnedFd>), StartError> {
        let pid = self.pid();
        let answered = timeout(patience, self.answer()).await;
        answered.unwrap_or_else(|_| {
            let _ = kill(pid, Signal::SIGKILL);
            Err(StartError::Hung)
        })
    }

    /// Waits for what it says, and for the terminal that comes before that.
    async fn answer(self) -> Result<(order::Life, Option<OwnedFd>), StartError> {
        let Self { socket, child } = self;
        socket.set_nonblocking(true).map_err(StartError::Shim)?;
        let mut socket = UnixStream::from_std(socket).map_err(StartError::Shim)?;
        let mut text = Vec::new();
        let first = socket
            .async_io(tokio::io::Interest::READABLE, || {
                order::receive_fds(&socket)
            })
            .await;
        let terminal = first.map_err(StartError::Shim)?.pop();
        let read = (&mut socket).take(LONGEST_ANSWER as u64);
        let result = read_line(read, &mut text).await;
        let answer = result
            .ok()
            .and_then(|()| serde_json::from_slice::<Answer>(&text).ok());
        match answer {
            Some(Answer::Started(life)) => {
                child.stays();
                Ok((life, terminal))
            }
            failed => {
                // It ends by itself: there is nothing for it to wait for.
                let pid = child.0;
                child.stays();
                let reaped = tokio::task::spawn_blocking(move || waitpid(pid, None)).await;
                drop(reaped);
                Err(match failed {
                    Some(Answer::Failed(text, errno)) => StartError::Container { text, errno },
                    _ => StartError::NoAnswer,
                })
            }
        }
    }
}

async fn read_line(
    mut from: impl tokio::io::AsyncRead + Unpin,
    text: &mut Vec<u8>,
) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => text.extend(&buffer[..n]),
        }
        if text.last() == Some(&b'\n') {
            return Ok(());
        }
    }
}
