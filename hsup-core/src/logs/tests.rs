//! The router over real pipes.

use std::{
    fs::File,
    io::{PipeReader, PipeWriter, Read as _, Write as _},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl, open},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        stat::Mode,
    },
    unistd::mkfifo,
};
use proptest::prelude::*;
use tokio::time::sleep;

use super::*;

mod stdout;

const PATIENCE: Duration = Duration::from_secs(30);
/// A standard output is never taken for stuck.
const NEVER: Duration = Duration::from_hours(1);

/// A router whose terminal is two pipes.
struct Rig {
    logs: Logs,
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
}

impl Rig {
    fn new(format: Format) -> Self {
        Self::with(format, |_| ())
    }

    fn with(format: Format, change: impl FnOnce(&mut LogSettings)) -> Self {
        let (stdout, out) = io::pipe().unwrap();
        let (stderr, err) = io::pipe().unwrap();
        let mut settings = LogSettings {
            terminal: Some(TerminalSettings {
                stdout: out.into(),
                stderr: err.into(),
                format,
                timestamps: false,
                colour: false,
                patience: NEVER,
            }),
            ..LogSettings::default()
        };
        change(&mut settings);
        Self {
            logs: Logs::start(settings).unwrap(),
            stdout: Some(stdout),
            stderr: Some(stderr),
        }
    }

    fn add(&self, name: &str) -> TestDyno {
        TestDyno::add(&self.logs, name, name.replace('.', "-").as_str())
    }

    /// Ends the router and gives what it wrote.
    async fn written(mut self) -> (String, String) {
        let texts = [
            read_all(self.stdout.take().unwrap()),
            read_all(self.stderr.take().unwrap()),
        ];
        end(self.logs).await;
        let [stdout, stderr] = texts.map(|text| text.join().unwrap());
        (stdout, stderr)
    }
}

fn read_all(pipe: PipeReader) -> thread::JoinHandle<String> {
    thread::spawn(move || io::read_to_string(pipe).unwrap())
}

/// The writing ends of a dyno's outputs.
struct TestDyno {
    id: DynoId,
    stdout: PipeWriter,
    stderr: PipeWriter,
}

impl TestDyno {
    fn add(logs: &Logs, name: &str, id: &str) -> Self {
        let (out, stdout) = io::pipe().unwrap();
        let (err, stderr) = io::pipe().unwrap();
        let id: DynoId = id.parse().unwrap();
        logs.add(&id, &name.parse().unwrap(), out.into(), err.into());
        Self { id, stdout, stderr }
    }

    fn say(&mut self, text: impl AsRef<[u8]>) {
        self.stdout.write_all(text.as_ref()).unwrap();
    }

    fn complain(&mut self, text: impl AsRef<[u8]>) {
        self.stderr.write_all(text.as_ref()).unwrap();
    }
}

/// Ends a router whose output is taken.
async fn end(logs: Logs) {
    let outcome = logs.shutdown(sleep(PATIENCE)).await;
    assert_eq!(outcome, ShutdownOutcome::Complete);
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let polled = async {
        while !holds() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(
        timeout(PATIENCE, polled).await.is_ok(),
        "never happened: {what}"
    );
}

fn is_writable(pipe: &PipeWriter) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
}

/// Fills a pipe to the last byte; answers how many those were.
fn fill(pipe: &PipeWriter) -> usize {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut filled = 0;
    while let Ok(count) = nix::unistd::write(pipe, &[b'.'; 4096]) {
        filled += count;
    }
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    filled
}

fn texts(lines: &[Line]) -> Vec<String> {
    lines
        .iter()
        .map(|line| String::from_utf8_lossy(&line.text).into_owned())
        .collect()
}

