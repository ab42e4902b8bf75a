//! `test-dyno`: an app for the black-box tests, which does one odd thing at a time.

use std::{
    error::Error,
    io::{self, BufRead as _, BufReader, BufWriter, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{SigHandler, Signal, signal},
    unistd::{ForkResult, fork, getpid, setsid},
};

const USAGE: &str = "\
usage: test-dyno serve [--delay MS | --never]   answer HTTP on $PORT
       test-dyno serve --once FILE              the same, with 503 until FILE exists
       test-dyno serve --briefly                end with 3 once somebody has connected to $PORT
       test-dyno ignore-term                    print `ready`, ignore SIGTERM, SIGINT and SIGHUP
       test-dyno grandchild [--exit]            leave a grandchild behind, print both pids
       test-dyno flood BYTES                    write without a newline
       test-dyno lines N [--line-buffered]      write numbered lines of 100 bytes
       test-dyno exit N [--after MS]            end with a code
       test-dyno bytes                          write NUL bytes and broken UTF-8
       test-dyno env                            print the environment, sorted
       test-dyno argv [ARG...]                  print each argument in a line, quoted";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut stdout = io::stdout();
    match words[..] {
        ["serve"] => serve(Duration::ZERO, None)?,
        ["serve", "--delay", ms] => serve(Duration::from_millis(ms.parse()?), None)?,
        ["serve", "--once", file] => serve(Duration::ZERO, Some(Path::new(file)))?,
        ["serve", "--briefly"] => {
            let port: u16 = std::env::var("PORT")?.parse()?;
            drop(TcpListener::bind(("0.0.0.0", port))?.accept()?);
            return Ok(ExitCode::from(3));
        }
        ["serve", "--never"] => {
            say(&mut stdout, "not binding")?;
            forever();
        }
        ["ignore-term"] => {
            ignore_signals()?;
            say(&mut stdout, "ready")?;
            forever();
        }
        ["grandchild"] => grandchild(false)?,
        ["grandchild", "--exit"] => grandchild(true)?,
        ["flood", bytes] => flood(&mut stdout, bytes.parse()?)?,
        ["lines", count] => lines(
            &mut BufWriter::with_capacity(64 * 1024, stdout.lock()),
            count.parse()?,
        )?,
        // The standard output writes at every newline.
        ["lines", count, "--line-buffered"] => lines(&mut stdout, count.parse()?)?,
        ["exit", code] => return Ok(ExitCode::from(code.parse::<u8>()?)),
        ["exit", code, "--after", ms] => {
            thread::sleep(Duration::from_millis(ms.parse()?));
            return Ok(ExitCode::from(code.parse::<u8>()?));
        }
        ["bytes"] => stdout.write_all(b"a\0b\xff\xfe\x80\r\n\x1b[31m\xc3(\nend")?,
        ["env"] => {
            let mut vars: Vec<_> = std::env::vars_os().collect();
            vars.sort();
            for (name, value) in vars {
                let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
                say(&mut stdout, &format!("{name}={value}"))?;
            }
        }
        ["argv", ref args @ ..] => {
            for arg in args {
                say(&mut stdout, &format!("{arg:?}"))?;
            }
        }
        _ => {
            say(&mut io::stderr(), USAGE)?;
            return Ok(ExitCode::from(2));
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

/// Writes `count` lines of 100 bytes that begin with their number.
fn lines(out: &mut impl Write, count: u64) -> io::Result<()> {
    for number in 0..count {
        out.write_all(format!("{number:<99}\n").as_bytes())?;
    }
    out.flush()
}

fn forever() -> ! {
    loop {
        thread::park();
    }
}

fn serve(delay: Duration, once: Option<&Path>) -> Result<(), Box<dyn Error>> {
    thread::sleep(delay);
    let mut stdout = io::stdout();
    let port: u16 = std::env::var("PORT")?.parse()?;
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    say(&mut stdout, &format!("listening on {port}"))?;
    for stream in listener.incoming() {
        let stream = stream?;
        // A client that goes away is no reason to end.
        let status = match once {
            Some(file) if !file.exists() => "503 Service Unavailable",
            _ => "200 OK",
        };
        thread::spawn(move || drop(answer(&stream, status)));
    }
    Ok(())
}

/// Answers one request, whatever it is.
fn answer(stream: &TcpStream, status: &str) -> io::Result<()> {
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
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

#[expect(unsafe_code, reason = "signal dispositions and fork have no safe form")]
fn ignore_signals() -> Result<(), Box<dyn Error>> {
    for ignored in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: SIG_IGN installs no handler, so there is no code that could be unsafe to run.
        unsafe { signal(ignored, SigHandler::SigIgn) }?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "signal dispositions and fork have no safe form")]
fn grandchild(exit: bool) -> Result<(), Box<dyn Error>> {
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
