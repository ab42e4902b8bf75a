//! A driver of one's own, and dynos whose output can be read.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read as _},
    os::unix::{self, fs::OpenOptionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus as Ended, Stdio},
    thread,
    time::Duration,
};

use hsup_driver_kit::client::{Client, Connection};
use hsup_proto::driver::{
    BuildRequest, ExitStatus, Release, StartRequest, StopRequest, WaitRequest,
    build_response::Event, exit_status::How,
};
use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use tempfile::TempDir;
use tokio::{
    net::UnixStream,
    time::{Instant, sleep},
};

/// The user nobody, and its group.
pub(crate) const NOBODY: u32 = 65534;

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A driver process; ended with its dynos when dropped.
pub(crate) struct Driver {
    pub(crate) dir: TempDir,
    child: Child,
}

pub(crate) fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_hsup-driver-simple")
}

pub(crate) fn command(args: &[&OsStr]) -> Command {
    let mut command = run(binary());
    command.args(args);
    command
}

#[expect(
    clippy::disallowed_methods,
    reason = "the driver is the program under test"
)]
pub(crate) fn run(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .env_remove("HSUP_DRIVER_SOCKET");
    command
}

impl Driver {
    pub(crate) fn new() -> Self {
        Self::with_args(&[])
    }

    pub(crate) fn with_args(args: &[&str]) -> Self {
        let dir = TempDir::with_prefix("hsup").unwrap();
        let child = Self::spawn(dir.path(), command(&[]), args);
        Self { dir, child }
    }

    /// A driver that the shell starts after it has run `line`.
    pub(crate) fn after(line: &str, args: &[&str]) -> Self {
        let dir = TempDir::with_prefix("hsup").unwrap();
        let line = format!("{line}; exec {} \"$@\"", binary());
        let mut bash = run("bash");
        bash.args(["-c", &line, "bash"]);
        let child = Self::spawn(dir.path(), bash, args);
        Self { dir, child }
    }

    /// A driver of the user nobody; only root can have one.
    pub(crate) fn of_nobody(args: &[&str]) -> Self {
        let dir = TempDir::with_prefix("hsup").unwrap();
        // The folder of the build may be root's alone.
        let program = dir.path().join("driver");
        fs::copy(binary(), &program).unwrap();
        unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        let mut command = run(program);
        command.uid(NOBODY).gid(NOBODY);
        let child = Self::spawn(dir.path(), command, args);
        Self { dir, child }
    }

    fn spawn(dir: &Path, mut command: Command, args: &[&str]) -> Child {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join("log"))
            .unwrap();
        command
            .arg("--socket")
            .arg(dir.join("drv.sock"))
            .args(args)
            .current_dir(dir)
            .stderr(log);
        loop {
            match command.spawn() {
                // A copy, which what another test spawns has open for writing until its `exec`.
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => thread::yield_now(),
                child => return child.unwrap(),
            }
        }
    }

    /// What it, and whoever was here before it, wrote on its standard error.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("drv.sock")
    }

    pub(crate) async fn connect(&self) -> Connection {
        connect(&self.socket()).await
    }

    /// As [`Driver::connect`], whoever the driver is.
    pub(crate) async fn connect_to_stranger(&self) -> Connection {
        let socket = self.socket();
        let stream = until("a connection", || {
            std::os::unix::net::UnixStream::connect(&socket).ok()
        });
        over(stream.await).await
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits for the driver's end.
    pub(crate) async fn ended(&mut self) -> Ended {
        let child = &mut self.child;
        until("the driver to end", || child.try_wait().unwrap()).await
    }

    /// Starts another driver where this one, which has ended, was.
    pub(crate) fn restart(&mut self) {
        self.child = Self::spawn(self.dir.path(), command(&[]), &[]);
    }

    /// A dyno that is `line`, run by the shell, with its output in FIFOs.
    pub(crate) fn dyno(&self, id: &str, line: &str) -> (StartRequest, Output) {
        let io = self.dir.path().join(id);
        fs::create_dir(&io).unwrap();
        let open = |name: &str| {
            let path = io.join(name);
            mkfifo(&path, Mode::from_bits_truncate(0o622)).unwrap();
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open(path)
                .unwrap()
        };
        let output = Output {
            stdout: open("stdout"),
            _stderr: open("stderr"),
        };
        let request = StartRequest {
            dyno_id: id.into(),
            supervisor_id: "test".into(),
            artifact: format!("dir:{}", self.dir.path().display()),
            app: "app".into(),
            release: 1,
            process_type: "web".into(),
            process_number: 1,
            argv: vec!["/bin/sh".into(), "-c".into(), line.into()],
            env: BTreeMap::from([
                ("PATH".into(), "/usr/bin:/bin".into()),
                ("PORT".into(), "5000".into()),
            ]),
            io_dir: io.to_str().unwrap().into(),
            ..Default::default()
        };
        (request, output)
    }
}

