//! A way to an HTTP server on which a third of all requests goes wrong, by a chance that has a
//! seed: connections that are reset, answers of which half comes, 503, and delays.

use std::{
    collections::BTreeSet,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::Linger};

use crate::random::Random;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It is answered.
    Answered,
    /// It is answered later.
    Late,
    /// The connection is reset before the answer.
    Reset,
    /// It is reset in the middle of the answer.
    ResetHalfWay,
    /// The answer ends in its middle.
    Cut,
    /// The answer is another one: 503.
    Unavailable,
}

/// See the module. Dropped, it answers nobody any more.
#[derive(Debug)]
pub struct FaultyProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Where the server is.
    server: String,
    random: Mutex<Random>,
    seen: Mutex<BTreeSet<Fate>>,
    over: AtomicBool,
}

impl FaultyProxy {
    /// A way to the server at this `http://` URL.
    pub fn start(server: &str, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server: server.trim_start_matches("http://").to_owned(),
            random: Mutex::new(Random::new(seed)),
            seen: Mutex::default(),
            over: AtomicBool::default(),
        });
        let serving = Arc::clone(&shared);
        thread::spawn(move || serve(&listener, &serving));
        Self { address, shared }
    }

    /// Where it begins.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Whether a request has had each of the fates.
    pub fn has_done_its_worst(&self) -> bool {
        self.shared.seen.lock().unwrap().len() == 6
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for somebody to connect.
        drop(TcpStream::connect(self.address));
    }
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming().flatten() {
        if shared.over.load(Ordering::Relaxed) {
            return;
        }
        let shared = Arc::clone(shared);
        // Whoever hangs up has its reasons.
        thread::spawn(move || drop(request(&stream, &shared)));
    }
}

/// One request without a body, and the only one of its connection.
fn request(mut stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let fate = shared.fate();
    match fate {
        Fate::Reset => return reset(stream),
        Fate::Unavailable => {
            return stream
                .write_all(b"HTTP/1.1 503 -\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        Fate::Late => sleep(Duration::from_millis(30)),
        Fate::Answered | Fate::Cut | Fate::ResetHalfWay => {}
    }
    let answer = ask(&shared.server, &head)?;
    let body = answer.windows(4).position(|part| part == b"\r\n\r\n");
    let body = body.map_or(answer.len(), |end| end + 4);
    let half = usize::midpoint(body, answer.len());
    match fate {
        // What has no body has no half.
        Fate::Cut | Fate::ResetHalfWay if half == body => reset(stream),
        Fate::Cut => stream.write_all(&answer[..half]),
        Fate::ResetHalfWay => {
            stream.write_all(&answer[..half])?;
            reset(stream)
        }
        _ => stream.write_all(&answer),
    }
}

/// What the server answers, without a word that the connection could go on.
fn ask(server: &str, head: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server)?;
    stream.write_all(head.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let line = answer.windows(2).position(|part| part == b"\r\n");
    if let Some(line) = line {
        answer.splice(line..line, *b"\r\nConnection: close");
    }
    Ok(answer)
}

/// Closed with a linger of zero, a connection is reset.
fn reset(stream: &TcpStream) -> io::Result<()> {
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    Ok(setsockopt(stream, Linger, &linger)?)
}

impl Shared {
    fn fate(&self) -> Fate {
        let fate = match self.random.lock().unwrap().below(15) {
            0 => Fate::Late,
            1 => Fate::Reset,
            2 => Fate::ResetHalfWay,
            3 => Fate::Cut,
            4 => Fate::Unavailable,
            _ => Fate::Answered,
        };
        self.seen.lock().unwrap().insert(fate);
        fate
    }
}
