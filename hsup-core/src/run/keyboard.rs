//! What is typed at hsup's terminal, on its way to a dyno's.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use hsup_proto::driver::{AttachRequest, attach_request::Event};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::read,
};
use tokio::sync::mpsc;

use super::outputs::HangUp;

const READ_BYTES: usize = 4096;

/// What became of the keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyboardEnd {
    /// Whoever sits there has no more to say.
    EndOfInput,
    /// There is no terminal any more.
    HungUp,
    /// The driver takes no more.
    NotRead,
}

/// Passes on what is typed. A thread of its own: it waits for keys until the process ends.
pub(super) fn start(input: mpsc::Sender<AttachRequest>, hang_up: HangUp) {
    let pass_on = move || {
        let stdin = io::stdin();
        let say = |event: Event| {
            let request = AttachRequest { event: Some(event) };
            input.blocking_send(request).is_ok()
        };
        let end = pass(stdin.as_fd(), say);
        tracing::debug!(?end, "keyboard ended");
        match end {
            // The dyno's own terminal hangs up when it is stopped for this.
            KeyboardEnd::HungUp => hang_up.tell(),
            KeyboardEnd::EndOfInput | KeyboardEnd::NotRead => {}
        }
    };
    // Without it the dyno still runs; it only cannot be typed to.
    drop(
        std::thread::Builder::new()
            .name("keyboard".to_owned())
            .spawn(pass_on),
    );
}

fn pass(terminal: BorrowedFd<'_>, say: impl Fn(Event) -> bool) -> KeyboardEnd {
    let mut buffer = [0; READ_BYTES];
    loop {
        let event = match read(terminal, &mut buffer) {
            // Somebody else made it non-blocking.
            Err(Errno::EAGAIN) => {
                wait(terminal, PollTimeout::NONE);
                continue;
            }
            Err(Errno::EINTR) => continue,
            Err(Errno::EIO) => return KeyboardEnd::HungUp,
            // A terminal without anybody behind it reads like one whose user typed the end.
            Ok(0) if wait(terminal, PollTimeout::ZERO).contains(PollFlags::POLLHUP) => {
                return KeyboardEnd::HungUp;
            }
            Ok(0) | Err(_) => Event::StdinEof(true),
            Ok(count) => Event::Stdin(buffer[..count].to_vec()),
        };
        let is_end = matches!(event, Event::StdinEof(_));
        if !say(event) {
            return KeyboardEnd::NotRead;
        }
        if is_end {
            return KeyboardEnd::EndOfInput;
        }
    }
}

/// Waits for something to read or for a hang-up; answers which.
fn wait(terminal: BorrowedFd<'_>, patience: PollTimeout) -> PollFlags {
    let mut fds = [PollFd::new(terminal, PollFlags::POLLIN)];
    // Whatever ended the wait, the next read says what is the matter.
    let _: nix::Result<i32> = poll(&mut fds, patience);
    fds[0].revents().unwrap_or(PollFlags::empty())
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, fs::File, io::Write as _, os::fd::OwnedFd, thread};

    use nix::{
        fcntl::{FcntlArg, OFlag, fcntl},
        pty::openpty,
        sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
    };

    use super::*;

    /// A terminal's far end, and its raw near end.
    fn terminal() -> (File, OwnedFd) {
        let pty = openpty(None, None).unwrap();
        let mut raw = tcgetattr(&pty.slave).unwrap();
        cfmakeraw(&mut raw);
        tcsetattr(&pty.slave, SetArg::TCSANOW, &raw).unwrap();
        (pty.master.into(), pty.slave)
    }

    #[test]
    fn what_is_typed_is_passed_on_and_a_terminal_that_hangs_up_is_no_end_of_input() {
        for flags in [OFlag::empty(), OFlag::O_NONBLOCK] {
            let (mut far, near) = terminal();
            fcntl(&near, FcntlArg::F_SETFL(flags)).unwrap();
            let typing = thread::spawn(move || {
                far.write_all(b"line\r").unwrap();
                far
            });
            let typed = RefCell::new(Vec::new());
            let far = RefCell::new(Some(typing));
            let end = pass(near.as_fd(), |event| {
                let Event::Stdin(bytes) = event else {
                    panic!("{event:?}")
                };
                typed.borrow_mut().extend(bytes);
                if typed.borrow().ends_with(b"\r") {
                    drop(far.take().unwrap().join().unwrap());
                }
                true
            });
            assert_eq!(*typed.borrow(), b"line\r");
            assert_eq!(end, KeyboardEnd::HungUp);
        }
    }

    #[test]
    fn the_end_that_is_typed_is_one() {
        let pty = openpty(None, None).unwrap();
        let mut far = File::from(pty.master);
        far.write_all(b"\x04").unwrap();
        let said = RefCell::new(Vec::new());
        let end = pass(pty.slave.as_fd(), |event| {
            said.borrow_mut().push(event);
            true
        });
        assert_eq!(*said.borrow(), [Event::StdinEof(true)]);
        assert_eq!(end, KeyboardEnd::EndOfInput);
    }

    #[test]
    fn a_driver_that_takes_no_more_ends_it() {
        let (mut far, near) = terminal();
        far.write_all(b"x").unwrap();
        assert_eq!(pass(near.as_fd(), |_| false), KeyboardEnd::NotRead);
    }
}
