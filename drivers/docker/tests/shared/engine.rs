//! An engine in namespaces of its own: what it makes there goes with them.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{Namespaces, command, output, signal};

const CGROUPS: &str = "/sys/fs/cgroup";
const PROGRAMS: [&str; 7] = ["sh", "sleep", "nc", "echo", "grep", "stty", "httpd"];

/// An engine that runs, or is away for a while.
pub(crate) struct Engine {
    // Dropped before the folder that everything in there uses.
    pub(crate) namespaces: Namespaces,
    daemon: Child,
    options: Vec<String>,
    pub(crate) dir: TempDir,
}

impl Engine {
    /// Begins one with these options besides; it answers later.
    pub(crate) fn begin(namespaces: Namespaces, options: Vec<String>) -> Self {
        let dir = TempDir::with_prefix("hsup").unwrap();
        let daemon = spawn(&namespaces, dir.path(), &options);
        Self {
            namespaces,
            daemon,
            options,
            dir,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.docker(&["version"]).output().unwrap().status.success()
    }

    /// What it has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("engine.log")).unwrap()
    }

    /// Where it is called.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("engine")
    }

    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub(crate) fn docker(&self, args: &[&str]) -> Command {
        let mut docker = command("docker");
        docker.arg("--host").arg(self.host()).args(args);
        docker
    }

    /// Makes an image of busybox, of what `add` puts into its root, and of these instructions; its
    /// id.
    pub(crate) fn import(&self, name: &str, add: impl FnOnce(&Path), changes: &[&str]) -> String {
        let root = TempDir::with_prefix("hsup").unwrap();
        fs::create_dir(root.path().join("bin")).unwrap();
        fs::copy("/bin/busybox", root.path().join("bin/busybox")).unwrap();
        for name in PROGRAMS {
            symlink("busybox", root.path().join("bin").join(name)).unwrap();
        }
        add(root.path());
        let archive = root.path().with_extension("tar");
        let mut tar = command("tar");
        tar.arg("-C").arg(root.path()).arg("-cf").arg(&archive);
        output(tar.arg("."));
        let mut import = self.docker(&["import"]);
        for change in changes {
            import.args(["--change", change]);
        }
        let id = output(import.arg(&archive).arg(name));
        fs::remove_file(archive).unwrap();
        id
    }

    /// Ends the engine as the kernel does; its containers run on.
    pub(crate) fn kill(&mut self) {
        self.end(Signal::SIGKILL);
    }

    /// Ends it with a signal. At SIGTERM it ends its containers first.
    pub(crate) fn end(&mut self, with: Signal) {
        signal(&mut self.daemon, with);
        self.daemon.wait().unwrap();
    }

    /// Starts it again after its end, or that of its namespaces.
    pub(crate) fn start_again(&mut self) {
        drop(self.daemon.try_wait());
        // The numbers in them may be those of other processes, or of ones that nobody has reaped.
        for file in ["pid", "exec/containerd/containerd.pid"] {
            drop(fs::remove_file(self.dir.path().join(file)));
        }
        self.daemon = spawn(&self.namespaces, self.dir.path(), &self.options);
    }
}

fn spawn(namespaces: &Namespaces, dir: &Path, options: &[String]) -> Child {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("engine.log"))
        .unwrap();
    namespaces
        .command("dockerd")
        .arg("--host")
        .arg(format!("unix://{}", dir.join("engine").display()))
        .arg("--data-root")
        .arg(dir.join("data"))
        .arg("--exec-root")
        .arg(dir.join("exec"))
        .arg("--pidfile")
        .arg(dir.join("pid"))
        // Cgroups are the machine's, and others may have engines.
        .arg("--cgroup-parent")
        .arg(group(dir))
        .args(options)
        // Asked by dockerd, which found it slow, containerd writes what its threads do there.
        .env("TMPDIR", dir)
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// The group of all its containers.
fn group(dir: &Path) -> String {
    format!("/{}", dir.file_name().unwrap().to_str().unwrap())
}

impl Drop for Engine {
    fn drop(&mut self) {
        // All at once: there is nothing in there that has to end well.
        self.namespaces.end();
        drop(self.daemon.wait());
        let group = group(self.dir.path());
        let hierarchies = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
        let hierarchies = hierarchies.map(|entry| entry.path());
        for hierarchy in hierarchies.chain([CGROUPS.into()]) {
            remove_groups(&hierarchy.join(&group[1..]));
        }
    }
}

/// Removes a cgroup and those in it, which are empty.
fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    // Not there: that hierarchy has none.
    drop(fs::remove_dir(group));
}
