//! Attach, where it is declared: a dyno with a terminal.

use std::time::Duration;

use hsup_proto::driver::{
    AttachRequest, AttachResponse, Capability, attach_request, attach_response,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::super::{
    case::{Case, Failure, Need, NotPassed, case, check},
    context::Context,
    requests::{code, signal},
};

const ATTACH: &str = "attach";
const NEEDS: &[Need] = &[Need::Has(Capability::Attach)];

pub(crate) const CASES: &[Case] = &[
    case!(
        ATTACH,
        "a dyno with a terminal has one, and talks through it",
        "§6: CAPABILITY_ATTACH: Attach works and StartRequest.tty is honoured",
        talks,
        NEEDS
    ),
    case!(
        ATTACH,
        "what was written before the first Attach is kept",
        "architecture, run: output before the first Attach is kept (64 KiB)",
        kept,
        NEEDS
    ),
    case!(
        ATTACH,
        "Ctrl-C is SIGINT to the dyno",
        "§6: StartRequest.tty: the dyno's controlling terminal",
        interrupt,
        NEEDS
    ),
    case!(
        ATTACH,
        "the window has its size before the dyno can look",
        "§6 StartRequest: tty_rows, tty_columns: the size before the dyno's first instruction",
        first_size,
        NEEDS
    ),
    case!(
        ATTACH,
        "a change of the window's size arrives",
        "§6 AttachRequest: resize",
        resize,
        NEEDS
    ),
    case!(
        ATTACH,
        "stdin_eof is the end of input, after an unfinished line too",
        "§6 AttachRequest: stdin_eof",
        end_of_input,
        NEEDS
    ),
    case!(
        ATTACH,
        "the stream ends when the dyno does, after its last output",
        "§6 AttachResponse; §11: nothing written before exit is lost",
        ends,
        NEEDS
    ),
    case!(
        ATTACH,
        "a caller that vanishes is SIGHUP to the dyno",
        "architecture, run: a vanished caller means SIGHUP",
        vanished,
        NEEDS
    ),
    case!(
        ATTACH,
        "a terminal that is not offered is refused",
        "§6: CAPABILITY_ATTACH: StartRequest.tty is honoured; §9: malformed field",
        not_offered,
        &[Need::Lacks(Capability::Attach)]
    ),
    case!(
        ATTACH,
        "a stream that does not begin with a dyno_id is INVALID_ARGUMENT",
        "§6 AttachRequest: dyno_id: first message only; §9: missing field",
        no_id,
        NEEDS
    ),
];

/// How long a terminal may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// One end of a terminal.
struct Terminal {
    id: String,
    keys: mpsc::Sender<AttachRequest>,
    screen: Streaming<AttachResponse>,
    shown: Vec<u8>,
}

impl Terminal {
    /// Attaches to the dyno called `id`.
    async fn attach(cx: &Context, id: &str) -> Result<Self, Failure> {
        let (keys, requests) = mpsc::channel(16);
        let terminal = attach_request::Event::DynoId(id.to_owned());
        send(&keys, terminal).await;
        let screen = cx
            .waits()
            .attach(ReceiverStream::new(requests))
            .await
            .ok()?;
        Ok(Self {
            id: id.to_owned(),
            keys,
            screen,
            shown: Vec::new(),
        })
    }

    async fn press(&self, keys: &[u8]) {
        send(&self.keys, attach_request::Event::Stdin(keys.to_vec())).await;
    }

    /// Reads the next message; `None` at the end of the stream.
    async fn read(&mut self, deadline: Instant, wanted: &str) -> Result<Option<()>, Failure> {
        let patience = deadline.saturating_duration_since(Instant::now());
        let observed = match timeout(patience, self.screen.message()).await {
            Ok(Ok(Some(message))) => {
                match message.event {
                    Some(
                        attach_response::Event::Stdout(bytes)
                        | attach_response::Event::Stderr(bytes),
                    ) => self.shown.extend(bytes),
                    None => {}
                }
                return Ok(Some(()));
            }
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(status)) => status.to_string(),
            Err(_) => "nothing more in time".to_owned(),
        };
        Err(self.failed(wanted, &observed))
    }

    fn failed(&self, wanted: &str, observed: &str) -> Failure {
        Failure {
            on: format!("Attach to {}", self.id),
            expected: wanted.to_owned(),
            observed: format!(
                "{observed}, after {:?}",
                String::from_utf8_lossy(&self.shown)
            ),
        }
    }

    /// Waits until `text` has been shown.
    async fn shows(&mut self, text: &str) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        let wanted = format!("{text:?} on the terminal");
        while !String::from_utf8_lossy(&self.shown).contains(text) {
            if self.read(deadline, &wanted).await?.is_none() {
                return Err(self.failed(&wanted, "the end of the stream"));
            }
        }
        Ok(())
    }

    /// Waits for the end of the stream.
    async fn ends(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        while self
            .read(deadline, "the end of the stream")
            .await?
            .is_some()
        {}
        Ok(())
    }
}

async fn send(keys: &mpsc::Sender<AttachRequest>, event: attach_request::Event) {
    // The stream may have ended: what it showed until then is what the case judges.
    drop(keys.send(AttachRequest { event: Some(event) }).await);
}

/// Starts a dyno with a terminal that runs `script`.
async fn start(cx: &Context, script: &str) -> Result<String, NotPassed> {
    let mut request = cx.request(script).await?;
    request.tty = true;
    let var = ("TERM".to_owned(), "dumb".to_owned());
    request.env.extend([var]);
    let id = request.dyno_id.clone();
    cx.control().start(request).await.ok()?;
    Ok(id)
}

