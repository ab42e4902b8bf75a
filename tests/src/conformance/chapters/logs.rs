//! Logs, where they are declared: what a driver that owns the output tells of it.

use std::time::Duration;

use hsup_proto::driver::{
    Capability, LogsRequest, LogsResponse, StartRequest, logs_response::Stream,
};
use tokio::time::{Instant, timeout};
use tonic::{Code, Streaming};

use super::super::{
    case::{Case, Failure, Need, NotPassed, case, check, check_eq},
    context::Context,
    output::check_sequence,
    requests::{code, remove},
};

const LOGS: &str = "logs";
const NEEDS: &[Need] = &[Need::Has(Capability::Logs)];

pub(crate) const CASES: &[Case] = &[
    case!(
        LOGS,
        "stdout and stderr arrive apart, byte by byte",
        "§11: backends that own the output: CAPABILITY_LOGS; §6 LogsResponse: stream, data",
        apart,
        NEEDS
    ),
    case!(
        LOGS,
        "lines arrive in their order, and all of them",
        "§11: nothing written before exit is lost; §13: nothing is lost",
        in_order,
        NEEDS
    ),
    case!(
        LOGS,
        "what a running dyno writes arrives while it runs",
        "§6 Logs: a stream",
        followed,
        NEEDS
    ),
    case!(
        LOGS,
        "the stream ends when the dyno has, after its last output",
        "§11: nothing written before exit is lost",
        ends,
        NEEDS
    ),
    case!(
        LOGS,
        "after the exit all of it is there still",
        "§6 LogsRequest: after_cursor; §8 Remove frees everything, and nothing else does",
        kept,
        NEEDS
    ),
    case!(
        LOGS,
        "a cursor goes on where it was given",
        "§6 LogsResponse: cursor: resume point after this chunk",
        resumed,
        NEEDS
    ),
    case!(
        LOGS,
        "two callers get the same",
        "§6 Logs; §8: any number of callers",
        twice,
        NEEDS
    ),
    case!(
        LOGS,
        "a removed dyno has none",
        "§8 Remove: frees everything; §9: no such dyno → NOT_FOUND",
        removed,
        NEEDS
    ),
];

/// How long output may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// One caller of Logs.
struct Reader {
    on: String,
    stream: Streaming<LogsResponse>,
    chunks: Vec<LogsResponse>,
}

impl Reader {
    async fn open(cx: &Context, id: &str, after_cursor: &str) -> Result<Self, Failure> {
        let request = LogsRequest {
            dyno_id: id.to_owned(),
            after_cursor: after_cursor.to_owned(),
        };
        Ok(Self {
            on: format!("Logs of {id} after {after_cursor:?}"),
            stream: cx.waits().logs(request).await.ok()?,
            chunks: Vec::new(),
        })
    }

    /// The next chunk; `None` at the end of the stream.
    async fn next(&mut self, deadline: Instant, wanted: &str) -> Result<Option<()>, Failure> {
        let patience = deadline.saturating_duration_since(Instant::now());
        let observed = match timeout(patience, self.stream.message()).await {
            Ok(Ok(Some(chunk))) => {
                self.chunks.push(chunk);
                return Ok(Some(()));
            }
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(status)) => status.to_string(),
            Err(_) => "nothing more in time".to_owned(),
        };
        Err(self.failed(wanted, &observed))
    }

    fn failed(&self, wanted: &str, observed: &str) -> Failure {
        let shown = String::from_utf8_lossy(&self.of(Stream::Stdout)).into_owned();
        Failure {
            on: self.on.clone(),
            expected: wanted.to_owned(),
            observed: format!("{observed}, after {shown:?}"),
        }
    }

    /// Reads until stdout ends with `text`.
    async fn shows(&mut self, text: &str) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        let wanted = format!("{text:?} on stdout");
        while !self.of(Stream::Stdout).ends_with(text.as_bytes()) {
            if self.next(deadline, &wanted).await?.is_none() {
                return Err(self.failed(&wanted, "the end of the stream"));
            }
        }
        Ok(())
    }

    /// Reads to the end of the stream.
    async fn ends(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        let wanted = "the end of the stream";
        while self.next(deadline, wanted).await?.is_some() {}
        Ok(())
    }

    fn of(&self, stream: Stream) -> Vec<u8> {
        let chunks = self.chunks.iter().filter(|chunk| chunk.stream() == stream);
        chunks.flat_map(|chunk| chunk.data.clone()).collect()
    }
}

/// What Start is sent for a dyno whose output is for Logs.
///
/// A driver with FIFOs as well may not want to start one without: then its Logs hold nothing
/// that this suite could know.
async fn start(cx: &Context, script: &str) -> Result<StartRequest, NotPassed> {
    let request = cx.request(script).await?;
    let started = cx.control().start(request.clone()).await;
    if cx.has(Capability::StdioFifo) && started.result.is_err() {
        started.refused(&[Code::InvalidArgument])?;
        let reason = "a dyno has no Logs without FIFOs".to_owned();
        return Err(NotPassed::Skipped(reason));
    }
    started.ok()?;
    Ok(request)
}

