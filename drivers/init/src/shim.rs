//! The parent of one dyno, for drivers that run plain processes: it outlives its driver, knows
//! who belongs to the dyno, and writes down how it ended.
//!
//! ```text
//! driver ── spawns ──▶ hsup-shim ── spawns ──▶ command ──▶ …
//!    │                    │  ▲                     whoever of them loses its parent
//!    └─ signals ──────────┘  └──────────────────── becomes the shim's child
//! ```
//!
//! It is a subreaper (`prctl(2)`), so the dyno is over exactly when it has no child left: no
//! daemon gets away, and nothing must be marked or counted.

use std::{
    env,
    ffi::{CString, OsString},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    iter,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::{
            ffi::OsStringExt as _,
            fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _},
        },
    },
    path::{Path, PathBuf},
    process::{self, ExitCode},
    time::Duration,
};

use crate::{
    command,
    exit_file::{Exit, ExitFile},
    outcome::Outcome,
    sys::{self, Fork},
    unread::Unread,
};

const NAME: &str = "hsup-shim";
const HELP: &str = "\
Runs a dyno as its parent, and writes down how it ended

Usage: hsup-shim [--die-with-parent] --state DIR --id ID -- COMMAND [ARG]...

      --state DIR         Where the states of all dynos are
      --id ID             Which this one is: DIR/ID is made, or must be empty
      --die-with-parent   Kill the dyno when whoever starts this program ends
  -h, --help              Print help
  -V, --version           Print version

DIR/ID/life is a FIFO that has a writer as long as the dyno lives: to read it
is to wait for the end. DIR/ID/pid holds this program's process id from when it
takes signals. DIR/ID/exit.json is there, complete, before the end of life:
{\"code\":0,…} or {\"signal\":15,…}, once every process of the dyno is gone.

A signal goes to every process of the dyno; SIGPWR kills them all. Standard
input, output and error are the dyno's. What it wrote into FIFOs and nobody
has read yet is kept until somebody reads it, or removes them or DIR/ID.
";
/// What this program fails with before there is a command, like `env` and `timeout`.
const FAILED: u8 = 125;
/// Kills the dyno. An app has no use for it: it is how a UPS talks to init.
const KILL: i32 = libc::SIGPWR;
/// How long it takes until somebody is looked for who came into being while others were killed.
const PAUSE: Duration = Duration::from_millis(10);

/// Runs a dyno to its end; the command line is this process's.
pub fn main() -> ExitCode {
    // Its environment is the dyno's. The kernel never refuses this.
    drop(sys::forbid_tracing());
    let failed = match Wanted::parse(env::args_os().skip(1)) {
        Ok(Said::Run(wanted)) => match wanted.begin() {
            Ok(shim) => return shim.run(&wanted.command),
            Err(error) => error.to_string(),
        },
        Ok(Said::Tell(text)) => {
            // That nobody reads it is no failure.
            drop(io::stdout().write_all(text.as_bytes()));
            return ExitCode::SUCCESS;
        }
        Err(error) => format!("{error}; see `hsup-shim --help`"),
    };
    sys::complain(NAME, &failed);
    ExitCode::from(FAILED)
}

/// What the command line says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Run(Wanted),
    Tell(String),
}

#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    folder: PathBuf,
    dies_with_parent: bool,
    command: Vec<CString>,
}

impl Wanted {
    fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Said, String> {
        let mut words = words.into_iter();
        let (mut state, mut id, mut dies_with_parent) = (None, None, false);
        while let Some(word) = words.next() {
            match word.to_str() {
                Some("--state") => state = words.next(),
                Some("--id") => id = words.next(),
                Some("--die-with-parent") => dies_with_parent = true,
                Some("-h" | "--help") => return Ok(Said::Tell(HELP.to_owned())),
                Some("-V" | "--version") => {
                    let version = env!("CARGO_PKG_VERSION");
                    return Ok(Said::Tell(format!("{NAME} {version}\n")));
                }
                Some("--") => {
                    let state = state.ok_or("--state DIR is missing")?;
                    let id = id.ok_or("--id ID is missing")?;
                    let is_name = Path::new(&id).file_name() == Some(&id);
                    if !is_name {
                        return Err(format!("--id `{}` is no file name", id.display()));
                    }
                    let command: Result<Vec<_>, _> =
                        words.map(|word| CString::new(word.into_vec())).collect();
                    let command = command.map_err(|_| "a word of COMMAND has a NUL byte")?;
                    if command.is_empty() {
                        return Err("COMMAND is missing".to_owned());
                    }
                    return Ok(Said::Run(Self {
                        folder: Path::new(&state).join(id),
                        dies_with_parent,
                        command,
                    }));
                }
                _ => return Err(format!("unexpected argument `{}`", word.display())),
            }
        }
        Err("`--` and COMMAND are missing".to_owned())
    }

