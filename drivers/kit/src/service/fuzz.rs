//! Every message of the protocol into a driver with more rights than its caller, as bytes on
//! the wire, by way of all that a connection has behind it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hsup_proto::driver::{
    BuildRequest, Capability, Durability, IpInfoResponse, StatsResponse,
    dyno_driver_server::SERVICE_NAME,
};
use http_body::{Body, Frame};
use hyper::service::Service as _;
use nix::unistd::{Gid, Uid};
use tokio::task::yield_now;

use super::*;
use crate::serve::Calls;

const CALLS: [&str; 12] = [
    "GetInfo", "Build", "Start", "Stop", "Wait", "List", "Remove", "IpInfo", "Signal", "Stats",
    "Attach", "Logs",
];
/// How many calls one input may make.
const MOST_CALLS: usize = 16;
/// How often everybody gets a turn until a call is taken for one that waits.
const TURNS: usize = 64;

/// What is kept of a dyno: what is read of it is written the same.
pub fn dyno_record(bytes: &[u8]) {
    let Ok(record) = Record::from_bytes(bytes) else {
        return;
    };
    assert!(!record.dyno_id().is_empty() && !record.dyno_id().contains(['/', '.', '\0']));
    let written = record.to_bytes();
    let again = Record::from_bytes(&written).expect("what was written");
    assert_eq!(again, record);
    assert_eq!(again.to_bytes(), written);
}

/// Calls by a user who is nobody special, one after the other: the number of the call, the length
/// of its message, the message. A driver is handed only what it may be handed ([`Pretended`]),
/// and no answer says that the driver is broken.
pub fn driver_calls(mut data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let service = Service::new(Pretended).expect("an identity");
        let peer = Peer {
            uid: Uid::from_raw(12_345),
            gid: Gid::from_raw(12_345),
            connection: 1,
        };
        service.connected(peer);
        for _ in 0..MOST_CALLS {
            let [call, length, rest @ ..] = data else {
                break;
            };
            let (message, rest) = rest.split_at(rest.len().min(usize::from(*length)));
            data = rest;
            let call = CALLS[usize::from(*call) % CALLS.len()];
            let calling = answer(service.clone(), peer, call, message);
            let waiting = async {
                for _ in 0..TURNS {
                    yield_now().await;
                }
            };
            let status = tokio::select! {
                biased;
                status = calling => status,
                () = waiting => None,
            };
            assert_ne!(status.as_deref(), Some("13"), "INTERNAL to {call}");
        }
        service.disconnected(peer);
    });
}

/// Makes a call; the code of an answer without a message.
async fn answer(
    service: Service<Pretended>,
    peer: Peer,
    call: &str,
    message: &[u8],
) -> Option<String> {
    let length = u32::try_from(message.len()).expect("not that long");
    let body = [&[0], &length.to_be_bytes()[..], message].concat();
    let request = tonic::codegen::http::Request::post(format!("/{SERVICE_NAME}/{call}"))
        .header("content-type", "application/grpc")
        .body(Once(Some(body.into())))
        .expect("a request");
    let [calls, bytes] = [8, 1 << 20].map(Quota::new);
    let answer = Calls::new(service, peer, calls, bytes).call(request).await;
    let answer = answer.expect("no error");
    let code = answer.headers().get("grpc-status")?;
    Some(code.to_str().expect("a number").to_owned())
}

/// A body of one piece.
struct Once(Option<Bytes>);

impl Body for Once {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A driver as that for containers, which does nothing but look at what it is handed.
struct Pretended;

/// A dyno of it, which ends with the first signal.
#[derive(Clone)]
struct PretendedDyno(CancellationToken);

impl Runtime for Pretended {
    type Dyno = PretendedDyno;

    fn identity(&self) -> Identity {
        Identity {
            name: "pretended",
            version: "0",
            capabilities: &[
                Capability::StdioFifo,
                Capability::Signal,
                Capability::Stats,
                Capability::Attach,
                Capability::Binds,
                Capability::Limits,
            ],
            durability: Durability::Exact,
            options: &[],
            images: false,
            names: Names::Strict,
        }
    }

    async fn slug_changed(&self, _: Peer, path: &std::path::Path) -> Option<Vec<u8>> {
        assert!(path.is_absolute() && !has_nul(path.as_os_str().as_encoded_bytes()));
        None
    }

    async fn build(&self, _: Peer, request: BuildRequest, _: BuildLog) -> Result<String, Status> {
        let release = request.release.expect("a release");
        assert!(is_name(&release.app));
        assert!(release.stack.is_empty() || is_name(&release.stack));
        assert!(request.options.is_empty());
        Ok("heroku-24@v1".to_owned())
    }

    fn has_artifact(&self, _: Peer, _: &str) -> bool {
        true
    }

    async fn remove_artifact(&self, _: Peer, artifact: &str) -> Result<(), Status> {
        assert!(is_artifact(artifact));
        Ok(())
    }

    async fn start(
        &self,
        peer: Peer,
        request: StartRequest,
        record: Record,
        _: CancellationToken,
    ) -> Result<PretendedDyno, Status> {
        for id in [&request.dyno_id, &request.supervisor_id] {
            assert!(id.len() <= 63 && is_name(id) && !id.contains('.'));
        }
        assert!(is_artifact(&request.artifact));
        assert!(is_name(&request.app) && is_name(&request.process_type));
        let words = request
            .argv
            .iter()
            .chain([&request.shell_line, &request.io_dir]);
        let words = words.chain(request.env.keys()).chain(request.env.values());
        for word in words {
            assert!(!has_nul(word.as_bytes()), "{word:?}");
        }
        let names = request.env.keys();
        assert!(
            names
                .clone()
                .all(|name| !name.is_empty() && !name.contains('='))
        );
        assert!(!request.argv.is_empty());
        assert!(request.tty || request.io_dir.starts_with('/'));
        // It is found again as what it is.
        let kept = Record::from_bytes(&record.to_bytes()).expect("a record");
        assert_eq!(kept, record);
        assert_eq!(
            (kept.uid(), kept.dyno_id()),
            (peer.uid.as_raw(), &*request.dyno_id)
        );
        Ok(PretendedDyno(CancellationToken::new()))
    }
}

impl Dyno for PretendedDyno {
    type Terminal = std::convert::Infallible;

    async fn wait(&self) -> ExitStatus {
        self.0.cancelled().await;
        ExitStatus {
            how: Some(How::Code(0)),
            ..ExitStatus::default()
        }
    }

    async fn signal(&self, _: Signal) {
        self.0.cancel();
    }

    async fn kill(&self) {
        self.0.cancel();
    }

    fn ip_info(&self) -> Result<IpInfoResponse, Status> {
        Ok(IpInfoResponse::default())
    }

    async fn stats(&self) -> Result<StatsResponse, Status> {
        Ok(StatsResponse::default())
    }

    fn terminal(&self) -> Option<Self::Terminal> {
        None
    }
}

/// Whether it can do no harm as part of a path, or as the name of a cgroup (docs/driver-rules.md
/// §12, R4).
fn is_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-', '_'])
        && text.bytes().all(is_plain)
}

fn is_artifact(text: &str) -> bool {
    text.split([':', '@', '+', '='])
        .all(|part| part.is_empty() || !part.contains('/'))
        && !text.is_empty()
        && !text.starts_with('.')
        && !has_nul(text.as_bytes())
}

fn has_nul(bytes: &[u8]) -> bool {
    bytes.contains(&0)
}