impl Drop for Driver {
    #[expect(clippy::print_stderr, reason = "says why, where a test failed")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the driver said:\n{}", self.log());
        }
        // The second one makes it kill its dynos at once.
        while matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill(self.pid(), Signal::SIGTERM);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The reading ends of a dyno's output.
pub(crate) struct Output {
    stdout: File,
    _stderr: File,
}

impl Output {
    /// The first line of its stdout.
    pub(crate) async fn line(&mut self) -> String {
        let mut line = Vec::new();
        let stdout = &mut self.stdout;
        until("a line of output", || {
            let mut byte = [0];
            while let Ok(1) = stdout.read(&mut byte) {
                if byte == *b"\n" {
                    return Some(());
                }
                line.push(byte[0]);
            }
            None
        })
        .await;
        String::from_utf8(line).unwrap()
    }

    /// The process that wrote its own number.
    pub(crate) async fn pid(&mut self) -> Pid {
        Pid::from_raw(self.line().await.parse().unwrap())
    }
}

pub(crate) async fn connect(socket: &Path) -> Connection {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Connection::open(socket).await {
            Ok(connection) => return connection,
            Err(error) if Instant::now() >= deadline => panic!("{error:?}"),
            Err(_) => sleep(Duration::from_millis(2)).await,
        }
    }
}

/// A connection of the user nobody's; only root can have one.
#[expect(
    unsafe_code,
    reason = "the raw call changes the user of one thread only"
)]
pub(crate) fn connect_as_stranger(socket: &Path) -> std::os::unix::net::UnixStream {
    let socket = socket.to_owned();
    std::thread::spawn(move || {
        // SAFETY: plain numbers go in; the C library, which would change all threads, is
        // not involved, and this thread ends with this function.
        let changed =
            unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        assert_eq!(changed, 0, "{}", std::io::Error::last_os_error());
        std::os::unix::net::UnixStream::connect(socket).unwrap()
    })
    .join()
    .unwrap()
}

/// Speaks the protocol over a stream, whoever is at its ends.
pub(crate) async fn over(stream: std::os::unix::net::UnixStream) -> Connection {
    stream.set_nonblocking(true).unwrap();
    let stream = UnixStream::from_std(stream).unwrap();
    Connection::over(stream, None).await.unwrap()
}

/// Polls until there is an answer.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Whether the process is gone (or is a zombie, which runs no more).
pub(crate) fn gone(pid: Pid) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim().starts_with('Z')),
        Err(_) => true,
    }
}

pub(crate) async fn until_gone(pid: Pid) {
    until("a process to be gone", || gone(pid).then_some(())).await;
}

pub(crate) async fn wait(client: &Client, id: &str) -> ExitStatus {
    let request = WaitRequest {
        dyno_id: id.into(),
        timeout_ms: 30_000,
    };
    let answer = client.clone().wait(request).await.unwrap().into_inner();
    answer.status.expect("the dyno to have exited")
}

pub(crate) fn how(status: &ExitStatus) -> How {
    status.how.clone().unwrap()
}

pub(crate) fn signalled(name: &str) -> How {
    How::Signal(name.into())
}

pub(crate) fn stop(id: &str, grace_ms: u32) -> StopRequest {
    StopRequest {
        dyno_id: id.into(),
        grace_ms,
        ..Default::default()
    }
}

/// Builds, and gives the artifact or the error.
pub(crate) async fn build(client: &Client, release: Release) -> Result<String, tonic::Status> {
    let request = BuildRequest {
        release: Some(release),
        ..Default::default()
    };
    let mut stream = client.clone().build(request).await?.into_inner();
    let mut artifact = None;
    while let Some(message) = stream.message().await? {
        assert_eq!(artifact, None, "the artifact comes last");
        if let Some(Event::Artifact(id)) = message.event {
            artifact = Some(id);
        }
    }
    Ok(artifact.expect("an artifact"))
}
