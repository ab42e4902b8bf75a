//! A Logplex that takes nothing but what the real one takes, and fails as it is told to.
//!
//! What the real one refuses is refused here with the same status: 401 without the right
//! credentials, 415 for another content type, 400 for a count that is not that of the messages
//! (`Logplex-Msg-Count`), and for one message in the whole request that is malformed or longer
//! than 10,240 bytes. A request that comes again, for its answer was lost, counts once: it has the
//! same `Logplex-Frame-Id`. As an HTTPS drain it expects what Logplex sends to one.

use std::{
    collections::{BTreeSet, VecDeque},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use flate2::read::GzDecoder;
use nix::sys::socket::{setsockopt, sockopt::Linger};

/// The longest message, its header included.
pub const MOST_BYTES: usize = 10_240;
/// The credentials that are expected, unless others are named.
pub const CREDENTIALS: &str = "token:t.sekrit";

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is reset when the request has been read; nothing is taken.
    Reset,
    /// The answer comes late.
    Delay(Duration),
    /// Taken, and answered with less of a body than was promised.
    CutBody,
    /// Refused with this status, and a `Retry-After` of so many seconds.
    Status(u16, Option<u32>),
    /// No answer ever comes; nothing is taken.
    Hang,
}

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// As log-shuttle writes to Logplex: both dashes.
    Logplex,
    /// As Logplex writes to an HTTPS drain: one.
    Drain,
}

/// A message that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub priority: u8,
    pub at: String,
    pub host: String,
    pub source: String,
    pub dyno: String,
    /// Without its final `\n`.
    pub text: String,
}

impl Message {
    /// How many lines it says are missing, if it is such a telling: by an L10 or L12, and by an
    /// L13.
    pub fn told_missing(&self) -> (u64, u64) {
        if self.priority != 172 {
            return (0, 0);
        }
        let (error, rest) = self.text.split_once(':').unwrap_or_default();
        let count = rest.trim_start().split(' ').next().unwrap_or_default();
        let count = count.parse().unwrap_or_default();
        if error.starts_with("Error L13") {
            (0, count)
        } else {
            (count, 0)
        }
    }
}

/// A request, and what it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// 0: none.
    pub status: u16,
    pub frame_id: String,
    pub gzip: bool,
    pub body_bytes: usize,
    pub why: String,
}

/// See the module. Dropped, it is gone.
#[derive(Debug)]
pub struct FakeLogplex {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    dialect: Dialect,
    up: AtomicBool,
    /// Connections that are spoken on.
    conversations: AtomicUsize,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    messages: Vec<Message>,
    /// The frame ids of the requests whose messages these are.
    taken: BTreeSet<String>,
    seen: Vec<Seen>,
    /// One for each of the next requests.
    faults: VecDeque<Fault>,
    always: Option<Fault>,
    connections: Vec<TcpStream>,
}

