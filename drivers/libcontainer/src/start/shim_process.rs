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

use hsup_driver_kit::{
    CancellationToken,
    spawn::{Spawn, Ties},
};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt as _, Interest},
    net::UnixStream,
    time::timeout,
};

use super::StartError;
use crate::{
    NAME,
    order::{self, Answer, Word},
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

    /// Waits for one that ends by itself.
    async fn ends(self, patience: Duration) {
        let pid = self.0;
        self.stays();
        let reaped = tokio::task::spawn_blocking(move || waitpid(pid, None));
        drop(timeout(patience, reaped).await);
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

    /// What it answers. Killed when it is silent for longer than `patience`, or copies a slug for
    /// a dyno that is to be stopped; what it has made is found by what is written down.
    pub(super) async fn answer(
        self,
        patience: Duration,
        cancelled: &CancellationToken,
    ) -> Result<(order::Life, Option<OwnedFd>), StartError> {
        let Self { socket, child } = self;
        socket.set_nonblocking(true).map_err(StartError::Shim)?;
        let socket = UnixStream::from_std(socket).map_err(StartError::Shim)?;
        let mut copies = false;
        let given_up = loop {
            let word = socket.async_io(Interest::READABLE, || order::receive_word(&socket));
            let word = tokio::select! {
                word = timeout(patience, word) => word,
                () = cancelled.cancelled(), if copies => break StartError::Unwanted,
            };
            match word {
                Ok(Ok(Word::Copying)) => copies = true,
                Ok(Ok(Word::Answers(mut fds))) => {
                    match timeout(patience, read_answer(socket)).await {
                        Ok(Some(Answer::Started(life))) => {
                            child.stays();
                            return Ok((life, fds.pop()));
                        }
                        Ok(failed) => {
                            child.ends(patience).await;
                            return Err(match failed {
                                Some(Answer::Failed(text, errno)) => {
                                    StartError::Container { text, errno }
                                }
                                _ => StartError::NoAnswer,
                            });
                        }
                        Err(_) => break StartError::Hung,
                    }
                }
                Ok(Err(error)) => return Err(StartError::Shim(error)),
                Err(_) if copies => break StartError::CopyHung,
                Err(_) => break StartError::Hung,
            }
        };
        let _ = kill(child.0, Signal::SIGKILL);
        Err(given_up)
    }
}

/// The line that is the answer, if it is one.
async fn read_answer(socket: UnixStream) -> Option<Answer> {
    let mut text = Vec::new();
    let read = read_line(socket.take(LONGEST_ANSWER as u64), &mut text).await;
    read.ok()?;
    serde_json::from_slice(&text).ok()
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

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _, os::fd::AsRawFd as _};

    use nix::errno::Errno;

    use super::*;

    /// What stands for a shim: a process that does nothing, and the socket that it would have.
    fn shim() -> (ShimProcess, StdStream) {
        let (ours, theirs) = StdStream::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        let spawned = Spawn {
            program: c"/bin/sleep",
            argv: &[c"sleep".to_owned(), c"1000".to_owned()],
            env: &[],
            cwd: Some(c"/"),
            fds: &[null.as_fd(); 3],
            ties: Ties::None,
            mark: None,
            open_files: None,
            cgroup: None,
        };
        let child = Child(spawned.spawn().unwrap().pid);
        let socket = ours;
        (ShimProcess { socket, child }, theirs)
    }

    /// The end of a process that was killed. It is ours, and reaped somewhere else.
    async fn is_gone(pid: Pid) {
        while kill(pid, None) != Err(Errno::ESRCH) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_shim_that_copies_is_waited_for_until_it_answers() {
        let (shim, mut theirs) = shim();
        let pid = shim.pid();
        for _ in 0..3 {
            order::say_copying(&theirs).unwrap();
        }
        let terminal = File::open("/dev/null").unwrap();
        order::send_fds(&theirs, &[terminal.as_raw_fd()]).unwrap();
        let life = order::Life {
            init: 2,
            waiter: 1,
            terminal: None,
            copied: true,
        };
        let mut line = serde_json::to_vec(&Answer::Started(life.clone())).unwrap();
        line.push(b'\n');
        theirs.write_all(&line).unwrap();
        let patience = Duration::from_mins(1);
        let answered = shim.answer(patience, &CancellationToken::new()).await;
        let (said, terminal) = answered.unwrap();
        assert_eq!(said, life);
        assert!(terminal.is_some());
        kill(pid, Signal::SIGKILL).unwrap();
        waitpid(pid, None).unwrap();
    }

    #[tokio::test]
    async fn a_copy_that_stands_still_is_given_up_and_that_is_said() {
        let (shim, theirs) = shim();
        let pid = shim.pid();
        order::say_copying(&theirs).unwrap();
        let patience = Duration::from_millis(10);
        let answered = shim.answer(patience, &CancellationToken::new()).await;
        let error = answered.unwrap_err();
        assert!(
            error.to_string().contains("the copy of the slug"),
            "{error}"
        );
        is_gone(pid).await;
    }

    #[tokio::test]
    async fn a_copy_for_a_dyno_that_is_to_be_stopped_ends() {
        let (shim, theirs) = shim();
        let pid = shim.pid();
        order::say_copying(&theirs).unwrap();
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        let error = shim.answer(Duration::from_mins(1), &cancelled).await;
        assert!(matches!(error, Err(StartError::Unwanted)), "{error:?}");
        is_gone(pid).await;
    }
}
