//! Trees of real processes, as a driver runs them.
//!
//! One process has one [`Processes`], which reaps every child there is. So all tests share
//! one, on a thread that lives as long as they do, and start no child in another way.

mod escapes;

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use hsup_driver_kit::{
    processes::{Command, Process, Processes, Stdio},
    pty::{Terminal, WindowSize},
    signal::Signal,
};
use hsup_proto::driver::{ExitStatus, exit_status::How};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{self, kill},
    unistd::{self, Pid, pipe2},
};
use tokio::{runtime::Handle, sync::RwLock, time::timeout};

/// Far longer than anything here takes, on a machine with better things to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many tests are under way.
static TESTS: AtomicUsize = AtomicUsize::new(0);
/// Read by every test, written by the end: that kills whoever there is.
static UNDER_WAY: RwLock<()> = RwLock::const_new(());

/// Runs a test on the driver's thread.
pub(crate) fn driver<F, T>(test: impl FnOnce(Processes) -> F + Send + 'static) -> T
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    static DRIVER: OnceLock<(Handle, Processes)> = OnceLock::new();
    let (handle, processes) = DRIVER.get_or_init(|| {
        let (made, driver) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                made.send((Handle::current(), crate::start().unwrap()))
                    .unwrap();
                std::future::pending::<()>().await;
            });
        });
        driver.recv().unwrap()
    });
    TESTS.fetch_add(1, Ordering::Relaxed);
    let (done, result) = mpsc::channel();
    let processes = processes.clone();
    handle.spawn(async move {
        let result = {
            let _under_way = UNDER_WAY.read().await;
            test(processes.clone()).await
        };
        // Whoever is last leaves nothing behind; others may begin after it.
        if TESTS.fetch_sub(1, Ordering::Relaxed) == 1 {
            let _nobody = UNDER_WAY.write().await;
            processes.end().await;
        }
        // The test's thread waits for it.
        drop(done.send(result));
    });
    result
        .recv()
        .expect("the test panicked on the driver's thread")
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// What a dyno writes; ends when the last of its processes has let go of it.
pub(crate) struct Output(File);

impl Output {
    async fn text(mut self) -> String {
        let reading = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            self.0.read_to_string(&mut text).map(|_| text)
        });
        within("the end of the output", reading)
            .await
            .unwrap()
            .unwrap()
    }

    /// The next line, without its end.
    pub(crate) async fn line(&mut self) -> String {
        let mut file = self.0.try_clone().unwrap();
        let reading = tokio::task::spawn_blocking(move || {
            let mut line = Vec::new();
            let mut byte = [0];
            while file.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
                line.push(byte[0]);
            }
            String::from_utf8(line).unwrap()
        });
        within("a line", reading).await.unwrap()
    }
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = timeout(PATIENCE, future).await;
    result.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

fn run(processes: &Processes, name: &str, argv: &[&str], cwd: &str, stdio: Stdio) -> Process {
    let command = Command {
        name,
        argv: &words(argv),
        env: &BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
        cwd: Path::new(cwd),
        stdio,
    };
    processes.spawn(command).unwrap()
}

fn spawn(processes: &Processes, name: &str, argv: &[&str]) -> (Process, Output) {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let stdio = Stdio::Fds {
        stdin: null(),
        stdout: write.try_clone().unwrap(),
        stderr: write,
        kept: None,
    };
    let process = run(processes, name, argv, "/", stdio);
    (process, Output(File::from(read)))
}

pub(crate) fn shell(processes: &Processes, name: &str, script: &str) -> (Process, Output) {
    spawn(processes, name, &["sh", "-c", script])
}

pub(crate) async fn ended(process: &Process) -> How {
    let status: ExitStatus = within("the end of a dyno", process.wait()).await;
    status.how.unwrap()
}

/// What is written on a terminal to its end.
async fn rest(terminal: &Terminal) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let bytes = within("the end of the output", terminal.read()).await;
        if bytes.is_empty() {
            return all;
        }
        all.extend(bytes);
    }
}

pub(crate) fn exists(pid: &str) -> bool {
    let pid: i32 = pid.trim().parse().unwrap();
    kill(Pid::from_raw(pid), None).is_ok()
}

#[test]
fn arguments_and_environment_are_exact() {
    driver(async |processes: Processes| {
        let argv = [
            "sh",
            "-c",
            r#"printf '<%s>' "$@"; env"#,
            "a b",
            "",
            "c\nd",
            "ü",
            "--",
            "*",
        ];
        let (process, output) = spawn(&processes, "exact", &argv);
        let text = output.text().await;
        assert_eq!(ended(&process).await, How::Code(0));
        let (arguments, environment) = text.split_at(text.rfind('>').unwrap() + 1);
        assert_eq!(arguments, "<><c\nd><ü><--><*>");
        let mut environment: Vec<_> = environment.lines().collect();
        // The shell adds its own; nothing of ours is there.
        environment.retain(|line| {
            !["PWD", "SHLVL", "_", "OLDPWD"].contains(&line.split('=').next().unwrap())
        });
        assert_eq!(environment, ["PATH=/usr/bin:/bin"]);
    });
}

