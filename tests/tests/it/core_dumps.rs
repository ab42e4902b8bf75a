//! A crash leaves no core dump of what knows config vars and tokens, however large one may be.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, process::ExitStatusExt as _},
    path::Path,
    process::Command,
};

use hsup_tests::deadline;
use nix::{sys::signal::Signal, unistd::Uid};

use crate::app::{App, binaries};

/// Runs what follows with core dumps as large as this user may have them.
const DUMPING: &str = r#"ulimit -S -c "$(ulimit -H -c)"; exec "$0" "$@""#;

pub(crate) fn dumping(app: &App, program: &Path) -> Command {
    let mut command = app.command("/bin/sh");
    command.args(["-c", DUMPING]).arg(program);
    command
}

/// What in the app's folders could be a core dump, by its first bytes and kind (`elf(5)`).
pub(crate) fn cores(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(cores(&entry.path()));
        } else if kind.is_file() {
            let bytes = fs::read(entry.path()).unwrap_or_default();
            let is_core = bytes.starts_with(b"\x7fELF") && bytes.get(16) == Some(&4);
            found.extend(is_core.then(|| entry.path().display().to_string()));
        }
    }
    found
}

/// Whether this machine leaves core dumps at all, by a file or a program that collects them.
fn machine_leaves_cores(app: &App) -> bool {
    let mut command = dumping(app, "/bin/sh".as_ref());
    let crash = deadline::output(command.args(["-c", "kill -ABRT $$"]));
    for core in cores(&app.path("app")) {
        fs::remove_file(core).unwrap();
    }
    crash.status.core_dumped()
}

/// Crashes `command` once it serves `socket`, and looks at what it leaves.
fn crash(app: &App, command: Command, socket: &Path) {
    let mut running = app.running(command);
    running.wait_for("a process to crash", || socket.exists().then_some(()));
    // Whoever is not root sees by this alone that there would be none.
    let environment = fs::metadata(format!("/proc/{}/environ", running.pid())).unwrap();
    assert_eq!(environment.uid(), 0, "its user may look into it");
    running.signal(Signal::SIGABRT);
    let status = running.end();
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32));
    assert!(!status.core_dumped(), "{}", running.log());
    assert_eq!(cores(&app.path("")), [""; 0]);
}

#[test]
fn a_crash_leaves_no_core_dump() {
    let app = App::procfile("worker: exec sleep 1000\n");
    let leaves = machine_leaves_cores(&app);
    assert!(leaves || !Uid::effective().is_root(), "no core of anybody");

    let socket = app.path("driver.sock");
    let mut driver = dumping(&app, &binaries().join("hsup-driver-simple"));
    driver.arg("--socket").arg(&socket);
    crash(&app, driver, &socket);

    let socket = app.path("control.sock");
    let mut hsup = dumping(&app, &binaries().join("hsup"));
    hsup.arg("start").arg("-s").arg(&socket);
    crash(&app, hsup, &socket);
}