#[tokio::test]
async fn lines_get_the_name_of_their_dyno_and_go_where_they_were_written() {
    let rig = Rig::new(Format::Prefixed);
    rig.logs.expect_name("worker.1");
    let mut web = rig.add("web.1");
    web.say("one\ntwo\r\n\n");
    web.complain("wrong\n");
    rig.logs.finish(&web.id).await;
    rig.logs.note("web.1", "Process exited with status 0");
    rig.logs.note(SYSTEM, "first\nsecond\n");
    let (stdout, stderr) = rig.written().await;
    assert_eq!(stdout, "web.1    | one\nweb.1    | two\r\nweb.1    | \n");
    assert_eq!(
        stderr,
        "web.1    | wrong\n\
         web.1    | Process exited with status 0\n\
         system   | first\n\
         system   | second\n"
    );
}

#[tokio::test]
async fn where_both_outputs_are_one_pipe_the_order_is_kept() {
    let (mut reader, out) = io::pipe().unwrap();
    let logs = Logs::start(LogSettings {
        terminal: Some(TerminalSettings {
            stderr: out.try_clone().unwrap().into(),
            stdout: out.into(),
            format: Format::Prefixed,
            timestamps: true,
            colour: true,
            patience: NEVER,
        }),
        ..LogSettings::default()
    })
    .unwrap();
    let mut web = TestDyno::add(&logs, "web.1", "web-1");
    web.say("one\n");
    logs.finish(&web.id).await;
    logs.note("web.1", "Process exited with status 0");
    end(logs).await;
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text:?}");
    for (line, end) in lines.iter().zip(["one", "Process exited with status 0"]) {
        let rest = line.strip_prefix("\x1b[36m").expect(line);
        let (time, rest) = rest.split_at(8);
        assert!(
            time.bytes().enumerate().all(|(index, byte)| match index {
                2 | 5 => byte == b':',
                _ => byte.is_ascii_digit(),
            }),
            "{time}"
        );
        assert_eq!(rest, format!(" web.1  |\x1b[0m {end}"));
    }
}

#[tokio::test]
async fn bare_lines_are_the_dynos_and_any_bytes_are_kept() {
    let rig = Rig::new(Format::Bare);
    let mut web = rig.add("web.1");
    web.say(b"\0nul\n\x1b[31mred\n");
    rig.logs.finish(&web.id).await;
    let kept = rig.logs.tail_of(&web.id, 9);
    assert_eq!(texts(&kept), ["\0nul", "\x1b[31mred"]);
    rig.logs.note("web.1", "State changed from up to down");
    let (stdout, stderr) = rig.written().await;
    assert_eq!(stdout, "\0nul\n\x1b[31mred\n");
    assert_eq!(stderr, "web.1  | State changed from up to down\n");
}

#[tokio::test]
async fn bytes_that_are_no_text_are_kept_in_the_ring_and_in_a_pipe() {
    let mut rig = Rig::new(Format::Prefixed);
    let mut web = rig.add("web.1");
    let mut stdout = rig.stdout.take().unwrap();
    web.say(b"\xff\xfe\0\n");
    rig.logs.finish(&web.id).await;
    assert_eq!(&rig.logs.tail_of(&web.id, 1)[0].text[..], b"\xff\xfe\0");
    end(rig.logs).await;
    let mut bytes = Vec::new();
    stdout.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"web.1  | \xff\xfe\0\n");
}

#[tokio::test]
async fn json_is_one_object_a_line_on_stdout() {
    let rig = Rig::new(Format::Json);
    let mut web = rig.add("web.1");
    web.complain(b"a \"quote\"\tand \xff\n");
    rig.logs.finish(&web.id).await;
    rig.logs.note(API, "Release v7 created");
    let (stdout, stderr) = rig.written().await;
    assert_eq!(stderr, "");
    let objects: Vec<serde_json::Value> = stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(objects.len(), 2);
    assert_eq!(objects[0]["line"], "a \"quote\"\tand \u{fffd}");
    assert_eq!(objects[0]["stream"], "stderr");
    assert_eq!(objects[0]["dyno"], "web.1");
    assert_eq!(objects[1]["source"], "app");
    assert_eq!(objects[1]["dyno"], "api");
    let at: jiff::Timestamp = objects[1]["at"].as_str().unwrap().parse().unwrap();
    assert!(at.as_microsecond() <= shared::now_unix_us());
}

