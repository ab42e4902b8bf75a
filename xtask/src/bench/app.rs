//! The program under measurement: hsup with an app of its own, and what it is compared with.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use super::procfs;

const PAUSE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_mins(1);

/// Builds the binaries that are measured, and these drivers.
pub(super) fn build(drivers: impl Iterator<Item = &'static str>) -> Result<()> {
    let status = command("cargo")
        .args(["build", "--release", "--quiet"])
        // Of ourselves, too: what runs as a dyno must start as a program in earnest does.
        .args(["--package", "hsup-cli", "--package", "xtask"])
        .args(drivers.flat_map(|driver| ["--package", driver]))
        .status()
        .context("failed to run cargo")?;
    ensure!(status.success(), "the release build failed");
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the program under measurement, and what it is compared with"
)]
pub(super) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

/// Where a built binary is.
pub(super) fn binary(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target"),
        PathBuf::from,
    );
    target.join("release").join(name)
}

/// A folder with a Procfile, and room for what hsup keeps of it.
#[derive(Debug)]
pub(super) struct App {
    root: TempDir,
    /// In memory, as the runtime directory of a machine is; its /run may be none here.
    runtime: TempDir,
}

impl App {
    pub(super) fn new() -> Result<Self> {
        let root = TempDir::with_prefix("hsup-bench-")?;
        let runtime = TempDir::with_prefix_in("hsup-bench-", "/dev/shm")
            .context("failed to make a folder in memory")?;
        Ok(Self { root, runtime })
    }

    pub(super) fn path(&self) -> &Path {
        self.root.path()
    }

    pub(super) fn procfile(&self, line: &str) -> Result<()> {
        let mut file = File::create(self.path().join("Procfile"))?;
        Ok(writeln!(file, "worker: {line}")?)
    }

    /// `hsup` or `hsupctl` in this app's folder.
    pub(super) fn program(&self, name: &str) -> Command {
        let mut command = command(binary(name));
        command
            .current_dir(self.path())
            .env("XDG_RUNTIME_DIR", self.runtime.path())
            .env("XDG_STATE_HOME", self.path())
            .env_remove("HSUP_CONTROL_DIR")
            .stdin(Stdio::null());
        command
    }

    /// `hsup start` with so many dynos, its log kept in a file.
    pub(super) fn start(&self, dynos: usize) -> Result<Running<'_>> {
        let log = File::create(self.path().join("log"))?;
        let hsup = self
            .program("hsup")
            .args(["start", &format!("worker={dynos}")])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("failed to start hsup")?;
        Ok(Running { app: self, hsup })
    }
}

/// A running `hsup start`; dropped, it is ended as by Ctrl-C.
#[derive(Debug)]
pub(super) struct Running<'a> {
    app: &'a App,
    hsup: Child,
}

impl Running<'_> {
    /// Waits until so many dynos are up, and their output and state have been dealt with.
    pub(super) fn wait_up(&self, dynos: usize) -> Result<()> {
        let mut waited = Duration::ZERO;
        loop {
            let shown = self
                .app
                .program("hsupctl")
                .args(["ps", "-o", "json"])
                .output()?;
            let list: Vec<Value> = serde_json::from_slice(&shown.stdout).unwrap_or_default();
            let up = list.iter().filter(|dyno| dyno["state"] == "up").count();
            if up == dynos {
                return Ok(());
            }
            if waited > PATIENCE {
                let log = fs::read_to_string(self.app.path().join("log"))?;
                bail!("only {up} of {dynos} dynos are up; hsup said:\n{log}");
            }
            sleep(PAUSE);
            waited += PAUSE;
        }
    }

    /// hsup and its driver.
    pub(super) fn processes(&self) -> Result<[i32; 2]> {
        let hsup = i32::try_from(self.hsup.id())?;
        let processes = procfs::processes()?;
        let driver = processes
            .into_iter()
            .find(|pid| procfs::parent(*pid) == Some(hsup));
        Ok([hsup, driver.context("hsup has no driver")?])
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = kill(Pid::from_raw(self.hsup.id().cast_signed()), Signal::SIGINT);
        drop(self.hsup.wait());
    }
}
