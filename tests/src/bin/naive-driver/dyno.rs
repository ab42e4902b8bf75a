//! One dyno: its processes, its output, its end.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::{
        fs::OpenOptionsExt as _,
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hsup_proto::driver::{ExitStatus, StartRequest, exit_status::How, logs_response::Stream};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, killpg},
    },
    unistd::{Pid, setpgid},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    Args, Extra, Fault,
    extras::{self, Binds},
    left,
    log::Log,
    terminal::{self, Terminal},
    tree::{Family, signal_tree},
};

/// A dyno that was started.
#[derive(Debug)]
pub(crate) struct Dyno {
    pub(crate) request: StartRequest,
    /// Its first process, which leads its group; none when it could not be executed.
    pub(crate) first: Option<Pid>,
    pub(crate) started_at: i64,
    pub(crate) exit: watch::Sender<Option<ExitStatus>>,
    /// When a stopping dyno is killed.
    pub(crate) deadline: watch::Sender<Option<Instant>>,
    pub(crate) log: Arc<Log>,
    pub(crate) terminal: Option<Terminal>,
    /// Its address, where dynos have their own.
    pub(crate) serial: u32,
    pub(crate) out_of_memory: AtomicBool,
    /// Gone with the dyno's record.
    _binds: Binds,
    /// Keeps what the dyno wrote while nobody reads it: a FIFO forgets it with its last
    /// descriptor. Gone with the record, too.
    _kept: Vec<File>,
}

impl Dyno {
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(group) = self.first {
            // It may be gone already.
            _ = killpg(group, signal);
        }
    }

    /// Kills everything that descends from the first process.
    pub(crate) fn kill(&self) {
        if let Some(first) = self.first {
            signal_tree(first, Signal::SIGKILL);
        }
        self.signal(Signal::SIGKILL);
    }

    pub(crate) fn status(&self) -> Option<ExitStatus> {
        self.exit.borrow().clone()
    }

    pub(crate) async fn exited(&self) -> ExitStatus {
        let mut exit = self.exit.subscribe();
        loop {
            if let Some(status) = exit.borrow_and_update().clone() {
                return status;
            }
            // The sender is this dyno's own, so there is always one.
            _ = exit.changed().await;
        }
    }

    /// Kills the dyno when its deadline, which may still move, has come.
    pub(crate) async fn enforce(&self) {
        let mut moved = self.deadline.subscribe();
        let mut exit = self.exit.subscribe();
        loop {
            let Some(deadline) = *moved.borrow_and_update() else {
                return;
            };
            tokio::select! {
                _ = exit.wait_for(Option::is_some) => return,
                _ = moved.changed() => {}
                () = sleep_until(deadline) => break,
            }
        }
        self.kill();
    }
}

pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}

/// Opens a FIFO without waiting for the other side, and has its reads and writes wait.
fn open(dir: &str, name: &str, read: bool, write: bool) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(read)
        .write(write)
        .custom_flags(libc::O_NONBLOCK)
        .open(Path::new(dir).join(name))?;
    let flags = OFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(file)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the driver under test here is one that was written without the kit"
)]
fn command(request: &StartRequest, fault: Option<Fault>) -> Command {
    let mut command = if fault == Some(Fault::ArgvThroughShell) {
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(request.argv.join(" "));
        shell
    } else {
        let mut command = Command::new(&request.argv[0]);
        command.args(&request.argv[1..]);
        command
    };
    if fault != Some(Fault::LeaksEnv) {
        command.env_clear();
    }
    command.envs(&request.env);
    command
}

/// What the driver keeps of a dyno's standard streams.
#[derive(Default)]
struct Ends {
    master: Option<terminal::Master>,
    kept: Vec<File>,
}

/// Says where a dyno's standard streams go.
fn stdio(command: &mut Command, request: &StartRequest, args: &Args) -> io::Result<Ends> {
    if request.tty {
        let (rows, columns) = match args.fault {
            Some(Fault::FirstSizeIsIgnored) => (0, 0),
            _ => (request.tty_rows, request.tty_columns),
        };
        return Ok(Ends {
            master: Some(terminal::open(command, rows, columns)?),
            kept: Vec::new(),
        });
    }
    if args.with.contains(&Extra::Logs) {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        return Ok(Ends::default());
    }
    let dir = &request.io_dir;
    left::remember(dir)?;
    let read = args.fault != Some(Fault::OutputWriteOnly);
    command
        .stdout(open(dir, "stdout", read, true)?)
        .stderr(open(dir, "stderr", read, true)?);
    let mut ends = Ends::default();
    if read && args.fault != Some(Fault::ForgetsLastWords) {
        for name in ["stdout", "stderr"] {
            ends.kept.push(open(dir, name, true, false)?);
        }
    }
    let read_write = args.fault == Some(Fault::StdinReadWrite);
    match open(dir, "stdin", true, read_write) {
        Ok(stdin) => command.stdin(stdin),
        Err(_) => command.stdin(Stdio::null()),
    };
    Ok(ends)
}

