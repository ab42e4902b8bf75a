//! `hsup-driver-fault`: the simple driver, behind a door that misbehaves as a script says.
//!
//! ```text
//!  hsup ──▶ the driver's socket ──▶ faults ──▶ a socket behind it ──▶ the simple driver
//! ```
//!
//! Both live in this process, so that it dies as one. Every connection from outside has one
//! of its own inside: the driver sees who comes and goes.

mod door;
mod fetch;
mod rule;
mod script;

use std::{
    env,
    error::Error,
    ffi::OsString,
    io,
    os::unix::net::UnixStream as StdStream,
    path::{Path, PathBuf},
    process::{self, ExitCode},
    thread,
    time::Duration,
};

use clap::{CommandFactory as _, Parser, error::ErrorKind};
use hsup_driver_kit::{client::Connection, errors::chain, socket::listen_at};
use hsup_proto::driver::dyno_driver_server::DynoDriverServer;
use tokio::{
    net::{UnixListener, UnixStream},
    time::{sleep, timeout},
};
use tokio_stream::once;
use tonic::transport::Server;

use self::{
    door::Door,
    script::{Script, Source},
};

/// Every dyno has a Wait open.
const MAX_STREAMS: u32 = 100_000;

/// So long somebody may be on the way who has just started it.
const FIRST_CALLER_WITHIN: Duration = Duration::from_mins(1);

type Failure = Box<dyn Error + Send + Sync>;

const HELP: &str = "\
A script has a rule a line (in a text on the command line `;` ends one, too):

  [once | N times] [skip N] [P%] CALL[@PREFIX] FAULT

CALL is info, build, start, stop, wait, ip, list, remove, signal, stats, attach, or any. PREFIX
is what the dyno id begins with (start@web-), of a build the version (build@v2), of a remove
the id or artifact. The first rule that fits is carried out:

  STATUS [MESSAGE]   fails with this status: unavailable, resource-exhausted, internal, …
  hang               is never answered
  delay MS           takes so many milliseconds longer
  die                the driver is killed, and its dynos with it unless they are durable
  kill               the caller is killed, by its pid
  cut                the caller's connection is closed
  twice              the driver gets it twice, as from a caller that tries again

With -after behind its first word a fault comes when everything is done: unavailable-after,
hang-after, delay-after, die-after, kill-after, cut-after. Counts are of all calls in the list of calls.
Lines that begin with # are comments. These change what the driver says of itself:

  is not-ready WHY | is instance ID | is own-network | is fetching

A script in a file is read anew at every call: write a new one beside it and rename it.

Examples:
  hsup-driver-fault --script '10% start unavailable no room' --seed 7 --socket /tmp/f.sock
  hsup-driver-fault --script faults --socket /tmp/f.sock -- --durable
  HSUP_DRIVER_FAULT_SCRIPT=$PWD/faults hsup start -d ./hsup-driver-fault";

/// The simple driver, with faults that a script plants
#[derive(Debug, Parser)]
#[expect(
    clippy::doc_markdown,
    reason = "the documentation is the text of --help"
)]
#[command(version, name = "hsup-driver-fault", after_help = HELP)]
struct Args {
    /// The script: a file, or its text, which has a blank and does not begin as a path
    /// [default: HSUP_DRIVER_FAULT_SCRIPT]
    #[arg(long, value_name = "FILE_OR_TEXT")]
    script: Option<String>,

    /// What chances are drawn from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// List each call in this file, with what went wrong with it [default: FILE.calls]
    #[arg(long, value_name = "PATH")]
    calls: Option<PathBuf>,

    /// Serve on this socket; without it on HSUP_DRIVER_SOCKET, as hsup's child
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Options of the simple driver behind
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<OsString>,
}

/// What the driver serves, and what it passes calls on to.
#[derive(Debug)]
struct Sockets {
    outer: PathBuf,
    behind: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let begun = begin(&args).and_then(|(sockets, script, options)| {
        let listener = listen(&sockets.outer)?;
        Ok((sockets, script, options, listener))
    });
    let (sockets, script, options, listener) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            report(&*error);
            return ExitCode::FAILURE;
        }
    };
    let outer = sockets.outer.clone();
    thread::spawn(move || {
        if let Err(error) = serve(listener, &sockets, &script) {
            report(&*error);
        }
    });
    // On the first thread: the kernel kills the dynos when the thread that spawned them ends.
    let ended = hsup_driver_simple::main(options);
    drop(std::fs::remove_file(outer));
    ended
}

