//! A driver with directories of its own, and hsup as it is used with it.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{super::app, baselines::Docker, stack};

const PAUSE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(20);
const STACK: &str = "work/stacks/bench-1";

/// Directories on the disk and in memory, and a stack.
#[derive(Debug)]
pub(super) struct Host {
    disk: TempDir,
    memory: TempDir,
}

impl Host {
    pub(super) fn new() -> Result<Self> {
        let disk = TempDir::with_prefix("hsup-bench-")?;
        let memory = TempDir::with_prefix_in("hsup-bench-", "/dev/shm")
            .context("failed to make a folder in memory")?;
        let host = Self { disk, memory };
        fs::create_dir(host.disk().join("app"))?;
        let mut file = File::create(host.disk().join("app/Procfile"))?;
        writeln!(file, "worker: true")?;
        stack::make(&host.stack())?;
        Ok(host)
    }

    pub(super) fn disk(&self) -> &Path {
        self.disk.path()
    }

    pub(super) fn memory(&self) -> &Path {
        self.memory.path()
    }

    /// The root file system that dynos run on.
    pub(super) fn stack(&self) -> PathBuf {
        self.disk().join(STACK)
    }

    /// Starts the libcontainer driver, and waits until it serves. Users and addresses are of a
    /// range of their own, in case that the machine has dynos in earnest.
    pub(super) fn driver(&self) -> Result<Driver<'_>> {
        let mut driver = app::command(app::binary("hsup-driver-libcontainer"));
        driver
            .arg("--work-dir")
            .arg(self.disk().join("work"))
            .arg("--run-dir")
            .arg(self.memory().join("run"))
            .env("LIBCONTAINER_DYNO_SUBNET", "10.98.0.0/16")
            .env("LIBCONTAINER_DYNO_UID_MIN", "400000")
            .env("LIBCONTAINER_DYNO_UID_MAX", "408000");
        self.serve(driver)
    }

    /// Starts the docker driver of that engine, and waits until it serves.
    pub(super) fn docker_driver(&self, engine: &Docker) -> Result<Driver<'_>> {
        self.serve_docker(app::command(app::binary("hsup-driver-docker")), engine)
    }

    /// The same for the Swarm that the engine is, with a registry in its network.
    pub(super) fn swarm_driver(&self, engine: &Docker, registry: &str) -> Result<Driver<'_>> {
        let mut driver = engine.in_network(app::binary("hsup-driver-docker"));
        driver.args(["--swarm", "--registry", registry]);
        self.serve_docker(driver, engine)
    }

    fn serve_docker(&self, mut driver: Command, engine: &Docker) -> Result<Driver<'_>> {
        driver
            .arg("--host")
            .arg(engine.host())
            .env("XDG_RUNTIME_DIR", self.memory());
        self.serve(driver)
    }

    fn serve(&self, mut driver: Command) -> Result<Driver<'_>> {
        let log = File::create(self.disk().join("driver.log"))?;
        let child = driver
            .arg("--socket")
            .arg(self.socket())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("failed to start the driver")?;
        let driver = Driver { host: self, child };
        let mut waited = Duration::ZERO;
        while UnixStream::connect(self.socket()).is_err() {
            if waited > PATIENCE {
                bail!("the driver does not serve; it said:\n{}", driver.log());
            }
            sleep(PAUSE);
            waited += PAUSE;
        }
        Ok(driver)
    }

    /// `hsup run` of this line with the docker driver as its child, from the first to the last.
    pub(super) fn hsup_run_docker(&self, engine: &Docker, line: &str) -> Command {
        let mut command = app::command(app::binary("hsup"));
        command
            .args(["-d", "docker"])
            .env("DOCKER_HOST", engine.host());
        self.in_app(command, line)
    }

    /// In a folder with a Procfile.
    fn in_app(&self, mut command: Command, line: &str) -> Command {
        command
            .args(["run", line])
            .current_dir(self.disk().join("app"))
            .env("XDG_RUNTIME_DIR", self.memory())
            .env("XDG_STATE_HOME", self.memory())
            .env_remove("HSUP_CONTROL_DIR")
            .stdin(Stdio::null());
        command
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.disk().join("driver.sock")
    }
}

/// A driver that runs; dropped, it is ended as by a service manager.
#[derive(Debug)]
pub(super) struct Driver<'a> {
    host: &'a Host,
    child: Child,
}

impl Driver<'_> {
    pub(super) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.host.disk().join("driver.log")).unwrap_or_default()
    }

    /// `hsup run` of this line, with this driver.
    pub(super) fn hsup_run(&self, line: &str) -> Command {
        let mut command = app::command(app::binary("hsup"));
        command.arg("--driver-socket").arg(self.host.socket());
        self.host.in_app(command, line)
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        drop(self.child.wait());
    }
}