async fn talks(cx: &Context) -> Result<(), NotPassed> {
    let script = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo is-a-tty; read -r l; echo \"got:$l\"; \
                  exit 33";
    let id = start(cx, script).await?;
    let mut terminal = Terminal::attach(cx, &id).await?;
    terminal.shows("is-a-tty").await?;
    terminal.press(b"hello\r").await;
    terminal.shows("got:hello").await?;
    cx.exits(&id, code(33)).await?;
    Ok(())
}

async fn kept(cx: &Context) -> Result<(), NotPassed> {
    let id = start(cx, "echo early; exit 34").await?;
    cx.exits(&id, code(34)).await?;
    let mut terminal = Terminal::attach(cx, &id).await?;
    terminal.shows("early").await?;
    terminal.ends().await?;
    Ok(())
}

async fn interrupt(cx: &Context) -> Result<(), NotPassed> {
    let id = start(cx, "echo ready; read _").await?;
    let mut terminal = Terminal::attach(cx, &id).await?;
    terminal.shows("ready").await?;
    terminal.press(b"\x03").await;
    cx.exits(&id, signal("SIGINT")).await?;
    Ok(())
}

async fn first_size(cx: &Context) -> Result<(), NotPassed> {
    for (rows, columns) in [(50, 132), (7, 20)] {
        let script = "command -v stty >/dev/null || exit 38; stty size; exit 37";
        let mut request = cx.request(script).await?;
        request.tty = true;
        (request.tty_rows, request.tty_columns) = (rows, columns);
        let id = request.dyno_id.clone();
        cx.control().start(request).await.ok()?;
        // Nobody is attached, so no Resize can have told it.
        if cx.exit(&id).await?.how == Some(code(38)) {
            return Err(NotPassed::Skipped("the dyno has no stty".to_owned()));
        }
        cx.exits(&id, code(37)).await?;
        let mut terminal = Terminal::attach(cx, &id).await?;
        terminal.shows(&format!("{rows} {columns}\r\n")).await?;
    }
    Ok(())
}

async fn resize(cx: &Context) -> Result<(), NotPassed> {
    let script = "trap 'echo resized' WINCH; echo ready; while :; do read _; done";
    let id = start(cx, script).await?;
    let mut terminal = Terminal::attach(cx, &id).await?;
    terminal.shows("ready").await?;
    // None of them is the one that it begins with, which a driver may set a moment later: a size
    // that is no change says nothing.
    for (rows, columns) in [(50, 132), (30, 90)] {
        terminal.shown.clear();
        let size = attach_request::Resize { rows, columns };
        send(&terminal.keys, attach_request::Event::Resize(size)).await;
        terminal.shows("resized").await?;
    }
    Ok(())
}

async fn end_of_input(cx: &Context) -> Result<(), NotPassed> {
    for (typed, unfinished) in [("", ""), ("whole\r", ""), ("part", "part")] {
        let script = "echo ready; while read -r l; do :; done; echo \"after:$l\"; exit 36";
        let id = start(cx, script).await?;
        let mut terminal = Terminal::attach(cx, &id).await?;
        terminal.shows("ready").await?;
        terminal.press(typed.as_bytes()).await;
        send(&terminal.keys, attach_request::Event::StdinEof(true)).await;
        terminal.shows(&format!("after:{unfinished}\r\n")).await?;
        cx.exits(&id, code(36)).await?;
    }
    Ok(())
}

async fn ends(cx: &Context) -> Result<(), NotPassed> {
    let script = "read _; i=0; while [ $i -lt 200 ]; do echo line-$i; i=$((i+1)); done; \
                  echo last-line; exit 35";
    let id = start(cx, script).await?;
    let mut terminal = Terminal::attach(cx, &id).await?;
    terminal.press(b"\r").await;
    terminal.ends().await?;
    let shown = String::from_utf8_lossy(&terminal.shown).into_owned();
    let lines = shown
        .lines()
        .filter(|line| line.starts_with("line-"))
        .count();
    check(
        lines == 200 && shown.contains("last-line"),
        format_args!("Attach to {id}"),
        "all 201 lines before the end of the stream",
        format_args!("{lines} lines, last-line: {}", shown.contains("last-line")),
    )?;
    cx.exits(&id, code(35)).await?;
    Ok(())
}

async fn vanished(cx: &Context) -> Result<(), NotPassed> {
    let id = start(cx, "echo ready; while :; do read _; done").await?;
    let mut terminal = Terminal::attach(cx, &id).await?;
    terminal.shows("ready").await?;
    drop(terminal);
    cx.exits(&id, signal("SIGHUP")).await?;
    Ok(())
}

async fn not_offered(cx: &Context) -> Result<(), NotPassed> {
    let mut request = cx.request("exit 0").await?;
    request.tty = true;
    let dyno = cx.with_stdio(request, false)?;
    let answer = cx.control().start(dyno.request.clone()).await;
    answer.refused(&[Code::InvalidArgument])?;
    Ok(())
}

async fn no_id(cx: &Context) -> Result<(), NotPassed> {
    let request = AttachRequest {
        event: Some(attach_request::Event::Stdin(b"x".to_vec())),
    };
    let begun = cx.waits().attach(tokio_stream::once(request)).await;
    let answer = cx.waits().first(begun).await;
    answer.refused(&[Code::InvalidArgument])?;
    Ok(())
}