impl FakeLogplex {
    /// On a port of its own.
    ///
    /// # Errors
    /// When there is none.
    pub fn start(dialect: Dialect) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let fake = Self {
            address: listener.local_addr()?,
            state: Arc::new(State {
                dialect,
                up: AtomicBool::new(true),
                conversations: AtomicUsize::new(0),
                books: Mutex::default(),
            }),
        };
        fake.serve(listener);
        Ok(fake)
    }

    /// Where it is, with credentials.
    pub fn url(&self) -> String {
        self.url_with(CREDENTIALS)
    }

    /// Where it is, with these credentials.
    pub fn url_with(&self, credentials: &str) -> String {
        format!("http://{credentials}@{}/logs", self.address)
    }

    /// Has each of the next requests fail in its way.
    pub fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.books().faults.extend(faults);
    }

    /// Has every request that no other fault is meant for fail so, or none.
    pub fn always(&self, fault: Option<Fault>) {
        self.books().always = fault;
    }

    /// Nobody listens any more, and every connection ends.
    pub fn down(&self) {
        self.state.up.store(false, Ordering::SeqCst);
        // Its listener looks up.
        drop(TcpStream::connect(self.address));
        for connection in self.books().connections.drain(..) {
            drop(connection.shutdown(Shutdown::Both));
        }
        while TcpStream::connect(self.address).is_ok() {
            thread::yield_now();
        }
    }

    /// Listens again.
    ///
    /// # Errors
    /// When the port is not free any more.
    pub fn back(&self) -> io::Result<()> {
        let listener = TcpListener::bind(self.address)?;
        self.state.up.store(true, Ordering::SeqCst);
        self.serve(listener);
        Ok(())
    }

    /// Whether all that was sent by clients that have gone is taken, or never will be. Those that
    /// are still there have their say first.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn is_through(&self) -> io::Result<bool> {
        if self.state.up.load(Ordering::SeqCst) {
            // Once this one has had its turn, so has whoever connected before.
            let mut last = TcpStream::connect(self.address)?;
            last.shutdown(Shutdown::Write)?;
            last.read_to_end(&mut Vec::new())?;
        }
        Ok(self.state.conversations.load(Ordering::SeqCst) == 0)
    }

    /// The messages that were taken, in the order in which that was said.
    pub fn messages(&self) -> Vec<Message> {
        self.books().messages.clone()
    }

    /// The texts that were taken of one dyno's own lines.
    pub fn texts(&self, dyno: &str) -> Vec<String> {
        let books = self.books();
        let of_dyno = books
            .messages
            .iter()
            .filter(|message| message.source == "app" && message.dyno == dyno);
        of_dyno.map(|message| message.text.clone()).collect()
    }

    /// How many messages were taken that are no such telling.
    pub fn taken(&self) -> u64 {
        let books = self.books();
        let lines = books
            .messages
            .iter()
            .filter(|message| message.priority != 172);
        lines.count() as u64
    }

    /// How many lines it was told are missing: by an L10 or L12, and by an L13.
    pub fn told_missing(&self) -> (u64, u64) {
        let books = self.books();
        let told = books.messages.iter().map(Message::told_missing);
        told.fold((0, 0), |sum, told| (sum.0 + told.0, sum.1 + told.1))
    }

    /// The messages behind the first so many.
    pub fn messages_behind(&self, count: usize) -> Vec<Message> {
        self.books()
            .messages
            .get(count..)
            .unwrap_or_default()
            .to_vec()
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.books().seen.clone()
    }

    fn serve(&self, listener: TcpListener) {
        let state = Arc::clone(&self.state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if !state.up.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                if let Ok(copy) = stream.try_clone() {
                    state.books().connections.push(copy);
                }
                let state = Arc::clone(&state);
                state.conversations.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || {
                    // A client that goes away in the middle ends its connection.
                    drop(state.converse(&stream));
                    let peer = stream.peer_addr().ok();
                    let is_other = |other: &TcpStream| other.peer_addr().ok() != peer;
                    state.conversations.fetch_sub(1, Ordering::SeqCst);
                    state.books().connections.retain(is_other);
                });
            }
        });
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.state.books()
    }
}

impl Drop for FakeLogplex {
    fn drop(&mut self) {
        self.down();
    }
}

/// What stands before a body.
#[derive(Debug, Default)]
struct Head {
    line: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn get(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(known, _)| known == name)
            .map(|(_, value)| &**value)
    }
}

