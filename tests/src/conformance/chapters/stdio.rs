//! Stdio: every byte a dyno writes arrives, and the end of its stdin as well.

use std::time::Duration;

use hsup_proto::driver::Capability;
use tokio::time::{Instant, sleep};

use super::super::{
    case::{Case, Failure, Need, NotPassed, case, check, check_eq},
    context::Context,
    dyno::Dyno,
    output::check_sequence,
    requests::{code, wait_for},
};

const STDIO: &str = "stdio";
const FIFO: &[Need] = &[Need::Has(Capability::StdioFifo)];

pub(crate) const CASES: &[Case] = &[
    case!(
        STDIO,
        "stdout and stderr arrive apart",
        "§11: io_dir/stdout and io_dir/stderr",
        apart,
        FIFO
    ),
    case!(
        STDIO,
        "bytes that are not text arrive",
        "§11: the driver dups the FIFO to the dyno: bytes are kept",
        bytes,
        FIFO
    ),
    case!(
        STDIO,
        "what is written just before the exit is not lost",
        "§11: after Wait the core drains, so nothing written before exit is lost",
        last_words,
        FIFO
    ),
    case!(
        STDIO,
        "8 MiB as fast as they come lose nothing",
        "§13: nothing is lost; §11: the dyno blocks until the core reads",
        fast,
        FIFO
    ),
    Case {
        beside: true,
        ..case!(
            STDIO,
            "1 MiB/s for 10 s loses nothing",
            "§13: 1 MiB/s of output for 10 s loses nothing",
            steady,
            FIFO
        )
    },
    Case {
        beside: true,
        ..case!(
            STDIO,
            "a reader that is away for 5 s blocks the dyno, and loses nothing",
            "§13: output blocked 5 s by a slow reader, then nothing lost",
            slow_reader,
            FIFO
        )
    },
    case!(
        STDIO,
        "a dyno outlives its reader, and what it wrote meanwhile is kept",
        "§11: O_RDWR: no SIGPIPE when the core restarts, up to 64 KiB buffered meanwhile",
        reader_returns,
        FIFO
    ),
    case!(
        STDIO,
        "what a dyno wrote before its end waits for a reader that comes later",
        "§11: up to 64 KiB buffered while the core is away; nothing written before exit is lost",
        read_later,
        FIFO
    ),
    case!(
        STDIO,
        "/dev/stdout and /dev/stderr can be opened again",
        "§11: 0622, so that a dyno of another uid can reopen /dev/stdout",
        reopened,
        FIFO
    ),
    case!(
        STDIO,
        "stdin arrives, and so does its end",
        "§11: stdin is opened O_RDONLY; closing the core's end is the end of file",
        stdin,
        FIFO
    ),
    case!(
        STDIO,
        "the end of stdin arrives while other dynos run",
        "§11: closing the core's end is the end of file: no dyno holds another's stdin",
        stdin_among_others,
        FIFO
    ),
    case!(
        STDIO,
        "1 MiB through stdin arrives whole",
        "§11: O_NONBLOCK is cleared on the dyno's stdin",
        large_stdin,
        FIFO
    ),
    case!(
        STDIO,
        "a dyno that reads before anything is written waits for it",
        "§11: the driver clears O_NONBLOCK",
        patient_stdin,
        FIFO
    ),
    case!(
        STDIO,
        "without a stdin FIFO stdin is empty",
        "§11: no stdin FIFO: /dev/null",
        no_stdin,
        FIFO
    ),
];

async fn apart(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.start("echo out; echo err >&2; echo out2").await?;
    cx.exits(dyno.id(), code(0)).await?;
    check_eq(
        "stdout",
        &dyno.stdout.drain().await?,
        &b"out\nout2\n".to_vec(),
    )?;
    check_eq("stderr", &dyno.stderr.drain().await?, &b"err\n".to_vec())?;
    Ok(())
}

async fn bytes(cx: &Context) -> Result<(), NotPassed> {
    let script = r"printf 'a\000b\377\376\200\r\n\033[31m\n\nno newline'";
    let mut dyno = cx.start(script).await?;
    cx.exits(dyno.id(), code(0)).await?;
    let expected = b"a\0b\xff\xfe\x80\r\n\x1b[31m\n\nno newline".to_vec();
    check_eq("stdout", &dyno.stdout.drain().await?, &expected)?;
    Ok(())
}