#[tokio::test]
async fn a_line_that_arrives_in_parts_is_one_line_and_the_last_is_ended() {
    let rig = Rig::new(Format::Prefixed);
    let mut web = rig.add("web.1");
    let mut worker = rig.add("worker.1");
    web.say("be");
    worker.say("be");
    worker.say("tween\n");
    until("worker's line", || {
        rig.logs.tail(&Filter::dyno("worker"), 9).len() == 1
    })
    .await;
    web.say("gin\nend");
    rig.logs.finish(&web.id).await;
    let lines = rig.logs.tail(&Filter::default(), 9);
    assert_eq!(texts(&lines), ["between", "begin", "end"]);
    let (stdout, _) = rig.written().await;
    assert_eq!(
        stdout,
        "worker.1 | between\nweb.1    | begin\nweb.1    | end\n"
    );
}

#[tokio::test]
async fn what_a_dead_dyno_left_in_a_fifo_is_all_there_after_finish() {
    let mut rig = Rig::new(Format::Prefixed);
    let written = read_all(rig.stdout.take().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let id: DynoId = "web-1".parse().unwrap();
    let ends = ["stdout", "stderr"].map(|name| {
        let path = directory.path().join(name);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let ours = open(
            &path,
            OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
        (
            ours,
            File::options().read(true).write(true).open(&path).unwrap(),
        )
    });
    let [(out, mut stdout), (err, stderr)] = ends;
    // Before anybody reads, as while hsup is down.
    for number in 0..1000 {
        writeln!(stdout, "{number}").unwrap();
    }
    drop((stdout, stderr));
    rig.logs.add(&id, &"web.1".parse().unwrap(), out, err);
    rig.logs.finish(&id).await;
    let lines = texts(&rig.logs.tail_of(&id, usize::MAX));
    assert_eq!(lines.len(), 1000);
    assert_eq!(lines[999], "999");
    end(rig.logs).await;
    assert_eq!(written.join().unwrap().lines().count(), 1000);
}

#[tokio::test]
async fn a_flood_without_a_newline_keeps_memory_flat_and_loses_nothing() {
    const FLOOD: usize = 256 * 1024 * 1024;
    let mut rig = Rig::new(Format::Prefixed);
    let mut web = rig.add("web.1");
    let mut stdout = rig.stdout.take().unwrap();
    let writer = thread::spawn(move || {
        let block = vec![b'x'; 1024 * 1024];
        for _ in 0..FLOOD / block.len() {
            web.say(&block);
        }
        web
    });
    let reader = thread::spawn(move || {
        let (mut xs, mut lines, mut longest, mut length) = (0, 0, 0, 0);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let count = stdout.read(&mut buffer).unwrap();
            if count == 0 {
                return (xs, lines, longest);
            }
            for part in buffer[..count].split_inclusive(|byte| *byte == b'\n') {
                xs += memchr::memchr_iter(b'x', part).count();
                length += part.len();
                if part.ends_with(b"\n") {
                    lines += 1;
                    longest = longest.max(length);
                    length = 0;
                }
            }
        }
    });
    let web = tokio::task::spawn_blocking(|| writer.join().unwrap())
        .await
        .unwrap();
    rig.logs.finish(&web.id).await;
    let kept = rig.logs.tail(&Filter::default(), usize::MAX);
    assert!(kept.iter().map(|line| line.text.len()).sum::<usize>() <= 256 * 1024);
    assert!(
        kept.iter()
            .all(|line| line.text.len() <= router::LINE_BYTES)
    );
    end(rig.logs).await;
    let (xs, lines, longest) = reader.join().unwrap();
    assert_eq!(xs, FLOOD);
    assert_eq!(lines, FLOOD / router::LINE_BYTES);
    assert_eq!(longest, "web.1  | ".len() + router::LINE_BYTES + 1);
}

#[tokio::test]
async fn while_the_terminal_is_blocked_only_the_dynos_wait() {
    // Longer together than what stderr's pipe, its thread and what waits for that hold.
    const NOTES: usize = 6000;
    let long = "x".repeat(100);
    let (stdout, out) = io::pipe().unwrap();
    let probe = out.try_clone().unwrap();
    let mut rig = Rig::with(Format::Prefixed, |settings| {
        settings.terminal.as_mut().unwrap().stdout = out.into();
    });
    rig.stdout = Some(stdout);
    let mut web = rig.add("web.1");
    let id = web.id.clone();
    let mut subscription = rig.logs.subscribe(Filter::default(), 0, true);
    let total = 400_000_usize;
    let through = Arc::new(AtomicBool::new(false));
    let all_said = Arc::clone(&through);
    let writer = thread::spawn(move || {
        for number in 0..total {
            web.say(format!("{number:07}\n"));
        }
        all_said.store(true, Ordering::Release);
        web
    });
    until("the terminal takes no more", || !is_writable(&probe)).await;
    drop(probe);
    assert!(!through.load(Ordering::Acquire), "nothing held the dyno up");

    let mut noted = 0;
    for number in 0..NOTES {
        rig.logs.note(SYSTEM, format!("note {number} {long}"));
        // As many as a subscription holds.
        while number % 1000 == 999 && noted <= number {
            let batch = timeout(PATIENCE, subscription.next())
                .await
                .expect("a subscription hangs")
                .unwrap();
            noted += batch
                .lines
                .iter()
                .filter(|line| line.source == Source::Heroku)
                .count();
            assert_eq!(batch.dropped, 0);
        }
    }
    let notes = Filter {
        select: vec![SYSTEM.to_owned()],
        source: Some(Source::Heroku),
    };
    let tail = rig.logs.tail(&notes, 1);
    assert_eq!(texts(&tail), [format!("note 5999 {long}")]);
    let late = rig.logs.subscribe(notes, 3, false).next().await.unwrap();
    assert_eq!(
        texts(&late.lines),
        [5997, 5998, 5999].map(|number| format!("note {number} {long}"))
    );

    // It flows again: nothing of the dyno is missing, and the notes that did not fit are counted.
    let stderr = rig.stderr.take().unwrap();
    let errors = thread::spawn(move || io::read_to_string(stderr).unwrap());
    let mut stdout = rig.stdout.take().unwrap();
    let reader = thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).unwrap();
        text
    });
    let web = tokio::task::spawn_blocking(|| writer.join().unwrap())
        .await
        .unwrap();
    assert_eq!(web.id, id);
    rig.logs.finish(&id).await;
    end(rig.logs).await;
    let text = reader.join().unwrap();
    let expected = (0..total).map(|number| format!("web.1  | {number:07}"));
    assert!(
        text.lines().eq(expected),
        "lines are missing or out of order"
    );
    let errors = errors.join().unwrap();
    let shown = errors
        .lines()
        .filter(|line| line.starts_with("system | note "))
        .count();
    let not_shown: usize = errors
        .lines()
        .filter_map(|line| {
            let count = line.strip_prefix("hsup: ")?;
            count.strip_suffix(" lines not shown: standard error took nothing")
        })
        .map(|count| count.parse::<usize>().unwrap())
        .sum();
    assert!(not_shown > 0);
    assert_eq!(shown + not_shown, NOTES);
}

