//! The machine that tests run on: what there is of it, and the tools that it has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use crate::host::Host;

/// What a host has of links, mounts, cgroups, tables and processes.
pub(crate) struct Traces(pub(crate) BTreeSet<String>);

impl Traces {
    pub(crate) fn of_host() -> Self {
        let mut traces: BTreeSet<String> = cgroups().into_iter().collect();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        traces.extend(mounts.lines().map(str::to_owned));
        for entry in fs::read_dir("/sys/class/net").unwrap().flatten() {
            traces.insert(entry.file_name().to_string_lossy().into_owned());
        }
        traces.extend(rules().lines().map(|line| line.trim().to_owned()));
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.starts_with("hsup-driver-libcontainer shim")
                || command.starts_with("hsup-driver-libcontainer sweep")
                || command.starts_with("hsup-wait")
            {
                traces.insert(command);
            }
        }
        Self(traces)
    }
}

/// Those that could be a driver's.
pub(crate) fn cgroups() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                if path.to_string_lossy().contains("/hsup") {
                    found.push(path.display().to_string());
                }
                folders.push(path);
            }
        }
    }
    found
}

/// An address of the host on an interface of its own, for as long as this lives.
pub(crate) struct Link {
    name: String,
    address: String,
}

impl Link {
    pub(crate) fn new(host: &Host) -> Self {
        Self::with(host, &format!("10.212.{}.1/24", host.number))
    }

    /// One with this address, as `10.0.0.1/24`.
    pub(crate) fn with(host: &Host, address: &str) -> Self {
        let name = format!("hst{}", host.number);
        tool(
            "ip",
            &format!("link add {name} type veth peer name {name}p"),
        )
        .unwrap();
        let link = Self {
            address: address.split('/').next().unwrap_or_default().to_owned(),
            name,
        };
        let name = &link.name;
        tool("ip", &format!("address add {address} dev {name}")).unwrap();
        tool("ip", &format!("link set {name} up")).unwrap();
        tool("ip", &format!("link set {name}p up")).unwrap();
        link
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The other end goes with it.
        drop(tool("ip", &format!("link delete {}", self.name)));
    }
}

/// A file system that a test mounts, for as long as this lives.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// Mounts a `kind` with these options at a folder, which is made.
    pub(crate) fn new(kind: &str, options: &str, at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        let words = format!("-t {kind} -o {options} none {}", at.display());
        tool("mount", &words).unwrap();
        Self(at.to_owned())
    }

    /// Gives it other options.
    pub(crate) fn change(&self, options: &str) {
        let words = format!("-o remount,{options} {}", self.0.display());
        tool("mount", &words).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Also where a driver of a test that failed still has something open in it.
        drop(tool("umount", &format!("-l {}", self.0.display())));
    }
}

/// Runs a tool that changes the host; what it says if it fails.
#[expect(clippy::disallowed_methods, reason = "a tool that changes the host")]
pub(crate) fn tool(program: &str, words: &str) -> Result<(), String> {
    let output = Command::new(program).args(words.split(' ')).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {words}: {said}"))
}

/// What `nft list ruleset` prints, without what the rules have counted: others use the network too.
#[expect(clippy::disallowed_methods, reason = "a tool that looks at the host")]
pub(crate) fn rules() -> String {
    let output = Command::new("nft").args(["-s", "list", "ruleset"]).output();
    let output = output.expect("`nft` (package nftables) shows what rules there are");
    String::from_utf8(output.stdout).unwrap()
}

/// A root file system of this machine's busybox (package busybox-static), with its dash and bash.
pub(crate) fn busybox(root: &Path) {
    let from = ["/bin/busybox", "/usr/bin/busybox"];
    let from = from.iter().find(|path| Path::new(path).exists());
    let from = from.expect("busybox (package busybox-static) makes the stack");
    for folder in ["bin", "etc", "usr/bin"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy(from, root.join("bin/busybox")).unwrap();
    for name in says_always(from, "--list").lines() {
        if !["busybox", "sh", "bash"].contains(&name) {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
    }
    for shell in ["dash", "bash"] {
        take(&Path::new("/bin").join(shell), root);
    }
    symlink("dash", root.join("bin/sh")).unwrap();
    symlink("/bin/env", root.join("usr/bin/env")).unwrap();
}

/// Copies a program into a root's /bin, and the libraries that it is linked with to where they are.
pub(crate) fn take(program: &Path, root: &Path) {
    fs::copy(program, root.join("bin").join(program.file_name().unwrap())).unwrap();
    let libraries = says_always("ldd", program.to_str().unwrap());
    let words = libraries.split_whitespace();
    for library in words.filter(|word| word.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(library, to).unwrap();
    }
}

/// What a tool that always says the same prints: it is asked once, for every test makes a stack.
fn says_always(program: &str, argument: &str) -> String {
    static SAID: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let mut known = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    let text = known.entry(format!("{program} {argument}"));
    text.or_insert_with(|| said(program, &[argument])).clone()
}

/// What a tool prints.
#[expect(clippy::disallowed_methods, reason = "a tool that tells what there is")]
pub(crate) fn said(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Says what this machine lacks for a part of a test.
#[expect(clippy::print_stderr, reason = "a test says what it could not look at")]
pub(crate) fn left_out(what: &str) {
    eprintln!("left out: {what}");
}
