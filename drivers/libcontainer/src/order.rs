//! What the driver hands to the shim of a dyno, and what that says back.
//!
//! The order is a file in memory, for it holds the dyno's environment, which belongs neither on
//! a disk nor in an argument list; it goes over a socket together with the descriptors that it
//! speaks of. The answer is one line, in which the driver finds what it needs to know the dyno. A
//! shim that copies a slug says before that, again and again, that it still does.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice, IoSliceMut, Read as _, Seek as _, Write as _},
    os::{
        fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
};

use nix::{
    cmsg_space,
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
    },
};
use serde::{Deserialize, Serialize};

use crate::{cgroup::SwapLimit, spec::Limits};

/// The most descriptors that go in one message; the kernel's own limit is 253.
const MOST: usize = 64;

/// Standard output and error.
const OUTPUTS: usize = 2;

/// What carries descriptors.
const HANDED: u8 = b'!';
/// What a shim says while it copies a slug.
const COPYING: u8 = b'.';

/// What is to be made.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// What libcontainer calls it.
    pub(crate) id: String,
    /// Where the stack is mounted, or lies.
    pub(crate) stack: PathBuf,
    pub(crate) slug: Option<SlugOrder>,
    /// The dyno's own folder on the disk.
    pub(crate) own: PathBuf,
    pub(crate) uid: u32,
    pub(crate) hostname: String,
    pub(crate) cgroup: String,
    pub(crate) unified: bool,
    pub(crate) oom_file: Option<PathBuf>,
    pub(crate) limits: Limits,
    pub(crate) swap: Option<SwapLimit>,
    pub(crate) tmp_size: u64,
    pub(crate) argv: Vec<String>,
    /// SECRET.
    pub(crate) env: BTreeMap<String, String>,
    /// Rows and columns of its terminal.
    pub(crate) tty: Option<(u16, u16)>,
    /// Where each bind is mounted in the dyno, and whether it may be written to; their
    /// descriptors come with the others.
    pub(crate) binds: Vec<(PathBuf, bool)>,
}

/// A slug to be mounted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SlugOrder {
    pub(crate) path: PathBuf,
    pub(crate) owner: u32,
}

/// The descriptors that come with an order.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) netns: OwnedFd,
    /// Whose closing says that the dyno has ended, and how is known.
    pub(crate) life: OwnedFd,
    /// Whose closing says that nothing of it is left.
    pub(crate) left: OwnedFd,
    /// `hsup-init`.
    pub(crate) init: OwnedFd,
    /// The filters for system calls.
    pub(crate) seccomp: OwnedFd,
    pub(crate) binds: Vec<OwnedFd>,
    /// Reading ends of its standard output and error, unless it has a terminal: what it wrote outlives
    /// it.
    pub(crate) outputs: Vec<OwnedFd>,
    /// Locks, which stay open as long as the dyno lives.
    pub(crate) kept: Vec<OwnedFd>,
}

/// What the shim says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The dyno's first process exists.
    Started(Life),
    /// It could not be started, and nothing of it is left: why, and what the kernel answered.
    Failed(String, Option<i32>),
}

/// How a dyno that was started is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Life {
    /// PID 1 of the dyno, as the host numbers it.
    pub(crate) init: i32,
    /// The process that waits for it.
    pub(crate) waiter: i32,
    /// The descriptor of its terminal in that process.
    pub(crate) terminal: Option<RawFd>,
    /// The slug had to be copied.
    pub(crate) copied: bool,
}

impl Handed {
    const FIXED: usize = 9;

    /// The order first, as the receiver expects it.
    fn all(&self, order: RawFd) -> Vec<RawFd> {
        let fixed = [
            &self.stdin,
            &self.stdout,
            &self.stderr,
            &self.netns,
            &self.life,
            &self.left,
            &self.init,
            &self.seccomp,
        ];
        let more = self.binds.iter().chain(&self.outputs).chain(&self.kept);
        let all = fixed.into_iter().chain(more);
        [order]
            .into_iter()
            .chain(all.map(AsRawFd::as_raw_fd))
            .collect()
    }
}

/// Sends an order with its descriptors. A few bytes: it does not block.
pub(crate) fn send(to: &UnixStream, order: &Order, handed: &Handed) -> io::Result<()> {
    let mut file = std::fs::File::from(memfd_create(c"order", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(order)?)?;
    file.rewind()?;
    let fds = handed.all(file.as_raw_fd());
    if fds.len() > MOST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many binds for one dyno",
        ));
    }
    send_fds(to, &fds)
}