#[tokio::test]
async fn a_standard_error_that_takes_nothing_holds_up_nobody() {
    let mut rig = Rig::with(Format::Prefixed, |settings| {
        let stderr = settings.terminal.as_ref().unwrap().stderr.as_fd();
        fill(&stderr.try_clone_to_owned().unwrap().into());
    });
    let mut web = rig.add("web.1");
    let total = 200_000_usize;
    let web = tokio::task::spawn_blocking(move || {
        for number in 0..total {
            web.complain(format!("{number:07}\n"));
        }
        web.say("through\n");
        web
    });
    let web = timeout(PATIENCE, web).await.expect("the dyno is held up");
    let mut line = [0; 17];
    rig.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"web.1  | through\n");
    rig.logs.note(SYSTEM, "too late");
    rig.logs.print(b"not shown either\n".to_vec());

    let stderr = rig.stderr.take().unwrap();
    let errors = thread::spawn(move || io::read_to_string(stderr).unwrap());
    rig.logs.finish(&web.unwrap().id).await;
    end(rig.logs).await;
    let errors = errors.join().unwrap();
    let (mut shown, mut not_shown) = (0, 0);
    for line in errors.trim_start_matches('.').lines() {
        if let Some(gap) = line.strip_prefix("hsup: ") {
            assert!(
                gap.ends_with(" not shown: standard error took nothing"),
                "{line}"
            );
            let count = gap.split(' ').next().unwrap();
            not_shown += count.parse::<usize>().unwrap();
        } else {
            // There is room for what came too late where the writer begins late.
            let is_known = line.starts_with("web.1  | ") || line.ends_with("too late");
            assert!(is_known || line == "not shown either", "{line}");
            shown += 1;
        }
    }
    assert!(shown > 1000, "a quarter of a megabyte may wait: {shown}");
    assert!(not_shown > 0, "the gap is not told");
    assert_eq!(shown + not_shown, total + 2);
}

