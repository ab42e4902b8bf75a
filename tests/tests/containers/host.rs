//! A host for containers: a driver, its directories, and what must be as before when it ends.

use std::{
    env,
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use hsup_tests::{
    binaries,
    deadline::{self, poll},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::machine::{Traces, busybox, cgroups, rules, take};

/// The user that hsup runs as.
pub(crate) const OPERATOR: u32 = 1000;

/// Directories for a driver, an app for hsup, and how the host was before.
pub(crate) struct Host {
    root: TempDir,
    run: TempDir,
    /// The third byte of its addresses, and with that its users: no two tests share them.
    pub(crate) number: u32,
    before: Traces,
}

impl Host {
    /// A host with a stack `test` and an empty app.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Test programs may run side by side.
        let number = (std::process::id() * 16 + NEXT.fetch_add(1, Ordering::Relaxed)) % 120;
        let disk = env::var_os("HSUP_TEST_DISK").map_or_else(env::temp_dir, PathBuf::from);
        let root = tempfile::Builder::new()
            .prefix("hsup-lc-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(disk)
            .unwrap();
        let run = tempfile::Builder::new()
            .prefix("hsup-lc-")
            .tempdir_in("/dev/shm")
            .unwrap();
        let host = Self {
            root,
            run,
            number,
            before: Traces::of_host(),
        };
        for folder in ["app", "operator", "operator/rt", "operator/state", "socket"] {
            fs::create_dir(host.path(folder)).unwrap();
        }
        for folder in ["app", "operator", "operator/rt", "operator/state"] {
            chown(host.path(folder), Some(OPERATOR), Some(OPERATOR)).unwrap();
        }
        fs::set_permissions(host.path("operator/rt"), fs::Permissions::from_mode(0o700)).unwrap();
        host.write("app/Procfile", "worker: exec sleep 1000\n");
        busybox(&host.path("work/stacks/test-1"));
        host
    }

    /// Puts one of the built programs into the stack.
    pub(crate) fn install(&self, program: &str) {
        take(&binaries().join(program), &self.path("work/stacks/test-1"));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = File::create(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        chown(&path, Some(OPERATOR), Some(OPERATOR)).unwrap();
    }

    /// The addresses that dynos of this host get, as a block.
    pub(crate) fn subnet(&self) -> String {
        format!("10.213.{}.0/24", self.number)
    }

    /// The same for a test that needs hundreds of them.
    pub(crate) fn wide_subnet(&self) -> String {
        format!("10.{}.0.0/16", self.wide())
    }

    fn wide(&self) -> u32 {
        90 + self.number
    }

    /// The first user that a dyno may be.
    pub(crate) fn first_uid(&self) -> u32 {
        200_000 + self.number * 1000
    }

    #[expect(clippy::disallowed_methods, reason = "the program under test")]
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(binaries().join(name));
        command
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("LIBCONTAINER_WORK_DIR", self.path("work"))
            .env("LIBCONTAINER_RUN_DIR", self.run_dir())
            .env("LIBCONTAINER_DYNO_SUBNET", self.subnet())
            .env("LIBCONTAINER_DYNO_UID_MIN", self.first_uid().to_string())
            .env(
                "LIBCONTAINER_DYNO_UID_MAX",
                (self.first_uid() + 62).to_string(),
            )
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// The driver's command line as the conformance suite starts it; variables as it has them.
    pub(crate) fn driver_command(&self) -> Command {
        self.program("hsup-driver-libcontainer")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("socket/lc.sock")
    }

    /// The driver's run directory.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.run.path().join("run")
    }

    /// Where the driver keeps its dynos, when it is the first one there.
    pub(crate) fn dynos(&self) -> PathBuf {
        let only = |folder: &Path| {
            let mut entries = fs::read_dir(folder).unwrap().flatten();
            let folders = entries.find(|entry| entry.path().is_dir());
            folders.unwrap().path()
        };
        only(&only(&self.run_dir())).join("d")
    }

    /// Starts the driver for the operator; `change` may add to its command.
    pub(crate) fn driver_with(&self, change: impl FnOnce(&mut Command)) -> Driver<'_> {
        self.driver_at(&self.socket(), change)
    }

    /// The same, at another socket.
    pub(crate) fn driver_at(&self, socket: &Path, change: impl FnOnce(&mut Command)) -> Driver<'_> {
        let mut command = self.driver_command();
        command
            .arg("--socket")
            .arg(socket)
            .args(["--allow-uid", &OPERATOR.to_string()]);
        change(&mut command);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("driver.log"))
            .unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let driver = Driver { host: self, child };
        let serves = poll(|| serves(socket).then_some(()));
        serves.unwrap_or_else(|| panic!("the driver does not serve:\n{}", driver.log()));
        driver
    }

    pub(crate) fn driver(&self) -> Driver<'_> {
        self.driver_with(|_| ())
    }

    /// What a driver says that cannot begin.
    pub(crate) fn driver_fails(&self, change: impl FnOnce(&mut Command)) -> String {
        // In a folder where the operator may make one, too.
        self.driver_fails_at(&self.path("operator/rt/lc.sock"), change)
    }

    /// The same, at another socket.
    pub(crate) fn driver_fails_at(
        &self,
        socket: &Path,
        change: impl FnOnce(&mut Command),
    ) -> String {
        let mut command = self.driver_command();
        command.arg("--socket").arg(socket);
        change(&mut command);
        let output = deadline::output(&mut command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        said
    }

    /// Gives a folder and what is in it to the operator.
    pub(crate) fn give(&self, name: &str) {
        let path = self.path(name);
        chown(&path, Some(OPERATOR), Some(OPERATOR)).unwrap();
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            chown(entry.path(), Some(OPERATOR), Some(OPERATOR)).unwrap();
        }
    }

    /// hsup or hsupctl as the operator, with that driver.
    pub(crate) fn hsup(&self, program: &str) -> Command {
        use std::os::unix::process::CommandExt as _;
        let mut command = self.program(program);
        command
            .env("HOME", self.path("operator"))
            .env("XDG_RUNTIME_DIR", self.path("operator/rt"))
            .env("XDG_STATE_HOME", self.path("operator/state"))
            .uid(OPERATOR)
            .gid(OPERATOR)
            .current_dir(self.path("app"));
        command
    }

    /// What a command prints in a dyno of this host.
    pub(crate) fn run(&self, line: &str) -> Output {
        self.run_with(line, |_| ())
    }

    pub(crate) fn run_with(&self, line: &str, change: impl FnOnce(&mut Command)) -> Output {
        let mut command = self.hsup("hsup");
        command.arg("run").arg("--driver-socket").arg(self.socket());
        change(&mut command);
        deadline::output(command.arg(line))
    }

    /// The same, which must end well.
    pub(crate) fn says(&self, line: &str) -> String {
        let output = self.run(line);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        let log = fs::read_to_string(self.path("driver.log")).unwrap_or_default();
        assert!(
            output.status.success(),
            "{line}: {}\n{said}{errors}\n{log}",
            output.status
        );
        said
    }

    /// The processes of this host's dynos whose command line begins so.
    pub(crate) fn processes(&self, begin: &str) -> Vec<i32> {
        let run = self.run.path().to_str().unwrap().as_bytes();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.starts_with(begin.replace(' ', "\0").as_bytes())
                && command.windows(run.len()).any(|part| part == run)
        })
        .collect()
    }

    /// Whether the rules for this host's addresses are there.
    pub(crate) fn has_table(&self) -> bool {
        rules().contains(&format!("10.213.{}.", self.number))
    }

    /// The names in a folder of the work directory.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path("work").join(folder));
        let entries = entries.into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        names
    }

    /// Looks that nothing of the driver and its dynos is left.
    pub(crate) fn is_clean(&self) {
        let left = || {
            let now = Traces::of_host();
            let new: Vec<_> = now.0.difference(&self.before.0).cloned().collect();
            let mut new: Vec<_> = new
                .into_iter()
                .filter(|trace| self.is_ours(trace))
                .collect();
            for folder in ["uids", "subnets", "containers"] {
                let entries = fs::read_dir(self.path("work").join(folder));
                let names = entries
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|entry| entry.path());
                // The lock of the leases has a name with a dot.
                let names = names.filter(|path| !is_hidden(path));
                new.extend(names.map(|path| path.display().to_string()));
            }
            new
        };
        let clean = poll(|| left().is_empty().then_some(()));
        assert!(clean.is_some(), "left behind: {:#?}", left());
    }

    /// Whether a trace is one of this test's: others run at the same time.
    fn is_ours(&self, trace: &str) -> bool {
        let addresses = [
            format!("10.213.{}.", self.number),
            format!("10.{}.", self.wide()),
        ];
        let hex = [
            format!("-0ad5{:02x}", self.number),
            format!("-0a{:02x}", self.wide()),
        ];
        let places = [self.root.path(), self.run.path()];
        let of_place = places
            .iter()
            .any(|place| trace.contains(place.to_str().unwrap()));
        let uids = self.first_uid()..self.first_uid() + 1000;
        let of_uid = uids
            .into_iter()
            .any(|uid| trace.ends_with(&format!("-{uid}")));
        of_place
            || of_uid
            || addresses
                .iter()
                .chain(&hex)
                .any(|part| trace.contains(part))
    }
}

fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b".")
}

/// Whether somebody greets a client there (RFC 9113, section 3.4): a driver listens before it has
/// begun to serve, and the first answer has a deadline.
fn serves(socket: &Path) -> bool {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let Ok(mut stream) = std::os::unix::net::UnixStream::connect(socket) else {
        return false;
    };
    stream.write_all(PREFACE).is_ok() && stream.read_exact(&mut [0; 9]).is_ok()
}

/// A driver that runs.
pub(crate) struct Driver<'a> {
    host: &'a Host,
    child: Child,
}

impl Driver<'_> {
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.host.path("driver.log")).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Ends it as the kernel does.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as a service manager does.
    pub(crate) fn end(mut self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).unwrap();
        let status = poll(|| self.child.try_wait().unwrap());
        let status = status.unwrap_or_else(|| panic!("the driver does not end:\n{}", self.log()));
        assert!(status.success(), "{status}\n{}", self.log());
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        // Already reaped is fine.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What a test that failed has left, cgroup by cgroup.
        for group in cgroups() {
            if self.is_ours(&group) {
                let procs = fs::read_to_string(Path::new(&group).join("cgroup.procs"));
                for pid in procs.unwrap_or_default().lines().flat_map(str::parse) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
    }
}