async fn apart(cx: &Context) -> Result<(), NotPassed> {
    let script = r"printf 'a\000b\377\376\200\r\n\n'; echo err >&2; printf 'no newline'";
    let dyno = start(cx, script).await?;
    let mut reader = Reader::open(cx, &dyno.dyno_id, "").await?;
    reader.ends().await?;
    let expected = b"a\0b\xff\xfe\x80\r\n\nno newline".to_vec();
    check_eq("stdout", &reader.of(Stream::Stdout), &expected)?;
    check_eq("stderr", &reader.of(Stream::Stderr), &b"err\n".to_vec())?;
    let other = reader.of(Stream::Unspecified);
    check_eq("a stream that is neither", &other, &Vec::new())?;
    Ok(())
}

/// How many lines of how many bytes the sequence has.
const LINES: usize = 2000;
const WIDTH: usize = 64;

/// Prints the sequence.
fn sequence() -> String {
    format!(
        "i=0; while [ $i -lt {LINES} ]; do printf '%-{}s\\n' \"$i\"; i=$((i+1)); done",
        WIDTH - 1
    )
}

async fn in_order(cx: &Context) -> Result<(), NotPassed> {
    let dyno = start(cx, &sequence()).await?;
    let mut reader = Reader::open(cx, &dyno.dyno_id, "").await?;
    reader.ends().await?;
    check_sequence("stdout", &reader.of(Stream::Stdout), LINES, WIDTH)?;
    Ok(())
}

async fn followed(cx: &Context) -> Result<(), NotPassed> {
    let script = format!(
        "echo ready; trap 'echo more' TERM; while :; do {}; done",
        cx.hold()
    );
    let dyno = start(cx, &script).await?;
    let mut reader = Reader::open(cx, &dyno.dyno_id, "").await?;
    reader.shows("ready\n").await?;
    Ok(())
}

async fn ends(cx: &Context) -> Result<(), NotPassed> {
    for n in 0..10 {
        let dyno = start(cx, &format!("printf 'last words {n}'; exit {n}")).await?;
        let mut reader = Reader::open(cx, &dyno.dyno_id, "").await?;
        reader.ends().await?;
        let expected = format!("last words {n}").into_bytes();
        check_eq("stdout", &reader.of(Stream::Stdout), &expected)?;
        // The stream is about to end, or has: so is, or has, the dyno.
        cx.exits(&dyno.dyno_id, code(n)).await?;
    }
    Ok(())
}

async fn kept(cx: &Context) -> Result<(), NotPassed> {
    let dyno = start(cx, "echo early; echo late; exit 6").await?;
    cx.exits(&dyno.dyno_id, code(6)).await?;
    for _ in 0..2 {
        let mut reader = Reader::open(cx, &dyno.dyno_id, "").await?;
        reader.ends().await?;
        let expected = b"early\nlate\n".to_vec();
        check_eq("stdout", &reader.of(Stream::Stdout), &expected)?;
    }
    Ok(())
}

async fn resumed(cx: &Context) -> Result<(), NotPassed> {
    // The pauses make it likely that there are many chunks to go on after.
    let script = "for i in 1 2 3 4 5 6 7 8; do echo $i; echo e$i >&2; sleep 0.02 || :; done";
    let dyno = start(cx, script).await?;
    let mut whole = Reader::open(cx, &dyno.dyno_id, "").await?;
    whole.ends().await?;
    check_eq(
        "stdout",
        &whole.of(Stream::Stdout),
        &b"1\n2\n3\n4\n5\n6\n7\n8\n".to_vec(),
    )?;
    for (read, chunk) in whole.chunks.iter().enumerate() {
        let on = format!("Logs of {}", dyno.dyno_id);
        check(
            !chunk.cursor.is_empty(),
            on,
            "a cursor with each chunk",
            "none",
        )?;
        let mut rest = Reader::open(cx, &dyno.dyno_id, &chunk.cursor).await?;
        rest.ends().await?;
        for stream in [Stream::Stdout, Stream::Stderr] {
            let left = whole.chunks[read + 1..]
                .iter()
                .filter(|c| c.stream() == stream);
            let expected: Vec<u8> = left.flat_map(|chunk| chunk.data.clone()).collect();
            check_eq(&rest.on, &rest.of(stream), &expected)?;
        }
    }
    Ok(())
}

async fn twice(cx: &Context) -> Result<(), NotPassed> {
    let dyno = start(cx, &sequence()).await?;
    let mut first = Reader::open(cx, &dyno.dyno_id, "").await?;
    let mut second = Reader::open(cx, &dyno.dyno_id, "").await?;
    let (one, two) = tokio::join!(first.ends(), second.ends());
    one.and(two)?;
    for reader in [first, second] {
        check_sequence(&reader.on, &reader.of(Stream::Stdout), LINES, WIDTH)?;
    }
    Ok(())
}

async fn removed(cx: &Context) -> Result<(), NotPassed> {
    let dyno = start(cx, "echo gone; exit 0").await?;
    cx.exits(&dyno.dyno_id, code(0)).await?;
    cx.control().remove(remove(&dyno.dyno_id)).await.ok()?;
    let request = LogsRequest {
        dyno_id: dyno.dyno_id,
        after_cursor: String::new(),
    };
    let begun = cx.waits().logs(request).await;
    let answer = cx.waits().first(begun).await;
    answer.refused(&[Code::NotFound])?;
    Ok(())
}
