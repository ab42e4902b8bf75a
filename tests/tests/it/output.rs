//! hsup's own standard output and error under `hsup start`, whoever reads them or does not.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, PipeWriter, Read as _},
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use hsup_proto::control::{LogsRequest, supervisor_client::SupervisorClient};
use hsup_tests::deadline::PATIENCE;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        resource::{Resource, setrlimit},
        signal::Signal,
    },
    unistd::write,
};

use crate::app::{App, binaries};

/// Fills a pipe to the last byte.
pub(crate) fn fill(pipe: &PipeWriter) {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while write(pipe, &[b'.'; 4096]).is_ok() {}
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
}

fn is_writable(pipe: &PipeWriter) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
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

#[test]
fn a_reader_that_stops_and_goes_on_misses_nothing() {
    let dyno = binaries().join("test-dyno");
    let app = App::procfile(&format!("worker: {} lines 20000\n", dyno.display()));
    let (mut reader, out) = io::pipe().unwrap();
    let probe = out.try_clone().unwrap();
    let err = File::create(app.path("err")).unwrap();
    let mut hsup = app.spawn("start", &["--oneshot", "--no-prefix"], out, err);
    // The dyno is through as far as it can get, and nobody reads.
    hsup.wait_for("a full pipe", || (!is_writable(&probe)).then_some(()));
    drop(probe);
    let text = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(hsup.end().code(), Some(0), "{}", hsup.log());
    let text = text.join().unwrap();
    let expected = (0..20_000).map(|number| format!("{number:<99}"));
    assert!(text.lines().eq(expected), "lines are missing or changed");
    hsup.nothing_is_left();
}

#[test]
fn a_oneshot_waits_for_its_reader_and_ends_at_a_signal() {
    let dyno = binaries().join("test-dyno");
    let app = App::procfile(&format!("worker: {} lines 1000\n", dyno.display()));
    let (reader, out) = io::pipe().unwrap();
    let err = File::create(app.path("err")).unwrap();
    let mut hsup = app.spawn("start", &["--oneshot"], out, err);
    // Its socket goes before its last lines do: only those hold it.
    hsup.wait_for_line("Process exited with status 0");
    hsup.wait_for("the end of the control socket", || {
        (app.ctl(&["ps"]).status.code() == Some(4)).then_some(())
    });
    hsup.signal(Signal::SIGUSR1);
    hsup.wait_for_line("driver connected");
    hsup.signal(Signal::SIGTERM);
    assert_eq!(hsup.end().code(), Some(143), "{}", hsup.log());
    let log = hsup.log();
    assert!(
        log.contains(" bytes of standard output were not written: it took nothing"),
        "{log}"
    );
    drop(reader);
}

#[test]
fn a_standard_output_that_nobody_reads_holds_up_no_drain_and_no_dyno() {
    const LINES: usize = 100_000;
    let dyno = binaries().join("test-dyno");
    let line = format!("{} lines {LINES}; exec sleep 1000", dyno.display());
    let app = App::procfile(&format!("worker: {line}\n"));
    let all = app.path("all.log");
    let file = format!("file://{}?max-size=1G", all.display());
    let (mut reader, out) = io::pipe().unwrap();
    let err = File::create(app.path("err")).unwrap();
    let arguments = ["--no-prefix", "--log-to", &file];
    let hsup = app.spawn("start", &arguments, out, err);
    hsup.wait_for_line("Standard output takes too little: the dynos go on");
    hsup.wait_for("the last line in the file and with hsupctl", || {
        let shown = app.ctl(&["logs", "-n1", "-s", "app"]).stdout;
        let last = format!(": {} ", LINES - 1);
        let is_last = |text: &str| text.contains(&last);
        let in_file = fs::read_to_string(&all).is_ok_and(|text| is_last(&text));
        (is_last(&String::from_utf8_lossy(&shown)) && in_file).then_some(())
    });
    let text = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    hsup.wait_for_line("Standard output takes lines again; ");
    hsup.interrupt();
    let mut next = 0;
    for line in text.join().unwrap().lines() {
        if let Some(gap) = line.strip_prefix("hsup: ") {
            let (missing, rest) = gap.split_once(' ').unwrap();
            assert_eq!(
                rest,
                "lines were not written here: standard output took too little"
            );
            next += missing.parse::<usize>().unwrap();
        } else {
            assert_eq!(
                line.trim_end(),
                next.to_string(),
                "the count stands where the gap is"
            );
            next += 1;
        }
    }
    assert_eq!(next, LINES);
}