/// Starts a dyno in `cwd`; the thread that calls must outlive it.
pub(crate) fn spawn(
    request: StartRequest,
    cwd: &Path,
    serial: u32,
    args: &Args,
    family: &Arc<Family>,
) -> io::Result<Arc<Dyno>> {
    let binds = extras::bind(&request.binds, args.fault)?;
    let mut command = command(&request, args.fault);
    command.current_dir(cwd);
    let Ends { master, kept } = stdio(&mut command, &request, args)?;
    let outlives = args.fault == Some(Fault::DynosOutliveIt);
    let tty = request.tty;
    prepare(&mut command, move || {
        if !tty {
            setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        }
        if !outlives {
            set_pdeathsig(Signal::SIGKILL)?;
        }
        Ok(())
    });
    let log = Arc::new(Log::default());
    let (spawned, mut first) = {
        let mut known = family.first();
        let spawned = command.spawn();
        let first = spawned.as_ref().ok().map(|child| child.id().cast_signed());
        known.extend(first);
        (spawned, first.map(Pid::from_raw))
    };
    // Its copies of the dyno's ends of the streams.
    drop(command);
    let mut readers = Vec::new();
    let (terminal, child) = match spawned {
        Ok(mut child) => {
            let out = child.stdout.take();
            readers.extend(out.map(|out| log.keep(Stream::Stdout, out)));
            let err = child.stderr.take();
            readers.extend(err.map(|err| log.keep(Stream::Stderr, err)));
            let terminal = master.map(|master| master.keep(&log, &mut readers));
            (terminal.transpose()?, Ok(child))
        }
        Err(error) => {
            first = None;
            (None, Err(code_of(error)?))
        }
    };
    let dyno = Arc::new(Dyno {
        request,
        first,
        started_at: now_ms(),
        exit: watch::Sender::new(None),
        deadline: watch::Sender::new(None),
        log,
        terminal,
        serial,
        out_of_memory: AtomicBool::new(false),
        _binds: binds,
        _kept: kept,
    });
    match child {
        Ok(child) => {
            if args.fault != Some(Fault::LimitsAreIgnored) {
                extras::limit(&dyno);
            }
            let (dyno, family, fault) = (Arc::clone(&dyno), Arc::clone(family), args.fault);
            thread::spawn(move || reap(&dyno, child, &family, readers, fault));
        }
        Err(code) => end(&dyno, How::Code(code)),
    }
    Ok(dyno)
}

/// What a shell would end with, for a command that cannot be executed.
fn code_of(error: io::Error) -> io::Result<i32> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(127),
        io::ErrorKind::PermissionDenied => Ok(126),
        _ => Err(error),
    }
}

/// Waits for the end of the first process, and makes one of what it leaves.
fn reap(
    dyno: &Dyno,
    mut child: Child,
    family: &Family,
    readers: Vec<thread::JoinHandle<()>>,
    fault: Option<Fault>,
) {
    let pid = child.id().cast_signed();
    let status = child.wait();
    family.first().remove(&pid);
    family.clear();
    for reader in readers {
        // It has nothing to say but that it has ended.
        drop(reader.join());
    }
    let how = match status {
        Ok(status) => match status.signal() {
            Some(_) if fault == Some(Fault::SignalIsExitZero) => How::Code(0),
            Some(signal) => match Signal::try_from(signal) {
                Ok(signal) => How::Signal(signal.as_str().to_owned()),
                Err(_) => How::Signal(format!("SIG{signal}")),
            },
            None => How::Code(status.code().unwrap_or_default()),
        },
        Err(error) => How::Lost(error.to_string()),
    };
    end(dyno, how);
    if fault == Some(Fault::LogsDoNotEnd) {
        return;
    }
    dyno.log.close();
}

fn end(dyno: &Dyno, how: How) {
    dyno.exit.send_replace(Some(ExitStatus {
        how: Some(how),
        oom_killed: dyno.out_of_memory.load(Ordering::SeqCst),
        exited_at_unix_ms: now_ms(),
    }));
}

/// Has `prepare` run in the child, before it executes its command.
#[expect(unsafe_code, reason = "pre_exec has no safe form")]
pub(crate) fn prepare(
    command: &mut Command,
    prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: the closures of this driver make system calls only: they neither allocate nor
    // take a lock.
    unsafe { command.pre_exec(prepare) };
}

/// How long a thread pauses that has to look at a dyno again and again.
pub(crate) const PAUSE: Duration = Duration::from_millis(5);
