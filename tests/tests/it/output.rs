//! hsup's own standard output and error under `hsup start`, whoever reads them or does not.

use std::{
    fs::{self, File},
    io::{self, PipeWriter},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::Signal,
    unistd::write,
};

use crate::app::App;

/// Fills a pipe to the last byte.
fn fill(pipe: &PipeWriter) {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while write(pipe, &[b'.'; 4096]).is_ok() {}
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
}

fn dev_full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

#[test]
fn what_is_written_to_stdout_and_stderr_stays_apart() {
    let app = App::procfile("worker: echo fine; echo wrong >&2; exec sleep 1000\n");
    let hsup = app.start(&[]);
    hsup.wait_up(&["worker.1"]);
    hsup.wait_for_line("| fine");
    hsup.wait_for_line("| wrong");
    let [out, err] = ["out", "err"].map(|name| fs::read_to_string(app.path(name)).unwrap());
    assert!(out.contains("worker.1 | fine\n"), "{out}");
    assert!(
        !out.contains("wrong") && !out.contains("State changed"),
        "{out}"
    );
    assert!(err.contains("worker.1 | wrong\n"), "{err}");
    assert!(!err.contains("| fine"), "{err}");
    hsup.interrupt();
}

#[test]
fn diagnostics_do_no_harm_where_standard_error_takes_nothing() {
    let (reader, gone) = io::pipe().unwrap();
    drop(reader);
    let (_reader, stuck) = io::pipe().unwrap();
    fill(&stuck);
    let stderrs = [dev_full().into(), gone.into(), stuck.into()];
    for stderr in stderrs {
        let stderr: std::os::fd::OwnedFd = stderr;
        let app = App::procfile("worker: exec sleep 1000\n");
        let out = File::create(app.path("out")).unwrap();
        let hsup = app.spawn("start", &[], out, stderr);
        hsup.wait_up(&["worker.1"]);
        hsup.signal(Signal::SIGUSR1);
        assert!(app.ctl(&["scale", "worker=2"]).status.success());
        hsup.wait_up(&["worker.1", "worker.2"]);
        hsup.interrupt();
    }
}

#[test]
fn a_standard_error_that_takes_nothing_does_not_hold_up_standard_output() {
    let app = App::procfile(
        "worker: echo begin >&2; for n in $(seq 1 5000); do echo tick $n; done; exec sleep 1000\n",
    );
    let out = File::create(app.path("out")).unwrap();
    let (_reader, stuck) = io::pipe().unwrap();
    fill(&stuck);
    let hsup = app.spawn("start", &[], out, stuck);
    hsup.wait_for_line("| tick 5000\n");
    hsup.interrupt();
}