#[tokio::test]
async fn what_is_printed_does_not_wait_for_standard_output() {
    let (_reader, out) = io::pipe().unwrap();
    fill(&out);
    let mut rig = Rig::with(Format::Prefixed, |settings| {
        settings.terminal.as_mut().unwrap().stdout = out.into();
    });
    let mut web = rig.add("web.1");
    web.say("stuck\n");
    web.complain("half a");
    rig.logs.note("web.1", "Stopping process with SIGKILL");
    rig.logs.print(b"one\ntwo\n".to_vec());
    let mut stderr = rig.stderr.take().unwrap();
    let expected = "web.1  | Stopping process with SIGKILL\none\ntwo\n";
    let got = tokio::task::spawn_blocking(move || {
        let mut got = vec![0; expected.len()];
        stderr.read_exact(&mut got).unwrap();
        got
    });
    let got = timeout(PATIENCE, got).await.expect("it is not printed");
    assert_eq!(String::from_utf8(got.unwrap()).unwrap(), expected);
}

#[tokio::test]
async fn what_is_printed_goes_to_standard_error_and_stands_between_whole_lines() {
    let rig = Rig::new(Format::Json);
    rig.logs.print(b"no json\n".to_vec());
    let (stdout, stderr) = rig.written().await;
    assert_eq!((stdout.as_str(), stderr.as_str()), ("", "no json\n"));

    let (reader, out) = io::pipe().unwrap();
    let rig = Rig::with(Format::Prefixed, |settings| {
        let terminal = settings.terminal.as_mut().unwrap();
        terminal.stderr = out.try_clone().unwrap().into();
        terminal.stdout = out.into();
    });
    rig.logs.print(b"one\n".to_vec());
    end(rig.logs).await;
    assert_eq!(io::read_to_string(reader).unwrap(), "one\n");
}

