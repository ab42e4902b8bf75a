//! The process above a dyno: it starts it, tells how it ended, and keeps what it wrote, whether
//! there is a driver or not.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{
            fs::OpenOptionsExt as _,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus},
    sync::mpsc::RecvTimeoutError,
    thread,
    time::Duration,
};

use hsup_driver_kit::{
    Signal, Status,
    fifo::{self, Fifos},
    orphans,
    proto::{StartRequest, exit_status::How},
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{Pid, setsid},
};
use prost::Message as _;
use tonic::Code;

use crate::{Fault, runtime::put};

/// What it says when the first process exists.
pub(crate) const STARTED: &str = "started";
/// What it is told when nobody asks for the dyno any more; anything else is a signal.
pub(crate) const REMOVED: u8 = 0;

/// How often it looks whether what is kept of the dyno is there.
const LOOK: Duration = Duration::from_millis(100);

/// Runs the dyno whose Start comes on standard input.
pub(crate) fn run(dir: &Path, fault: Option<Fault>) -> ExitCode {
    let begun = begin(dir, fault);
    let (answer, dyno) = match begun {
        Ok(dyno) => (STARTED.to_owned(), Some(dyno)),
        Err(status) => {
            let code = i32::from(status.code());
            (format!("{code} {}", status.message()), None)
        }
    };
    // The answer ends with the descriptor; there is a driver, or nobody to be told.
    let mut output = File::from(take_stdout());
    drop(output.write_all(answer.as_bytes()));
    drop(output);
    let Some(dyno) = dyno else {
        return ExitCode::FAILURE;
    };
    match dyno.see_to_its_end(dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// A dyno that was started.
struct Dyno {
    /// The process, or what a shell would end with.
    first: Result<Child, i32>,
    /// Its end is the dyno's.
    life: File,
    control: File,
    _kept: Vec<OwnedFd>,
}

fn begin(dir: &Path, fault: Option<Fault>) -> Result<Dyno, Status> {
    let failed = |error: io::Error| Status::resource_exhausted(error.to_string());
    let mut told = Vec::new();
    io::stdin().read_to_end(&mut told).map_err(failed)?;
    let (uid, request) = told
        .split_first_chunk::<4>()
        .ok_or_else(|| Status::internal("the shim was told nothing"))?;
    let request = StartRequest::decode(request)
        .map_err(|_| Status::internal("the shim was not told a Start"))?;
    // The driver's end, and its terminal's, are nothing to a dyno.
    setsid().map_err(|errno| failed(errno.into()))?;
    orphans::become_subreaper().map_err(|errno| failed(errno.into()))?;
    let life = OpenOptions::new().write(true).open(dir.join("life"));
    let control = dir.join("control");
    let control = OpenOptions::new().read(true).write(true).open(control);
    let (life, control) = (life.map_err(failed)?, control.map_err(failed)?);
    let Fifos {
        stdin,
        mut stdout,
        mut stderr,
        kept_stdout,
        kept_stderr,
    } = fifo::open_all(Path::new(&request.io_dir), u32::from_le_bytes(*uid))?;
    let mut kept = vec![kept_stdout, kept_stderr];
    if fault == Some(Fault::WriteOnly) {
        kept.clear();
        let io_dir = Path::new(&request.io_dir);
        stdout = write_only(&io_dir.join("stdout")).map_err(failed)?;
        stderr = write_only(&io_dir.join("stderr")).map_err(failed)?;
    }
    let first = match command(&request, stdin, stdout, stderr).spawn() {
        Ok(child) => Ok(child),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(127),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(126),
        Err(error) => return Err(failed(error)),
    };
    Ok(Dyno {
        first,
        life,
        control,
        _kept: kept,
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the kit's spawn ties a dyno to its driver"
)]
fn command(request: &StartRequest, stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd) -> Command {
    let mut command = Command::new(&request.argv[0]);
    command
        .args(&request.argv[1..])
        .env_clear()
        .envs(&request.env)
        .current_dir(&request.artifact)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr)
        .process_group(0);
    command
}

impl Dyno {
    fn see_to_its_end(self, dir: &Path) -> io::Result<()> {
        let (removed, until_removed) = std::sync::mpsc::channel();
        let mut control = self.control;
        thread::spawn(move || {
            let mut byte = [0];
            while control.read_exact(&mut byte).is_ok() && byte[0] != REMOVED {
                if let Some(signal) = Signal::from_number(byte[0].into()) {
                    signal_all(signal);
                }
            }
            _ = removed.send(());
        });
        let how = match self.first {
            Ok(mut child) => how(child.wait()?),
            Err(code) => format!("code {code}"),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        runtime.block_on(orphans::kill_all());
        put(dir, "exit", how.as_bytes())?;
        drop(self.life);
        // What it wrote is kept until then, or until nobody can ask any more.
        while dir.exists() && until_removed.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {}
        Ok(())
    }
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "lost".to_owned(),
    }
}

/// What was written of an exit.
pub(crate) fn read_exit(text: &str) -> Option<How> {
    let (kind, number) = text.split_once(' ')?;
    let number = number.parse().ok()?;
    match kind {
        "code" => Some(How::Code(number)),
        "signal" => Some(How::Signal(Signal::from_number(number)?.to_string())),
        _ => None,
    }
}

/// Why a Start was refused, as the shim tells it.
pub(crate) fn refusal(answer: &str) -> Status {
    let (code, message) = answer.split_once(' ').unwrap_or_default();
    match code.parse() {
        Ok(code) => Status::new(Code::from_i32(code), message),
        Err(_) => Status::internal("the shim said nothing"),
    }
}

/// Signals everything below this process.
fn signal_all(signal: Signal) {
    let mut below = vec![std::process::id().cast_signed()];
    let mut next = 0;
    let parents = parents();
    while let Some(parent) = below.get(next).copied() {
        next += 1;
        let children = parents.iter().filter(|(_, of)| *of == parent);
        below.extend(children.map(|(pid, _)| *pid));
    }
    for pid in &below[1..] {
        // It may be gone already.
        _ = signal.send(Pid::from_raw(*pid));
    }
}

/// Every process, and its parent.
fn parents() -> Vec<(i32, i32)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        Some((pid, fields.nth(1)?.parse().ok()?))
    };
    entries
        .filter_map(|entry| parent(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

fn write_only(path: &Path) -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_WRONLY))?;
    Ok(file.into())
}

/// Standard output, to be closed.
#[expect(unsafe_code, reason = "a standard stream is a number")]
fn take_stdout() -> OwnedFd {
    use std::os::fd::FromRawFd as _;
    // SAFETY: this process was given the descriptor, and nothing else of it writes there.
    unsafe { OwnedFd::from_raw_fd(1) }
}
