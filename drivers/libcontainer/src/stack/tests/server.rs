//! A small HTTP server, which does what a test needs of a bad one.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

/// What the server does with one request.
pub(super) enum Answer {
    /// Sends the file, from where it is asked to.
    File(Vec<u8>),
    /// Sends the whole file, whatever part was asked for.
    Whole(Vec<u8>),
    /// Says that it sends the file, and closes the connection after so many bytes of it.
    Cut(Vec<u8>, usize),
    /// Says that it sends the file, and after so many bytes of it sends nothing until told.
    Stall(Vec<u8>, usize, mpsc::Receiver<()>),
    /// Answers with a status and no more.
    Status(&'static str),
    /// Sends whoever asks to the same place again.
    Redirect,
}

/// A server, and the requests that it had: from which byte on each wanted the file.
pub(super) struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Option<usize>>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves one answer after the other, and the last one for ever.
    pub(super) fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let mut answers: Vec<_> = answers.into_iter().collect();
        answers.reverse();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let ends = Arc::new(AtomicBool::new(false));
        let (log, end) = (Arc::clone(&requests), Arc::clone(&ends));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    break;
                }
                let answer = if answers.len() > 1 {
                    answers.pop().unwrap()
                } else {
                    match &answers[0] {
                        Answer::File(bytes) => Answer::File(bytes.clone()),
                        Answer::Whole(bytes) => Answer::Whole(bytes.clone()),
                        Answer::Cut(bytes, at) => Answer::Cut(bytes.clone(), *at),
                        Answer::Status(status) => Answer::Status(status),
                        Answer::Redirect => Answer::Redirect,
                        Answer::Stall(..) => panic!("nobody would end it a second time"),
                    }
                };
                // Who asked may be gone; that is not this server's affair.
                let _: Option<()> = serve(stream.unwrap(), &answer, &log).ok();
            }
        });
        Self {
            address,
            requests,
            ends,
            thread: Some(thread),
        }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    pub(super) fn requests(&self) -> Vec<Option<usize>> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        // Wakes it.
        drop(TcpStream::connect(self.address));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(
    mut stream: TcpStream,
    answer: &Answer,
    log: &Mutex<Vec<Option<usize>>>,
) -> std::io::Result<()> {
    let mut from = None;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().ok();
        }
    }
    log.lock().unwrap().push(from);
    let (bytes, sent) = match answer {
        Answer::Status(status) => {
            return write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        Answer::Redirect => {
            return write!(
                stream,
                "HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\
                 Connection: close\r\n\r\n"
            );
        }
        Answer::File(bytes) => (bytes, bytes.len()),
        Answer::Whole(bytes) => {
            from = None;
            (bytes, bytes.len())
        }
        Answer::Cut(bytes, at) | Answer::Stall(bytes, at, _) => (bytes, *at),
    };
    let total = bytes.len();
    let start = from.unwrap_or(0);
    if start >= total && start > 0 {
        return write!(
            stream,
            "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{total}\r\n\
             Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    let head = match from {
        None => "HTTP/1.1 200 OK\r\n".to_owned(),
        Some(start) => format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{total}\r\n",
            total - 1
        ),
    };
    let length = total - start;
    write!(
        stream,
        "{head}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(&bytes[start..sent.max(start)])?;
    if let Answer::Stall(_, _, until) = answer {
        // Also when the other end is dropped.
        let _: Option<()> = until.recv().ok();
    }
    Ok(())
}
