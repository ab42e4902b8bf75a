//! A dyno's terminal: the driver's end of it, and the callers of Attach.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::{AsRawFd as _, OwnedFd},
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use hsup_proto::driver::{
    AttachRequest, AttachResponse, attach_request::Event as Input, attach_response::Event as Shown,
    logs_response::Stream,
};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    pty::openpty,
    sys::signal::Signal,
    unistd::setsid,
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::{
    Fault,
    dyno::{Dyno, prepare},
    log::Log,
};

/// The driver's end of a terminal whose dyno is not started yet.
pub(crate) struct Master(OwnedFd);

/// The driver's end of a terminal, to write to.
#[derive(Debug)]
pub(crate) struct Terminal(File);

/// Gives `command` a terminal of its own, with a window of this size.
pub(crate) fn open(command: &mut Command, rows: u32, columns: u32) -> io::Result<Master> {
    let pty = openpty(Some(&size(rows, columns)), None)?;
    for end in [&pty.master, &pty.slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    command
        .stdin(Stdio::from(pty.slave.try_clone()?))
        .stdout(Stdio::from(pty.slave.try_clone()?))
        .stderr(Stdio::from(pty.slave));
    prepare(command, || {
        setsid()?;
        controlling(0)
    });
    Ok(Master(pty.master))
}

impl Master {
    /// Keeps what is shown.
    pub(crate) fn keep(
        self,
        log: &Arc<Log>,
        readers: &mut Vec<thread::JoinHandle<()>>,
    ) -> io::Result<Terminal> {
        let screen = File::from(self.0.try_clone()?);
        readers.push(log.keep(Stream::Stdout, screen));
        Ok(Terminal(File::from(self.0)))
    }
}

impl Terminal {
    /// Ctrl-D twice: the first ends an unfinished line.
    const END: &[u8] = b"\x04\x04";

    fn input(&self, input: Input, fault: Option<Fault>) {
        let mut keys = &self.0;
        let done = match input {
            Input::Stdin(bytes) => keys.write_all(&bytes),
            Input::StdinEof(true) if fault != Some(Fault::StdinEofIsIgnored) => {
                keys.write_all(Self::END)
            }
            Input::Resize(size) => resize(&self.0, size.rows, size.columns),
            Input::StdinEof(_) | Input::DynoId(_) => Ok(()),
        };
        // A dyno that has ended reads no more; what it showed is what counts.
        drop(done);
    }
}

/// Serves one caller of Attach until the dyno ends or the caller goes.
pub(crate) async fn attach(
    dyno: Arc<Dyno>,
    mut input: Streaming<AttachRequest>,
    caller: mpsc::Sender<Result<AttachResponse, Status>>,
    fault: Option<Fault>,
) {
    let Some(terminal) = &dyno.terminal else {
        return;
    };
    let showing = async {
        let mut number = 0;
        while let Some((_, bytes)) = dyno.log.chunk(number).await {
            number += 1;
            let event = Some(Shown::Stdout(bytes));
            if caller.send(Ok(AttachResponse { event })).await.is_err() {
                break;
            }
        }
    };
    let typing = async {
        loop {
            match input.message().await {
                Ok(Some(message)) => {
                    if let Some(input) = message.event {
                        terminal.input(input, fault);
                    }
                }
                // Nothing more is typed; the caller still looks on.
                Ok(None) => std::future::pending().await,
                Err(_) => break,
            }
        }
    };
    tokio::select! {
        () = showing => {}
        () = typing => {}
        () = caller.closed() => {}
    }
    if dyno.status().is_none() && fault != Some(Fault::HangUpIsIgnored) {
        dyno.signal(Signal::SIGHUP);
    }
}

#[expect(unsafe_code, reason = "the requests of ioctl have no safe form in nix")]
fn controlling(fd: i32) -> io::Result<()> {
    // SAFETY: the request takes a number only.
    match unsafe { libc::ioctl(fd, libc::TIOCSCTTY, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[expect(unsafe_code, reason = "the requests of ioctl have no safe form in nix")]
fn resize(terminal: &File, rows: u32, columns: u32) -> io::Result<()> {
    let size = size(rows, columns);
    // SAFETY: the request reads one winsize, which lives to the end of the call.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn size(rows: u32, columns: u32) -> libc::winsize {
    let short = |length: u32| u16::try_from(length).unwrap_or(u16::MAX);
    libc::winsize {
        ws_row: short(rows),
        ws_col: short(columns),
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
