//! An app under test: its own folders, its own ports, the built binaries, and nothing left
//! behind.

use std::{
    env,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use hsup_tests::{
    deadline::{self, PATIENCE, poll},
    ports::Lot,
    processes,
};
use nix::{
    sys::{
        resource::{Resource, setrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) use hsup_tests::binaries;

/// A folder with an app, and what hsup keeps of it.
///
/// Dropped, it takes with it whatever a test that failed has left running.
pub(crate) struct App {
    root: TempDir,
    /// The first of three hundred that are this app's alone.
    pub(crate) port: u16,
    _ports: Lot,
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
        let ports = Lot::take();
        Self {
            root,
            port: ports.base,
            _ports: ports,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let mut file = File::create(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// What goes wrong from now on with the calls of `hsup-driver-fault`: see its `--help`.
    pub(crate) fn faults(&self, script: &str) {
        self.write("faults.next", script);
        fs::rename(self.path("faults.next"), self.path("faults")).unwrap();
    }

    /// The calls that `hsup-driver-fault` has got: `start web-1-…: -`, with the fault or none.
    pub(crate) fn calls(&self, call: &str) -> Vec<String> {
        let calls = fs::read_to_string(self.path("faults.calls")).unwrap_or_default();
        let of_call = calls
            .lines()
            .filter(|line| line.split(' ').next() == Some(call));
        of_call.map(str::to_owned).collect()
    }

    /// Writes a release for the control directory as people do: a file, moved into place.
    pub(crate) fn release(&self, version: u32, env: &str, processes: &str) {
        let text = format!(
            r#"{{"Version":{version},"Env":{{"PORT":"{}"{env}}},"Processes":[{processes}]}}"#,
            self.port
        );
        self.hand_in(&text);
    }

    /// The release of a control directory, with these members beside the processes.
    pub(crate) fn text(&self, version: u32, members: &str, processes: &str) -> String {
        format!(
            r#"{{"Version":{version},"Env":{{"PORT":"{}"}},{members}"Processes":[{processes}]}}"#,
            self.port
        )
    }

    /// Moves a text into place as the file `new`.
    pub(crate) fn hand_in(&self, text: &str) {
        self.write("next", text);
        fs::rename(self.path("next"), self.path("ctl/new")).unwrap();
    }

    #[expect(clippy::disallowed_methods, reason = "the program under test")]
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(binaries().join(program));
        command
            // For `processes_of`: of hsup only root sees the environment.
            .arg0(self.path(program))
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.root.path())
            .env("XDG_RUNTIME_DIR", self.path("rt"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("HSUP_DRIVER_FAULT_SCRIPT", self.path("faults"))
            .current_dir(self.path("app"))
            .stdin(Stdio::null());
        command
    }

    /// The version that a file of the control directory has, if it is a release.
    pub(crate) fn version_in(&self, name: &str) -> Option<u64> {
        let text = fs::read(self.path("ctl").join(name)).ok()?;
        let release: Value = serde_json::from_slice(&text).ok()?;
        release["Version"].as_u64()
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        fs::read_to_string(self.path("ctl/last_error")).ok()
    }

    /// `hsup start` on the control directory: unless the arguments say otherwise, a web has
    /// two seconds to boot.
    pub(crate) fn control(&self, arguments: &[&str]) -> Running<'_> {
        let directory = self.path("ctl");
        let mut all = vec!["--control-dir", directory.to_str().unwrap()];
        for default in [
            ["--grace", "2s"],
            ["--linger", "60s"],
            ["--boot-timeout", "2s"],
        ] {
            if !arguments.contains(&default[0]) {
                all.extend(default);
            }
        }
        all.extend(arguments);
        self.start(&all)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        deadline::output(self.command("hsup").args(arguments))
    }

    pub(crate) fn ctl(&self, arguments: &[&str]) -> Output {
        deadline::output(self.command("hsupctl").args(arguments))
    }

    /// `hsup start` with these arguments.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running<'_> {
        self.start_as(arguments, |_| ())
    }

    /// The same, of a program that `prepare` makes special.
    pub(crate) fn start_as(
        &self,
        arguments: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Running<'_> {
        let mut command = self.command("hsup");
        prepare(command.arg("start").args(arguments));
        self.running(command)
    }

    /// `hsup start` that may open so many files.
    pub(crate) fn start_limited(&self, files: u64, arguments: &[&str]) -> Running<'_> {
        let limit = move || setrlimit(Resource::RLIMIT_NOFILE, files, files).map_err(Into::into);
        self.start_as(arguments, |command| {
            #[expect(unsafe_code, reason = "the child's limit is set in the child")]
            // SAFETY: setrlimit is a system call and touches no memory of this process.
            unsafe {
                command.pre_exec(limit);
            }
        })
    }

    /// A program of the app whose output goes to its files `out` and `err`.
    pub(crate) fn running(&self, mut command: Command) -> Running<'_> {
        let out = File::create(self.path("out")).unwrap();
        let err = File::create(self.path("err")).unwrap();
        command.stdout(out).stderr(err);
        let child = deadline::spawn(&mut command);
        Running::of(self, child)
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
        Running::of(self, child)
    }
}

/// A running `hsup start`. Dropped, it is killed with what it started.
pub(crate) struct Running<'a> {
    pub(crate) app: &'a App,
    child: Child,
    is_left: bool,
}

