//! `run` at a terminal: the dyno gets one of its own, and this is the wire between the two.

use std::{
    io::{self, Read as _, Write as _},
    time::Duration,
};

use hsup_proto::driver::{AttachRequest, attach_request, attach_response};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    RunCommandError, Signals, code_of, forget, stop,
    terminal::{RawTerminal, Window},
    wait,
};
use crate::{driver::Up, name::DynoId};

/// How many pieces of input may wait for the driver.
const INPUT: usize = 16;

/// Stays attached to the dyno until it has ended; answers its exit code.
pub(super) async fn run(
    up: &Up,
    dyno_id: &DynoId,
    window: Window,
    signals: &mut Signals,
    grace: Duration,
) -> Result<u8, RunCommandError> {
    let result = attach(up, dyno_id, window, signals, grace).await;
    forget(up, dyno_id).await;
    result
}

async fn attach(
    up: &Up,
    dyno_id: &DynoId,
    mut window: Window,
    signals: &mut Signals,
    grace: Duration,
) -> Result<u8, RunCommandError> {
    let terminal = RawTerminal::enter()?;
    let (input, requests) = mpsc::channel(INPUT);
    let say = |event| AttachRequest { event: Some(event) };
    let hello = attach_request::Event::DynoId(dyno_id.to_string());
    // The channel is empty: there is room.
    drop(input.try_send(say(hello)));
    // It may have changed since the Start, and a driver may know no size but this.
    if let Some(size) = resize(&window) {
        drop(input.try_send(say(size)));
    }
    let answers = up.waits().attach(ReceiverStream::new(requests)).await;
    let mut answers = answers
        .map_err(|status| RunCommandError::Start(crate::driver::said(&status)))?
        .into_inner();
    keyboard(input.clone());

    let ended = wait(up, dyno_id);
    tokio::pin!(ended);
    let mut status = None;
    let mut told = None;
    loop {
        tokio::select! {
            answer = answers.message() => match answer {
                Ok(Some(answer)) => show(answer.event),
                // The end of the output, or of the connection: the Wait tells which.
                Ok(None) | Err(_) => break,
            },
            result = &mut ended, if status.is_none() => status = Some(result?),
            () = window.changed() => if let Some(size) = resize(&window) {
                // Full means that the dyno reads nothing; the size can wait for the next.
                drop(input.try_send(say(size)));
            },
            wish = signals.next() => {
                let again = told.replace(wish.code()).is_some();
                stop(up, dyno_id, wish.signal, if again { Duration::ZERO } else { grace });
            }
        }
    }
    drop(terminal);
    let status = match status {
        Some(status) => status,
        None => ended.await?,
    };
    match told {
        Some(code) => Ok(code),
        None => code_of(&status),
    }
}

fn resize(window: &Window) -> Option<attach_request::Event> {
    let (rows, columns) = window.size()?;
    Some(attach_request::Event::Resize(attach_request::Resize {
        rows,
        columns,
    }))
}

/// Passes on what is typed. A thread of its own: it sits in read(2) until the process ends.
fn keyboard(input: mpsc::Sender<AttachRequest>) {
    let read = move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = [0; 4096];
        loop {
            let event = match stdin.read(&mut buffer) {
                Ok(0) | Err(_) => attach_request::Event::StdinEof(true),
                Ok(n) => attach_request::Event::Stdin(buffer[..n].to_vec()),
            };
            let is_end = matches!(event, attach_request::Event::StdinEof(_));
            let sent = input.blocking_send(AttachRequest { event: Some(event) });
            if is_end || sent.is_err() {
                return;
            }
        }
    };
    // Without it the dyno still runs; it only cannot be typed to.
    drop(
        std::thread::Builder::new()
            .name("keyboard".to_owned())
            .spawn(read),
    );
}

fn show(event: Option<attach_response::Event>) {
    // A terminal that is gone ends us by SIGHUP.
    match event {
        Some(attach_response::Event::Stdout(bytes)) => {
            let mut stdout = io::stdout().lock();
            drop(stdout.write_all(&bytes).and_then(|()| stdout.flush()));
        }
        Some(attach_response::Event::Stderr(bytes)) => {
            drop(io::stderr().lock().write_all(&bytes));
        }
        None => {}
    }
}
