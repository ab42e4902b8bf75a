//! `hsup run`: codes, bytes, pipes.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, PipeReader, Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _, net::UnixStream},
    },
    process::Stdio,
    thread,
};

use hsup_tests::{deadline, programs};
use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    app::{App, Running, binaries, processes_of},
    output::fill,
};

fn code(app: &App, line: &str) -> Option<i32> {
    app.run(&["run", line]).status.code()
}

#[test]
fn the_code_is_the_commands() {
    let app = App::procfile("web: true\n");
    assert_eq!(code(&app, "exit 7"), Some(7));
    assert_eq!(code(&app, "no-such-command"), Some(127));
    assert_eq!(code(&app, "/etc/passwd"), Some(126));
    assert_eq!(code(&app, "kill -KILL $$"), Some(137));
    assert_eq!(code(&app, "kill -TERM $$"), Some(143));
    assert!(processes_of(&app).is_empty());
}

#[test]
fn options_before_the_command_may_have_their_value_attached() {
    let app = App::procfile("web: true\n");
    let folder = app.path("app");
    let directory = format!("-C{}", folder.display());
    for options in [
        &["-dsimple", "-C."][..],
        &["-d=simple", &directory],
        &["-d", "simple", "-C", "."],
    ] {
        let words = [&["run"], options, &["printf", "%s|", "-d", "-C."]].concat();
        let output = app.run(&words);
        assert_eq!(output.stdout, b"-d|-C.|", "{options:?}");
    }
}

#[test]
fn words_and_bytes_arrive_as_they_are() {
    let app = App::procfile("web: true\n");
    let output = app.run(&["run", "--", "printf", r"%s\n", "a b", "c"]);
    assert_eq!(output.stdout, b"a b\nc\n");
    let dyno = binaries().join("test-dyno");
    let output = app.run(&["run", dyno.to_str().unwrap(), "bytes"]);
    assert_eq!(output.stdout, b"a\0b\xff\xfe\x80\r\n\x1b[31m\xc3(\nend");
    let output = app.run(&["run", "echo $DYNO; echo problem >&2"]);
    assert_eq!(output.stdout, b"run.1\n");
    assert_eq!(output.stderr, b"problem\n");
}

#[test]
fn variables_that_cannot_be_passed_on_are_named() {
    let app = App::procfile("worker: sleep 1000\n");
    let odd = OsStr::from_bytes(b"caf\xe9");
    let mut command = app.command("hsup");
    command.args(["run", "env | grep -a ^ODD || echo none"]);
    let output = deadline::output(command.env("ODD", odd));
    assert_eq!(output.stdout, b"none\n");
    let warning = "Warning: dynos do without these variables of hsup's, which are not UTF-8: ODD\n";
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        format!("hsup: {warning}")
    );
    let hsup = app.start_as(&[], |command| {
        command.env("ODD", odd);
    });
    hsup.wait_for_line(warning);
    hsup.interrupt();
}

