//! An app, its hsup and its driver, and how they are begun, asked and killed.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::{fs::symlink, net::UnixStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::ValueEnum;
use hsup_tests::{
    deadline::{self, poll_for},
    fake::logplex::{Dialect, FakeLogplex},
    ports::Lot,
    unread,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    books::numbered,
    interrupt::is_interrupted,
    machine::{Clock, Disk, Process, all_below, processes_of, signal},
};

/// After this, something is stuck. Nothing takes nearly as long.
const PATIENCE: Duration = Duration::from_mins(2);
const DRIVER: &str = "hsup-driver-fault";

/// Which driver is behind the one that plants faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// hsup's child, with which its dynos die
    Simple,
    /// On its own, and its dynos outlive it
    Durable,
}

/// A release of the app, by what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    Good,
    Ends,
}

/// See the module. Dropped, it is gone, with all that it has started.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) logplex: FakeLogplex,
    pub(crate) disk: Option<Disk>,
    pub(crate) clock: Option<Clock>,
    pub(crate) kind: Kind,
    programs: PathBuf,
    hsup: Option<Child>,
    driver: Option<Child>,
    version: u64,
    ports: Lot,
    // Last: it takes the folder of the disk with it.
    root: TempDir,
}

impl World {
    /// An empty control directory. With a disk, hsup's state is on that.
    pub(crate) fn new(kind: Kind, has_disk: bool, clock: Option<Clock>) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("hsup-chaos-").tempdir()?;
        for folder in ["ctl", "rt", "disk", "tally", "tally/locks", "even", "odd"] {
            fs::create_dir(root.path().join(folder))?;
        }
        let disk = has_disk.then(|| Disk::mount(root.path().join("disk")));
        let own = env::current_exe()?;
        let programs = own.parent().context("no folder of programs")?.to_owned();
        // For `processes_of`: of a driver that is hsup's child only root sees more than its path.
        symlink(programs.join(DRIVER), root.path().join(DRIVER))?;
        Ok(Self {
            logplex: FakeLogplex::start(Dialect::Logplex)?,
            disk: disk.transpose().context("failed to mount a small disk")?,
            clock,
            kind,
            programs,
            hsup: None,
            driver: None,
            version: 0,
            ports: Lot::take(),
            root,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    #[expect(clippy::disallowed_methods, reason = "the program under test")]
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.root.path())
            .env("TMPDIR", self.root.path())
            .env("XDG_RUNTIME_DIR", self.path("rt"))
            .env("HSUP_DRIVER_FAULT_SCRIPT", self.path("faults"))
            .env("LOGPLEX_URL", self.logplex.url())
            .current_dir(self.root.path())
            .stdin(std::process::Stdio::null());
        command
    }

    fn spawn(&self, mut command: Command, log: &str) -> Result<Child> {
        let mut options = File::options();
        let log = options.append(true).create(true).open(self.path(log))?;
        let child = command.stdout(log.try_clone()?).stderr(log).spawn();
        child.with_context(|| format!("failed to start {}", command.get_program().display()))
    }

    /// Begins hsup, and the driver that is not its child, where they do not run.
    pub(crate) fn begin(&mut self) -> Result<()> {
        self.begin_driver()?;
        if self.hsup.is_some() {
            return Ok(());
        }
        let mut start = self.command("hsup");
        start
            .args(["start", "--grace", "10s", "--linger", "10m"])
            .args(["--boot-timeout", "60s", "--restart-backoff", "10ms..100ms"])
            .arg("--control-dir")
            .arg(self.path("ctl"))
            .arg("--state-dir")
            .arg(self.state())
            .arg("-s")
            .arg(self.path("s"))
            .arg("--log-to")
            .arg(format!(
                "file://{}?max-size=4G",
                self.path("all.log").display()
            ));
        match self.kind {
            Kind::Simple => start.arg("-d").arg(self.path(DRIVER)),
            Kind::Durable => start.arg("--driver-socket").arg(self.path("driver.sock")),
        };
        self.hsup = Some(self.spawn(start, "hsup.log")?);
        Ok(())
    }

    fn begin_driver(&mut self) -> Result<()> {
        if self.kind == Kind::Simple || self.driver.is_some() {
            return Ok(());
        }
        let mut driver = self.command(DRIVER);
        let socket = self.path("driver.sock");
        driver.arg("--socket").arg(socket).args(["--", "--durable"]);
        self.driver = Some(self.spawn(driver, "driver.log")?);
        Ok(())
    }