/// Where it serves, what goes wrong, and what the driver behind is told.
fn begin(args: &Args) -> Result<(Sockets, Script, Vec<OsString>), Failure> {
    let given = args.script.clone();
    let given = given.or_else(|| env::var("HSUP_DRIVER_FAULT_SCRIPT").ok());
    let source = Source::of(&given.unwrap_or_else(|| usage("no script: give --script")));
    let script = Script::new(
        source.clone(),
        args.calls.clone().or_else(|| source.calls()),
        args.seed,
    );
    script.rules()?;
    let outer = args.socket.clone();
    let outer = outer.or_else(|| env::var_os("HSUP_DRIVER_SOCKET").map(PathBuf::from));
    let outer = outer.unwrap_or_else(|| usage("no socket: give --socket"));
    let is_child = args.socket.is_none();
    let behind = match source {
        // Of a driver that comes again its durable dynos are beside it.
        _ if !is_child => extended(&outer, ".behind"),
        // Not beside the door: that folder is hsup's, and hsup knows nothing of it.
        Source::File(path) => path.with_extension(format!("{}.sock", process::id())),
        Source::Text(_) => env::temp_dir().join(format!("hsup-fault-{}.sock", process::id())),
    };
    let child = is_child.then(|| OsString::from("--child"));
    let socket = ["--socket".into(), behind.clone().into()];
    let options = child.into_iter().chain(socket).chain(args.options.clone());
    Ok((Sockets { outer, behind }, script, options.collect()))
}

fn extended(path: &Path, extension: &str) -> PathBuf {
    let mut path = path.to_owned().into_os_string();
    path.push(extension);
    path.into()
}

fn usage(why: &str) -> ! {
    let kind = ErrorKind::MissingRequiredArgument;
    Args::command().error(kind, why).exit()
}

/// Says what the driver cannot do: its standard error is its log, which hsup shows when it does
/// not come up.
#[expect(clippy::print_stderr, reason = "a program's own words")]
fn report(error: &(dyn Error + 'static)) {
    eprintln!("hsup-driver-fault: {}", chain(error));
}

/// Listens there, in the place of one that is gone.
fn listen(path: &Path) -> Result<std::os::unix::net::UnixListener, Failure> {
    if StdStream::connect(path).is_ok() {
        return Err(format!("the socket `{}` is in use", path.display()).into());
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let listener = listen_at(path, 0o600)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves the door for as long as the process lives.
fn serve(
    listener: std::os::unix::net::UnixListener,
    sockets: &Sockets,
    script: &Script,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // The driver behind the door comes up at the same time.
        let held = loop {
            if let Ok(held) = Connection::open(&sockets.behind).await {
                break held;
            }
            sleep(Duration::from_millis(1)).await;
        };
        let listener = UnixListener::from_std(listener)?;
        // On a busy machine the first caller takes longer than the driver behind would wait for
        // one.
        let first = timeout(FIRST_CALLER_WITHIN, listener.accept()).await;
        let mut next = first.ok();
        drop(held);
        loop {
            let (stream, _) = match next.take() {
                Some(accepted) => accepted?,
                None => listener.accept().await?,
            };
            tokio::spawn(connection(stream, sockets.behind.clone(), script.clone()));
        }
    })
}

/// Serves one connection to its end.
async fn connection(stream: UnixStream, behind: PathBuf, script: Script) {
    let served = async {
        let stream = stream.into_std()?;
        let door = Door {
            inner: Connection::open(&behind).await?.client(),
            behind,
            script,
            caller: stream.try_clone()?,
        };
        let stream = UnixStream::from_std(stream)?;
        Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .add_service(DynoDriverServer::new(door))
            .serve_with_incoming(once(Ok::<_, io::Error>(stream)))
            .await?;
        Ok::<_, Failure>(())
    };
    if let Err(error) = served.await {
        report(&*error);
    }
}
