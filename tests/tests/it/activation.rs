//! hsup as a service manager runs it: the control socket is the manager's, and hsup comes and goes.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{
            net::{UnixDatagram, UnixListener, UnixStream},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use hsup_tests::deadline::{PATIENCE, poll};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::app::{App, Running};

/// The sockets of a unit: made once, and handed to every hsup.
pub(crate) struct Activator {
    listener: UnixListener,
    notified: UnixDatagram,
    path: PathBuf,
    notify: PathBuf,
}

impl Activator {
    /// Listens for an app's hsup, at a place of its own.
    pub(crate) fn of(app: &App) -> Self {
        let (path, notify) = (app.path("unit.sock"), app.path("notify"));
        let notified = UnixDatagram::bind(&notify).unwrap();
        notified.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            listener: UnixListener::bind(&path).unwrap(),
            notified,
            path,
            notify,
        }
    }

    /// Where the socket is.
    pub(crate) const fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Has `command` take the socket as its descriptor 3.
    pub(crate) fn prepare(&self, command: &mut Command) {
        let descriptor = self.listener.as_raw_fd();
        command
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", "hsup@shop.socket")
            .env("NOTIFY_SOCKET", &self.notify);
        let hand_down = move || {
            #[expect(unsafe_code, reason = "a descriptor gets its number in the child")]
            // SAFETY: dup2 and fcntl are system calls and touch no memory of this process; the
            // listener is open for as long as its owner lives.
            let handed = unsafe { libc::dup2(descriptor, 3) };
            if handed < 0 {
                return Err(std::io::Error::last_os_error());
            }
            if descriptor == 3 {
                #[expect(unsafe_code, reason = "a descriptor known by its number alone")]
                // SAFETY: it is open, as dup2 has just shown.
                let itself = unsafe { std::os::fd::BorrowedFd::borrow_raw(3) };
                fcntl(itself, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        };
        #[expect(unsafe_code, reason = "the child's descriptors are set in the child")]
        // SAFETY: what is called allocates nothing.
        unsafe {
            command.pre_exec(hand_down);
        }
    }

    /// What the next hsup that is ready, or is about to end, says.
    pub(crate) fn told(&self) -> String {
        self.told_until(|text| !text.starts_with("STATUS="))
    }

    /// The next thing that an hsup says and that is the one that is wanted.
    fn told_until(&self, is_it: impl Fn(&str) -> bool) -> String {
        loop {
            let mut text = [0; 512];
            let length = self.notified.recv(&mut text).unwrap();
            let text = String::from_utf8_lossy(&text[..length]).into_owned();
            if is_it(&text) {
                return text;
            }
        }
    }

    fn start<'a>(&self, app: &'a App, arguments: &[&str]) -> Running<'a> {
        app.start_as(arguments, |command| self.prepare(command))
    }
}

/// A connection on which the request is written already.
fn ask(activator: &Activator) -> UnixStream {
    let mut stream = UnixStream::connect(activator.path()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    stream
}

fn answered(mut stream: UnixStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Somebody who asks hsup for its status all the time.
pub(crate) struct Asker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Asked>,
}

/// How it went. Who is refused panics: there is a socket all the time.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) answered: u64,
    /// hsup had taken the request and was ended before it answered.
    pub(crate) cut: u32,
}

impl Asker {
    /// Whoever has the activator's socket is asked.
    pub(crate) fn of(activator: &Activator) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (is_over, path) = (Arc::clone(&stop), activator.path().clone());
        let thread = thread::spawn(move || {
            let mut asked = Asked::default();
            while !is_over.load(Ordering::SeqCst) {
                match status(&path) {
                    Ok(answer) if answer.starts_with("HTTP/1.1 200") => asked.answered += 1,
                    Ok(answer) if answer.is_empty() => asked.cut += 1,
                    Ok(answer) => panic!("hsup answers {answer}"),
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => asked.cut += 1,
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => asked.cut += 1,
                    Err(error) => panic!("hsup does not answer: {error}"),
                }
                // Nothing waits for this: the machine has more to do.
                thread::sleep(Duration::from_millis(2));
            }
            asked
        });
        Self { stop, thread }
    }

    pub(crate) fn end(self) -> Asked {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

fn status(path: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// What a manager hears of an hsup that stops dynos with so many seconds of grace: it is to wait
/// that long, and for the end of hsup.
fn stopping(grace: u64) -> String {
    let limit = (grace + 30) * 1_000_000;
    format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={limit}")
}

#[test]
fn who_connects_while_hsup_is_away_is_answered_by_the_next_one() {
    let app = App::procfile("worker: sleep 1000\n");
    let activator = Activator::of(&app);
    let early = ask(&activator);
    let first = activator.start(&app, &["--linger", "60s"]);
    assert_eq!(activator.told(), "READY=1");
    assert!(answered(early).ends_with("OK"));
    // hsupctl finds it where no hsup would put it.
    let before = first.wait_up(&["worker.1"]);
    first.kill();

    let waiting: Vec<_> = (0..10).map(|_| ask(&activator)).collect();
    let second = activator.start(&app, &["--linger", "60s"]);
    assert_eq!(activator.told(), "READY=1");
    for stream in waiting {
        assert!(answered(stream).ends_with("OK"));
    }
    assert_eq!(second.wait_up(&["worker.1"]), before);
    second.interrupt();
    assert_eq!(activator.told(), stopping(30));
    assert!(activator.path().exists(), "it was not hsup's to remove");
}

#[test]
fn of_several_sockets_the_one_named_control_is_served_and_the_flag_goes_first() {
    let app = App::procfile("worker: sleep 1000\n");
    let activator = Activator::of(&app);
    let mut refused = app.start_as(&[], |command| {
        activator.prepare(command);
        command.env("LISTEN_FDS", "2");
    });
    assert_eq!(refused.end().code(), Some(1));
    let log = refused.log();
    assert!(log.contains("none of them is named `control`"), "{log}");

    let own = app.path("own.sock");
    let hsup = activator.start(&app, &["-s", own.to_str().unwrap()]);
    hsup.wait_up(&["worker.1"]);
    poll(|| UnixStream::connect(&own).ok()).unwrap();
    hsup.interrupt();
}

#[test]
fn the_manager_hears_what_runs_and_that_hsup_is_alive() {
    let app = App::procfile("worker: sleep 1000\n");
    let activator = Activator::of(&app);
    let hsup = app.start_as(&["--grace", "5m"], |command| {
        activator.prepare(command);
        command.env("WATCHDOG_USEC", "2000000");
    });
    assert_eq!(activator.told(), "READY=1");
    let up = "STATUS=Release v1: 1 of 1 dyno up";
    activator.told_until(|text| text == up);
    for _ in 0..3 {
        activator.told_until(|text| text == "WATCHDOG=1");
    }
    hsup.interrupt();
    // Its own limit for a stop is a minute.
    let stopping = stopping(5 * 60);
    activator.told_until(|text| text == stopping);
}