/// Sends descriptors, or none, with a byte that carries them.
pub(crate) fn send_fds(to: &UnixStream, fds: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    sendmsg::<()>(
        to.as_raw_fd(),
        &[IoSlice::new(&[HANDED])],
        if fds.is_empty() { &[] } else { &rights },
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Says that the slug is still being copied; an error where nobody listens any more.
pub(crate) fn say_copying(to: &UnixStream) -> io::Result<()> {
    let word = [IoSlice::new(&[COPYING])];
    sendmsg::<()>(to.as_raw_fd(), &word, &[], MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// What a shim says before the line that is its answer.
#[derive(Debug)]
pub(crate) enum Word {
    /// It copies the slug.
    Copying,
    /// The answer is next; these belong to it.
    Answers(Vec<OwnedFd>),
}

/// Receives one word of a shim. No more than that is read: what follows may carry descriptors.
pub(crate) fn receive_word(from: &impl AsRawFd) -> io::Result<Word> {
    let (byte, fds) = receive_byte(from)?;
    Ok(if byte == COPYING {
        Word::Copying
    } else {
        Word::Answers(fds)
    })
}

/// Receives an order.
pub(crate) fn receive(from: &UnixStream) -> io::Result<(Order, Handed)> {
    let mut fds = receive_fds(from)?;
    if fds.len() < Handed::FIXED {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "an order without its descriptors",
        ));
    }
    let more = fds.split_off(Handed::FIXED);
    let mut fixed = fds.into_iter();
    let mut next = || fixed.next().ok_or(io::ErrorKind::InvalidData);
    let mut text = Vec::new();
    std::fs::File::from(next()?).read_to_end(&mut text)?;
    let order: Order = serde_json::from_slice(&text)?;
    let mut more = more.into_iter();
    let outputs = if order.tty.is_some() { 0 } else { OUTPUTS };
    let handed = Handed {
        stdin: next()?,
        stdout: next()?,
        stderr: next()?,
        netns: next()?,
        life: next()?,
        left: next()?,
        init: next()?,
        seccomp: next()?,
        binds: more.by_ref().take(order.binds.len()).collect(),
        outputs: more.by_ref().take(outputs).collect(),
        kept: more.collect(),
    };
    Ok((order, handed))
}

/// Receives descriptors; none when the other end is closed.
pub(crate) fn receive_fds(from: &impl AsRawFd) -> io::Result<Vec<OwnedFd>> {
    Ok(receive_byte(from)?.1)
}

/// Receives a byte, and the descriptors that it carries.
#[expect(unsafe_code, reason = "the kernel hands descriptors over as numbers")]
fn receive_byte(from: &impl AsRawFd) -> io::Result<(u8, Vec<OwnedFd>)> {
    let mut byte = [0];
    let mut space = cmsg_space!([RawFd; MOST]);
    let mut iov = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(
        from.as_raw_fd(),
        &mut iov,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made these for us alone.
            fds.extend(
                received
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    Ok((byte[0], fds))
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;

    use super::*;

    fn order() -> Order {
        Order {
            id: "x".into(),
            stack: "/srv/stack".into(),
            slug: None,
            own: "/var/own".into(),
            uid: 3000,
            hostname: "web-1".into(),
            cgroup: "/hsup/x".into(),
            unified: false,
            oom_file: None,
            limits: Limits::default(),
            swap: None,
            tmp_size: 1,
            argv: vec!["a b".into(), String::new(), "c\n".into()],
            env: [("A".to_owned(), "=".to_owned())].into(),
            tty: None,
            binds: vec![("/data".into(), true)],
        }
    }

    #[test]
    fn an_order_arrives_with_every_descriptor_in_its_place() {
        let (here, there) = UnixStream::pair().unwrap();
        let named = |text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.rewind().unwrap();
            OwnedFd::from(file)
        };
        let handed = Handed {
            stdin: named("stdin"),
            stdout: named("stdout"),
            stderr: named("stderr"),
            netns: named("netns"),
            life: named("life"),
            left: named("left"),
            init: named("init"),
            seccomp: named("seccomp"),
            binds: vec![named("bind")],
            outputs: vec![named("out"), named("err")],
            kept: vec![named("kept 1"), named("kept 2")],
        };
        send(&here, &order(), &handed).unwrap();
        drop(handed);
        let (order, handed) = receive(&there).unwrap();
        assert_eq!(order.argv, ["a b", "", "c\n"]);
        let text = |fd: OwnedFd| {
            let mut text = String::new();
            std::fs::File::from(fd).read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(text(handed.stdin), "stdin");
        assert_eq!(text(handed.seccomp), "seccomp");
        assert_eq!(text(handed.left), "left");
        let binds: Vec<_> = handed.binds.into_iter().map(text).collect();
        let outputs: Vec<_> = handed.outputs.into_iter().map(text).collect();
        let kept: Vec<_> = handed.kept.into_iter().map(text).collect();
        assert_eq!(binds, ["bind"]);
        assert_eq!(outputs, ["out", "err"]);
        assert_eq!(kept, ["kept 1", "kept 2"]);
    }

    #[test]
    fn words_that_come_at_once_are_heard_one_by_one() {
        let (here, there) = UnixStream::pair().unwrap();
        say_copying(&here).unwrap();
        say_copying(&here).unwrap();
        let file = tempfile::tempfile().unwrap();
        send_fds(&here, &[file.as_raw_fd()]).unwrap();
        for _ in 0..2 {
            assert!(matches!(receive_word(&there).unwrap(), Word::Copying));
        }
        let Word::Answers(fds) = receive_word(&there).unwrap() else {
            panic!("it copies no more");
        };
        assert_eq!(fds.len(), 1);
        // Closed for whoever has it: a process that another test spawns does, until its `exec`.
        there.shutdown(Shutdown::Both).unwrap();
        assert!(say_copying(&here).is_err(), "nobody listens");
    }

    #[test]
    fn a_driver_that_went_leaves_no_order() {
        let (here, there) = UnixStream::pair().unwrap();
        drop(here);
        assert!(receive(&there).is_err());
    }
}
