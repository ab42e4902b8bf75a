//! An app under test: its own folders, its own ports, the built binaries, and nothing left
//! behind.

use std::{
    env,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU16, Ordering},
    },
    thread::sleep,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything that must happen may take on a loaded machine.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(20);

/// The folder of the built binaries: `HSUP_BIN_DIR`, or where cargo builds them now.
pub(crate) fn binaries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        if let Some(folder) = env::var_os("HSUP_BIN_DIR") {
            return folder.into();
        }
        #[expect(clippy::disallowed_methods, reason = "cargo is no dyno")]
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--workspace", "--bins"])
            .status()
            .unwrap();
        assert!(built.success(), "the binaries could not be built");
        // target/debug/deps/it-… is this program.
        let own = env::current_exe().unwrap();
        own.ancestors().nth(2).unwrap().to_owned()
    })
}

/// A base of ports that no other test of this run has.
fn port_base() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Apart from the other test programs of this machine, and below the ephemeral ports.
    let lot = u16::try_from(std::process::id() % 20).unwrap();
    10_000 + lot * 1000 + NEXT.fetch_add(1, Ordering::Relaxed) * 30
}

/// A folder with an app, and what hsup keeps of it.
pub(crate) struct App {
    root: TempDir,
    pub(crate) port: u16,
}

impl App {
    /// An app with this Procfile.
    pub(crate) fn procfile(text: &str) -> Self {
        let app = Self::empty();
        app.write("app/Procfile", text);
        app.write("app/.env", &format!("PORT={}\n", app.port));
        app
    }

    /// A control directory with nothing in it.
    pub(crate) fn empty() -> Self {
        let root = tempfile::Builder::new()
            .prefix("hsup-it-")
            .tempdir()
            .unwrap();
        for folder in ["app", "ctl", "rt", "state"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        Self {
            root,
            port: port_base(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let mut file = File::create(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// Writes a release for the control directory as people do: a file, moved into place.
    pub(crate) fn release(&self, version: u32, env: &str, processes: &str) {
        let text = format!(
            r#"{{"Version":{version},"Env":{{"PORT":"{}"{env}}},"Processes":[{processes}]}}"#,
            self.port
        );
        self.write("next", &text);
        fs::rename(self.path("next"), self.path("ctl/new")).unwrap();
    }

    #[expect(clippy::disallowed_methods, reason = "the program under test")]
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(binaries().join(program));
        command
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.root.path())
            .env("XDG_RUNTIME_DIR", self.path("rt"))
            .env("XDG_STATE_HOME", self.path("state"))
            .current_dir(self.path("app"))
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command("hsup").args(arguments).output().unwrap()
    }

    pub(crate) fn ctl(&self, arguments: &[&str]) -> Output {
        self.command("hsupctl").args(arguments).output().unwrap()
    }

    /// `hsup start` with these arguments.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running<'_> {
        let out = File::create(self.path("out")).unwrap();
        let err = File::create(self.path("err")).unwrap();
        self.spawn("start", arguments, out, err)
    }

    /// `hsup WORD` with these arguments and outputs.
    pub(crate) fn spawn(
        &self,
        word: &str,
        arguments: &[&str],
        stdout: impl Into<Stdio>,
        stderr: impl Into<Stdio>,
    ) -> Running<'_> {
        self.spawn_as(word, arguments, stdout, stderr, |_| ())
    }

    /// The same, with a child that `prepare` makes special.
    pub(crate) fn spawn_as(
        &self,
        word: &str,
        arguments: &[&str],
        stdout: impl Into<Stdio>,
        stderr: impl Into<Stdio>,
        prepare: impl FnOnce(&mut Command),
    ) -> Running<'_> {
        let mut command = self.command("hsup");
        prepare(&mut command);
        let child = command
            .arg(word)
            .args(arguments)
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap();
        Running { app: self, child }
    }
}

/// A running `hsup start`. Dropped, it is killed with what it started.
pub(crate) struct Running<'a> {
    pub(crate) app: &'a App,
    child: Child,
}

impl Running<'_> {
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub(crate) fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.app.path(name)).unwrap_or_default();
        read("out") + &read("err")
    }

    /// Waits until `done`; `what` names it.
    pub(crate) fn wait_for<T>(&self, what: &str, mut done: impl FnMut() -> Option<T>) -> T {
        let mut waited = Duration::ZERO;
        loop {
            if let Some(result) = done() {
                return result;
            }
            assert!(
                waited < PATIENCE,
                "waited in vain for {what}; hsup said:\n{}\n{}",
                self.log(),
                String::from_utf8_lossy(&self.app.ctl(&["ps", "-o", "json"]).stdout)
            );
            sleep(PAUSE);
            waited += PAUSE;
        }
    }

    pub(crate) fn wait_for_line(&self, text: &str) {
        self.wait_for(text, || self.log().contains(text).then_some(()));
    }

    /// The dynos as `hsupctl ps -o json` shows them.
    pub(crate) fn dynos(&self) -> Vec<Value> {
        let shown = self.app.ctl(&["ps", "-o", "json"]);
        serde_json::from_slice(&shown.stdout).unwrap_or_default()
    }

    /// Waits until exactly these dynos are up and ready; their ids.
    pub(crate) fn wait_up(&self, names: &[&str]) -> Vec<String> {
        self.wait_for(&format!("{names:?} up"), || {
            let dynos = self.dynos();
            let up: Vec<_> = dynos
                .iter()
                .filter(|dyno| dyno["state"] == "up" && dyno["ready"] == true)
                .collect();
            let shown: Vec<_> = up.iter().filter_map(|dyno| dyno["name"].as_str()).collect();
            let ids = up.iter().filter_map(|dyno| dyno["dyno_id"].as_str());
            (shown == names && dynos.len() == names.len()).then(|| ids.map(str::to_owned).collect())
        })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let mut waited = Duration::ZERO;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(waited < PATIENCE, "hsup does not end:\n{}", self.log());
            sleep(PAUSE);
            waited += PAUSE;
        }
    }

    /// Ends it as Ctrl-C does, and looks that nothing is left.
    pub(crate) fn interrupt(self) {
        self.interrupt_and(|_| ());
    }

    /// The same; `check` sees all that hsup said.
    pub(crate) fn interrupt_and(mut self, check: impl FnOnce(&str)) {
        self.signal(Signal::SIGINT);
        let status = self.end();
        let log = self.log();
        assert_eq!(status.code(), Some(130), "{log}");
        self.nothing_is_left();
        check(&log);
    }

    pub(crate) fn nothing_is_left(&self) {
        self.wait_for("no process of the app", || {
            processes_of(self.app).is_empty().then_some(())
        });
        let sockets = fs::read_dir(self.app.path("rt/hsup"));
        let left: Vec<_> = sockets
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|end| end == "sock"))
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Already reaped is fine; a test that failed leaves the rest.
        drop(self.child.kill());
        drop(self.child.wait());
        for pid in processes_of(self.app) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Every live process that has this app's folder in its environment or its arguments.
pub(crate) fn processes_of(app: &App) -> Vec<i32> {
    let mark = app.root.path().to_str().unwrap().as_bytes();
    let has = |path: String| {
        fs::read(path).is_ok_and(|bytes| bytes.windows(mark.len()).any(|part| part == mark))
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| has(format!("/proc/{pid}/environ")) || has(format!("/proc/{pid}/cmdline")))
        .filter(|pid| *pid != std::process::id().cast_signed())
        .collect()
}

/// What an HTTP server on `port` answers to a plain request.
pub(crate) fn page(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// What a server on a unix socket answers to `request`.
pub(crate) fn http(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
