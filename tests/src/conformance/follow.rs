//! Follows a dyno's Logs, as a supervisor does with a driver that owns the output.

use hsup_proto::driver::{LogsRequest, logs_response::Stream};
use tokio::sync::mpsc::UnboundedSender;

use super::{calls::Calls, output::Output};

/// Where the two streams of a dyno's Logs go. Dropped, both have ended.
#[derive(Debug)]
pub(crate) struct Follow {
    stdout: UnboundedSender<Vec<u8>>,
    stderr: UnboundedSender<Vec<u8>>,
}

impl Follow {
    /// With the suite's ends of stdout and stderr of the dyno called `id`.
    pub(crate) fn new(id: &str) -> (Self, Output, Output) {
        let (stdout, out) = Output::of_logs("stdout", id);
        let (stderr, err) = Output::of_logs("stderr", id);
        (Self { stdout, stderr }, out, err)
    }
}

/// Passes the Logs of the dyno called `id` on until they end or fail.
pub(crate) async fn follow(calls: Calls, id: String, to: Follow) {
    let request = LogsRequest {
        dyno_id: id,
        after_cursor: String::new(),
    };
    // What fails here is missed by whoever reads the output; the chapter `logs` says why.
    let Ok(mut stream) = calls.logs(request).await.result else {
        return;
    };
    while let Ok(Some(message)) = stream.message().await {
        let output = match message.stream() {
            Stream::Stderr => &to.stderr,
            Stream::Stdout | Stream::Unspecified => &to.stdout,
        };
        // A case that is over reads no more.
        drop(output.send(message.data));
    }
}