#[test]
fn output_that_is_cut_off_at_the_end_is_said() {
    let app = App::procfile("worker: exec yes\n");
    let (_reader, out) = io::pipe().unwrap();
    let probe = out.try_clone().unwrap();
    let err = File::create(app.path("err")).unwrap();
    let hsup = app.spawn("start", &["--grace", "1s"], out, err);
    hsup.wait_for("a full pipe", || (!is_writable(&probe)).then_some(()));
    hsup.interrupt_and(|log| {
        assert!(
            log.contains(" bytes of standard output were not written: it took nothing"),
            "{log}"
        );
    });
}

#[test]
fn a_reader_that_leaves_is_told_and_the_dynos_go_on() {
    let app = App::procfile("worker: for n in $(seq 1 100); do echo $n; done; exec sleep 1000\n");
    let (reader, out) = io::pipe().unwrap();
    drop(reader);
    let err = File::create(app.path("err")).unwrap();
    let hsup = app.spawn("start", &[], out, err);
    hsup.wait_for_line("system   | Standard output is gone (Broken pipe): the dynos go on, ");
    hsup.wait_for("the last line", || {
        let shown = app.ctl(&["logs", "-d", "worker.1", "-s", "app"]).stdout;
        shown.ends_with(b" app[worker.1]: 100\n").then_some(())
    });
    hsup.interrupt_and(|log| {
        let lost = "bytes of standard output were not written: Broken pipe\n";
        assert!(log.ends_with(lost), "{log}");
    });
}

#[test]
fn a_full_disk_is_told_at_once_and_at_the_end() {
    let app = App::procfile("worker: echo one; exec sleep 1000\n");
    let err = File::create(app.path("err")).unwrap();
    let hsup = app.spawn("start", &["--no-timestamp"], dev_full(), err);
    hsup.wait_for_line("Standard output takes no more (No space left on device)");
    hsup.interrupt_and(|log| {
        let lost = "worker.1 | one\n".len();
        let end =
            format!("{lost} bytes of standard output were not written: No space left on device\n");
        assert!(log.ends_with(&end), "{log}");
    });
}

#[test]
fn a_file_that_may_not_grow_any_more_is_a_full_disk() {
    let dyno = binaries().join("test-dyno");
    let line = format!("{} lines 1000; exec sleep 1000", dyno.display());
    let app = App::procfile(&format!("worker: {line}\n"));
    // As `ulimit -f 4` has it, for hsup and whatever it starts.
    let limited = |command: &mut Command| {
        let limit = || Ok(setrlimit(Resource::RLIMIT_FSIZE, 4096, 4096)?);
        #[expect(unsafe_code, reason = "a limit for one child alone")]
        // SAFETY: setrlimit is async-signal-safe.
        unsafe {
            command.pre_exec(limit);
        }
    };
    let out = File::create(app.path("out")).unwrap();
    let (said, err) = io::pipe().unwrap();
    let hsup = app.spawn_as("start", &["--no-timestamp"], out, err, limited);
    let said = thread::spawn(move || io::read_to_string(said).unwrap());
    hsup.wait_up(&["worker.1"]);
    hsup.wait_for("the last line", || {
        let shown = app.ctl(&["logs", "-n1", "-s", "app"]).stdout;
        String::from_utf8_lossy(&shown)
            .contains(": 999 ")
            .then_some(())
    });
    hsup.interrupt();
    let said = said.join().unwrap();
    assert!(
        said.contains("Standard output takes no more (File too large)"),
        "{said}"
    );
    let shown = fs::metadata(app.path("out")).unwrap().len();
    let lost = 1000 * "worker.1 | ".len() as u64 + 100_000 - shown;
    let end = format!("{lost} bytes of standard output were not written: File too large\n");
    assert!(said.ends_with(&end), "{said}");

    let out = File::create(app.path("out")).unwrap();
    let (said, err) = io::pipe().unwrap();
    let mut hsup = app.spawn_as("run", &["yes"], out, err, limited);
    assert_eq!(hsup.end().code(), Some(1));
    assert_eq!(
        io::read_to_string(said).unwrap(),
        "hsup: failed to write standard output: File too large (os error 27)\n"
    );
}

