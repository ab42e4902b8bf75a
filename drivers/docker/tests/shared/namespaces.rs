//! Where engines and what belongs to them run, so that nothing of it can outlive a test.

use std::{
    ffi::OsStr,
    fs,
    io::Read as _,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::command;

/// Namespaces for all that a machine has of its own but users and cgroups. All that runs in them ends with this, and with the test's own
/// process, however that ends: their first process waits for an input of which nothing comes.
pub(crate) struct Namespaces {
    holder: Child,
    /// The first process in there, as it is called out here.
    pub(crate) first: String,
}

impl Namespaces {
    pub(crate) fn new() -> Self {
        let mut holder = command("unshare")
            .args([
                "--uts",
                "--net",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
            ])
            // bash reaps what is left to it, as an init must.
            .args(["--mount-proc", "bash", "-c"])
            .arg("ip link set lo up && echo && read -r _")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        let stdout = holder.stdout.as_mut().unwrap();
        stdout.read_exact(&mut line).unwrap();
        Self {
            first: only_child(&holder),
            holder,
        }
    }

    /// A program in there.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut nsenter = self.enter(&["--uts", "--net", "--mount", "--pid"]);
        nsenter.arg("--").arg(program);
        nsenter
    }

    /// A program that has but the network of them.
    pub(crate) fn in_network(&self, program: impl AsRef<OsStr>) -> Command {
        let mut nsenter = self.enter(&["--net"]);
        nsenter.arg("--").arg(program);
        nsenter
    }

    /// Ends everything in there.
    pub(crate) fn end(&mut self) {
        // The end of its input is that of the first process, and the kernel ends the others before
        // anybody is told of that.
        drop(self.holder.stdin.take());
        drop(self.holder.wait());
    }

    fn enter(&self, which: &[&str]) -> Command {
        let mut nsenter = command("nsenter");
        nsenter.args(["--target", &self.first]).args(which);
        nsenter
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        self.end();
    }
}

/// The number of the process that this one has started, which is the only one.
fn only_child(parent: &Child) -> String {
    let pid = parent.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.trim().to_owned()
}

/// Sends a signal to what was started by [`Namespaces::command`], for `nsenter` waits for it and
/// ends as it does.
pub(crate) fn signal(child: &mut Child, signal: Signal) {
    if child.try_wait().unwrap().is_some() {
        return;
    }
    // What has ended just now is not there, or nobody's child any more.
    if let Ok(pid) = only_child(child).parse() {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}
