//! Waiting in tests, never for ever: what takes too long is ended, and the test told what it said.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    io::{ErrorKind, Read},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc::{self, Receiver},
    thread::{self, sleep},
    time::Duration,
};

use tokio::time::Instant;

/// How long anything that must happen may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(20);

/// Asks `done` now and then until it has an answer; `None` when the time is up.
pub fn poll<T>(done: impl FnMut() -> Option<T>) -> Option<T> {
    poll_for(PATIENCE, done)
}

/// The same, with another patience.
pub fn poll_for<T>(patience: Duration, mut done: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(result) = done() {
            return Some(result);
        }
        if Instant::now() >= deadline {
            return None;
        }
        sleep(PAUSE);
    }
}

/// Runs a program to its end.
pub fn output(command: &mut Command) -> Output {
    try_output(command).unwrap_or_else(|said| panic!("{said}"))
}

/// The same, with another patience.
pub fn output_within(patience: Duration, command: &mut Command) -> Output {
    try_within(patience, command).unwrap_or_else(|said| panic!("{said}"))
}

/// As [`output`], for a caller that has more to say when it fails.
pub fn try_output(command: &mut Command) -> Result<Output, String> {
    try_within(PATIENCE, command)
}

fn try_within(patience: Duration, command: &mut Command) -> Result<Output, String> {
    let child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    finish_within(child, patience)
}

/// Starts a program, also one that was just copied: a process that another test forks has the copy
/// open for writing until it executes its own.
pub fn spawn(command: &mut Command) -> Child {
    loop {
        match command.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => thread::yield_now(),
            child => return child.unwrap(),
        }
    }
}

/// Waits for a program's end, and for that of what it wrote to its pipes.
pub fn finish(child: Child) -> Output {
    finish_within(child, PATIENCE).unwrap_or_else(|said| panic!("{said}"))
}

fn finish_within(mut child: Child, patience: Duration) -> Result<Output, String> {
    let deadline = Instant::now() + patience;
    let pid = child.id();
    // As `Child::wait_with_output` does: a program that reads its input to the end gets one.
    drop(child.stdin.take());
    let pieces = read(child.stdout.take(), child.stderr.take());
    let mut written = [Vec::new(), Vec::new()];
    let mut receive = |until: Instant| {
        loop {
            let patience = until.saturating_duration_since(Instant::now());
            match pieces.recv_timeout(patience) {
                Ok((stream, bytes)) => written[stream].extend(bytes),
                Err(why) => return why == mpsc::RecvTimeoutError::Disconnected,
            }
        }
    };
    let closed = receive(deadline);
    let status = ended(&mut child, deadline);
    let missed = match status {
        Some(_) if closed => None,
        Some(_) => Some("left its pipes open"),
        None => Some("did not end"),
    };
    if missed.is_some() {
        // What was written before the time was up may be on its way still.
        receive(Instant::now() + Duration::from_secs(1));
    }
    let [stdout, stderr] = written;
    match (status, missed) {
        (Some(status), None) => Ok(Output {
            status,
            stdout,
            stderr,
        }),
        (_, missed) => Err(format!(
            "process {pid} {} within {} s; it said:\n{}{}",
            missed.unwrap_or_default(),
            patience.as_secs(),
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        )),
    }
}

/// Waits for a program's end.
pub fn end(child: &mut Child) -> ExitStatus {
    let pid = child.id();
    ended(child, Instant::now() + PATIENCE)
        .unwrap_or_else(|| panic!("process {pid} did not end within {} s", PATIENCE.as_secs()))
}

/// How `child` ended; one that has not by `deadline` is killed.
fn ended(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        sleep(PAUSE);
    }
}

/// What both streams bring, piece by piece, until both have ended.
fn read(
    stdout: Option<impl Read + Send + 'static>,
    stderr: Option<impl Read + Send + 'static>,
) -> Receiver<(usize, Vec<u8>)> {
    let (sender, pieces) = mpsc::channel();
    let forward = |stream: usize, source: Option<Box<dyn Read + Send>>| {
        let Some(mut source) = source else { return };
        let sender = sender.clone();
        thread::spawn(move || {
            let mut piece = vec![0; 65536];
            while let Ok(n @ 1..) = source.read(&mut piece) {
                if sender.send((stream, piece[..n].to_vec())).is_err() {
                    break;
                }
            }
        });
    };
    forward(0, stdout.map(|source| Box::new(source) as _));
    forward(1, stderr.map(|source| Box::new(source) as _));
    pieces
}

#[cfg(test)]
mod tests {
    use std::{
        io::{PipeWriter, Write as _, pipe},
        os::fd::OwnedFd,
        path::Path,
    };

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "neither a dyno nor a driver")]
    fn shell(line: &str) -> Child {
        Command::new("/bin/sh")
            .args(["-c", line])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    #[test]
    fn a_program_is_read_to_its_end() {
        let output = finish(shell("cat; echo out; echo err >&2; exit 3"));
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(
            (&output.stdout[..], &output.stderr[..]),
            (&b"out\n"[..], &b"err\n"[..])
        );
    }

    /// Reads what is in a pipe that the test itself holds open.
    fn with_stdout(child: &mut Child, written: &[u8]) -> PipeWriter {
        let (reader, mut writer) = pipe().unwrap();
        writer.write_all(written).unwrap();
        child.stdout = Some(OwnedFd::from(reader).into());
        writer
    }

    #[test]
    fn a_program_that_hangs_is_ended_and_what_it_said_is_shown() {
        let mut child = shell("exec sleep 1000");
        let pid = child.id();
        drop(with_stdout(&mut child, b"begun\n"));
        let said = finish_within(child, Duration::ZERO).unwrap_err();
        assert_eq!(
            said,
            format!("process {pid} did not end within 0 s; it said:\nbegun\n")
        );
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_pipe_that_stays_open_is_no_hang() {
        let mut child = shell("exit 0");
        child.wait().unwrap();
        let _open = with_stdout(&mut child, b"begun\n");
        let said = finish_within(child, Duration::ZERO).unwrap_err();
        assert!(
            said.ends_with("left its pipes open within 0 s; it said:\nbegun\n"),
            "{said}"
        );
    }
}