async fn last_words(cx: &Context) -> Result<(), NotPassed> {
    for n in 0..20 {
        let script = format!("printf 'last words {n}'; echo dying >&2; exit {n}");
        let mut dyno = cx.start(&script).await?;
        cx.exits(dyno.id(), code(n)).await?;
        let expected = format!("last words {n}").into_bytes();
        check_eq("stdout", &dyno.stdout.drain().await?, &expected)?;
        check_eq("stderr", &dyno.stderr.drain().await?, &b"dying\n".to_vec())?;
    }
    Ok(())
}

/// A line of the sequence scripts: its number, then this many bytes of padding, then a newline.
const WIDTH: usize = 1024;

/// Prints `count` lines of [`WIDTH`] bytes; `pace` is run after every 256 of them.
fn sequence(count: usize, pace: &str) -> String {
    // The padding is cut to fit the number with parameter expansion: no command but the shell.
    let padding = "x".repeat(WIDTH);
    format!(
        "p={padding}; i=0; while [ $i -lt {count} ]; do \
         h=\"$i \"; t=\"$h$p\"; \
         while [ ${{#t}} -gt {last} ]; do t=${{t%x}}; done; \
         echo \"$t\"; i=$((i+1)); \
         [ $((i % 256)) -eq 0 ] && {pace}; done; :",
        last = WIDTH - 1
    )
}

async fn read_sequence(
    cx: &Context,
    dyno: &mut Dyno,
    count: usize,
    patience: Duration,
) -> Result<(), NotPassed> {
    let bytes = dyno.stdout.bytes(count * WIDTH, patience).await?;
    cx.exits(dyno.id(), code(0)).await?;
    let rest = dyno.stdout.drain().await?;
    check_sequence("stdout", &[bytes, rest].concat(), count, WIDTH)?;
    Ok(())
}

async fn fast(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.start(&sequence(8192, ":")).await?;
    read_sequence(cx, &mut dyno, 8192, Duration::from_secs(30)).await
}

async fn steady(cx: &Context) -> Result<(), NotPassed> {
    // The dyno is paced through its stdin: 256 KiB for each line that is written to it.
    let mut dyno = cx.start(&sequence(10 * 1024, "read _")).await?;
    let mut bytes = Vec::new();
    let begun = Instant::now();
    for tick in 1..=40_u32 {
        let burst = dyno.stdout.bytes(256 * WIDTH, Duration::from_secs(10));
        bytes.extend(burst.await?);
        tokio::time::sleep_until(begun + Duration::from_millis(250) * tick).await;
        dyno.stdin.write(b"\n").await?;
    }
    cx.exits(dyno.id(), code(0)).await?;
    bytes.extend(dyno.stdout.drain().await?);
    check_sequence("stdout", &bytes, 10 * 1024, WIDTH)?;
    Ok(())
}

async fn slow_reader(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.start(&sequence(1024, ":")).await?;
    // Wait until the FIFO has been full for so long: it holds the same all the while.
    let deadline = Instant::now() + Duration::from_secs(30);
    let (mut seen, mut since) = (0, Instant::now());
    while seen == 0 || since.elapsed() < Duration::from_secs(5) {
        let waiting = dyno.stdout.waiting();
        if waiting != seen {
            (seen, since) = (waiting, Instant::now());
        }
        check(
            Instant::now() < deadline,
            "stdout",
            "a FIFO that fills up",
            format_args!("{waiting} bytes, ever more"),
        )?;
        sleep(Duration::from_millis(20)).await;
    }
    let reply = cx.waits().wait(wait_for(dyno.id(), 1)).await.ok()?;
    let expected = "a dyno that is blocked, not ended";
    let observed = format!("{:?} with {seen} bytes in the FIFO", reply.status);
    check(reply.status.is_none(), "Wait", expected, observed)?;
    read_sequence(cx, &mut dyno, 1024, Duration::from_secs(20)).await
}

async fn reader_returns(cx: &Context) -> Result<(), NotPassed> {
    let script = "echo ready; read _; for i in 1 2 3 4 5 6 7 8; do echo $i; done; \
                  echo written >&2; read _; exit 18";
    let mut dyno = cx.ready(script).await?;
    dyno.stdout.release();
    dyno.stdin.write(b"\n").await?;
    dyno.stderr.expect("written").await?;
    dyno.stdout.reopen()?;
    for number in 1..=8 {
        dyno.stdout.expect(&number.to_string()).await?;
    }
    dyno.stdin.write(b"\n").await?;
    cx.exits(dyno.id(), code(18)).await?;
    Ok(())
}