#[tokio::test]
async fn shutdown_ends_when_patience_does_and_says_what_is_cut_off() {
    let mut rig = Rig::new(Format::Prefixed);
    let mut web = rig.add("web.1");
    let mut subscription = rig.logs.subscribe(Filter::default(), 0, true);
    let blocked = thread::spawn(move || {
        // More than three pipes and the router's buffer hold; the write fails once the router has gone.
        drop(web.stdout.write_all(&b"line\n".repeat(1_000_000)));
    });
    until("the first lines", || {
        !rig.logs.tail(&Filter::default(), 1).is_empty()
    })
    .await;
    let outcome = rig.logs.clone().shutdown(std::future::ready(())).await;
    assert_eq!(outcome, ShutdownOutcome::CutOff);
    let drained = async { while subscription.next().await.is_some() {} };
    assert!(
        timeout(PATIENCE, drained).await.is_ok(),
        "a subscription outlives the logs"
    );
    let said = io::read_to_string(rig.stderr.take().unwrap()).unwrap();
    assert!(
        said.starts_with("system | ") && said.contains(" not written"),
        "{said}"
    );
    // Frees the thread that was left behind, and so the dyno.
    drop(rig);
    tokio::task::spawn_blocking(|| blocked.join().unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_reader_that_goes_away_is_told_once_and_the_rest_goes_on() {
    let mut rig = Rig::new(Format::Prefixed);
    let mut web = rig.add("web.1");
    drop(rig.stdout.take());
    web.say("into the void\n");
    let said = "Standard output is gone (Broken pipe): the dynos go on, \
                and `hsupctl logs` has their last lines";
    until("somebody is told", || {
        texts(&rig.logs.tail(&Filter::dyno(SYSTEM), 1)) == [said]
    })
    .await;
    let block = b"more\n".repeat(100_000);
    let web = tokio::task::spawn_blocking(move || {
        web.say(&block);
        web
    })
    .await
    .unwrap();
    rig.logs.finish(&web.id).await;
    assert_eq!(texts(&rig.logs.tail(&Filter::dyno("web.1"), 1)), ["more"]);
    rig.logs.note("web.1", "Process exited with status 0");
    end(rig.logs).await;
    let stderr = io::read_to_string(rig.stderr.take().unwrap()).unwrap();
    let lost = "web.1  | into the void\n".len() + 100_000 * "web.1  | more\n".len();
    assert_eq!(
        stderr,
        format!(
            "system | {said}\n\
             web.1  | Process exited with status 0\n\
             system | {lost} bytes of standard output were not written: Broken pipe\n"
        )
    );
}

#[tokio::test]
async fn a_full_disk_is_told_at_once_and_what_it_never_took_at_the_end() {
    let mut rig = Rig::with(Format::Bare, |settings| {
        let full = File::options().write(true).open("/dev/full").unwrap();
        settings.terminal.as_mut().unwrap().stdout = full.into();
    });
    let mut web = rig.add("web.1");
    web.say("lost\n");
    rig.logs.finish(&web.id).await;
    let mut again = TestDyno::add(&rig.logs, "web.1", "again");
    again.say("lost\n");
    rig.logs.finish(&again.id).await;
    end(rig.logs).await;
    assert_eq!(
        io::read_to_string(rig.stderr.take().unwrap()).unwrap(),
        "system | Standard output takes no more (No space left on device): \
         the dynos go on, and `hsupctl logs` has their last lines\n\
         system | 10 bytes of standard output were not written: No space left on device\n"
    );
}

#[tokio::test]
async fn a_non_blocking_stdout_is_waited_for() {
    let (reader, out) = io::pipe().unwrap();
    fcntl(&out, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let rig = Rig::with(Format::Bare, |settings| {
        settings.terminal.as_mut().unwrap().stdout = out.into();
    });
    let mut web = rig.add("web.1");
    let writer = thread::spawn(move || {
        web.say(b"0123456789\n".repeat(100_000));
        web
    });
    let reader = thread::spawn(move || io::read_to_string(reader).unwrap());
    let web = tokio::task::spawn_blocking(|| writer.join().unwrap())
        .await
        .unwrap();
    rig.logs.finish(&web.id).await;
    end(rig.logs.clone()).await;
    assert_eq!(reader.join().unwrap().lines().count(), 100_000);
}

#[tokio::test]
async fn a_slow_subscriber_is_told_how_many_lines_it_lost() {
    let logs = Logs::start(LogSettings::default()).unwrap();
    let mut web = TestDyno::add(&logs, "web.1", "web-1");
    let mut subscription = logs.subscribe(Filter::default(), 100, true);
    let total = 200_000_u64;
    let web = tokio::task::spawn_blocking(move || {
        for number in 0..total {
            web.say(format!("{number:020}\n"));
        }
        web
    })
    .await
    .unwrap();
    logs.finish(&web.id).await;
    end(logs).await;
    let (mut sent, mut dropped, mut next) = (0, 0, 0);
    while let Some(batch) = subscription.next().await {
        dropped += batch.dropped;
        next += batch.dropped;
        for line in &batch.lines {
            let number: u64 = std::str::from_utf8(&line.text).unwrap().parse().unwrap();
            assert_eq!(number, next, "the count stands where the gap is");
            next += 1;
            sent += 1;
        }
    }
    assert!(dropped > 0, "a megabyte cannot hold them all");
    assert!(sent > 10_000, "most of a megabyte is left");
    assert_eq!(sent + dropped, total);
}

#[tokio::test]
async fn a_backlog_has_a_bound_and_what_is_left_out_is_counted() {
    let logs = Logs::start(LogSettings::default()).unwrap();
    let mut written = 0;
    for number in 1..=8 {
        let mut worker = TestDyno::add(&logs, &format!("worker.{number}"), &format!("d{number}"));
        let block = format!("{number:99}\n").repeat(2000);
        written += 2000;
        let worker = tokio::task::spawn_blocking(move || {
            worker.say(block);
            worker
        });
        logs.finish(&worker.await.unwrap().id).await;
    }
    let mut subscription = logs.subscribe(Filter::default(), usize::MAX, false);
    let first = subscription.next().await.unwrap();
    let (dropped, mut lines) = (first.dropped, first.lines);
    while let Some(batch) = subscription.next().await {
        assert_eq!(batch.dropped, 0, "it is told once, where the gap is");
        lines.extend(batch.lines);
    }
    assert!(dropped > 0, "eight rings are more than a megabyte");
    assert_eq!(dropped + lines.len() as u64, written);
    let bytes: usize = lines.iter().map(|line| line.text.len()).sum();
    assert!((900_000..=1024 * 1024).contains(&bytes), "{bytes}");
    assert_eq!(&*lines.last().unwrap().dyno, "worker.8");
    end(logs).await;
}

#[tokio::test]
async fn a_backlog_and_what_follows_have_no_gap_and_no_double() {
    let logs = Logs::start(LogSettings::default()).unwrap();
    let mut web = TestDyno::add(&logs, "web.1", "web-1");
    let writer = thread::spawn(move || {
        for number in 0..5_000 {
            web.say(format!("{number}\n"));
        }
        web
    });
    until("some lines", || {
        logs.tail(&Filter::default(), 50).len() == 50
    })
    .await;
    let mut subscription = logs.subscribe(Filter::dyno("web"), 50, true);
    let web = tokio::task::spawn_blocking(|| writer.join().unwrap())
        .await
        .unwrap();
    logs.finish(&web.id).await;
    end(logs).await;
    let mut numbers: Vec<u32> = Vec::new();
    while let Some(batch) = subscription.next().await {
        // Each line alone in its block, they have room together: nobody reads yet.
        assert_eq!(batch.dropped, 0);
        numbers.extend(
            texts(&batch.lines)
                .iter()
                .map(|text| text.parse::<u32>().unwrap()),
        );
    }
    assert_eq!(numbers.last(), Some(&4_999));
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]));
}

