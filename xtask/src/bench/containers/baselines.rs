//! What the driver is compared with: Docker's engine and runc.

use std::{
    ffi::OsStr,
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
use serde_json::{Value, json};

use super::super::app;

const PAUSE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_mins(1);
const IMAGE: &str = "hsup-bench";
const CGROUPS: &str = "/sys/fs/cgroup";

/// An engine of our own, in network and mount namespaces of its own: its bridge, its rules and
/// its mounts go with it.
#[derive(Debug)]
pub(super) struct Docker {
    daemon: Child,
    socket: PathBuf,
    /// The cgroups that it leaves.
    groups: Vec<PathBuf>,
}

impl Docker {
    /// Starts one with an image of `root`.
    pub(super) fn start(disk: &Path, memory: &Path, root: &Path) -> Result<Self> {
        let socket = disk.join("docker.sock");
        let log = File::create(disk.join("docker.log"))?;
        let daemon = app::command("unshare")
            .args(["--net", "--mount", "sh", "-c"])
            // Ports are published on the loopback, which is down in a new namespace.
            .args([
                "ip link set lo up && exec \"$@\"",
                "sh",
                "dockerd",
                "--data-root",
            ])
            .arg(disk.join("docker"))
            .arg("--exec-root")
            .arg(memory.join("docker"))
            .arg("--pidfile")
            .arg(memory.join("docker.pid"))
            .arg("--host")
            .arg(format!("unix://{}", socket.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("failed to start dockerd")?;
        let docker = Self {
            daemon,
            socket,
            groups: groups()
                .into_iter()
                .filter(|group| !group.exists())
                .collect(),
        };
        let mut waited = Duration::ZERO;
        while !docker.docker().arg("version").output()?.status.success() {
            if waited > PATIENCE {
                let log = fs::read_to_string(disk.join("docker.log"))?;
                bail!("dockerd does not serve; it said:\n{log}");
            }
            sleep(PAUSE);
            waited += PAUSE;
        }
        let image = disk.join("image.tar");
        let packed = app::command("tar")
            .arg("-C")
            .arg(root)
            .arg("-cf")
            .arg(&image)
            .arg(".")
            .status()?;
        ensure!(packed.success(), "tar failed");
        let imported = docker
            .docker()
            .arg("import")
            .arg(&image)
            .arg(IMAGE)
            .output()?;
        ensure!(
            imported.status.success(),
            "docker import failed: {}",
            String::from_utf8_lossy(&imported.stderr)
        );
        Ok(docker)
    }

    /// `docker run --rm` on the default bridge.
    pub(super) fn run(&self, program: &str) -> Command {
        let mut command = self.docker();
        command.args(["run", "--rm", IMAGE, program]);
        command
    }

    /// The same of another image, with another entrypoint.
    pub(super) fn run_image(&self, image: &str, program: &str) -> Command {
        let mut command = self.docker();
        command.args(["run", "--rm", "--entrypoint", program, image]);
        command
    }

    /// `docker run -d` of a program in this image, with these options.
    pub(super) fn run_detached(&self, options: &[&str], image: &str, program: &[&str]) -> Command {
        let mut command = self.docker();
        command.args(["run", "--detach"]).args(options);
        if let [program, arguments @ ..] = program {
            command
                .args(["--entrypoint", program, image])
                .args(arguments);
        }
        command
    }

    /// Gives the image the name of a stack.
    pub(super) fn is_stack(&self, name: &str) -> Result<()> {
        let tagged = self.docker().args(["tag", IMAGE, name]).status()?;
        ensure!(tagged.success(), "docker tag failed");
        Ok(())
    }

    /// `docker build` of what is in a folder, whatever was built before. By the builder that is in the
    /// engine: another is a package of its own.
    pub(super) fn build(&self, image: &str, context: &Path) -> Command {
        let mut command = self.docker();
        command
            .args(["build", "--no-cache", "--quiet", "--tag", image])
            .arg(context)
            .env("DOCKER_BUILDKIT", "0");
        command
    }

    /// Removes what was built before, and has no name any more.
    pub(super) fn prune(&self) -> Result<()> {
        let pruned = self.docker().args(["image", "prune", "--force"]).output()?;
        ensure!(pruned.status.success(), "docker image prune failed");
        Ok(())
    }

    /// Removes every container.
    pub(super) fn clear(&self) -> Result<()> {
        let list = self.docker().args(["ps", "--all", "--quiet"]).output()?;
        let list = String::from_utf8(list.stdout)?;
        let mut remove = self.docker();
        remove.args(["rm", "--force"]).args(list.lines());
        if !list.is_empty() {
            let removed = remove.output()?;
            ensure!(removed.status.success(), "docker rm failed");
        }
        Ok(())
    }

    /// Its address.
    pub(super) fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The process that it is.
    pub(super) fn pid(&self) -> i32 {
        self.daemon.id().cast_signed()
    }

    /// A program in its network.
    pub(super) fn in_network(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = app::command("nsenter");
        command
            .args(["--net", "--target", &self.pid().to_string(), "--"])
            .arg(program);
        command
    }

    pub(super) fn docker(&self) -> Command {
        let mut command = app::command("docker");
        command
            .arg("--host")
            .arg(self.host())
            .env_remove("DOCKER_HOST")
            .env_remove("DOCKER_CONTEXT")
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        drop(self.daemon.wait());
        for group in &self.groups {
            // Not there, or not empty: not ours.
            drop(fs::remove_dir(group));
        }
    }
}

/// Where an engine may make a group for its containers.
fn groups() -> Vec<PathBuf> {
    let hierarchies = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
    let mut groups: Vec<_> = hierarchies
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path().join("docker"))
        .collect();
    groups.push(Path::new(CGROUPS).join("docker"));
    groups
}

/// A bundle for runc, with the specification that it makes itself, which has an empty network.
#[derive(Debug)]
pub(super) struct Runc {
    bundle: PathBuf,
    state: PathBuf,
}

impl Runc {
    /// One of `root`, in which `program` runs.
    pub(super) fn new(disk: &Path, memory: &Path, root: &Path, program: &str) -> Result<Self> {
        let bundle = disk.join("bundle");
        fs::create_dir(&bundle)?;
        let made = app::command("runc")
            .args(["spec", "--bundle"])
            .arg(&bundle)
            .status()
            .context("failed to run runc")?;
        ensure!(made.success(), "runc spec failed");
        let path = bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&path)?)?;
        spec["root"] = json!({"path": root, "readonly": true});
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!([program]);
        File::create(&path)?.write_all(spec.to_string().as_bytes())?;
        Ok(Self {
            bundle,
            state: memory.join("runc"),
        })
    }

    /// `runc run`.
    pub(super) fn run(&self) -> Command {
        let mut command = app::command("runc");
        command
            .arg("--root")
            .arg(&self.state)
            .args(["run", "--bundle"])
            .arg(&self.bundle)
            .arg(IMAGE)
            .stdin(Stdio::null());
        command
    }
}
