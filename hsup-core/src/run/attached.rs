//! `run` at a terminal: the dyno gets one of its own, and this is the wire between the two.
//!
//! ```text
//!  screen   ◀── OutputPump ◀── pipe ◀── Attach ◀── the dyno's terminal
//!  keyboard ──▶ a thread ─────────────▶ Attach ──▶
//! ```
//!
//! A screen may take nothing for hours, and whoever writes to it waits that long: only a
//! thread does. What the pipe before it does not take holds up the stream, and so the dyno.

use std::{convert::Infallible, future::pending, io, os::fd::OwnedFd, sync::Arc};

use hsup_proto::driver::{
    AttachRequest, AttachResponse, attach_request,
    attach_response::Event::{Stderr, Stdout},
};
use tokio::{io::AsyncWriteExt as _, net::unix::pipe, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    RunCommandError,
    company::Company,
    keyboard,
    outputs::Outputs,
    system,
    terminal::{RawTerminal, Window},
};
use crate::driver::said;

/// How many pieces of input may wait for the driver.
const INPUT: usize = 16;

/// Stays attached to the dyno until it has ended; answers hsup's exit code.
pub(super) async fn run(company: &mut Company<'_>, window: Window) -> Result<u8, RunCommandError> {
    let terminal = RawTerminal::enter()?;
    let (input, requests) = mpsc::channel(INPUT);
    let hello = attach_request::Event::DynoId(company.dyno_id.to_string());
    // The channel is empty: there is room.
    drop(input.try_send(say(hello)));
    // It may have changed since the Start, and a driver may know no size but this.
    if let Some(size) = resize(&window) {
        drop(input.try_send(size));
    }
    let mut waits = company.driver.get().waits();
    let attach = waits.attach(ReceiverStream::new(requests));
    let answers = match company.signals.unless(attach).await {
        Ok(answers) => answers
            .map_err(|status| RunCommandError::Start(said(&status)))?
            .into_inner(),
        Err(code) => return Ok(code),
    };
    let (output, screen) = Screen::open().map_err(system("copy the output"))?;
    keyboard::start(input.clone(), output.hang_up());

    let mut shown = Box::pin(screen.show(answers));
    let mut is_shown = false;
    let doubt = Arc::clone(&company.doubt);
    let ended = {
        let beside = async {
            let showing = async {
                (&mut shown).await;
                is_shown = true;
                doubt.notify_one();
                pending::<Infallible>().await
            };
            tokio::select! {
                never = showing => never,
                never = follow(window, input) => never,
            }
        };
        company.until_end(&output, beside).await?
    };
    let rest = async {
        if !is_shown {
            shown.await;
        }
    };
    let cut_off = company.finish(&output, rest, &ended).await;
    drop(terminal);
    output.code(&ended, cut_off)
}

/// Tells the dyno of every new size of the window. One that finds no room, because the dyno
/// reads nothing, is due until there is some; what is told then is the size of that moment.
async fn follow(mut window: Window, input: mpsc::Sender<AttachRequest>) -> Infallible {
    loop {
        window.changed().await;
        let Ok(room) = input.reserve().await else {
            // The stream has ended.
            return pending().await;
        };
        if let Some(size) = resize(&window) {
            room.send(size);
        }
    }
}

fn resize(window: &Window) -> Option<AttachRequest> {
    let (rows, columns) = window.size()?;
    let size = attach_request::Resize { rows, columns };
    Some(say(attach_request::Event::Resize(size)))
}

const fn say(event: attach_request::Event) -> AttachRequest {
    AttachRequest { event: Some(event) }
}

/// Our ends of the pipes to hsup's own outputs.
#[derive(Debug)]
struct Screen {
    stdout: pipe::Sender,
    stderr: pipe::Sender,
}

impl Screen {
    fn open() -> io::Result<(Outputs, Self)> {
        let (out, stdout) = io::pipe()?;
        let (err, stderr) = io::pipe()?;
        let screen = Self {
            stdout: pipe::Sender::from_owned_fd(OwnedFd::from(stdout))?,
            stderr: pipe::Sender::from_owned_fd(OwnedFd::from(stderr))?,
        };
        Ok((Outputs::copy(out.into(), err.into())?, screen))
    }

    /// Shows all there is to be shown.
    async fn show(mut self, mut answers: Streaming<AttachResponse>) {
        // The end of the output, or of the connection: the Wait tells which.
        while let Ok(Some(answer)) = answers.message().await {
            let shown = match answer.event {
                Some(Stdout(bytes)) => self.stdout.write_all(&bytes).await,
                Some(Stderr(bytes)) => self.stderr.write_all(&bytes).await,
                None => Ok(()),
            };
            // The other end is read whatever becomes of the output.
            if let Err(error) = shown {
                tracing::warn!(%error, "the dyno's output is not shown any more");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use nix::{
        pty::{Winsize, openpty},
        sys::signal::{Signal, raise},
    };
    use tokio::task::yield_now;

    use super::*;

    fn sized(rows: u16, columns: u16) -> Winsize {
        Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        }
    }

    #[expect(unsafe_code, reason = "an ioctl")]
    fn resize_to(terminal: &OwnedFd, size: Winsize) {
        // SAFETY: the request reads one winsize, which lives to the end of the call.
        let result =
            unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(result, 0);
    }

    #[tokio::test]
    async fn a_size_for_which_there_is_no_room_is_told_when_there_is_some() {
        let pty = openpty(Some(&sized(24, 80)), None).unwrap();
        let window = Window::on(pty.slave).unwrap();
        let (input, mut requests) = mpsc::channel(1);
        let typed = || say(attach_request::Event::Stdin(b"x".to_vec()));
        input.try_send(typed()).unwrap();
        let following = tokio::spawn(follow(window, input.clone()));
        raise(Signal::SIGWINCH).unwrap();
        // The signal has its way to the task, which finds no room.
        for _ in 0..100 {
            yield_now().await;
        }
        resize_to(&pty.master, sized(50, 132));
        assert_eq!(requests.recv().await, Some(typed()));
        let size = attach_request::Resize {
            rows: 50,
            columns: 132,
        };
        let expected = say(attach_request::Event::Resize(size));
        assert_eq!(requests.recv().await, Some(expected));
        following.abort();
    }
}
