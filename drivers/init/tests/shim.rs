//! `hsup-shim` as a driver meets it: real processes, and what it leaves on disk.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like one")]
#![expect(
    clippy::disallowed_methods,
    reason = "what is started here is the program under test, which starts the dyno"
)]

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{BufRead, BufReader, ErrorKind, Read},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use tempfile::TempDir;

const SHIM: &str = env!("CARGO_BIN_EXE_hsup-shim");

struct Dynos {
    state: TempDir,
}

impl Dynos {
    fn new() -> Self {
        Self {
            state: TempDir::new().unwrap(),
        }
    }

    fn command(&self, id: &str, script: &str) -> Command {
        let mut command = Command::new(SHIM);
        command.arg("--state").arg(self.state.path());
        command.args(["--id", id, "--", "sh", "-c", script]);
        command
    }

    /// Starts one; what it writes can be read from its standard output.
    fn start(&self, id: &str, script: &str) -> Child {
        let mut command = self.command(id, script);
        command.stdout(Stdio::piped()).spawn().unwrap()
    }

    fn run(&self, id: &str, script: &str) -> ExitStatus {
        self.command(id, script).status().unwrap()
    }

    fn folder(&self, id: &str) -> PathBuf {
        self.state.path().join(id)
    }

    /// What was written down, without the time of it.
    fn exit(&self, id: &str) -> String {
        let text = fs::read_to_string(self.folder(id).join("exit.json")).unwrap();
        text.split_once(',').unwrap().0.to_owned()
    }
}

fn line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line
}

fn signal(process: &Child, signal: Signal) {
    let pid = Pid::from_raw(process.id().cast_signed());
    kill(pid, signal).unwrap();
}

/// Until everybody has gone who had the other end.
fn read_all(mut output: impl Read) -> String {
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn how_a_dyno_ended_is_written_down() {
    let dynos = Dynos::new();
    assert_eq!(dynos.run("code", "exit 7").code(), Some(7));
    assert_eq!(dynos.exit("code"), "{\"code\":7");
    dynos.run("signal", "kill -SEGV $$");
    assert_eq!(dynos.exit("signal"), "{\"signal\":11");
    dynos.run("like-a-signal", "exit 139");
    assert_eq!(dynos.exit("like-a-signal"), "{\"code\":139");
    let mut missing = Command::new(SHIM);
    let missing = missing.arg("--state").arg(dynos.state.path());
    let missing = missing.args(["--id", "missing", "--", "no-such-program"]);
    // Whoever is not root may not look into it, and it is not there all the same.
    let locked = dynos.state.path().join("locked");
    DirBuilder::new().mode(0o0).create(&locked).unwrap();
    let missing = missing.env("PATH", format!("{}:/usr/bin:/bin", locked.display()));
    let output = missing.output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert_eq!(dynos.exit("missing"), "{\"code\":127");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "hsup-shim: no-such-program: command not found\n");
    fs::remove_dir(locked).unwrap();
}

#[test]
fn an_id_is_used_once() {
    let dynos = Dynos::new();
    dynos.run("web-1", "exit 7");
    let again = dynos.command("web-1", "exit 8").output().unwrap();
    assert_eq!(again.status.code(), Some(125));
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(
        said.contains("web-1`: this dyno was started before"),
        "{said}"
    );
    assert_eq!(dynos.exit("web-1"), "{\"code\":7");
}

#[test]
fn who_is_left_behind_is_killed_before_the_end_is_told() {
    let dynos = Dynos::new();
    let daemon = "trap '' TERM HUP; echo up; while :; do sleep 1; done";
    let script = format!("setsid sh -c \"({daemon}) &\" </dev/null & read -r _; exit 3");
    let mut command = dynos.command("web-1", &script);
    let mut shim = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(shim.stdout.take().unwrap());
    assert_eq!(line(&mut output), "up\n");
    drop(shim.stdin.take());
    assert_eq!(shim.wait().unwrap().code(), Some(3));
    // The daemon had it open, too.
    assert_eq!(read_all(output), "");
    assert_eq!(dynos.exit("web-1"), "{\"code\":3");
}

#[test]
fn a_signal_goes_to_every_process() {
    let dynos = Dynos::new();
    let told = "trap 'echo told; exit 0' TERM; echo up; while :; do sleep 0.01; done";
    let script =
        format!("trap 'wait; exit 4' TERM; setsid sh -c \"{told}\" & while :; do wait; done");
    let mut shim = dynos.start("web-1", &script);
    let mut output = BufReader::new(shim.stdout.take().unwrap());
    assert_eq!(line(&mut output), "up\n");
    signal(&shim, Signal::SIGTERM);
    assert!(read_all(output).contains("told"));
    assert_eq!(shim.wait().unwrap().code(), Some(4));
}

#[test]
fn sigpwr_kills_whoever_ignores_the_rest() {
    let dynos = Dynos::new();
    let script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo up; sleep 1000' & wait";
    let mut shim = dynos.start("web-1", script);
    let mut output = BufReader::new(shim.stdout.take().unwrap());
    assert_eq!(line(&mut output), "up\n");
    signal(&shim, Signal::SIGTERM);
    signal(&shim, Signal::SIGPWR);
    assert_eq!(read_all(output), "");
    shim.wait().unwrap();
    assert_eq!(dynos.exit("web-1"), "{\"signal\":9");
}

#[test]
fn a_dyno_dies_with_the_parent_where_that_is_wanted() {
    let dynos = Dynos::new();
    let state = dynos.state.path().display();
    let script = format!(
        "{SHIM} --die-with-parent --state {state} --id web-1 -- \
         sh -c 'setsid sleep 1000 & echo up; wait' & wait"
    );
    let mut driver = Command::new("sh");
    let driver = driver.args(["-c", &script]).stdout(Stdio::piped());
    let mut driver = driver.spawn().unwrap();
    let mut output = BufReader::new(driver.stdout.take().unwrap());
    assert_eq!(line(&mut output), "up\n");
    driver.kill().unwrap();
    driver.wait().unwrap();
    assert_eq!(read_all(output), "", "until nobody has it open");
}

#[test]
fn last_words_wait_for_who_comes_later() {
    let dynos = Dynos::new();
    let fifo = dynos.state.path().join("stdout");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let open = |path: &Path, writes: bool| {
        let mut how = OpenOptions::new();
        let how = how.read(true).write(writes);
        how.custom_flags(nix::libc::O_NONBLOCK).open(path).unwrap()
    };
    let mut command = dynos.command("web-1", "echo last; echo words >&2");
    command.stdout(open(&fifo, true)).stderr(Stdio::null());
    assert!(command.status().unwrap().success());
    drop(command);
    // Nobody but the shim has had it open since the dyno's end.
    let mut reader = open(&fifo, false);
    let mut text = [0; 5];
    reader.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"last\n");
    fs::remove_dir_all(dynos.folder("web-1")).unwrap();
    // Whoever kept it has no end to write with: this is the end. A process that another test
    // forks has one until it executes its program.
    let end = loop {
        match reader.read(&mut text) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            end => break end,
        }
    };
    assert_eq!(end.unwrap(), 0);
    while keepers(dynos.state.path()) {
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whether any process has this folder in its command line still.
fn keepers(state: &Path) -> bool {
    let state = state.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut lines = processes.flat_map(|process| fs::read(process.path().join("cmdline")));
    lines.any(|line| String::from_utf8_lossy(&line).contains(state))
}