#[test]
fn what_cannot_be_executed_has_exited_as_in_a_shell() {
    driver(async |processes: Processes| {
        for (argv0, code, why) in [
            ("no-such-command", 127, "command not found"),
            ("/no/such/file", 127, "No such file or directory"),
            ("/etc/passwd", 126, "Permission denied"),
            ("/", 126, "Permission denied"),
            ("", 127, "command not found"),
        ] {
            let (process, output) = spawn(&processes, "cannot", &[argv0]);
            assert_eq!(ended(&process).await, How::Code(code), "{argv0}");
            assert_eq!(process.pid(), None);
            assert_eq!(output.text().await, format!("{argv0}: {why}\n"));
        }
    });
}

#[test]
fn an_end_is_told_as_it_was() {
    driver(async |processes: Processes| {
        let (process, _) = shell(&processes, "code", "exit 255");
        assert_eq!(ended(&process).await, How::Code(255));
        assert_eq!(ended(&process).await, How::Code(255));
        for (signal, name) in [
            (Signal::TERM, "SIGTERM"),
            (Signal::KILL, "SIGKILL"),
            ("SIGUSR1".parse().unwrap(), "SIGUSR1"),
            ("SIGRTMIN+3".parse().unwrap(), "SIGRTMIN+3"),
        ] {
            let (process, mut output) = shell(&processes, name, "echo up; exec sleep 1000");
            assert_eq!(output.line().await, "up");
            process.signal(signal).await;
            assert_eq!(ended(&process).await, How::Signal(name.to_owned()));
        }
    });
}

#[test]
fn an_end_by_a_real_time_signal_is_told_too() {
    driver(async |processes: Processes| {
        let (process, _output) = shell(&processes, "real-time", "kill -40 $$");
        assert_eq!(ended(&process).await, How::Signal("SIGRTMIN+6".to_owned()));
    });
}

/// A grandchild that left session and group, lost its parent and does not listen.
const ESCAPED: &str = r#"setsid sh -c 'trap "" TERM HUP INT; sh -c "
    trap \"\" TERM HUP INT; echo \$\$; while :; do sleep 1000; done" & exit 0' "#;

#[test]
fn who_escaped_is_killed_with_the_dyno() {
    driver(async |processes: Processes| {
        let (process, mut output) = shell(
            &processes,
            "escaped-1",
            &format!("{ESCAPED}; exec sleep 1000"),
        );
        let escaped = output.line().await;
        assert!(exists(&escaped));
        within("kill", process.kill()).await;
        assert_eq!(ended(&process).await, How::Signal("SIGKILL".to_owned()));
        assert!(!exists(&escaped));
        output.text().await;
    });
}

#[test]
fn who_escaped_goes_when_the_first_process_does() {
    driver(async |processes: Processes| {
        let script = format!("{ESCAPED}; exec sleep 1000");
        let (process, mut output) = shell(&processes, "escaped-2", &script);
        let escaped = output.line().await;
        assert!(exists(&escaped));
        kill(process.pid().unwrap(), signal::Signal::SIGTERM).unwrap();
        assert_eq!(ended(&process).await, How::Signal("SIGTERM".to_owned()));
        assert!(!exists(&escaped));
        output.text().await;
    });
}

#[test]
fn a_signal_reaches_who_escaped() {
    driver(async |processes: Processes| {
        let script = r#"trap : USR1
            setsid sh -c 'trap "echo got it; exit" USR1; echo up; sleep 1000 & wait' &
            wait; wait; exit 3"#;
        let (process, mut output) = shell(&processes, "reach", script);
        assert_eq!(output.line().await, "up");
        process.signal("SIGUSR1".parse().unwrap()).await;
        assert_eq!(output.line().await, "got it");
        assert_eq!(ended(&process).await, How::Code(3));
    });
}

#[test]
fn a_fork_storm_ends() {
    driver(async |processes: Processes| {
        // Every process makes another and goes: whoever is listed is gone when it is killed.
        let script = "storm() { (storm) & exit; }
            for i in 1 2 3 4; do (storm) & done; echo up; exec sleep 1000";
        let (process, mut output) = shell(&processes, "storm", script);
        assert_eq!(output.line().await, "up");
        within("kill", process.kill()).await;
        assert_eq!(ended(&process).await, How::Signal("SIGKILL".to_owned()));
        output.text().await;
    });
}

