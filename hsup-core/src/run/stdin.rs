//! hsup's standard input on its way to a dyno, for `hsup run`.
//!
//! A thread of its own, because reading a file or somebody else's terminal can
//! block where nothing can interrupt it. It never holds up the end of hsup: it is
//! told to stop and left alone. The end of the input is passed on by closing the
//! dyno's FIFO; so is an input that cannot be read.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    thread,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
    unistd::{read, write},
};

use super::terminal::is_behind_another_job;

const READ_BYTES: usize = 64 * 1024;

/// A running copy; dropping it ends it.
#[derive(Debug)]
pub(super) struct StdinPump {
    stop: Arc<EventFd>,
}

/// What became of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PumpEnd {
    /// All of it has been passed on, and its end.
    EndOfInput,
    /// The dyno reads no more.
    NotRead,
    /// It was told to stop.
    Stopped,
}

impl StdinPump {
    /// Copies this process's standard input into `sink`, the writing end of a dyno's stdin,
    /// until one of them ends. One that is closed ends at once, and so does a terminal behind
    /// another job: what is typed there is for that one, and reading would stop hsup, which could
    /// neither copy the output then nor answer a signal.
    ///
    /// # Errors
    /// When the system refuses the thread or the descriptors it needs.
    pub(super) fn start_standard(sink: OwnedFd) -> io::Result<Self> {
        if is_behind_another_job() {
            return Self::ended(sink);
        }
        match io::stdin().as_fd().try_clone_to_owned() {
            Ok(source) => Self::start(source, sink),
            Err(error) if error.raw_os_error() == Some(Errno::EBADF as i32) => Self::ended(sink),
            Err(error) => Err(error),
        }
    }

    /// A copy of nothing.
    fn ended(sink: OwnedFd) -> io::Result<Self> {
        drop(sink);
        Ok(Self {
            stop: Arc::new(EventFd::new()?),
        })
    }

    fn start(source: OwnedFd, sink: OwnedFd) -> io::Result<Self> {
        // The FIFO was opened for this; nobody else sees the flag.
        fcntl(&sink, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let stop = Arc::new(EventFd::from_value_and_flags(
            0,
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let told = Arc::clone(&stop);
        thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || {
                let how = pump(&source, &sink, &told);
                tracing::debug!(?how, "standard input ended");
            })?;
        Ok(Self { stop })
    }

    /// Ends the copy, and closes the dyno's stdin, as soon as the thread can.
    pub(super) fn stop(&self) {
        // Full means that it has been told before.
        let _: nix::Result<usize> = self.stop.write(1);
    }
}

impl Drop for StdinPump {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Copies until something ends.
fn pump(source: &OwnedFd, sink: &OwnedFd, stop: &EventFd) -> PumpEnd {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match wait(source, PollFlags::POLLIN, sink, PollFlags::empty(), stop) {
            Ready::Stop => return PumpEnd::Stopped,
            Ready::SinkGone => return PumpEnd::NotRead,
            Ready::Go => {}
        }
        let count = match read(source, &mut buffer) {
            Ok(count) if count > 0 => count,
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            // A terminal that hung up, a directory: there is nothing to pass on.
            Ok(_) | Err(_) => return PumpEnd::EndOfInput,
        };
        let mut left = &buffer[..count];
        while !left.is_empty() {
            match write(sink, left) {
                Ok(written) => left = &left[written..],
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    match wait(source, PollFlags::empty(), sink, PollFlags::POLLOUT, stop) {
                        Ready::Stop => return PumpEnd::Stopped,
                        Ready::SinkGone => return PumpEnd::NotRead,
                        Ready::Go => {}
                    }
                }
                Err(_) => return PumpEnd::NotRead,
            }
        }
    }
}

enum Ready {
    Go,
    SinkGone,
    Stop,
}

/// Waits for what `source` or `sink` is asked for, for the sink's reader to go, or for the word to stop.
fn wait(
    source: &OwnedFd,
    source_wanted: PollFlags,
    sink: &OwnedFd,
    sink_wanted: PollFlags,
    stop: &EventFd,
) -> Ready {
    loop {
        let mut fds = [
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(sink.as_fd(), sink_wanted),
            PollFd::new(source.as_fd(), source_wanted),
        ];
        // A source that is not asked for may have hung up, which poll would report for ever.
        let asked = if source_wanted.is_empty() { 2 } else { 3 };
        if poll(&mut fds[..asked], PollTimeout::NONE).is_err() {
            continue;
        }
        let [stopped, sink, source] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if !stopped.is_empty() {
            return Ready::Stop;
        }
        if sink.contains(PollFlags::POLLERR) {
            return Ready::SinkGone;
        }
        if !sink.is_empty() || !source.is_empty() {
            return Ready::Go;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _},
        thread::JoinHandle,
    };

    use super::*;

    /// Copies in a thread of its own; the descriptor tells it to stop.
    fn copy(
        source: impl Into<OwnedFd>,
        sink: impl Into<OwnedFd>,
    ) -> (JoinHandle<PumpEnd>, StdinPump) {
        let (source, sink) = (source.into(), sink.into());
        fcntl(&sink, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let stop = Arc::new(EventFd::new().unwrap());
        let told = Arc::clone(&stop);
        let copying = thread::spawn(move || pump(&source, &sink, &told));
        (copying, StdinPump { stop })
    }

    #[test]
    fn a_file_and_its_end_are_passed_on() {
        let mut file = tempfile::tempfile().unwrap();
        let text: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
        file.write_all(&text).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let (mut reader, sink) = io::pipe().unwrap();
        let (copying, _pump) = copy(file, sink);
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert!(got == text, "the copy differs");
        assert_eq!(copying.join().unwrap(), PumpEnd::EndOfInput);
    }

    #[test]
    fn dev_null_ends_at_once() {
        let (mut reader, sink) = io::pipe().unwrap();
        let pump = StdinPump::start(File::open("/dev/null").unwrap().into(), sink.into()).unwrap();
        assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0);
        drop(pump);
    }

    #[test]
    fn a_dyno_that_reads_no_more_ends_it() {
        let (source, _writer) = io::pipe().unwrap();
        let (reader, sink) = io::pipe().unwrap();
        let (copying, _pump) = copy(source, sink);
        drop(reader);
        assert_eq!(copying.join().unwrap(), PumpEnd::NotRead);
    }

    #[test]
    fn it_stops_when_told_also_while_the_dyno_does_not_read() {
        let (source, mut writer) = io::pipe().unwrap();
        let (_reader, sink) = io::pipe().unwrap();
        let (copying, pump) = copy(source, sink);
        // More than both pipes hold together, so the pump must be stuck when this is through.
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let mut total = 0;
        while total < 64 * 1024 {
            match writer.write(&[b'x'; 4096]) {
                Ok(count) => total += count,
                Err(_) => thread::yield_now(),
            }
        }
        pump.stop();
        assert_eq!(copying.join().unwrap(), PumpEnd::Stopped);
    }
}