#[test]
fn the_last_lines_of_a_crash_outlive_those_of_a_chatty_successor() {
    let dyno = binaries().join("test-dyno");
    let first = "touch ../crashed; echo begin; echo 'panic: the cause of it all' >&2; exit 3";
    // Twice as much as is kept of one name.
    let second = format!("{} lines 5000; exec sleep 1000", dyno.display());
    let line = format!("if [ -e ../crashed ]; then {second}; else {first}; fi");
    let app = App::procfile(&format!("worker: {line}\n"));
    let hsup = app.start(&[]);
    hsup.wait_for("the last line", || {
        let shown = app.ctl(&["logs", "-n1", "-s", "app"]).stdout;
        String::from_utf8_lossy(&shown)
            .contains(": 4999 ")
            .then_some(())
    });
    let kept = app.ctl(&["logs", "-n10000", "-s", "app"]).stdout;
    assert!(
        !String::from_utf8_lossy(&kept).contains("panic"),
        "it is kept anyway"
    );
    let shown = String::from_utf8(app.ctl(&["status", "worker.1"]).stdout).unwrap();
    let (_, report) = shown.split_once("The last crash").expect(&shown);
    assert!(
        report.contains("begin\n") && report.contains("panic: the cause of it all\n"),
        "{shown}"
    );
    hsup.interrupt();
}

#[test]
fn bytes_arrive_as_they_are() {
    let dyno = binaries().join("test-dyno");
    let app = App::procfile(&format!(
        "worker: {} bytes; exec sleep 1000\n",
        dyno.display()
    ));
    let hsup = app.start(&["--no-prefix"]);
    let [first, second] = [&b"a\0b\xff\xfe\x80\r\n"[..], b"\x1b[31m\xc3(\n"];
    hsup.wait_for("two lines", || {
        let out = fs::read(app.path("out")).unwrap();
        (out == [first, second].concat()).then_some(())
    });
    let shown = app.ctl(&["logs", "-s", "app", "-d", "worker.1"]).stdout;
    for line in [first, second] {
        let line = [b" app[worker.1]: ", line].concat();
        let is_there = shown.windows(line.len()).any(|part| part == line);
        assert!(is_there, "{shown:?}");
    }
    hsup.interrupt();
    // The last line had no end.
    let out = fs::read(app.path("out")).unwrap();
    assert_eq!(out, [first, second, b"end\n"].concat());
}

#[test]
fn a_tail_that_is_read_too_slowly_holds_up_nobody_and_is_told_what_it_lost() {
    let dyno = binaries().join("test-dyno");
    let line = format!(
        "echo ready; while [ ! -e ../go ]; do sleep 0.02; done; {} lines 60000; exec sleep 1000",
        dyno.display()
    );
    let app = App::procfile(&format!("worker: {line}\n"));
    let hsup = app.start(&[]);
    hsup.wait_for_line("| ready");
    let (reader, out) = io::pipe().unwrap();
    let tail = app
        .command("hsupctl")
        .args(["logs", "-t", "-n1", "-s", "app"])
        .stdout(out)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.ends_with(" app[worker.1]: ready\n"), "{line}");
    app.write("go", "");
    hsup.wait_for_line("| 59999 ");
    let (done, is_through) = mpsc::channel();
    let rest = thread::spawn(move || {
        let mut read = Vec::new();
        for line in reader.lines().map(Result::unwrap) {
            if line.contains("]: 59999 ") {
                done.send(()).unwrap();
            }
            read.push(line);
        }
        read
    });
    // A tail has a moment to end in once hsup does: that is not what is looked at here.
    is_through.recv_timeout(PATIENCE).unwrap();
    hsup.interrupt();
    drop(tail.wait_with_output());
    let (mut next, mut lost) = (0_u64, 0);
    for line in rest.join().unwrap() {
        let (_, text) = line.split_once("]: ").unwrap();
        if let Some((_, gap)) = text.split_once("-> This tail session dropped ") {
            let (gap, _) = gap.split_once(" messages since ").unwrap();
            let gap: u64 = gap.parse().unwrap();
            lost += gap;
            next += gap;
        } else {
            assert_eq!(
                text.trim_end(),
                next.to_string(),
                "the count stands where the gap is"
            );
            next += 1;
        }
    }
    assert_eq!(next, 60_000);
    assert!(lost > 0, "six megabytes fit nowhere");
}