async fn read_later(cx: &Context) -> Result<(), NotPassed> {
    let script = "echo ready; read _; echo last words; echo dying >&2; exit 22";
    let mut dyno = cx.ready(script).await?;
    dyno.stdout.release();
    dyno.stderr.release();
    dyno.stdin.write(b"\n").await?;
    cx.exits(dyno.id(), code(22)).await?;
    // The dyno has ended, and is not removed yet; nor is it read once whatever ended with it is gone.
    let other = cx.start("sleep 2; exit 23").await?;
    cx.exits(other.id(), code(23)).await?;
    dyno.stdout.reopen()?;
    dyno.stderr.reopen()?;
    let (stdout, stderr) = (dyno.stdout.drain().await?, dyno.stderr.drain().await?);
    check_eq("stdout", &stdout, &b"last words\n".to_vec())?;
    check_eq("stderr", &stderr, &b"dying\n".to_vec())?;
    Ok(())
}

async fn reopened(cx: &Context) -> Result<(), NotPassed> {
    let script = "[ -e /dev/stdout ] || exit 77; \
                  echo out >/dev/stdout && echo err >/dev/stderr && exit 19; exit 1";
    let mut dyno = cx.start(script).await?;
    let status = cx.exit(dyno.id()).await?;
    if status.how == Some(code(77)) {
        let reason = "the dyno has no /dev/stdout".to_owned();
        return Err(NotPassed::Skipped(reason));
    }
    let stderr = dyno.stderr.drain().await?;
    let shown = String::from_utf8_lossy(&stderr).into_owned();
    let on = format!("a dyno that opens /dev/stdout (stderr {shown:?})");
    check_eq(on, &status.how, &Some(code(19)))?;
    check_eq("stdout", &dyno.stdout.drain().await?, &b"out\n".to_vec())?;
    check_eq("stderr", &stderr, &b"err\n".to_vec())?;
    Ok(())
}

/// Copies lines from stdin to stdout and says when the end has come.
const CAT: &str = "while IFS= read -r l; do printf '%s\\n' \"$l\"; done; echo end; exit 20";

async fn stdin(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx.start(CAT).await?;
    dyno.stdin.write(b"one\n").await?;
    dyno.stdout.expect("one").await?;
    dyno.stdin.write(b"two\n  three  \n").await?;
    dyno.stdout.expect("two").await?;
    dyno.stdout.expect("  three  ").await?;
    dyno.stdin.close();
    dyno.stdout.expect("end").await?;
    cx.exits(dyno.id(), code(20)).await?;
    Ok(())
}

async fn stdin_among_others(cx: &Context) -> Result<(), NotPassed> {
    let mut first = cx.start(CAT).await?;
    let _second = cx.start(CAT).await?;
    let _third = cx.start(CAT).await?;
    first.stdin.close();
    first.stdout.expect("end").await?;
    cx.exits(first.id(), code(20)).await?;
    Ok(())
}

async fn large_stdin(cx: &Context) -> Result<(), NotPassed> {
    let lines = 1024;
    let script = "n=0; while IFS= read -r l; do \
                  [ ${#l} -eq 1023 ] || exit 2; n=$((n+1)); done; echo $n; exit 20";
    let mut dyno = cx.start(script).await?;
    let line = [vec![b'y'; 1023], b"\n".to_vec()].concat();
    for _ in 0..lines {
        dyno.stdin.write(&line).await?;
    }
    dyno.stdin.close();
    dyno.stdout.expect(&lines.to_string()).await?;
    cx.exits(dyno.id(), code(20)).await?;
    Ok(())
}

async fn patient_stdin(cx: &Context) -> Result<(), NotPassed> {
    let mut dyno = cx
        .ready("echo ready; read -r l || exit 3; echo \"$l\"")
        .await?;
    // It reads by now: were its stdin non-blocking, it would have ended with 3.
    let reply = cx.waits().wait(wait_for(dyno.id(), 300)).await.ok()?;
    check_eq("Wait of a dyno that reads", &reply.status, &None)?;
    dyno.stdin.write(b"late\n").await?;
    dyno.stdout.expect("late").await?;
    cx.exits(dyno.id(), code(0)).await?;
    Ok(())
}

async fn no_stdin(cx: &Context) -> Result<(), NotPassed> {
    let script = "if read -r _; then echo line; else echo end; fi; [ -t 0 ] && echo tty; exit 21";
    let request = cx.request(script).await?;
    let mut dyno = cx.with_stdio(request, false)?;
    cx.launch(&mut dyno).await?;
    dyno.stdout.expect("end").await?;
    cx.exits(dyno.id(), code(21)).await?;
    let rest = dyno.stdout.drain().await?;
    if !rest.is_empty() {
        return Err(NotPassed::Failed(Failure {
            on: "stdin".to_owned(),
            expected: "/dev/null".to_owned(),
            observed: String::from_utf8_lossy(&rest).into_owned(),
        }));
    }
    Ok(())
}
