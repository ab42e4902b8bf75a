//! An HTTP server that behaves as badly as the test wants.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use nix::sys::socket::{setsockopt, sockopt::Linger};

/// A request, as far as a download has one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) range: Option<usize>,
    pub(crate) if_range: Option<String>,
}

/// Listens until the process ends.
pub(crate) struct Server {
    pub(crate) host: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers each request, counted from 0, with `answer`; the connection is closed then.
    pub(crate) fn new(
        answer: impl Fn(usize, &Request, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let answer = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let answer = Arc::clone(&answer);
                let seen = Arc::clone(&seen);
                // One that hangs keeps no other waiting.
                thread::spawn(move || {
                    let request = read(&stream);
                    let number = {
                        let mut seen = seen.lock().unwrap();
                        seen.push(request.clone());
                        seen.len() - 1
                    };
                    // Whoever has asked may be gone.
                    drop(answer(number, &request, &mut stream));
                });
            }
        });
        Self { host, requests }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/slug.tgz?signature=SECRET", self.host)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Request {
    let mut request = Request::default();
    for line in BufReader::new(stream).lines() {
        let line = line.unwrap_or_default();
        if line.is_empty() {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(range) = lower.strip_prefix("range: bytes=") {
            request.range = range.trim_end_matches('-').parse().ok();
        } else if lower.starts_with("if-range: ") {
            request.if_range = Some(line[10..].to_owned());
        } else if let Some(path) = line.strip_prefix("GET ") {
            let path = path.split(' ').next().unwrap_or_default();
            path.clone_into(&mut request.path);
        }
    }
    request
}

pub(crate) fn status(stream: &mut TcpStream, status: u16, headers: &str) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status} x\r\nconnection: close\r\n{headers}content-length: 0\r\n\r\n"
    )
}

/// Closed with a linger of zero, a connection is reset.
pub(crate) fn reset(stream: &TcpStream) -> std::io::Result<()> {
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    Ok(setsockopt(stream, Linger, &linger)?)
}

/// The whole, or what was asked for, of which only `sent` bytes come.
pub(crate) fn serve(
    stream: &mut TcpStream,
    request: &Request,
    body: &[u8],
    headers: &str,
    sent: usize,
) -> std::io::Result<()> {
    let first = request.range.unwrap_or(0);
    let rest = &body[first..];
    if request.range.is_some() {
        let (last, total) = (body.len() - 1, body.len());
        write!(
            stream,
            "HTTP/1.1 206 x\r\ncontent-range: bytes {first}-{last}/{total}\r\n"
        )?;
    } else {
        write!(stream, "HTTP/1.1 200 x\r\n")?;
    }
    write!(
        stream,
        "connection: close\r\n{headers}content-length: {}\r\n\r\n",
        rest.len()
    )?;
    stream.write_all(&rest[..sent.min(rest.len())])
}