impl<'a> Running<'a> {
    /// A process of the app whose output goes to its files `out` and `err`.
    pub(crate) const fn of(app: &'a App, child: Child) -> Self {
        Self {
            app,
            child,
            is_left: false,
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub(crate) fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.app.path(name)).unwrap_or_default();
        read("out") + &read("err")
    }

    /// Waits until `done`; `what` names it.
    pub(crate) fn wait_for<T>(&self, what: &str, done: impl FnMut() -> Option<T>) -> T {
        poll(done).unwrap_or_else(|| {
            let mut ps = self.app.command("hsupctl");
            let dynos = match deadline::try_output(ps.args(["ps", "-o", "json"])) {
                Ok(shown) => String::from_utf8_lossy(&shown.stdout).into_owned(),
                Err(said) => said,
            };
            panic!(
                "waited in vain for {what}; hsup said:\n{}\n{dynos}",
                self.log()
            );
        })
    }

    pub(crate) fn wait_for_line(&self, text: &str) {
        self.wait_for(text, || self.log().contains(text).then_some(()));
    }

    /// The dynos as `hsupctl ps -o json` shows them.
    pub(crate) fn dynos(&self) -> Vec<Value> {
        let shown = self.app.ctl(&["ps", "-o", "json"]);
        serde_json::from_slice(&shown.stdout).unwrap_or_default()
    }

    /// The releases that hsup remembers, newest first, as `hsupctl releases -o json` shows them.
    pub(crate) fn releases(&self) -> Vec<Value> {
        let shown = self.app.ctl(&["releases", "-o", "json"]);
        serde_json::from_slice(&shown.stdout).unwrap_or_default()
    }

    /// Waits until the releases, newest first, are in these states: `v2 rejected`.
    pub(crate) fn wait_releases(&self, states: &[&str]) {
        self.wait_for(&format!("{states:?}"), || {
            let releases = self.releases();
            let shown = releases.iter().map(|release| {
                let state = release["state"].as_str().unwrap_or_default();
                format!("v{} {state}", release["version"])
            });
            shown.eq(states.iter().copied()).then_some(())
        });
    }

    /// Waits for a dyno of this version that has a process, however far it is; its id.
    pub(crate) fn wait_dyno_of(&self, version: u64) -> String {
        self.wait_for(&format!("a dyno of v{version}"), || {
            let dynos = self.dynos();
            let dyno = dynos.iter().find(|dyno| dyno["release"] == version)?;
            let id = dyno["dyno_id"].as_str().filter(|id| !id.is_empty())?;
            Some(id.to_owned())
        })
    }

