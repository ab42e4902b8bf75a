//! Attach: bytes both ways between a caller and a dyno's terminal.
//!
//! One caller at a time. A caller that vanishes is a terminal that was closed: the dyno gets
//! SIGHUP. The stream ends after the dyno, with the last of its output.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use hsup_proto::driver::{
    AttachRequest, AttachResponse, attach_request, attach_response::Event as Output,
};
use tokio::{sync::mpsc, time};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, codegen::BoxStream};

use super::{
    Dyno, Live, Runtime, Service, Terminal,
    table::{Key, View},
};
use crate::{pty::WindowSize, serve::malformed, signal::Signal};

/// How long a terminal may be silent after its dyno's end before that is taken for its end:
/// a process outside of the dyno may still hold it.
const SILENCE: Duration = Duration::from_millis(500);

/// Somebody is attached, as long as this is there.
struct Attached<D>(Arc<Live<D>>);

impl<D> Drop for Attached<D> {
    fn drop(&mut self) {
        self.0.attached.store(false, Ordering::Release);
    }
}

/// How an attachment ended.
enum End {
    Dyno,
    Caller,
    /// The caller sent what is no message, or the connection broke.
    Input(Status),
}

/// The dyno's id, which is the first message.
pub(super) async fn first(input: &mut Streaming<AttachRequest>) -> Result<String, Status> {
    let first = input.message().await.map_err(malformed)?;
    match first.and_then(|message| message.event) {
        Some(attach_request::Event::DynoId(id)) => Ok(id),
        _ => Err(Status::invalid_argument(
            "the first message must hold dyno_id",
        )),
    }
}

/// Connects the caller to the terminal of a dyno that has been started.
pub(super) fn begin<R: Runtime>(
    service: Service<R>,
    key: Key,
    live: Arc<Live<R::Dyno>>,
    input: Streaming<AttachRequest>,
) -> Result<BoxStream<AttachResponse>, Status> {
    let Some(terminal) = live.dyno.get().and_then(Dyno::terminal) else {
        return Err(Status::failed_precondition(format!(
            "dyno `{}` was started without a terminal",
            key.id
        )));
    };
    if live.attached.swap(true, Ordering::AcqRel) {
        return Err(Status::failed_precondition(format!(
            "another caller is attached to dyno `{}`",
            key.id
        )));
    }
    let attached = Attached(Arc::clone(&live));
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let _attached = attached;
        let end = tokio::select! {
            end = copy_out(&service, &key, &live, &terminal, &sender) => end,
            end = copy_in(input, &terminal) => end,
            () = sender.closed() => End::Caller,
        };
        let caller_is_gone = match end {
            End::Dyno => false,
            End::Caller => true,
            End::Input(status) => {
                // It may not be there to hear it.
                drop(sender.try_send(Err(malformed(status))));
                true
            }
        };
        if caller_is_gone
            && let Some(dyno) = live.dyno.get()
            && service.state().table.view(&key) == Some(View::Running)
        {
            tracing::info!(dyno_id = %key.id, "the caller attached to a dyno vanished");
            dyno.signal(Signal::HUP).await;
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// Copies what the dyno writes.
async fn copy_out<R: Runtime>(
    service: &Service<R>,
    key: &Key,
    live: &Live<R::Dyno>,
    terminal: &impl Terminal,
    caller: &mpsc::Sender<Result<AttachResponse, Status>>,
) -> End {
    loop {
        let silent = async {
            service
                .until(key, live, |view| {
                    (!matches!(view, Some(View::Running))).then_some(())
                })
                .await;
            time::sleep(SILENCE).await;
        };
        let bytes = tokio::select! {
            biased;
            bytes = terminal.read() => bytes,
            () = silent => return End::Dyno,
        };
        if bytes.is_empty() {
            return End::Dyno;
        }
        let message = AttachResponse {
            event: Some(Output::Stdout(bytes)),
        };
        if caller.send(Ok(message)).await.is_err() {
            return End::Caller;
        }
    }
}

/// Copies what the caller types.
async fn copy_in(mut input: Streaming<AttachRequest>, terminal: &impl Terminal) -> End {
    loop {
        let event = match input.message().await {
            Ok(Some(message)) => message.event,
            // The caller has nothing more to type, and still looks on.
            Ok(None) => std::future::pending().await,
            Err(status) => return End::Input(status),
        };
        let written = match event {
            Some(attach_request::Event::Stdin(bytes)) => terminal.write(&bytes).await,
            Some(attach_request::Event::StdinEof(true)) => terminal.end_input().await,
            Some(attach_request::Event::Resize(size)) => {
                terminal.resize(WindowSize::clamped(size.rows, size.columns))
            }
            Some(attach_request::Event::StdinEof(false) | attach_request::Event::DynoId(_))
            | None => Ok(()),
        };
        if let Err(error) = written {
            // The dyno's end of the terminal is closed; its output says when it is over.
            tracing::debug!(%error, "failed to pass on input to a terminal");
        }
    }
}