    /// Takes the dyno's folder, and all of the system that the dyno needs.
    fn begin(&self) -> io::Result<Shim> {
        let parent = std::os::unix::process::parent_id();
        sys::block_all_signals()?;
        sys::do_not_ignore_children();
        sys::become_subreaper()?;
        // Nobody's Ctrl-C is meant for a dyno. Who leads a session already has none either.
        drop(sys::new_session());
        if !Path::new("/proc/thread-self/children").exists() {
            let error = "the kernel lists no children (CONFIG_PROC_CHILDREN), or /proc is missing";
            return Err(io::Error::other(error));
        }
        match DirBuilder::new().mode(0o700).create(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(self.failed("make", &error));
            }
            _ => {}
        }
        let life = self.life().map_err(|error| self.failed("take", &error))?;
        let folder = File::open(&self.folder).map_err(|error| self.failed("open", &error))?;
        let ends = [io::stdout().as_fd(), io::stderr().as_fd()].map(reading_end);
        if self.dies_with_parent {
            sys::signal_when_parent_ends(KILL)?;
            if std::os::unix::process::parent_id() != parent {
                return Err(io::Error::other("whoever started it has ended"));
            }
        }
        // Last: who reads it may send signals.
        write_pid(&folder).map_err(|error| self.failed("write the pid in", &error))?;
        Ok(Shim {
            _life: life,
            exit: ExitFile::reserve(folder),
            outputs: Unread::of(ends.into_iter().flatten()),
        })
    }

    /// An id has one life: how that ended may not be known to everybody yet.
    fn life(&self) -> io::Result<File> {
        let path = self.folder.join("life");
        let name = CString::new(path.clone().into_os_string().into_vec())?;
        match sys::make_fifo(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(io::Error::other("this dyno was started before"))
            }
            Err(error) => Err(error),
            // For reading, too: else it could not be opened before somebody reads.
            Ok(()) => File::options().read(true).write(true).open(path),
        }
    }

    fn failed(&self, what: &str, error: &io::Error) -> io::Error {
        let what = format!("failed to {what} `{}`", self.folder.display());
        sys::failed(&what, error)
    }
}

/// Whole, or not there.
fn write_pid(folder: &File) -> io::Result<()> {
    let mut draft = sys::create_in(folder, c"pid.new")?;
    writeln!(draft, "{}", process::id())?;
    sys::rename_in(folder, c"pid.new", c"pid")
}

/// A dyno's parent.
#[derive(Debug)]
struct Shim {
    /// Ends with this process.
    _life: File,
    exit: ExitFile,
    outputs: Unread,
}

impl Shim {
    fn run(mut self, words: &[CString]) -> ExitCode {
        let outcome = match sys::fork() {
            Ok(Fork::Child) => become_command(words),
            Ok(Fork::Parent(command)) => {
                // The dyno's input and output are the dyno's alone from now on.
                if let Ok(nothing) = File::options().read(true).write(true).open("/dev/null") {
                    sys::become_standard(&nothing);
                }
                look_after(command)
            }
            Err(error) => {
                sys::complain(NAME, &sys::failed("failed to start a process", &error));
                Outcome::Code(FAILED)
            }
        };
        if let Err(error) = self.exit.write(&Exit::now(outcome, false)) {
            let error = sys::failed("failed to write the exit status", &error);
            sys::complain(NAME, &error);
        }
        self.outputs.keep(c"hsup-shim keeps", self.exit.directory());
        outcome.to_exit_code()
    }
}

