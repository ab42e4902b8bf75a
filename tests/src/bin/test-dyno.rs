//! `test-dyno`: an app for the black-box tests, which does one odd thing at a time.

use std::{
    io::{self, BufRead as _, BufReader, BufWriter, Write},
    net::{TcpListener, TcpStream},
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::{Parser, Subcommand};
use nix::{
    sys::signal::{SigHandler, Signal, signal},
    unistd::{ForkResult, fork, getpid, setsid},
};

/// An app that does one odd thing at a time
#[derive(Debug, Parser)]
#[command(name = "test-dyno")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Answer HTTP on $PORT with the dyno's name and release
    Serve {
        /// Wait so many milliseconds before binding
        #[arg(long, value_name = "MS", default_value_t = 0)]
        delay: u64,
        /// Never bind
        #[arg(long)]
        never: bool,
    },
    /// Print `ready`, and ignore SIGTERM, SIGINT and SIGHUP for ever
    IgnoreTerm,
    /// Leave a grandchild in its own session that ignores SIGTERM; print both pids
    Grandchild {
        /// End at once, and leave the grandchild behind
        #[arg(long)]
        exit: bool,
    },
    /// Write so many bytes without a newline
    Flood {
        /// How many
        bytes: u64,
    },
    /// Write so many numbered lines of 100 bytes
    Lines {
        /// How many
        count: u64,
        /// One write for each line, instead of blocks
        #[arg(long)]
        line_buffered: bool,
    },
    /// End with this exit code
    Exit {
        /// The code
        code: u8,
        /// After so many milliseconds
        #[arg(long, value_name = "MS", default_value_t = 0)]
        after: u64,
    },
    /// Write NUL bytes and broken UTF-8, and end
    Bytes,
    /// Print the environment, sorted
    Env,
    /// Print each argument in a line of its own, quoted
    Argv {
        /// The arguments
        #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
        args: Vec<String>,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let mut stdout = io::stdout();
    match Args::parse().what {
        What::Serve { delay, never } => serve(Duration::from_millis(delay), never)?,
        What::IgnoreTerm => {
            ignore_signals()?;
            say(&mut stdout, "ready")?;
            forever();
        }
        What::Grandchild { exit } => grandchild(exit)?,
        What::Flood { bytes } => flood(&mut stdout, bytes)?,
        What::Lines {
            count,
            line_buffered,
        } => {
            if line_buffered {
                for number in 0..count {
                    stdout.write_all(line(number).as_bytes())?;
                }
            } else {
                let mut blocks = BufWriter::with_capacity(64 * 1024, stdout.lock());
                for number in 0..count {
                    blocks.write_all(line(number).as_bytes())?;
                }
                blocks.flush()?;
            }
        }
        What::Exit { code, after } => {
            thread::sleep(Duration::from_millis(after));
            return Ok(ExitCode::from(code));
        }
        What::Bytes => stdout.write_all(b"a\0b\xff\xfe\x80\r\n\x1b[31m\xc3(\nend")?,
        What::Env => {
            let mut vars: Vec<_> = std::env::vars_os().collect();
            vars.sort();
            for (name, value) in vars {
                let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
                say(&mut stdout, &format!("{name}={value}"))?;
            }
        }
        What::Argv { args } => {
            for arg in args {
                say(&mut stdout, &format!("{arg:?}"))?;
            }
        }
    }
    stdout.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a line and makes sure that it is out.
fn say(out: &mut impl Write, text: &str) -> io::Result<()> {
    writeln!(out, "{text}")?;
    out.flush()
}

/// A line of 100 bytes that begins with its number.
fn line(number: u64) -> String {
    format!("{number:<99}\n")
}

fn forever() -> ! {
    loop {
        thread::park();
    }
}

fn serve(delay: Duration, never: bool) -> anyhow::Result<()> {
    thread::sleep(delay);
    let mut stdout = io::stdout();
    if never {
        say(&mut stdout, "not binding")?;
        forever();
    }
    let port: u16 = std::env::var("PORT")?.parse()?;
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    say(&mut stdout, &format!("listening on {port}"))?;
    for stream in listener.incoming() {
        let stream = stream?;
        // A client that goes away is no reason to end.
        thread::spawn(move || drop(answer(&stream)));
    }
    Ok(())
}

/// Answers one request, whatever it is.
fn answer(stream: &TcpStream) -> io::Result<()> {
    let mut request = BufReader::new(stream).lines();
    while request
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let var = |name| std::env::var(name).unwrap_or_else(|_| "-".to_owned());
    let body = format!(
        "hello from {} release {}\n",
        var("DYNO"),
        var("HEROKU_RELEASE_VERSION")
    );
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

#[expect(unsafe_code, reason = "signal dispositions and fork have no safe form")]
fn ignore_signals() -> anyhow::Result<()> {
    for ignored in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: SIG_IGN installs no handler, so there is no code that could be unsafe to run.
        unsafe { signal(ignored, SigHandler::SigIgn) }?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "signal dispositions and fork have no safe form")]
fn grandchild(exit: bool) -> anyhow::Result<()> {
    // SAFETY: this process has one thread, so the child may run any code.
    if let ForkResult::Child = unsafe { fork() }? {
        setsid()?;
        // SAFETY: as above. The child in between ends, so that this one has no parent here.
        if let ForkResult::Parent { .. } = unsafe { fork() }? {
            return Ok(());
        }
        ignore_signals()?;
        say(&mut io::stdout(), &format!("grandchild {}", getpid()))?;
        forever();
    }
    say(&mut io::stdout(), &format!("dyno {}", getpid()))?;
    if exit {
        return Ok(());
    }
    forever();
}

fn flood(out: &mut impl Write, bytes: u64) -> io::Result<()> {
    let block = [b'x'; 8192];
    let mut rest = bytes;
    while rest > 0 {
        let now = usize::try_from(rest).unwrap_or(usize::MAX).min(block.len());
        out.write_all(&block[..now])?;
        rest -= now as u64;
    }
    out.flush()
}
