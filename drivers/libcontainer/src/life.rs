//! How the driver knows that a dyno lives, ended, and is gone.
//!
//! Two FIFOs in the dyno's directory, of which the processes that take care of it hold the
//! writing ends: `life` up to the moment at which the exit status is written, `left` until the
//! sweep is done. Their end of file is the event, however it came about, and any later driver
//! may wait for it too: there is no process to be a child of, and no number to be used again.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use hsup_driver_kit::{
    Signal,
    proto::{ExitStatus, exit_status::How},
};
use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
    unistd::{mkfifo, read},
};
use serde::Deserialize;
use tokio::io::unix::AsyncFd;

use crate::shim;

/// Held until the exit status is known.
pub(crate) const LIFE: &str = "life";
/// Held until nothing is left.
pub(crate) const LEFT: &str = "left";
/// How it ended.
const EXIT: &str = "exit.json";

/// The reading end of one of the FIFOs.
#[derive(Debug)]
pub(crate) struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Makes a FIFO; also gives its writing end, for whoever is to hold it.
    pub(crate) fn make(dir: &Path, name: &str) -> io::Result<(Self, OwnedFd)> {
        let path = dir.join(name);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let watch = Self::open(dir, name)?;
        let writer = open(&path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok((watch, writer))
    }

    /// Opens one that another driver made.
    pub(crate) fn open(dir: &Path, name: &str) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let reader = open(&dir.join(name), flags, Mode::empty())?;
        Ok(Self(register(reader)?))
    }

    /// Whether somebody still holds the other end.
    pub(crate) fn is_held(&self) -> bool {
        let mut byte = [0];
        !matches!(read(self.0.get_ref(), &mut byte), Ok(0))
    }

    /// Waits until nobody does.
    pub(crate) async fn closed(&self) {
        while self.is_held() {
            match self.0.readable().await {
                Ok(mut guard) => {
                    if self.is_held() {
                        guard.clear_ready();
                    }
                }
                Err(error) => {
                    tracing::error!(fd = self.0.as_raw_fd(), %error, "failed to watch a dyno");
                    return;
                }
            }
        }
    }
}

/// Whether the dyno of this directory came to run. What cannot be looked at may have.
pub(crate) fn was_started(dir: &Path) -> io::Result<bool> {
    dir.join(shim::LIFE).try_exists()
}

/// Of a dyno that has ended, and is being freed: tells when nothing is left of it.
pub(crate) fn leaving(dir: &Path) -> Option<Watch> {
    let life = Watch::open(dir, LIFE).ok()?;
    if life.is_held() || !dir.join(EXIT).exists() {
        return None;
    }
    Watch::open(dir, LEFT).ok().filter(Watch::is_held)
}

#[expect(unsafe_code, reason = "tokio's way to say who owns a descriptor")]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays the same open descriptor for as long as it is owned.
    unsafe { AsyncFd::register(fd) }.map_err(|error| error.into_parts().1)
}

/// What `hsup-wait` writes.
#[derive(Debug, Deserialize)]
struct Exit {
    code: Option<i32>,
    signal: Option<i32>,
    #[serde(default)]
    oom_killed: bool,
    exited_at_unix_ms: i64,
}

/// How the dyno of this directory ended; `None` if that was never written.
pub(crate) fn exit_status(dir: &Path) -> Option<ExitStatus> {
    let text = fs::read(dir.join(EXIT)).ok()?;
    let exit: Exit = serde_json::from_slice(&text).ok()?;
    let how = match (exit.code, exit.signal) {
        (_, Some(number)) => How::Signal(Signal::from_number(number)?.to_string()),
        (Some(code), None) => How::Code(code),
        (None, None) => return None,
    };
    // Something of it was killed for its memory; the dyno was, if that ended it: a shell whose
    // command was killed by SIGKILL says 137.
    let was_killed =
        matches!(&how, How::Code(137)) || matches!(&how, How::Signal(name) if name == "SIGKILL");
    Some(ExitStatus {
        how: Some(how),
        oom_killed: exit.oom_killed && was_killed,
        exited_at_unix_ms: exit.exited_at_unix_ms,
    })
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[tokio::test]
    async fn the_end_of_whoever_held_it_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let (watch, writer) = Watch::make(dir.path(), LIFE).unwrap();
        assert!(watch.is_held());
        let again = Watch::open(dir.path(), LIFE).unwrap();
        let waiting = tokio::spawn(async move { again.closed().await });
        drop(writer);
        watch.closed().await;
        waiting.await.unwrap();
        assert!(!watch.is_held());
        let late = Watch::open(dir.path(), LIFE).unwrap();
        assert!(!late.is_held());
        late.closed().await;
    }

    #[test_case(r#"{"code":42,"oom_killed":false,"exited_at_unix_ms":7}"# => Some((How::Code(42), false)))]
    #[test_case(r#"{"signal":9,"oom_killed":true,"exited_at_unix_ms":7}"# => Some((How::Signal("SIGKILL".into()), true)))]
    #[test_case(r#"{"code":0,"oom_killed":true,"exited_at_unix_ms":7}"# => Some((How::Code(0), false)); "only a child was")]
    #[test_case(r#"{"code":137,"oom_killed":true,"exited_at_unix_ms":7}"# => Some((How::Code(137), true)))]
    #[test_case(r#"{"exited_at_unix_ms":7}"# => None; "neither")]
    #[test_case("{" => None; "half")]
    fn what_was_written(text: &str) -> Option<(How, bool)> {
        let dir = tempfile::tempdir().unwrap();
        std::io::Write::write_all(
            &mut fs::File::create(dir.path().join(EXIT)).unwrap(),
            text.as_bytes(),
        )
        .unwrap();
        exit_status(dir.path()).map(|status| (status.how.unwrap(), status.oom_killed))
    }

    #[tokio::test]
    async fn a_dyno_is_leaving_from_its_end_until_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let (ended, life) = Watch::make(dir.path(), LIFE).unwrap();
        let (_left, left) = Watch::make(dir.path(), LEFT).unwrap();
        assert!(leaving(dir.path()).is_none(), "it lives");
        fs::File::create(dir.path().join(EXIT)).unwrap();
        drop(life);
        // A process that another test spawns meanwhile holds it too, until its `exec`.
        ended.closed().await;
        let leaving_now = leaving(dir.path()).unwrap();
        drop(left);
        leaving_now.closed().await;
        assert!(leaving(dir.path()).is_none(), "it is gone");
    }

    #[test]
    fn nothing_written_is_no_status() {
        let dir = tempfile::tempdir().unwrap();
        assert!(exit_status(dir.path()).is_none());
    }
}