#[test]
fn three_hundred_at_once() {
    driver(async |processes: Processes| {
        let all: Vec<_> = (0..300)
            .map(|n| spawn(&processes, &format!("many-{n}"), &["sleep", "1000"]))
            .collect();
        for (process, _) in &all {
            assert!(process.pid().is_some());
        }
        let killing: Vec<_> = all
            .iter()
            .map(|(process, _)| {
                let process = process.clone();
                tokio::spawn(async move { process.kill().await })
            })
            .collect();
        for task in killing {
            within("kill", task).await.unwrap();
        }
        for (process, _) in &all {
            assert_eq!(ended(process).await, How::Signal("SIGKILL".to_owned()));
        }
    });
}

#[test]
fn a_complaint_waits_for_nobody() {
    driver(async |processes: Processes| {
        // As a FIFO that is full, and of which nobody reads.
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        while unistd::write(&write, &[0; 4096]).is_ok() {}
        fcntl(&write, FcntlArg::F_SETFL(OFlag::O_WRONLY)).unwrap();
        // A driver that were stuck would be freed, for the test to fail and not to hang.
        let (done, stuck) = mpsc::channel::<()>();
        let watch = thread::spawn(move || {
            let stuck = stuck.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
            drop(read);
            stuck
        });
        let process = run(
            &processes,
            "complaint",
            &["no-such-command"],
            "/",
            Stdio::Fds {
                stdin: null(),
                stdout: null(),
                stderr: write,
                kept: None,
            },
        );
        drop(done);
        assert!(!watch.join().unwrap(), "the driver was stuck");
        assert_eq!(ended(&process).await, How::Code(127));
    });
}

#[test]
fn a_terminal_has_the_size_it_is_given_and_all_that_was_written() {
    driver(async |processes: Processes| {
        let script = "stty size; read -r line; stty size; echo $line; seq 1 20000; exit 4";
        let process = run(
            &processes,
            "terminal",
            &["sh", "-c", script],
            "/",
            Stdio::Terminal(WindowSize {
                rows: 50,
                columns: 132,
            }),
        );
        let terminal = process.terminal().unwrap().clone();
        let mut text = Vec::new();
        while !text.ends_with(b"\n") {
            text.extend(within("the first size", terminal.read()).await);
        }
        assert_eq!(String::from_utf8_lossy(&text), "50 132\r\n");
        let size = WindowSize {
            rows: 33,
            columns: 101,
        };
        terminal.resize(size).unwrap();
        terminal.write(b"hello\n").await.unwrap();
        let text = rest(&terminal).await;
        let text = String::from_utf8(text).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("hello"), "the echo");
        assert_eq!(lines.next(), Some("33 101"));
        assert_eq!(lines.next(), Some("hello"));
        assert_eq!(lines.count(), 20000);
        assert_eq!(ended(&process).await, How::Code(4));
    });
}

#[test]
fn a_command_that_is_not_found_says_so_on_its_terminal() {
    driver(async |processes: Processes| {
        let process = run(
            &processes,
            "no-terminal",
            &["no-such-command"],
            "/",
            Stdio::Terminal(WindowSize::default()),
        );
        let terminal = process.terminal().unwrap().clone();
        let text = String::from_utf8(rest(&terminal).await).unwrap();
        assert_eq!(text, "no-such-command: command not found\r\n");
        assert_eq!(ended(&process).await, How::Code(127));
    });
}

#[test]
fn without_its_directory_a_dyno_cannot_run() {
    driver(async |processes: Processes| {
        let (read, stderr) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let stdio = Stdio::Fds {
            stdin: null(),
            stdout: null(),
            stderr,
            kept: None,
        };
        let process = run(&processes, "nowhere", &["true"], "/no/such/folder", stdio);
        assert_eq!(ended(&process).await, How::Code(126));
        let text = Output(File::from(read)).text().await;
        assert_eq!(text, "/no/such/folder: no such directory to run in\n");
    });
}

#[test]
fn what_a_whole_tree_uses_is_counted() {
    driver(async |processes: Processes| {
        let script = "setsid sh -c 'echo up; exec sleep 1000' & exec sleep 1000";
        let (process, mut output) = shell(&processes, "stats", script);
        assert_eq!(output.line().await, "up");
        let stats = process.stats().await.unwrap();
        assert_eq!(stats.pids, Some(2));
        assert!(stats.memory_bytes.unwrap() > 0);
        let first = process.pid().unwrap().as_raw();
        assert_eq!(stats.pid, Some(first.cast_unsigned()));
        within("kill", process.kill()).await;
        assert_eq!(process.stats().await, None);
    });
}
