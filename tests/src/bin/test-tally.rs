//! `test-tally`: an app that numbers each line it writes, and leaves behind how many there were.
//!
//! A line is `DYNO-ID NUMBER`, and as many dots as it takes. At SIGTERM the dyno writes nothing
//! more and puts the last number into `FOLDER/DYNO-ID`: what whoever reads its lines says can be
//! held against that. One that ends in another way leaves no such file.
//!
//! A `numbered` one listens on its `PORT` alone, writes only what it is asked for, and says how much
//! it has written; its lines are `DYNO-ID:PID NUMBER`. It holds a lock on its id and one on its name (`FOLDER/locks`): a twin, which
//! cannot have them, is named in `FOLDER/twins`.
//!
//! All webs listen on FRONT besides their `PORT`, and the kernel chooses among them: whoever
//! connects there is refused only while there is none at all.

use std::{
    env,
    error::Error,
    fs::{self, File, TryLockError},
    io::{self, BufRead as _, BufReader, Write as _},
    mem,
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::{self, ExitCode},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use nix::sys::{
    signal::{SigSet, Signal},
    socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
        sockopt,
    },
};

const USAGE: &str = "\
usage: test-tally web FOLDER FRONT   a line for each request on $PORT and FRONT, and for
                                     GET /write/N/BYTES as many of this length
       test-tally worker FOLDER      a line now and then
       test-tally numbered FOLDER    a line for each request on $PORT, and for GET /write/N/BYTES
                                     as many; answers ID:PID LINES";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    // Before any thread, and before the first line.
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    term.thread_block()?;
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let tally = match words[..] {
        ["web", folder, front] => {
            let tally = Arc::new(Tally::in_folder(folder, version)?);
            let port = env::var("PORT")?.parse()?;
            // The other way round it would be ready before it can be reached.
            let listeners = [
                front_listener(front.parse()?)?,
                TcpListener::bind(("127.0.0.1", port))?,
            ];
            for listener in listeners {
                let tally = Arc::clone(&tally);
                thread::spawn(move || serve(&listener, &tally));
            }
            tally
        }
        ["numbered", folder] => {
            let mut tally = Tally::in_folder(folder, Tally::says)?;
            // A Start that is made again, for the driver died in it, has the same id.
            tally.writer = format!("{}:{}", tally.dyno_id, process::id());
            let tally = Arc::new(tally);
            for name in [&*tally.dyno_id, &*env::var("DYNO")?] {
                hold(&tally.folder, name)?;
            }
            let listener = TcpListener::bind(("127.0.0.1", env::var("PORT")?.parse()?))?;
            let serving = Arc::clone(&tally);
            thread::spawn(move || serve(&listener, &serving));
            tally
        }
        ["worker", folder] => {
            let tally = Arc::new(Tally::in_folder(folder, version)?);
            let working = Arc::clone(&tally);
            thread::spawn(move || {
                while working.write(1, 0).is_ok() {
                    thread::sleep(Duration::from_millis(5));
                }
            });
            tally
        }
        _ => {
            writeln!(io::stderr(), "{USAGE}")?;
            return Ok(ExitCode::from(2));
        }
    };
    term.wait()?;
    tally.close()?;
    Ok(ExitCode::SUCCESS)
}

/// How many lines were written.
#[derive(Debug)]
struct Tally {
    dyno_id: String,
    /// What its lines begin with.
    writer: String,
    folder: PathBuf,
    count: Mutex<u64>,
    /// What it answers to a request.
    answer: fn(&Self) -> String,
}

impl Tally {
    fn in_folder(folder: &str, answer: fn(&Self) -> String) -> Result<Self, env::VarError> {
        let dyno_id = env::var("HEROKU_DYNO_ID")?;
        Ok(Self {
            writer: dyno_id.clone(),
            dyno_id,
            folder: folder.into(),
            count: Mutex::default(),
            answer,
        })
    }

    /// Writes as many lines of this length, or longer ones if it takes more to number them.
    fn write(&self, lines: u64, length: usize) -> io::Result<()> {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..lines {
            let line = format!("{} {} ", self.writer, *count + 1);
            // In one piece: the standard output keeps what comes before the newline.
            io::stdout().write_all(format!("{line:.<length$}\n").as_bytes())?;
            *count += 1;
        }
        Ok(())
    }

    /// Who it is, and how much it has written.
    fn says(&self) -> String {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        format!("{} {}", self.writer, *count)
    }

    /// Leaves the number behind; there will be no more lines.
    fn close(&self) -> io::Result<()> {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.folder.join(&self.dyno_id);
        let next = path.with_extension("next");
        File::create(&next)?.write_all(count.to_string().as_bytes())?;
        fs::rename(next, path)?;
        // Whoever wants to write waits until the process is gone.
        mem::forget(count);
        Ok(())
    }
}

/// The release that it is of.
fn version(_: &Tally) -> String {
    env::var("HEROKU_RELEASE_VERSION").unwrap_or_default()
}

/// Holds the lock of this name for as long as the process lives, or says that another does.
fn hold(folder: &Path, name: &str) -> io::Result<()> {
    let lock = File::create(folder.join("locks").join(name))?;
    match lock.try_lock() {
        Ok(()) => mem::forget(lock),
        Err(TryLockError::WouldBlock) => {
            let twins = folder.join("twins");
            let mut twins = File::options().append(true).create(true).open(twins)?;
            writeln!(twins, "{name} {}", process::id())?;
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    Ok(())
}

/// Listens where others of this app do.
fn front_listener(port: u16) -> nix::Result<TcpListener> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port))?;
    listen(&socket, Backlog::new(128)?)?;
    Ok(socket.into())
}

fn serve(listener: &TcpListener, tally: &Arc<Tally>) {
    for stream in listener.incoming().flatten() {
        let tally = Arc::clone(tally);
        // A client that goes away is no reason to end.
        thread::spawn(move || drop(answer(&stream, &tally)));
    }
}

/// Answers one request, when its lines are written.
fn answer(mut stream: &TcpStream, tally: &Tally) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let Some(request) = lines.next().transpose()? else {
        return Ok(());
    };
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let path = request.split(' ').nth(1).unwrap_or_default();
    let numbers = path.strip_prefix("/write/").and_then(|rest| {
        let (lines, length) = rest.split_once('/')?;
        Some((lines.parse().ok()?, length.parse().ok()?))
    });
    let (lines, length) = numbers.unwrap_or((1, 0));
    tally.write(lines, length)?;
    let body = (tally.answer)(tally);
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