    /// The ids of these dynos, if exactly they are up and ready.
    pub(crate) fn up(&self, names: &[&str]) -> Option<Vec<String>> {
        let dynos = self.dynos();
        let up: Vec<_> = dynos
            .iter()
            .filter(|dyno| dyno["state"] == "up" && dyno["ready"] == true)
            .collect();
        let shown: Vec<_> = up.iter().filter_map(|dyno| dyno["name"].as_str()).collect();
        let ids = up.iter().filter_map(|dyno| dyno["dyno_id"].as_str());
        (shown == names && dynos.len() == names.len()).then(|| ids.map(str::to_owned).collect())
    }

    /// Waits until exactly these dynos are up and ready; their ids.
    pub(crate) fn wait_up(&self, names: &[&str]) -> Vec<String> {
        self.wait_for(&format!("{names:?} up"), || self.up(names))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// How it ended, if it has.
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        poll(|| self.has_ended()).unwrap_or_else(|| panic!("hsup does not end:\n{}", self.log()))
    }

    /// Ends it as the kernel does, with its dynos left running.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.end();
        self.leave();
    }

    /// It has ended, and what is left is the next life's.
    pub(crate) fn leave(mut self) {
        self.is_left = true;
    }

    /// Ends it as Ctrl-C does, and looks that nothing is left.
    pub(crate) fn interrupt(self) {
        self.interrupt_and(|_| ());
    }

    /// The same, where a program that asks hsup is still there.
    pub(crate) fn interrupt_beside_others(mut self) {
        self.signal(Signal::SIGINT);
        assert_eq!(self.end().code(), Some(130), "{}", self.log());
        self.leave();
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

    /// No process, no socket, no FIFO, no lock: once hsup has ended, its runtime folder holds
    /// the folder of all runs alone, and that is empty.
    pub(crate) fn nothing_is_left(&self) {
        self.wait_for("no process of the app", || {
            processes_of(self.app).is_empty().then_some(())
        });
        let runs = self.app.path("rt/hsup/run");
        let mut left = below(&self.app.path("rt/hsup"));
        left.retain(|path| *path != runs);
        assert!(left.is_empty(), "left behind: {left:?}\n{}", self.log());
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        // Already reaped is fine; a test that failed leaves the rest.
        drop(self.child.kill());
        drop(self.child.wait());
        kill_all_of(self.app);
    }
}

impl Drop for App {
    fn drop(&mut self) {
        kill_all_of(self);
    }
}

fn kill_all_of(app: &App) {
    for pid in processes_of(app) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Everything in `folder` and in the folders in it.
fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| {
            let path = entry.path();
            let mut found = match entry.file_type() {
                Ok(kind) if kind.is_dir() => below(&path),
                _ => Vec::new(),
            };
            found.push(path);
            found
        })
        .collect()
}

/// Every live process that has this app's folder in its environment or its arguments.
pub(crate) fn processes_of(app: &App) -> Vec<i32> {
    processes::of_folder(app.root.path())
}

/// What an HTTP server on `port` answers to a plain request.
pub(crate) fn page(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// What a server on a unix socket answers to `request`.
pub(crate) fn http(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
#[should_panic(expected = "left behind")]
fn what_hsup_leaves_is_noticed() {
    let app = App::procfile("worker: sleep 1000\n");
    let mut hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    hsup.signal(Signal::SIGINT);
    hsup.end();
    app.write("rt/hsup/run/left", "");
    hsup.nothing_is_left();
}

/// A web process of `test-dyno`, for the file of a control directory.
pub(crate) fn web(arguments: &str, quantity: &str) -> String {
    let dyno = binaries().join("test-dyno");
    format!(
        r#"{{"Type":"web","Args":["exec","{}","serve {arguments}"],"Quantity":{quantity}}}"#,
        dyno.display()
    )
}

/// A process that runs this shell line.
pub(crate) fn process(process_type: &str, line: &str, quantity: u32) -> String {
    format!(r#"{{"Type":"{process_type}","Args":["{line}"],"Quantity":{quantity}}}"#)
}