    /// A driver that has died by itself is begun again, as a service manager would.
    pub(crate) fn look_after_driver(&mut self) -> Result<()> {
        if let Some(driver) = &mut self.driver
            && driver.try_wait()?.is_some()
        {
            self.driver = None;
            self.begin_driver()?;
        }
        Ok(())
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path("disk/state")
    }

    pub(crate) fn hsup_pid(&self) -> Option<i32> {
        self.hsup.as_ref().map(|hsup| hsup.id().cast_signed())
    }

    /// The driver's process, if there is one.
    pub(crate) fn driver_pid(&self) -> Option<i32> {
        let processes = self.processes().into_iter();
        let mut drivers = processes.filter(|process| process.program == DRIVER);
        drivers.next().map(|driver| driver.pid)
    }

    /// All processes of the app, with hsup and its driver.
    pub(crate) fn processes(&self) -> Vec<Process> {
        processes_of(self.root.path())
    }

    /// Kills hsup.
    pub(crate) fn kill_hsup(&mut self) -> Result<()> {
        if let Some(mut hsup) = self.hsup.take() {
            hsup.kill()?;
            hsup.wait()?;
        }
        Ok(())
    }

    /// Kills the driver; it is hsup's or a service manager's to begin it again.
    pub(crate) fn kill_driver(&mut self) -> Result<()> {
        if let Some(mut driver) = self.driver.take() {
            driver.kill()?;
            driver.wait()?;
        } else if let Some(pid) = self.driver_pid() {
            signal(pid, Signal::SIGKILL);
        }
        Ok(())
    }

    /// Ends hsup as Ctrl-C does.
    pub(crate) fn end_hsup(&mut self) -> Result<()> {
        self.tell_hsup(Signal::SIGINT, 130)
    }

    /// Has hsup end alone, as for an upgrade.
    pub(crate) fn leave_hsup(&mut self) -> Result<()> {
        self.tell_hsup(Signal::SIGUSR2, 0)
    }

    fn tell_hsup(&mut self, told: Signal, code: i32) -> Result<()> {
        let Some(mut hsup) = self.hsup.take() else {
            return Ok(());
        };
        signal(hsup.id().cast_signed(), told);
        let status = Self::end_of(&mut hsup, "hsup")?;
        if status.code() != Some(code) {
            bail!("hsup ended with {status} after {told}");
        }
        Ok(())
    }

    /// The first line that waits in a FIFO of each dyno that has one there, by who wrote it.
    pub(crate) fn waiting(&self) -> Result<BTreeMap<String, u64>> {
        let mut waiting = BTreeMap::new();
        for (id, text) in unread::by_dyno(&self.path("rt"))? {
            for line in text.lines() {
                let found = numbered(line).filter(|(writer, _)| writer.starts_with(&id));
                let (writer, number) =
                    found.with_context(|| format!("{id} has written `{line}`"))?;
                waiting.entry(writer.to_owned()).or_insert(number);
            }
        }
        Ok(waiting)
    }

    /// Ends the driver as a service manager does.
    pub(crate) fn end_driver(&mut self) -> Result<()> {
        if let Some(mut driver) = self.driver.take() {
            signal(driver.id().cast_signed(), Signal::SIGTERM);
            let status = Self::end_of(&mut driver, "the driver")?;
            if !status.success() {
                bail!("the driver ended with {status} after SIGTERM");
            }
        } else if let Some(pid) = self.driver_pid() {
            signal(pid, Signal::SIGTERM);
        }
        Ok(())
    }

    fn end_of(child: &mut Child, what: &str) -> Result<ExitStatus> {
        let ended = patiently(|| {
            let ended = child.try_wait()?;
            Ok(ended.ok_or_else(|| format!("{what} does not end")))
        });
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        ended
    }

    /// Has the driver misbehave so from now on.
    pub(crate) fn faults(&self, script: &str) -> Result<()> {
        // What is counted is counted anew.
        drop(fs::remove_file(self.path("faults.calls")));
        self.put("faults", script.as_bytes())
    }

    /// Whether a call has gone wrong as the script has it.
    pub(crate) fn has_failed(&self) -> bool {
        let calls = fs::read_to_string(self.path("faults.calls")).unwrap_or_default();
        calls.lines().any(|line| !line.ends_with(": -"))
    }

    fn put(&self, name: &str, content: &[u8]) -> Result<()> {
        let next = self.path("next");
        File::create(&next)?.write_all(content)?;
        fs::rename(next, self.path(name))?;
        Ok(())
    }