#[test]
fn input_and_its_end_are_passed_on() {
    let app = App::procfile("web: true\n");
    let mut child = app
        .command("hsup")
        .args(["run", "cat; echo end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let big = vec![b'x'; 1 << 20];
    let writer = std::thread::spawn(move || stdin.write_all(&big).unwrap());
    let output = deadline::finish(child);
    writer.join().unwrap();
    assert_eq!(output.stdout.len(), (1 << 20) + 4);
    assert!(output.stdout.ends_with(b"xend\n"));
}

#[test]
fn a_reader_that_leaves_means_141() {
    let app = App::procfile("web: true\n");
    let mut child = app
        .command("hsup")
        .args(["run", "yes"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(deadline::end(&mut child).code(), Some(141));
    assert!(processes_of(&app).is_empty());
}

#[test]
fn a_closed_stdin_is_an_empty_one() {
    let app = App::procfile("web: true\n");
    let hsup = binaries().join("hsup");
    let output = app.run(&["run", &format!("{} run cat <&-; echo $?", hsup.display())]);
    assert_eq!(output.stdout, b"0\n");
}

#[test]
fn a_terminal_that_hangs_up_means_129() {
    let app = App::procfile("web: true\n");
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let slave = File::options()
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(ptsname_r(&master).unwrap())
        .unwrap();
    // Its input is none, so it is no terminal session: only the output hangs up.
    let mut hsup = app.spawn("run", &["yes"], slave, Stdio::null());
    let mut screen = File::from(OwnedFd::from(master));
    assert!(screen.read(&mut [0; 64]).unwrap() > 0);
    drop(screen);
    assert_eq!(hsup.end().code(), Some(129));
    assert!(processes_of(&app).is_empty());
}

/// Waits until a pipe holds all it can: `probe` is a copy of its writing end.
fn wait_until_full(hsup: &Running<'_>, probe: &io::PipeWriter) {
    hsup.wait_for("a full pipe", || {
        let mut fds = [PollFd::new(probe.as_fd(), PollFlags::POLLOUT)];
        (poll(&mut fds, PollTimeout::ZERO).unwrap() == 0).then_some(())
    });
}

/// Waits until hsup is the only process that the app has left: the command has ended.
fn wait_until_alone(hsup: &Running<'_>) {
    hsup.wait_for("the end of the command", || {
        (processes_of(hsup.app) == [hsup.pid()]).then_some(())
    });
}

fn read_all(mut pipe: PipeReader) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

#[test]
fn a_reader_that_begins_late_gets_everything() {
    let app = App::procfile("web: true\n");
    let (reader, out) = io::pipe().unwrap();
    let probe = out.try_clone().unwrap();
    let mut hsup = app.spawn(
        "run",
        &["head -c 120000 /dev/zero; exit 7"],
        out,
        Stdio::null(),
    );
    wait_until_full(&hsup, &probe);
    drop(probe);
    wait_until_alone(&hsup);
    let reader = read_all(reader);
    assert_eq!(hsup.end().code(), Some(7));
    assert_eq!(reader.join().unwrap().len(), 120_000);
}

#[test]
fn a_signal_cuts_off_what_nobody_reads_and_hsup_says_so() {
    let app = App::procfile("web: true\n");
    let (_reader, out) = io::pipe().unwrap();
    let probe = out.try_clone().unwrap();
    let (said, err) = io::pipe().unwrap();
    let mut hsup = app.spawn("run", &["head -c 120000 /dev/zero"], out, err);
    wait_until_full(&hsup, &probe);
    wait_until_alone(&hsup);
    hsup.signal(Signal::SIGTERM);
    assert_eq!(hsup.end().code(), Some(143));
    assert_eq!(
        io::read_to_string(said).unwrap(),
        "hsup: the output was cut off: its reader took nothing\n"
    );
}

#[test]
fn a_signal_ends_a_command_whose_output_nobody_reads() {
    let app = App::procfile("web: true\n");
    let (_reader, out) = io::pipe().unwrap();
    let probe = out.try_clone().unwrap();
    // One pipe for both: nothing can be said there, and hsup ends nevertheless.
    let err = out.try_clone().unwrap();
    let mut hsup = app.spawn("run", &["yes"], out, err);
    wait_until_full(&hsup, &probe);
    hsup.signal(Signal::SIGINT);
    assert_eq!(hsup.end().code(), Some(130));
    assert!(processes_of(&app).is_empty());
}

#[test]
fn an_error_that_nobody_reads_does_not_hold_up_the_output() {
    let app = App::procfile("web: true\n");
    let (mut reader, out) = io::pipe().unwrap();
    let (errors, err) = io::pipe().unwrap();
    let line = "(head -c 300000 /dev/zero >&2) & head -c 300000 /dev/zero; wait";
    let mut hsup = app.spawn("run", &[line], out, err);
    let reading = thread::spawn(move || reader.read_exact(&mut vec![0; 300_000]).unwrap());
    hsup.wait_for("the output", || reading.is_finished().then_some(()));
    let errors = read_all(errors);
    assert_eq!(hsup.end().code(), Some(0));
    assert_eq!(errors.join().unwrap().len(), 300_000);
}

#[test]
fn a_full_disk_is_an_error_with_its_reason() {
    let app = App::procfile("web: true\n");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (said, err) = io::pipe().unwrap();
    // It would go on for ever: that its output is lost ends it.
    let mut hsup = app.spawn("run", &["yes"], full, err);
    assert_eq!(hsup.end().code(), Some(1));
    assert_eq!(
        io::read_to_string(said).unwrap(),
        "hsup: failed to write standard output: No space left on device (os error 28)\n"
    );
    assert!(processes_of(&app).is_empty());
}

#[test]
fn sigusr1_prints_diagnostics_and_the_command_goes_on() {
    let app = App::procfile("web: true\n");
    let line = "echo up; while [ ! -e ../end ]; do sleep 0.02; done; exit 3";
    let (_reader, stuck) = io::pipe().unwrap();
    fill(&stuck);
    let file = || File::create(app.path("err")).unwrap();
    let stderrs: [OwnedFd; 2] = [file().into(), stuck.into()];
    for (stderr, is_shown) in stderrs.into_iter().zip([true, false]) {
        let out = File::create(app.path("out")).unwrap();
        let mut hsup = app.spawn("run", &[line], out, stderr);
        hsup.wait_for_line("up\n");
        hsup.signal(Signal::SIGUSR1);
        if is_shown {
            hsup.wait_for_line("driver connected");
        }
        app.write("end", "");
        assert_eq!(hsup.end().code(), Some(3), "{}", hsup.log());
        fs::remove_file(app.path("end")).unwrap();
    }
}

#[test]
fn sigusr1_prints_diagnostics_while_a_build_waits_for_its_driver() {
    let app = App::procfile("web: true\n");
    let silent = app.path("silent");
    programs::script(&silent, "#!/bin/sh\n: > ../up\nexec sleep 1000\n");
    let err = File::create(app.path("err")).unwrap();
    let arguments = ["-d", silent.to_str().unwrap()];
    let hsup = app.spawn("build", &arguments, Stdio::null(), err);
    hsup.wait_for("the driver", || app.path("up").exists().then_some(()));
    hsup.signal(Signal::SIGUSR1);
    hsup.wait_for_line("driver started");
}

#[test]
fn a_signal_ends_a_run_and_a_build_whose_driver_builds_for_ever() {
    let app = App::procfile("web: true\n");
    app.faults("build hang\n");
    let driver = binaries().join("hsup-driver-fault");
    let driver = driver.to_str().unwrap();
    let commands = [
        ("run", &["-d", driver, "true"][..]),
        ("build", &["-d", driver]),
    ];
    let signals = [
        (Signal::SIGINT, 130),
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
    ];
    let mut builds = 0;
    for (word, arguments) in commands {
        for (signal, code) in signals {
            builds += 1;
            let out = File::create(app.path("out")).unwrap();
            let err = File::create(app.path("err")).unwrap();
            let mut hsup = app.spawn(word, arguments, out, err);
            hsup.wait_for("the build", || {
                (app.calls("build").len() == builds).then_some(())
            });
            hsup.signal(signal);
            assert_eq!(hsup.end().code(), Some(code), "{word}: {}", hsup.log());
            hsup.nothing_is_left();
        }
    }
}

#[test]
fn a_signal_ends_the_wait_for_a_release_that_is_still_being_written() {
    let app = App::empty();
    let directory = app.path("ctl");
    let directory = directory.to_str().unwrap();
    let ends = |word: &str, arguments: &[&str]| {
        app.write("ctl/new", r#"{"Version":1"#);
        let all = [&["--control-dir", directory], arguments].concat();
        let err = File::create(app.path("err")).unwrap();
        let mut hsup = app.spawn(word, &all, Stdio::null(), err);
        hsup.wait_for("a hand on SIGTERM", || {
            catches(hsup.pid(), Signal::SIGTERM).then_some(())
        });
        hsup.signal(Signal::SIGTERM);
        let code = hsup.end().code();
        hsup.nothing_is_left();
        code
    };
    for (word, arguments) in [("run", &["true"][..]), ("build", &[])] {
        // The writer has a second: the signal may come too late, but not every time.
        let mut codes = (0..5).map(|_| ends(word, arguments));
        assert!(codes.any(|code| code == Some(143)), "{word}");
    }
}

/// Whether a process has a handler for this signal.
fn catches(pid: i32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    caught.is_some_and(|bits| bits & (1 << (signal as i32 - 1)) != 0)
}

/// A command that sleeps, once it is up, by a driver with these faults.
fn sleeping<'a>(app: &'a App, faults: &str) -> Running<'a> {
    app.faults(faults);
    let driver = binaries().join("hsup-driver-fault");
    let out = File::create(app.path("out")).unwrap();
    let err = File::create(app.path("err")).unwrap();
    let line = "echo up; exec sleep 1000";
    let arguments = ["-d", driver.to_str().unwrap(), line];
    let hsup = app.spawn("run", &arguments, out, err);
    hsup.wait_for_line("up\n");
    hsup
}

#[test]
fn a_signal_ends_a_command_that_the_driver_does_not_stop() {
    let app = App::procfile("web: true\n");
    let mut hsup = sleeping(&app, "stop hang\n");
    hsup.signal(Signal::SIGTERM);
    hsup.wait_for("a Stop", || (app.calls("stop").len() == 1).then_some(()));
    hsup.signal(Signal::SIGINT);
    assert_eq!(hsup.end().code(), Some(130), "{}", hsup.log());
    hsup.nothing_is_left();
}

#[test]
fn a_stop_that_the_driver_cannot_see_to_is_asked_for_again() {
    let app = App::procfile("web: true\n");
    let mut hsup = sleeping(&app, "once stop unavailable the backend is away\n");
    hsup.signal(Signal::SIGTERM);
    assert_eq!(hsup.end().code(), Some(143), "{}", hsup.log());
    assert_eq!(app.calls("stop").len(), 2);
    hsup.nothing_is_left();
}

#[test]
fn a_signal_ends_a_command_that_the_driver_neither_starts_nor_stops() {
    let app = App::procfile("web: true\n");
    app.faults("start hang\nstop hang\n");
    let driver = binaries().join("hsup-driver-fault");
    let arguments = ["-d", driver.to_str().unwrap(), "true"];
    let err = File::create(app.path("err")).unwrap();
    let mut hsup = app.spawn("run", &arguments, Stdio::null(), err);
    hsup.wait_for("a Start", || (!app.calls("start").is_empty()).then_some(()));
    hsup.signal(Signal::SIGTERM);
    assert_eq!(hsup.end().code(), Some(143), "{}", hsup.log());
    assert!(!app.calls("stop").is_empty());
    hsup.nothing_is_left();
}

/// `hsup-driver-fault` as somebody's own: it goes on when hsup ends, and what it runs with it, so
/// that nothing but a Stop ends that. And its socket.
pub(crate) fn driver_of_its_own(app: &App) -> (Running<'_>, String) {
    let socket = app.path("driver.sock");
    let child = app
        .command("hsup-driver-fault")
        .env("HSUP_DRIVER_SOCKET", &socket)
        .spawn()
        .unwrap();
    let driver = Running::of(app, child);
    driver.wait_for("the driver", || socket.exists().then_some(()));
    (driver, socket.to_str().unwrap().to_owned())
}

#[test]
fn a_command_goes_on_when_the_driver_cannot_tell_just_then_or_loses_its_end() {
    let driver = binaries().join("hsup-driver-fault");
    let line = "echo hi; sleep 1; exit 4";
    for fault in ["unavailable the backend is away", "hang"] {
        let app = App::procfile("web: true\n");
        app.faults(&format!("once wait {fault}\n"));
        let out = File::create(app.path("out")).unwrap();
        let err = File::create(app.path("err")).unwrap();
        let mut hsup = app.spawn("run", &["-d", driver.to_str().unwrap(), line], out, err);
        assert_eq!(hsup.end().code(), Some(4), "{fault}: {}", hsup.log());
        assert_eq!(hsup.log(), "hi\n", "{fault}");
        assert!(app.calls("stop").is_empty(), "{fault}");
        hsup.nothing_is_left();
    }
}

#[test]
fn a_driver_that_takes_seconds_to_its_first_answer_is_waited_for() {
    let app = App::procfile("web: true\n");
    app.faults("once info delay 2500\n");
    let (_driver, socket) = driver_of_its_own(&app);
    let output = app.run(&["run", "--driver-socket", &socket, "echo hi"]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.stdout, b"hi\n");
}

#[test]
fn a_command_whose_end_the_driver_does_not_tell_is_stopped() {
    let app = App::procfile("web: true\n");
    app.faults("wait internal no news today\n");
    let (driver, socket) = driver_of_its_own(&app);
    let arguments = ["--driver-socket", &socket, "--linger", "600s"];
    let output = app.run(&[&["run"][..], &arguments, &["sleep 1000"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("it is not known how the command ended: no news today"),
        "{said}"
    );
    assert_eq!(app.calls("stop").len(), 1);
    assert_eq!(app.calls("remove").len(), 1);
    assert_eq!(processes_of(&app), [driver.pid()]);
}

#[test]
fn the_code_is_not_lost_while_a_driver_that_keeps_it_is_replaced() {
    let app = App::procfile("web: true\n");
    let socket = app.path("driver.sock");
    let driver = || {
        let mut command = app.command("lasting-driver");
        let driver = Running::of(&app, command.arg("--socket").arg(&socket).spawn().unwrap());
        driver.wait_for("the driver", || UnixStream::connect(&socket).ok());
        driver
    };
    let first = driver();
    let line = format!(
        "echo up; while [ ! -e {} ]; do sleep 0.05; done; exit 42",
        app.path("go").display()
    );
    let out = File::create(app.path("out")).unwrap();
    let err = File::create(app.path("err")).unwrap();
    let control = app.path("run.sock");
    let control = ["-s", control.to_str().unwrap()];
    let arguments = ["--driver-socket", socket.to_str().unwrap(), &line];
    let mut hsup = app.spawn("run", &[&control[..], &arguments].concat(), out, err);
    hsup.wait_for_line("up\n");
    // What the dyno writes may be here before the answer to its Start.
    hsup.wait_for("the answer", || {
        let shown = app.ctl(&[&control[..], &["ps", "-o", "json"]].concat());
        let dynos: Value = serde_json::from_slice(&shown.stdout).ok()?;
        (dynos[0]["state"] == "up").then_some(())
    });
    first.kill();
    hsup.wait_for_line("The driver went away; the dyno goes on");
    app.write("go", "");
    let _second = driver();
    assert_eq!(hsup.end().code(), Some(42), "{}", hsup.log());
}

#[test]
#[ignore = "needs root: nobody else finds hsup's driver"]
fn what_a_killed_driver_leaves_goes_with_hsup() {
    let app = App::procfile("web: true\n");
    let line = "echo up; setsid sleep 1000 & sleep 1000; true";
    let out = File::create(app.path("out")).unwrap();
    let err = File::create(app.path("err")).unwrap();
    let mut hsup = app.spawn("run", &[line], out, err);
    let count = |name: &[u8]| {
        let of_app = processes_of(&app).into_iter();
        of_app.filter(|pid| cmdline(*pid).starts_with(name)).count()
    };
    hsup.wait_for("both", || (count(b"sleep\0") == 2).then_some(()));
    let is_driver = |pid: &i32| cmdline(*pid).starts_with(b"hsup-driver-simple\0");
    let driver = processes_of(&app).into_iter().find(is_driver).unwrap();
    kill(Pid::from_raw(driver), Signal::SIGKILL).unwrap();
    assert_eq!(hsup.end().code(), Some(1), "{}", hsup.log());
    let said = hsup.log();
    assert!(
        said.contains("it is not known how the command ended"),
        "{said}"
    );
    // Nobody comes later to remove it.
    assert_eq!(processes_of(&app), [0; 0]);
    hsup.nothing_is_left();
}

#[test]
#[ignore = "needs root: nobody else finds hsup's driver"]
fn what_a_killed_hsup_left_is_removed_by_the_next() {
    let app = App::procfile("web: true\n");
    for next in [&["run", "true"][..], &["build"], &["start", "--oneshot"]] {
        let next = || assert_eq!(app.run(next).status.code(), Some(0), "{next:?}");
        let line = "setsid sleep 1000 & exec sleep 1000";
        let hsup = app.spawn(
            "run",
            &["--linger", "600s", line],
            Stdio::null(),
            Stdio::null(),
        );
        let of_dyno = || {
            let dyno = |pid: &i32| cmdline(*pid).starts_with(b"sleep\0");
            processes_of(&app).into_iter().filter(dyno).count()
        };
        hsup.wait_for("both processes", || (of_dyno() == 2).then_some(()));
        // One that lives, and one whose dyno lingers, are not to be swept away.
        next();
        assert_eq!(of_dyno(), 2);
        hsup.kill();
        next();
        assert_eq!(of_dyno(), 2);
        let is_driver = |pid: &i32| cmdline(*pid).starts_with(b"hsup-driver-simple\0");
        let drivers: Vec<_> = processes_of(&app).into_iter().filter(is_driver).collect();
        for driver in &drivers {
            kill(Pid::from_raw(*driver), Signal::SIGKILL).unwrap();
        }
        assert_eq!(drivers.len(), 1);
        let ended = || (!drivers.iter().any(is_driver)).then_some(());
        deadline::poll(ended).expect("the driver's end");
        next();
        assert!(processes_of(&app).is_empty());
        assert_eq!(fs::read_dir(app.path("rt/hsup/run")).unwrap().count(), 0);
    }
}

/// The arguments of a process, each with a zero at its end; empty for one that has ended.
fn cmdline(pid: i32) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}
