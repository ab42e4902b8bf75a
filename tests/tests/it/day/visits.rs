//! Somebody who visits the web all day.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use hsup_tests::deadline::PATIENCE;

/// What whichever web is connected to answers.
pub(crate) fn ask(port: u16, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n");
    let (_, body) = body.ok_or(ErrorKind::UnexpectedEof)?;
    Ok(body.to_owned())
}

/// One visit after the other, until the end.
pub(crate) struct Visitor {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Visits>,
}

/// How it went.
#[derive(Debug, Default)]
pub(crate) struct Visits {
    pub(crate) answered: u64,
    /// The web that had taken the request was ended before it answered.
    pub(crate) cut: usize,
    /// There was no web.
    pub(crate) refused: u64,
}

impl Visitor {
    /// Whoever listens on this port is visited.
    pub(crate) fn of(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut visits = Visits::default();
            while !is_over.load(Ordering::SeqCst) {
                visits.count(ask(port, "/"));
                // Nothing waits for this: the machine has more to do.
                thread::sleep(Duration::from_millis(2));
            }
            visits
        });
        Self { stop, thread }
    }

    pub(crate) fn end(self) -> Visits {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

impl Visits {
    fn count(&mut self, answer: io::Result<String>) {
        match answer.map_err(|error| error.kind()) {
            Ok(_) => self.answered += 1,
            Err(ErrorKind::ConnectionRefused) => self.refused += 1,
            Err(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof) => {
                self.cut += 1;
            }
            Err(kind) => panic!("a web does not answer: {kind}"),
        }
    }
}