    /// Hands in the next release.
    pub(crate) fn release(&mut self, release: Release) -> Result<u64> {
        self.version += 1;
        let tally = self.programs.join("test-tally");
        let tally = format!(
            "exec {} numbered {}",
            tally.display(),
            self.path("tally").display()
        );
        let slug = self.path(if self.version.is_multiple_of(2) {
            "even"
        } else {
            "odd"
        });
        let web = match release {
            Release::Good => &tally,
            Release::Ends => "exit 3",
        };
        let release = json!({
            "Version": self.version,
            // Another one than before: it is built.
            "Slug": format!("file://{}/", slug.display()),
            "Env": { "PORT": self.ports.base.to_string() },
            "Processes": [
                { "Type": "web", "Args": [web], "Quantity": 2 },
                { "Type": "worker", "Args": [tally], "Quantity": 1 },
            ],
        });
        self.put("ctl/new", release.to_string().as_bytes())?;
        Ok(self.version)
    }

    /// The version in a file of the control directory.
    pub(crate) fn version_in(&self, name: &str) -> Option<u64> {
        let text = fs::read(self.path("ctl").join(name)).ok()?;
        let release: Value = serde_json::from_slice(&text).ok()?;
        release["Version"].as_u64()
    }

    /// What hsupctl answers.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command("hsupctl");
        let output = deadline::try_output(command.arg("-s").arg(self.path("s")).args(arguments));
        output.map_err(|said| anyhow!("hsupctl {arguments:?}: {said}"))
    }

    /// The dynos, as hsupctl shows them.
    pub(crate) fn dynos(&self) -> Result<Vec<Value>> {
        let shown = self.ctl(&["ps", "-o", "json"])?;
        Ok(serde_json::from_slice(&shown.stdout).unwrap_or_default())
    }

    /// The sums of what the drains have read, and of what they have done with it.
    pub(crate) fn drained(&self) -> Result<(u64, u64)> {
        let mut stream = UnixStream::connect(self.path("s"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: hsup\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let sum = |name: &str| -> u64 {
            let start = format!("hsup_drain_lines_{name}_total{{");
            let lines = text.lines().filter(|line| line.starts_with(&start));
            let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
            values.sum()
        };
        Ok((sum("read"), sum("sent") + sum("dropped") + sum("lost")))
    }

    /// The last of what hsup and the driver have said.
    pub(crate) fn last_words(&self) -> String {
        let last = |name: &str| {
            let text = fs::read(self.path(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            // What dynos write, and ends with a blank, is in the books.
            let lines = text.lines().filter(|line| !line.ends_with(' '));
            let lines: Vec<_> = lines.collect();
            let last = lines[lines.len().saturating_sub(60)..].join("\n");
            format!("--- {name}\n{last}\n")
        };
        last("hsup.log") + &last("driver.log")
    }

    /// Ends it all, and looks that nothing is left.
    pub(crate) fn close(mut self) -> Result<()> {
        self.end_hsup()?;
        self.end_driver()?;
        patiently(|| {
            let left = self.processes();
            Ok(if left.is_empty() {
                Ok(())
            } else {
                Err(format!("left: {left:?}"))
            })
        })?;
        let runtime = self.path("rt/hsup");
        let left = all_below(&runtime);
        if left != ["run"] {
            bail!("left in the runtime folder: {left:?}");
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in [&mut self.hsup, &mut self.driver].into_iter().flatten() {
            // Already dead is fine.
            drop(child.kill());
            drop(child.wait());
        }
        // Whoever was just being started is found the next time.
        let _ = deadline::poll(|| {
            let left = self.processes();
            for process in &left {
                signal(process.pid, Signal::SIGKILL);
            }
            left.is_empty().then_some(())
        });
        drop(self.disk.take());
    }
}

/// Waits until `done` has an answer; it says meanwhile what is not so yet.
pub(crate) fn patiently<T>(mut done: impl FnMut() -> Result<Result<T, String>>) -> Result<T> {
    let mut last = String::new();
    let found = poll_for(PATIENCE, || match done() {
        _ if is_interrupted() => Some(Err(anyhow!("interrupted"))),
        Ok(Ok(found)) => Some(Ok(found)),
        Ok(Err(not_yet)) => {
            last = not_yet;
            None
        }
        Err(error) => Some(Err(error)),
    });
    found.unwrap_or_else(|| Err(anyhow!("stuck: {last}")))
}

/// What a dyno answers when it is asked to write so many lines.
pub(crate) fn ask(port: u16, lines: u32) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /write/{lines}/0 HTTP/1.1\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").context("no answer")?.1;
    Ok(body.to_owned())
}