/// The end of a FIFO that reads, and waits for nobody; none of anything else.
fn reading_end(output: BorrowedFd<'_>) -> Option<File> {
    let path = format!("/proc/self/fd/{}", output.as_raw_fd());
    if !fs::metadata(&path).ok()?.file_type().is_fifo() {
        return None;
    }
    let mut how = OpenOptions::new();
    let how = how.read(true).custom_flags(libc::O_NONBLOCK);
    how.open(path).ok()
}

/// In the child: never returns.
fn become_command(words: &[CString]) -> ! {
    let prepared = sys::new_session()
        .and_then(|()| sys::close_all_but_standard())
        .and_then(|()| sys::reset_signals())
        // Without the shim nobody could stop it, nor say how it ended.
        .and_then(|()| sys::signal_when_parent_ends(libc::SIGKILL));
    if let Err(error) = prepared {
        sys::complain(NAME, &error);
        sys::exit_at_once(FAILED);
    }
    let failure = command::execute(words);
    sys::complain(NAME, &failure);
    sys::exit_at_once(failure.status())
}

/// Until the dyno is over: its first process ended, and whoever that left behind killed.
fn look_after(command: i32) -> Outcome {
    let mut ended = None;
    while ended.is_none() {
        match sys::next_signal() {
            libc::SIGCHLD => {}
            KILL => signal_all(libc::SIGKILL),
            signal => signal_all(signal),
        }
        // After every signal: a dyno that sends others all the time must not hide its end.
        ended = reap(command);
    }
    while sys::has_children() {
        signal_all(libc::SIGKILL);
        sys::next_signal_within(PAUSE);
        reap(command);
    }
    ended.unwrap_or(Outcome::Code(FAILED))
}

/// Lets go of all children that have ended; answers how the first process has.
fn reap(command: i32) -> Option<Outcome> {
    let ended = iter::from_fn(sys::reap).filter(|(pid, _)| *pid == command);
    ended
        .filter_map(|(_, status)| Outcome::from_wait_status(status))
        .last()
}

/// Signals every process of the dyno.
fn signal_all(signal: i32) {
    // Parents first: a shell that is told has not seen its child die of the same.
    let mut next = vec![process::id()];
    while let Some(parent) = next.pop() {
        for child in children(parent) {
            sys::signal(child.cast_signed(), signal);
            next.push(child);
        }
    }
}

/// The children of a process, those of its threads too; none of who has ended meanwhile: they
/// are this process's by now.
fn children(parent: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{parent}/task"));
    let lists = threads.into_iter().flatten().flatten();
    let lists = lists.flat_map(|thread| fs::read_to_string(thread.path().join("children")));
    let mut found = Vec::new();
    for list in lists {
        let pids = list.split_ascii_whitespace().map(str::parse);
        found.extend(pids.filter_map(Result::<u32, _>::ok));
    }
    found
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Said, String> {
        Wanted::parse(line.split_ascii_whitespace().map(OsString::from))
    }

    #[test]
    fn a_command_line_is_read() {
        let said = parse("--state /s --die-with-parent --id web-1 -- sleep --id 3");
        let wanted = Wanted {
            folder: "/s/web-1".into(),
            dies_with_parent: true,
            command: vec![c"sleep".into(), c"--id".into(), c"3".into()],
        };
        assert_eq!(said, Ok(Said::Run(wanted)));
    }

    #[test]
    fn what_is_wrong_with_a_command_line_is_told() {
        for (line, wrong) in [
            ("", "`--` and COMMAND are missing"),
            ("--state /s -- true", "--id ID is missing"),
            ("--id a -- true", "--state DIR is missing"),
            ("--state /s --id a --", "COMMAND is missing"),
            (
                "--state /s --id ../a -- true",
                "--id `../a` is no file name",
            ),
            ("--state /s --id .. -- true", "--id `..` is no file name"),
            ("--state /s --id a true", "unexpected argument `true`"),
        ] {
            assert_eq!(parse(line).unwrap_err(), wrong, "{line}");
        }
    }
}
