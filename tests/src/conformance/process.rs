//! A driver that the suite starts itself, and what is left in the process table.

use std::{
    collections::VecDeque,
    fs::{self, Permissions},
    io,
    io::Read,
    os::{
        fd::AsRawFd as _,
        unix::{fs::PermissionsExt as _, net::UnixListener},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::kernel::{OpenFiles, detach};

/// How much of the driver's output is kept to show when its start fails.
const KEPT: usize = 64 * 1024;

/// How often what is left is looked for: a process may fork while it is being killed, and takes
/// a moment to go.
const ROUNDS: usize = 500;

/// A variable in the driver's own environment that no dyno may ever see.
pub(crate) const CANARY: &str = "HSUP_DRIVER_CHECK_CANARY";

/// A driver process in its own session, with a socket of its own.
#[derive(Debug)]
pub(crate) struct DriverProcess {
    child: Child,
    output: Arc<Mutex<VecDeque<u8>>>,
    readers: Vec<thread::JoinHandle<()>>,
    ended: Option<ExitStatus>,
    released: bool,
}

/// The fresh directory that holds a driver's socket; only with another user is it open to others.
#[derive(Debug)]
pub(crate) struct SocketDir(TempDir);

impl SocketDir {
    pub(crate) fn make(peer: Option<u32>) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("hsup-check-").tempdir()?;
        if peer.is_some() {
            fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        }
        Ok(Self(dir))
    }

    /// Where the driver is to listen.
    pub(crate) fn socket(&self) -> PathBuf {
        self.0.path().join("driver.sock")
    }
}

impl DriverProcess {
    /// Starts `command`, which is to bind `socket`.
    pub(crate) fn spawn(command: &str, socket: &Path, limits: OpenFiles) -> io::Result<Self> {
        let mut shell = shell(&format!("exec {command}"));
        shell.env("HSUP_DRIVER_SOCKET", socket);
        detach(&mut shell, limits, None);
        Self::run(shell)
    }

    /// Starts `command` with `listener` handed down as systemd does.
    pub(crate) fn spawn_listening(
        command: &str,
        listener: &UnixListener,
        limits: OpenFiles,
    ) -> io::Result<Self> {
        let mut shell = shell(&format!("export LISTEN_PID=$$; exec {command}"));
        shell.env("LISTEN_FDS", "1");
        shell.env_remove("HSUP_DRIVER_SOCKET");
        detach(&mut shell, limits, Some(listener.as_raw_fd()));
        Self::run(shell)
    }

    /// Starts `command`, which is to bind `socket`, beside a `listener` that was handed down to
    /// another process: to the one that starts this one.
    pub(crate) fn spawn_beside_listener(
        command: &str,
        socket: &Path,
        listener: &UnixListener,
        limits: OpenFiles,
    ) -> io::Result<Self> {
        let mut shell = shell(&format!("export LISTEN_PID=$PPID; exec {command}"));
        shell.env("LISTEN_FDS", "1");
        shell.env("HSUP_DRIVER_SOCKET", socket);
        detach(&mut shell, limits, Some(listener.as_raw_fd()));
        Self::run(shell)
    }

    fn run(mut shell: Command) -> io::Result<Self> {
        let mut child = shell
            .env(CANARY, "leaked")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let output = Arc::default();
        let stdout = child.stdout.take().map(|out| keep(out, &output));
        let stderr = child.stderr.take().map(|err| keep(err, &output));
        Ok(Self {
            child,
            output,
            readers: stdout.into_iter().chain(stderr).collect(),
            ended: None,
            released: false,
        })
    }

    /// The driver's process, which leads its session.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// All that an ended driver printed, unless a process that it left behind prints still.
    pub(crate) async fn last_output(&self) -> String {
        let deadline = Instant::now() + Duration::from_secs(1);
        while !self.readers.iter().all(thread::JoinHandle::is_finished) && Instant::now() < deadline
        {
            sleep(Duration::from_millis(5)).await;
        }
        self.output()
    }

    /// The end of what the driver has printed so far.
    pub(crate) fn output(&self) -> String {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(output.make_contiguous()).into_owned()
    }

    /// How the driver ended, if it has.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Sends `signal` to the driver's own process.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            // A driver that has just ended needs no signal.
            _ = kill(self.pid(), signal);
        }
    }

    /// Waits for its end.
    pub(crate) async fn ends_within(&mut self, patience: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + patience;
        while self.ended()?.is_none() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(true)
    }

    /// Leaves what an ended driver left: its dynos, which may outlive it.
    pub(crate) fn release(mut self) {
        self.released = true;
    }

    /// The processes of the driver's session that still live.
    pub(crate) fn session(&self) -> Vec<i32> {
        let sid = self.pid().as_raw();
        processes()
            .filter(|pid| session_of(*pid) == Some(sid))
            .collect()
    }
}

impl Drop for DriverProcess {
    fn drop(&mut self) {
        if !self.released && (self.ended.is_none() || !self.session().is_empty()) {
            match killpg(self.pid(), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH | Errno::EPERM) => {}
                Err(_) => drop(self.child.kill()),
            }
        }
        drop(self.child.wait());
    }
}

/// `/bin/sh -c LINE`.
#[expect(
    clippy::disallowed_methods,
    reason = "the driver is started with std alone: the kit's spawn code is under test here"
)]
fn shell(line: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(line);
    shell
}

/// Keeps the last of what `source` prints.
fn keep(
    mut source: impl Read + Send + 'static,
    output: &Arc<Mutex<VecDeque<u8>>>,
) -> thread::JoinHandle<()> {
    let output = Arc::clone(output);
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(n @ 1..) = source.read(&mut chunk) {
            let mut kept = output.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(&chunk[..n]);
            let excess = kept.len().saturating_sub(KEPT);
            kept.drain(..excess);
        }
    })
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The session of a process that is alive (a zombie is not).
fn session_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, so the fields are counted from its closing bracket.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let session = fields.nth(2)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(session)
}

/// The living processes whose environment holds `NAME=value`, where this user may look.
pub(crate) fn marked(name: &str, value: &str) -> Vec<i32> {
    let entry = format!("{name}={value}");
    let has = |pid: &i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|b| *b == 0).any(|e| e == entry.as_bytes())
    };
    processes().filter(has).collect()
}

/// Kills every process that [`marked`] finds, and what those started meanwhile.
pub(crate) fn kill_marked(name: &str, value: &str) {
    for _ in 0..ROUNDS {
        let found = marked(name, value);
        if found.is_empty() {
            return;
        }
        for pid in found {
            // One that is gone already, or is not ours to kill, needs no more.
            _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(2));
    }
}
