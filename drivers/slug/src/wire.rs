//! What the front and its processes tell each other: one job, then events, each a line of JSON
//! on a socket. Its end is also how a process learns that the front is gone.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::{
        fd::{BorrowedFd, FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Mutex,
    thread,
};

use serde::{Deserialize, Serialize};

use crate::{changed, error::SlugError, fetch, privilege, unpack};

/// The descriptors that a process is started with: what it reads, what it writes (to unpack:
/// the directory that it writes in), and the socket.
pub(crate) const INPUT: i32 = 0;
pub(crate) const OUTPUT: i32 = 1;
const CONTROL: i32 = 3;

/// What a process is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Job {
    Fetch(fetch::Job),
    Unpack(unpack::Job),
    Layer(unpack::LayerJob),
    Changed(changed::Job),
}

/// What a process has to say.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    /// It is alive and trying.
    Trying,
    /// How many bytes there will be.
    Total(u64),
    /// A word to the slug's owner.
    Note(String),
    /// The last word, with an answer if there is one.
    Done(String),
    /// The other last word.
    Failed(SlugError),
}

/// The process's end of the socket.
#[derive(Debug)]
pub(crate) struct Report(Mutex<UnixStream>);

impl Report {
    /// Tells the front. One that has gone needs no telling: we end with it.
    pub(crate) fn send(&self, event: &Event) {
        let Ok(mut line) = serde_json::to_vec(event) else {
            return;
        };
        line.push(b'\n');
        if let Ok(mut stream) = self.0.lock() {
            drop(stream.write_all(&line));
        }
    }

    pub(crate) fn note(&self, text: String) {
        self.send(&Event::Note(text));
    }
}

/// The whole life of such a process; its exit status.
pub(crate) fn serve() -> i32 {
    privilege::close_the_rest(CONTROL + 1);
    let control = UnixStream::from(take(CONTROL));
    let Ok(sender) = control.try_clone() else {
        return 1;
    };
    let report = Report(Mutex::new(sender));
    let mut reader = BufReader::new(control);
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line).is_err() {
        return 1;
    }
    let Ok(job) = serde_json::from_slice(&line) else {
        return 1;
    };
    // Threads start after the user has changed.
    let prepared = match &job {
        Job::Fetch(job) => job.prepare(),
        Job::Unpack(job) => job.prepare(),
        Job::Layer(job) => job.prepare(),
        Job::Changed(job) => job.prepare(),
    };
    let watch = thread::Builder::new().spawn(move || end_with_the_front(reader));
    if watch.is_err() {
        return 1;
    }
    let result = prepared.and_then(|()| match job {
        Job::Fetch(job) => job.run(&report),
        Job::Unpack(job) => job.run(&report),
        Job::Layer(job) => job.run(&report),
        Job::Changed(job) => job.run(),
    });
    let (event, code) = match result {
        Ok(answer) => (Event::Done(answer), 0),
        Err(error) => (Event::Failed(error), 1),
    };
    report.send(&event);
    code
}

/// Returns never: the front says no more than the job, so what can be read is its end.
fn end_with_the_front(mut reader: BufReader<UnixStream>) {
    let mut rest = Vec::new();
    drop(reader.read_until(b'\n', &mut rest));
    #[expect(unsafe_code, reason = "no destructor is worth running any more")]
    // SAFETY: always sound; it ends the process.
    unsafe {
        libc::_exit(1)
    }
}

/// One of the descriptors that this process was started with; to be called once for each.
#[expect(unsafe_code, reason = "they come as numbers")]
pub(crate) fn take(descriptor: i32) -> OwnedFd {
    // SAFETY: the front has put it there, nothing here prints or reads standard input, and
    // each is taken once.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// One of them, before it is taken.
#[expect(unsafe_code, reason = "they come as numbers")]
pub(crate) fn given(descriptor: i32) -> BorrowedFd<'static> {
    // SAFETY: the front has put it there, and it is not closed before it is taken.
    unsafe { BorrowedFd::borrow_raw(descriptor) }
}
