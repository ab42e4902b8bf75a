//! Starting a driver as a child: in its own session, its socket known, its output kept.
//!
//! A driver that takes a listening descriptor gets one that is bound already, so that the
//! first connect succeeds before the driver's first instruction. Any other gets the path in
//! `HSUP_DRIVER_SOCKET` and makes the socket itself (docs/driver-rules.md §7).

use std::{
    collections::VecDeque,
    ffi::{CString, OsStr, OsString},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, net::UnixListener},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    sys::{
        signal::{self, Signal},
        wait::WaitStatus,
    },
    unistd::{Pid, pipe2},
};
use thiserror::Error;
use tokio::{io::AsyncReadExt as _, net::unix::pipe, task::JoinHandle, time::timeout};

use crate::{
    open_files, socket,
    spawn::{Spawn, Ties},
};

/// How much of a driver's output is kept, to be shown when it does not start.
const OUTPUT_KEPT: usize = 64 * 1024;

/// Which driver to start, and how.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The file to execute.
    pub program: PathBuf,
    /// Its `argv[0]`.
    pub argv0: OsString,
    /// Where it is to listen.
    pub socket: PathBuf,
    /// Whether it takes a listening descriptor.
    pub hand_listener: bool,
}

/// A driver could not be started.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The socket could not be made.
    #[error("failed to listen on the driver socket `{}`", path.display())]
    Listen {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There was no pipe to be had for its output.
    #[error("failed to make a pipe for the driver's output")]
    Pipe(#[source] io::Error),
    /// The program could not be executed.
    #[error("failed to start the driver program `{}`", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A driver that was started.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    socket: PathBuf,
    output: Arc<Mutex<VecDeque<u8>>>,
    reader: JoinHandle<()>,
    ended: Option<WaitStatus>,
}

/// Starts a driver.
///
/// # Errors
/// When its socket or its process cannot be made.
pub fn launch(launch: &Launch) -> Result<Child, LaunchError> {
    let listener = if launch.hand_listener {
        let listener = listen(&launch.socket).map_err(|source| LaunchError::Listen {
            path: launch.socket.clone(),
            source,
        })?;
        Some(OwnedFd::from(listener))
    } else {
        None
    };
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| LaunchError::Pipe(errno.into()))?;
    let pid = spawn(launch, listener.as_ref(), &write).map_err(|source| LaunchError::Spawn {
        program: launch.program.clone(),
        source,
    })?;
    drop(write);
    let output = Arc::default();
    let reader = tokio::spawn(keep(read, Arc::clone(&output)));
    Ok(Child {
        pid: pid.as_raw(),
        socket: launch.socket.clone(),
        output,
        reader,
        ended: None,
    })
}

fn spawn(launch: &Launch, listener: Option<&OwnedFd>, output: &OwnedFd) -> io::Result<Pid> {
    let null = File::open("/dev/null")?;
    let env = environment(&launch.socket, listener.is_some());
    let env: Vec<_> = env
        .into_iter()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            c_string(&name)
        })
        .collect::<io::Result<_>>()?;
    let mut fds = vec![null.as_fd(), output.as_fd(), output.as_fd()];
    fds.extend(listener.map(OwnedFd::as_fd));
    Spawn {
        program: &c_string(launch.program.as_os_str())?,
        argv: &[c_string(&launch.argv0)?],
        env: &env,
        cwd: None,
        fds: &fds,
        // A driver outlives hsup: its dynos may linger.
        ties: Ties::None,
        mark: None,
        open_files: open_files::given(),
        cgroup: None,
    }
    .spawn()
    .map(|spawned| spawned.pid)
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Binds the socket that the driver will accept on. The folder is ours alone.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    socket::listen_at(path, 0o600)
}

fn environment(socket: &Path, listener: bool) -> Vec<(OsString, OsString)> {
    // Ours goes down to the driver, except for what was meant for us.
    let mut env: Vec<_> = std::env::vars_os()
        .filter(|(name, _)| {
            ![
                "LISTEN_FDS",
                "LISTEN_PID",
                "LISTEN_FDNAMES",
                "NOTIFY_SOCKET",
                "WATCHDOG_USEC",
                "WATCHDOG_PID",
                "HEROKU_API_KEY",
                "HEROKU_ACCESS_TOKEN",
                "LOGPLEX_URL",
                "HSUP_LOG_TO",
            ]
            .iter()
            .any(|ours| name == ours)
        })
        .collect();
    env.push(("HSUP_DRIVER_SOCKET".into(), socket.into()));
    if listener {
        env.push(("LISTEN_FDS".into(), "1".into()));
    }
    env
}

/// Reads the driver's output for as long as it writes.
async fn keep(read: OwnedFd, output: Arc<Mutex<VecDeque<u8>>>) {
    let Ok(mut pipe) = pipe::Receiver::from_owned_fd(read) else {
        return;
    };
    let mut buffer = [0; 4096];
    while let Ok(n) = pipe.read(&mut buffer).await {
        if n == 0 {
            return;
        }
        let mut kept = output.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(&buffer[..n]);
        let surplus = kept.len().saturating_sub(OUTPUT_KEPT);
        kept.drain(..surplus);
    }
}

impl Child {
    /// Its process.
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether its end has not been noted yet.
    pub const fn is_running(&self) -> bool {
        self.ended.is_none()
    }

    /// Notes that it was reaped.
    pub const fn ended(&mut self, status: WaitStatus) {
        self.ended = Some(status);
    }

    /// Whether it is known to have ended in order: of itself, and with no error.
    pub const fn has_ended_well(&self) -> bool {
        matches!(self.ended, Some(WaitStatus::Exited(_, 0)))
    }

    /// How it ended, for people.
    pub fn how_it_ended(&self) -> String {
        match self.ended {
            None => "it still runs".to_owned(),
            Some(WaitStatus::Exited(_, code)) => format!("exit code {code}"),
            Some(WaitStatus::Signaled(_, signal, _)) => format!("killed by {signal}"),
            Some(other) => format!("{other:?}"),
        }
    }

    /// What it wrote last, introduced as such; empty when it wrote nothing.
    pub async fn last_output(&self) -> String {
        // What it wrote before it ended is still in the pipe, unless a child of its keeps
        // that open.
        if !self.is_running() {
            let finished = async {
                while !self.reader.is_finished() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let _ = timeout(Duration::from_millis(200), finished).await;
        }
        let mut kept = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(kept.make_contiguous());
        let text = text.trim_end();
        if text.is_empty() {
            String::new()
        } else {
            format!("; it said:\n{text}")
        }
    }

    /// Ends it at once. Its end is noted when it is reaped.
    pub fn kill(&self) {
        self::kill(self.pid);
    }
}

/// Asks a driver to end.
pub fn terminate(pid: i32) {
    // It may have ended by itself.
    let _ = signal::kill(Pid::from_raw(pid), Signal::SIGTERM);
}

/// Ends a driver at once.
pub fn kill(pid: i32) {
    // It may have ended by itself.
    let _ = signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
}