#[tokio::test]
async fn a_flood_does_not_keep_the_others_waiting() {
    let rig = Rig::with(Format::Prefixed, |settings| {
        let null = || {
            File::options()
                .write(true)
                .open("/dev/null")
                .unwrap()
                .into()
        };
        let terminal = settings.terminal.as_mut().unwrap();
        terminal.stdout = null();
        terminal.stderr = null();
    });
    let stop = Arc::new(AtomicBool::new(false));
    let floods: Vec<_> = (1..=3)
        .map(|number| {
            let mut flood = rig.add(&format!("flood.{number}"));
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let block = b"noise\n".repeat(10_000);
                while !stop.load(Ordering::Relaxed) {
                    flood.say(&block);
                }
            })
        })
        .collect();
    until("the flood", || {
        !rig.logs.tail(&Filter::dyno("flood"), 1).is_empty()
    })
    .await;
    let mut web = rig.add("web.1");
    for number in 0..50 {
        web.say(format!("{number}\n"));
        until("a line beside the flood", || {
            texts(&rig.logs.tail(&Filter::dyno("web.1"), 1)) == [number.to_string()]
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    tokio::task::spawn_blocking(|| floods.into_iter().for_each(|flood| flood.join().unwrap()))
        .await
        .unwrap();
    end(rig.logs).await;
}

#[tokio::test]
async fn thousands_of_streams_share_one_thread() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(6000)), hard).unwrap();
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // Four descriptors each; the rest is for the other tests.
    let count = usize::try_from(soft).unwrap().saturating_sub(400).min(4000) / 4;
    assert!(
        count >= 150,
        "an open-file limit of {soft} is too low for this"
    );
    let rig = Rig::with(Format::Prefixed, |settings| {
        let terminal = settings.terminal.as_mut().unwrap();
        terminal.stdout = tempfile::tempfile().unwrap().into();
    });
    let mut dynos: Vec<TestDyno> = (1..=count)
        .map(|number| {
            let dyno = rig.add(&format!("web.{number}"));
            // A user's pipes have a bound together (pipe(7)), and the other tests need theirs.
            for pipe in [&dyno.stdout, &dyno.stderr] {
                fcntl(pipe, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
            }
            dyno
        })
        .collect();
    for dyno in &mut dynos {
        dyno.say("out\n");
        dyno.complain("err\n");
    }
    for dyno in &dynos {
        rig.logs.finish(&dyno.id).await;
    }
    assert_eq!(
        rig.logs.tail(&Filter::default(), usize::MAX).len(),
        2 * count
    );
    drop(dynos);
    end(rig.logs).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the bytes are cut on their way, the lines are those of the whole.
    #[test]
    fn lines_do_not_depend_on_how_they_arrive(
        parts in prop::collection::vec(prop::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(b'\n')], 0..300), 0..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (lines, stdout) = runtime.block_on(async {
            let mut rig = Rig::new(Format::Bare);
            let mut web = rig.add("web.1");
            for part in &parts {
                web.say(part);
                thread::yield_now();
            }
            rig.logs.finish(&web.id).await;
            let lines = rig.logs.tail_of(&web.id, usize::MAX);
            end(rig.logs).await;
            let mut stdout = Vec::new();
            rig.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
            (lines, stdout)
        });
        let mut expected = parts.concat();
        if expected.last().is_some_and(|last| *last != b'\n') {
            expected.push(b'\n');
        }
        prop_assert_eq!(&stdout, &expected);
        let joined: Vec<u8> = lines.iter().flat_map(|line| [&line.text[..], b"\n"].concat()).collect();
        prop_assert_eq!(&joined, &expected);
        prop_assert_eq!(lines.len(), memchr::memchr_iter(b'\n', &expected).count());
    }
}

#[tokio::test]
async fn closed_ends_and_unknown_dynos_are_no_trouble() {
    let rig = Rig::new(Format::Prefixed);
    let mut web = rig.add("web.1");
    web.say("last words");
    let id = web.id.clone();
    drop(web);
    until("the end of the line", || {
        rig.logs.tail(&Filter::default(), 9).len() == 1
    })
    .await;
    rig.logs.finish(&id).await;
    rig.logs.finish(&id).await;
    rig.logs.finish(&"never-1".parse().unwrap()).await;
    let logs = rig.logs.clone();
    let (stdout, _) = rig.written().await;
    assert_eq!(stdout, "web.1  | last words\n");

    // After the end everything answers, and nothing hangs.
    logs.note("web.1", "too late for the terminal");
    logs.finish(&id).await;
    assert_eq!(logs.tail(&Filter::default(), 9).len(), 2);
    assert!(
        logs.subscribe(Filter::default(), 0, true)
            .next()
            .await
            .is_none()
    );
    end(logs).await;
}