#[tokio::test]
async fn a_backlog_of_any_length_is_answered_with_ten_thousand_lines_at_most() {
    let app = App::procfile("worker: seq 1 20000; exec sleep 1000\n");
    let socket = app.path("control.sock");
    let hsup = app.start(&["-s", socket.to_str().unwrap()]);
    hsup.wait_for_line("| 20000\n");
    let mut client = SupervisorClient::connect(format!("unix://{}", socket.display()))
        .await
        .unwrap();
    let request = LogsRequest {
        lines: Some(u32::MAX),
        source: "app".to_owned(),
        select: vec!["worker".to_owned()],
        ..LogsRequest::default()
    };
    let mut answers = client.logs(request).await.unwrap().into_inner();
    let mut lines = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        assert_eq!(answer.dropped, 0);
        lines.extend(answer.lines.into_iter().map(|line| line.line));
    }
    assert_eq!(lines.len(), 10_000);
    assert_eq!(
        (&lines[0][..], &lines[9999][..]),
        (&b"10001"[..], &b"20000"[..])
    );
    let usage = app.ctl(&["logs", "-n", "10001"]);
    assert_eq!(usage.status.code(), Some(2));
    hsup.interrupt();
}

#[test]
fn releases_and_scaling_are_app_api_and_the_rest_of_hsup_is_heroku() {
    let app = App::empty();
    let process = |quantity: u32| {
        format!(r#"{{"Type":"worker","Args":["echo up; exec sleep 1000"],"Quantity":{quantity}}}"#)
    };
    app.release(7, "", &process(1));
    let control = app.path("ctl");
    let hsup = app.start(&["--control-dir", control.to_str().unwrap()]);
    hsup.wait_up(&["worker.1"]);
    assert!(app.ctl(&["scale", "worker=2"]).status.success());
    hsup.wait_up(&["worker.1", "worker.2"]);
    app.release(7, "", &process(3));
    hsup.wait_up(&["worker.1", "worker.2", "worker.3"]);
    let shown = |arguments: &[&str]| {
        let shown = app.ctl(&[&["logs"], arguments].concat()).stdout;
        let shown = String::from_utf8(shown).unwrap();
        let behind_time = shown.lines().map(|line| line.split_once(' ').unwrap().1);
        behind_time.map(str::to_owned).collect::<Vec<_>>()
    };
    let api = shown(&["-s", "app", "-d", "api"]);
    assert_eq!(
        api,
        [
            "app[api]: Release v7 created by control directory",
            "app[api]: Release v7 is current",
            "app[api]: Scaled to worker@2 by hsupctl",
            "app[api]: Scaled to worker@3 by control directory",
        ]
    );
    let app_lines = shown(&["-s", "app"]);
    assert!(app_lines.contains(&api[3]) && app_lines.contains(&"app[worker.1]: up".to_owned()));
    let of_hsup = shown(&["-s", "heroku"]);
    let state = "heroku[worker.1]: State changed from starting to up".to_owned();
    assert!(of_hsup.contains(&state), "{of_hsup:?}");
    assert!(!app_lines.contains(&state));
    assert!(
        of_hsup.iter().all(|line| line.starts_with("heroku[")),
        "{of_hsup:?}"
    );
    hsup.interrupt();
}