impl State {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn converse(&self, stream: &TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        while let Some(head) = read_head(&mut reader)? {
            let length = head
                .get("content-length")
                .and_then(|text| text.parse().ok());
            let mut body = vec![0; length.unwrap_or(0)];
            reader.read_exact(&mut body)?;
            if !self.answer(stream, &head, length.is_some(), &body)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Answers a request; answers whether the connection goes on.
    fn answer(
        &self,
        mut stream: &TcpStream,
        head: &Head,
        has_length: bool,
        body: &[u8],
    ) -> io::Result<bool> {
        let fault = {
            let mut books = self.books();
            let always = books.always;
            books.faults.pop_front().or(always)
        };
        let mut seen = Seen {
            status: 0,
            frame_id: head.get("logplex-frame-id").unwrap_or_default().to_owned(),
            gzip: head.get("content-encoding") == Some("gzip"),
            body_bytes: body.len(),
            why: format!("{fault:?}"),
        };
        let mut retry_after = None;
        let judged = match fault {
            Some(Fault::Reset) => {
                self.books().seen.push(seen);
                // Closed with unsent data or a linger of zero, a connection is reset.
                let linger = nix::libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(&stream, Linger, &linger)?;
                return Ok(false);
            }
            Some(Fault::Hang) => {
                self.books().seen.push(seen);
                // Until the other end has gone, or this is down.
                drop(io::copy(&mut stream, &mut io::sink()));
                return Ok(false);
            }
            Some(Fault::Status(status, after)) => {
                retry_after = after;
                Err((status, format!("told to answer {status}")))
            }
            Some(Fault::Delay(delay)) => {
                thread::sleep(delay);
                self.judge(head, has_length, body)
            }
            Some(Fault::CutBody) | None => self.judge(head, has_length, body),
        };
        let (status, text) = match judged {
            Ok(messages) => {
                let mut books = self.books();
                if books.taken.insert(seen.frame_id.clone()) {
                    books.messages.extend(messages);
                }
                drop(books);
                (
                    if fault == Some(Fault::CutBody) {
                        200
                    } else {
                        204
                    },
                    String::new(),
                )
            }
            Err(refused) => refused,
        };
        seen.status = status;
        seen.why = text;
        self.books().seen.push(seen);
        let after = retry_after
            .map(|seconds| format!("Retry-After: {seconds}\r\n"))
            .unwrap_or_default();
        if fault == Some(Fault::CutBody) {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")?;
            return Ok(false);
        }
        let length = if status == 204 {
            ""
        } else {
            "Content-Length: 0\r\n"
        };
        write!(stream, "HTTP/1.1 {status} As told\r\n{after}{length}\r\n")?;
        Ok(true)
    }

    /// The messages of a request, or the status that the real one would give it.
    fn judge(
        &self,
        head: &Head,
        has_length: bool,
        body: &[u8],
    ) -> Result<Vec<Message>, (u16, String)> {
        let refuse = |status, why: &str| Err((status, why.to_owned()));
        if !head.line.starts_with("POST ") {
            return refuse(405, "not a POST");
        }
        if head.line.split(' ').nth(1) != Some("/logs") {
            return refuse(404, "another path");
        }
        let expected = format!("Basic {}", base64(CREDENTIALS.as_bytes()));
        if head.get("authorization") != Some(&*expected) {
            return refuse(401, "no or wrong credentials");
        }
        if head.get("content-type") != Some("application/logplex-1") {
            return refuse(415, "another content type");
        }
        if !has_length {
            return refuse(411, "no Content-Length");
        }
        if head.get("logplex-frame-id").is_none_or(|id| id.len() != 32) {
            return refuse(400, "no frame id");
        }
        let mut unzipped = Vec::new();
        let body = match head.get("content-encoding") {
            None => body,
            Some("gzip") if GzDecoder::new(body).read_to_end(&mut unzipped).is_ok() => &unzipped,
            Some(_) => return refuse(400, "another encoding"),
        };
        let Some(messages) = messages(self.dialect, body) else {
            return refuse(400, "Malformed log messages");
        };
        let count = head
            .get("logplex-msg-count")
            .and_then(|text| text.parse().ok());
        if count != Some(messages.len()) {
            return refuse(400, "Message count mismatch");
        }
        Ok(messages)
    }
}

fn read_head(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Head>> {
    let mut head = Head::default();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end();
        if head.line.is_empty() {
            line.clone_into(&mut head.line);
        } else if line.is_empty() {
            return Ok(Some(head));
        } else if let Some((name, value)) = line.split_once(':') {
            let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
            head.headers.push((name, value));
        }
    }
}

/// The messages of a body; `None` when one of them is malformed.
pub fn messages(dialect: Dialect, mut body: &[u8]) -> Option<Vec<Message>> {
    let mut messages = Vec::new();
    while !body.is_empty() {
        let blank = body.iter().position(|byte| *byte == b' ')?;
        let length: usize = str::from_utf8(&body[..blank]).ok()?.parse().ok()?;
        let message = body.get(blank + 1..blank + 1 + length)?;
        body = &body[blank + 1 + length..];
        if length > MOST_BYTES {
            return None;
        }
        messages.push(message_of(dialect, message)?);
    }
    Some(messages)
}

/// One message, without the count before it.
pub fn message_of(dialect: Dialect, message: &[u8]) -> Option<Message> {
    let text = String::from_utf8_lossy(message);
    let (priority, rest) = text.strip_prefix('<')?.split_once(">1 ")?;
    let mut parts = rest.splitn(5, ' ');
    let [at, host, source, dyno] = [(); 4].map(|()| parts.next().map(str::to_owned));
    let dashes = match dialect {
        Dialect::Logplex => "- - ",
        Dialect::Drain => "- ",
    };
    let text = parts.next()?.strip_prefix(dashes)?;
    if dialect == Dialect::Drain && text.starts_with("- ") {
        return None;
    }
    Some(Message {
        priority: priority.parse().ok()?,
        at: at.filter(|at| at.len() == 32 && at.ends_with("+00:00"))?,
        host: host?,
        source: source?,
        dyno: dyno?,
        text: text.strip_suffix('\n').unwrap_or(text).to_owned(),
    })
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = bytes.chunks(3).flat_map(|group| {
        let bits = group
            .iter()
            .chain([0, 0].iter())
            .take(3)
            .fold(0_usize, |bits, byte| (bits << 8) | usize::from(*byte));
        (0..4).map(move |digit| {
            if digit <= group.len() {
                char::from(DIGITS[(bits >> (18 - 6 * digit)) & 63])
            } else {
                '='
            }
        })
    });
    digits.collect()
}

#[cfg(test)]
mod tests;
