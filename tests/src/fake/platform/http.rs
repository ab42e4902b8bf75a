//! The connections: requests read, answers written, and faults in between.

use std::{
    fmt::Write as _,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
};

use super::{Shared, faults::Fault, rules};

/// A request without a body.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) method: String,
    /// Without the query.
    pub(super) path: String,
    pub(super) query: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// The value of a header, whose name is in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let header = headers.find(|(of, _)| of == name);
        header.map(|(_, value)| value.as_str())
    }
}

/// An answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
}

/// Serves whoever connects, until the fake is over.
pub(super) fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming().flatten() {
        if shared.state().over {
            return;
        }
        let shared = Arc::clone(shared);
        // Whoever hangs up has its reasons.
        thread::spawn(move || drop(connection(&stream, &shared)));
    }
}

fn connection(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read(&mut reader)? {
        if shared.state().over {
            return Ok(());
        }
        let fault = shared.faults.of(&request.path);
        let mut answer = match &fault {
            Some(Fault::Answer(status, body)) => Answer {
                status: *status,
                body: body.clone().into_bytes(),
                ..Answer::default()
            },
            Some(Fault::Redirect(to)) => Answer {
                status: 302,
                headers: vec![("Location", to.clone())],
                ..Answer::default()
            },
            _ => rules::answer(&mut shared.state(), &request),
        };
        let said = match fault {
            Some(Fault::Hang | Fault::Gone) => "-".to_owned(),
            _ => answer.status.to_string(),
        };
        let mut state = shared.state();
        let line = format!("{} {} {said}", request.method, request.path);
        state.requests.push(line);
        let id = format!("req-{:04}", state.requests.len());
        answer.headers.push(("Request-Id", id));
        drop(state);
        match fault {
            Some(Fault::Gone) => return Ok(()),
            Some(Fault::Hang) => {
                shared.faults.wait_until_cleared();
                return Ok(());
            }
            // That nothing is new has no half.
            Some(Fault::Cut) if answer.body.is_empty() => return Ok(()),
            Some(Fault::Cut) => return write(stream, &answer, answer.body.len() / 2),
            Some(Fault::Flood) => return flood(stream),
            _ => write(stream, &answer, answer.body.len())?,
        }
    }
    Ok(())
}

/// The next request; none when the caller is through.
fn read(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers: Vec::new(),
    };
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = line.split_once(':') else {
            return Ok(Some(request));
        };
        let header = (name.to_ascii_lowercase(), value.trim().to_owned());
        request.headers.push(header);
    }
}

/// Writes an answer, or as many bytes of its body.
fn write(mut stream: &TcpStream, answer: &Answer, bytes: usize) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {} -\r\n", answer.status);
    for (name, value) in &answer.headers {
        write!(head, "{name}: {value}\r\n").map_err(io::Error::other)?;
    }
    // Which has no body, and says so by being what it is.
    if answer.status != 304 {
        let length = answer.body.len();
        write!(head, "Content-Length: {length}\r\n").map_err(io::Error::other)?;
    }
    head.push_str("\r\n");
    let mut text = head.into_bytes();
    text.extend_from_slice(&answer.body[..bytes]);
    stream.write_all(&text)
}

fn flood(mut stream: &TcpStream) -> io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 -\r\nContent-Length: 10000000000\r\n\r\n[")?;
    loop {
        stream.write_all(&[b' '; 4096])?;
    }
}
