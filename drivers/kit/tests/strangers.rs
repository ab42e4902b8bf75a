//! What a driver of root grants a user who may call it, and does not trust: over a socket that
//! was connected to as that user.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like one")]

use std::{
    future::poll_fn,
    io::{self, Read as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    thread,
    time::Duration,
};

use bytes::Bytes;
use h2::{SendStream, client::ResponseFuture};
use hsup_driver_kit::{
    CancellationToken, Signal, Status,
    client::{Client, Connection},
    listen::{Access, Listener, Place},
    proto::{
        AttachRequest, BuildRequest, Capability, Durability, ExitStatus, GetInfoRequest,
        IpInfoResponse, ListRequest, Release, RemoveRequest, StartRequest, StatsResponse,
        StopRequest, WaitRequest, attach_request::Event, remove_request::What,
    },
    pty::WindowSize,
    serve::{Limits, Options, Peer, serve},
    service::{BuildLog, Dyno, Identity, Names, Record, Runtime, Terminal},
};
use nix::unistd::Uid;
use prost::Message as _;
use tempfile::TempDir;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, codegen::http};

const PATIENCE: Duration = Duration::from_secs(30);
/// Users who need not exist.
const PEER: u32 = 47_111;
const THIRD: u32 = 47_112;

const KIB: usize = 1 << 10;

/// A driver whose dynos are made of nothing.
#[derive(Clone)]
struct Nothing {
    /// One permit lets one look at a slug, or one start of `slow`, come to its end.
    gate: Arc<Semaphore>,
    /// Looks at slugs and starts that have begun.
    begun: Arc<AtomicUsize>,
    /// How much was typed to all dynos.
    typed: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct Made {
    ended: watch::Sender<bool>,
    typed: Arc<AtomicUsize>,
}

/// Takes what is typed, and shows nothing.
struct Sink(Arc<AtomicUsize>);

impl Runtime for Nothing {
    type Dyno = Made;

    fn identity(&self) -> Identity {
        Identity {
            name: "nothing",
            version: "1",
            capabilities: &[Capability::StdioFifo, Capability::Attach],
            durability: Durability::None,
            options: &[],
            images: false,
            names: Names::Strict,
        }
    }

    async fn slug_changed(&self, _: Peer, _: &Path) -> Option<Vec<u8>> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.unwrap().forget();
        None
    }

    async fn build(&self, _: Peer, _: BuildRequest, _: BuildLog) -> Result<String, Status> {
        Ok("art".into())
    }

    fn has_artifact(&self, _: Peer, _: &str) -> bool {
        true
    }

    async fn remove_artifact(&self, _: Peer, _: &str) -> Result<(), Status> {
        Ok(())
    }

    async fn start(
        &self,
        _: Peer,
        request: StartRequest,
        _: Record,
        _: CancellationToken,
    ) -> Result<Made, Status> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        if request.dyno_id == "slow" {
            self.gate.acquire().await.unwrap().forget();
        }
        Ok(Made {
            ended: watch::channel(false).0,
            typed: Arc::clone(&self.typed),
        })
    }
}

impl Dyno for Made {
    type Terminal = Sink;

    async fn wait(&self) -> ExitStatus {
        let mut ended = self.ended.subscribe();
        let _ended = ended.wait_for(|ended| *ended).await;
        ExitStatus::default()
    }

    async fn signal(&self, _: Signal) {
        self.ended.send_replace(true);
    }

    async fn kill(&self) {
        self.ended.send_replace(true);
    }

    fn ip_info(&self) -> Result<IpInfoResponse, Status> {
        Ok(IpInfoResponse::default())
    }

    async fn stats(&self) -> Result<StatsResponse, Status> {
        Ok(StatsResponse::default())
    }

    fn terminal(&self) -> Option<Sink> {
        Some(Sink(Arc::clone(&self.typed)))
    }
}

impl Terminal for Sink {
    async fn read(&self) -> Vec<u8> {
        std::future::pending().await
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.fetch_add(bytes.len(), Ordering::SeqCst);
        Ok(())
    }

    async fn end_input(&self) -> io::Result<()> {
        Ok(())
    }

    fn resize(&self, _: WindowSize) -> io::Result<()> {
        Ok(())
    }
}

struct Served {
    dir: TempDir,
    runtime: Nothing,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Served {
    fn with(limits: Limits) -> Self {
        let dir = TempDir::with_prefix("hsup").unwrap();
        // The peer gets through to the socket.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let place = Place::Path(dir.path().join("drv.sock"));
        let listener = Listener::open(&place, Access::User(Uid::from_raw(PEER))).unwrap();
        let options = Options {
            allow: vec![Uid::from_raw(PEER)],
            limits,
            ..Options::default()
        };
        let runtime = Nothing {
            gate: Arc::new(Semaphore::new(0)),
            begun: Arc::default(),
            typed: Arc::default(),
        };
        let served = serve(listener, runtime.clone(), options);
        let task = tokio::spawn(async { served.await.unwrap() });
        Self { dir, runtime, task }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("drv.sock")
    }

    async fn client_of(&self, uid: u32) -> Client {
        let stream = self.stream_of(uid);
        Connection::over(stream, None).await.unwrap().client()
    }

    fn stream_of(&self, uid: u32) -> tokio::net::UnixStream {
        let stream = connect_as(uid, &self.socket()).unwrap();
        stream.set_nonblocking(true).unwrap();
        tokio::net::UnixStream::from_std(stream).unwrap()
    }

    async fn until_begun(&self, many: usize) {
        until(|| self.runtime.begun.load(Ordering::SeqCst) == many).await;
    }
}

/// Waits until something is so.
async fn until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("it is so");
}

/// Waits until the driver answers a call, which it refused for want of room.
async fn until_answered<T>(mut call: impl AsyncFnMut() -> Result<T, Status>) -> T {
    let answered = async {
        loop {
            match call().await {
                Ok(answer) => return answer,
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status}"),
            }
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, answered).await.expect("an answer")
}

/// Connects as another user: the kernel takes who that is from the thread that connects.
fn connect_as(uid: u32, socket: &Path) -> io::Result<UnixStream> {
    thread::scope(|scope| {
        let connecting = scope.spawn(|| {
            become_user(uid)?;
            UnixStream::connect(socket)
        });
        connecting.join().unwrap()
    })
}

/// Makes this thread another user's, and leaves the others what they are.
#[expect(unsafe_code, reason = "libc's own call changes every thread")]
fn become_user(uid: u32) -> io::Result<()> {
    // SAFETY: the call takes numbers only, and changes the credentials of this thread alone.
    let changed = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
    if changed == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn start(id: &str) -> StartRequest {
    StartRequest {
        dyno_id: id.into(),
        supervisor_id: "me".into(),
        artifact: "art".into(),
        app: "app".into(),
        process_type: "web".into(),
        argv: vec!["true".into()],
        io_dir: "/io".into(),
        ..Default::default()
    }
}

fn exhausted<T: std::fmt::Debug>(answer: Result<T, Status>) -> String {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    status.message().to_owned()
}

#[tokio::test]
#[ignore = "needs root: it calls as another user"]
async fn a_user_has_so_many_dynos_and_root_has_no_limit() {
    let served = Served::with(Limits {
        dynos: 2,
        ..Limits::default()
    });
    let mut peer = served.client_of(PEER).await;
    let mut root = served.client_of(0).await;
    for id in ["a", "b"] {
        peer.start(start(id)).await.unwrap();
    }
    let told = exhausted(peer.start(start("c")).await);
    assert!(told.contains("--max-dynos"), "{told}");
    // A repeat is no new one, and root's are root's.
    peer.start(start("a")).await.unwrap();
    for id in ["a", "b", "c"] {
        root.start(start(id)).await.unwrap();
    }
    let dyno_id = "a".to_owned();
    let stop = StopRequest {
        dyno_id: dyno_id.clone(),
        ..Default::default()
    };
    peer.stop(stop).await.unwrap();
    exhausted(peer.start(start("c")).await);
    let what = Some(What::DynoId(dyno_id));
    peer.remove(RemoveRequest { what }).await.unwrap();
    peer.start(start("c")).await.unwrap();
    let all = root.list(ListRequest::default()).await.unwrap();
    assert_eq!(all.into_inner().dynos.len(), 3, "its own");
}

#[tokio::test]
#[ignore = "needs root: it calls as another user"]
async fn a_user_has_so_many_calls_in_flight() {
    let served = Served::with(Limits {
        calls: 3,
        ..Limits::default()
    });
    let mut peer = served.client_of(PEER).await;
    peer.start(start("a")).await.unwrap();
    let waits: Vec<_> = (0..3)
        .map(|_| {
            let mut client = peer.clone();
            let request = WaitRequest {
                dyno_id: "a".into(),
                timeout_ms: 0,
            };
            tokio::spawn(async move { client.wait(request).await })
        })
        .collect();
    let mut other = served.client_of(PEER).await;
    let refused = async {
        while other.get_info(GetInfoRequest::default()).await.is_ok() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, refused).await.expect("a refusal");
    exhausted(other.get_info(GetInfoRequest::default()).await);
    let mut root = served.client_of(0).await;
    root.get_info(GetInfoRequest::default()).await.unwrap();
    // One that is given up is not in flight any more.
    for wait in waits {
        wait.abort();
    }
    let answered = async {
        while other.get_info(GetInfoRequest::default()).await.is_err() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, answered).await.expect("an answer");
}

#[tokio::test]
#[ignore = "needs root: it connects as another user"]
async fn a_user_has_so_many_connections_and_a_third_has_none() {
    let served = Served::with(Limits {
        connections: 1,
        ..Limits::default()
    });
    let mut first = served.client_of(PEER).await;
    first.get_info(GetInfoRequest::default()).await.unwrap();
    let socket = served.socket();
    let closed = tokio::task::spawn_blocking(move || {
        let mut stream = connect_as(PEER, &socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read(&mut [0; 64]).unwrap()
    });
    assert_eq!(closed.await.unwrap(), 0, "closed before HTTP/2");
    let refused = connect_as(THIRD, &served.socket()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    first.get_info(GetInfoRequest::default()).await.unwrap();
}

/// A Start of so many bytes, and some.
fn long_start(id: &str, length: usize) -> StartRequest {
    StartRequest {
        env: [("LONG".to_owned(), "x".repeat(length))].into(),
        ..start(id)
    }
}

/// A call whose message is announced, and not sent whole.
struct Unfinished {
    answer: ResponseFuture,
    body: SendStream<Bytes>,
    rest: Vec<u8>,
}

const UNFINISHED: usize = 512 * KIB;

#[tokio::test]
#[ignore = "needs root: it calls as another user"]
async fn a_users_unfinished_requests_hold_so_many_bytes() {
    let served = Served::with(Limits {
        request_bytes: 1024 * KIB,
        ..Limits::default()
    });
    let stream = served.stream_of(PEER);
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut calls = Vec::new();
    for id in ["c", "d", "e"] {
        let request = http::Request::post("http://localhost/hsup.driver.v1.DynoDriver/Start")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        sender = sender.ready().await.unwrap();
        let (answer, mut body) = sender.send_request(request, false).unwrap();
        let message = long_start(id, UNFINISHED).encode_to_vec();
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend(message);
        let rest = bytes.split_off(32 * KIB);
        body.send_data(bytes.into(), false).unwrap();
        calls.push(Unfinished { answer, body, rest });
    }
    let first = poll_fn(|cx| {
        let mut calls = calls.iter_mut().enumerate();
        calls
            .find_map(|(at, call)| {
                let answer = Pin::new(&mut call.answer).poll(cx);
                answer
                    .is_ready()
                    .then_some(answer.map(|answer| (at, answer)))
            })
            .unwrap_or(Poll::Pending)
    });
    let (at, answer) = timeout(PATIENCE, first).await.expect("a refusal");
    let refused = Status::from_header_map(answer.unwrap().headers()).unwrap();
    let told = exhausted(Err::<(), _>(refused));
    assert!(told.contains("1048576 bytes"), "{told}");
    drop(calls.swap_remove(at));

    // The others go on, and short requests, and whatever root asks for.
    let mut peer = served.client_of(PEER).await;
    peer.start(start("a")).await.unwrap();
    exhausted(peer.start(long_start("b", UNFINISHED)).await);
    let mut root = served.client_of(0).await;
    root.start(long_start("b", 3 * UNFINISHED)).await.unwrap();
    let mut call = calls.pop().unwrap();
    call.body.send_data(call.rest.into(), true).unwrap();
    let answer = timeout(PATIENCE, call.answer).await.expect("an answer");
    let answer = answer.unwrap();
    let refused = Status::from_header_map(answer.headers());
    assert!(refused.is_none(), "{refused:?}");

    // What is given up is not held any more.
    drop(calls);
    let long = 1000 * KIB;
    until_answered(async || peer.start(long_start("b", long)).await).await;
    connection.abort();
}

#[tokio::test]
#[ignore = "needs root: it calls as another user"]
async fn a_request_is_held_as_long_as_it_is_carried_out() {
    let served = Served::with(Limits {
        calls: 1,
        request_bytes: 1024 * KIB,
        ..Limits::default()
    });
    let mut peer = served.client_of(PEER).await;
    let mut other = served.client_of(PEER).await;
    let slow = long_start("slow", 600 * KIB);
    let starting = tokio::spawn(async move { peer.start(slow).await });
    served.until_begun(1).await;
    // The call is given up, and its start goes on.
    starting.abort();
    until_answered(async || other.get_info(GetInfoRequest::default()).await).await;
    let told = exhausted(other.start(long_start("b", 600 * KIB)).await);
    assert!(told.contains("1048576 bytes"), "{told}");
    served.runtime.gate.add_permits(1);
    until_answered(async || other.start(long_start("b", 600 * KIB)).await).await;
}

#[tokio::test]
#[ignore = "needs root: it calls as another user"]
async fn what_is_typed_does_not_add_up() {
    let served = Served::with(Limits {
        request_bytes: 1024 * KIB,
        ..Limits::default()
    });
    let mut peer = served.client_of(PEER).await;
    peer.start(start("a")).await.unwrap();
    let (typing, typed) = mpsc::channel(1);
    let dyno = Event::DynoId("a".into());
    let message = |event| AttachRequest { event: Some(event) };
    typing.send(message(dyno)).await.unwrap();
    let mut shown = peer.attach(ReceiverStream::new(typed)).await.unwrap();
    let piece = vec![b'x'; 100 * KIB];
    for _ in 0..40 {
        let typed = message(Event::Stdin(piece.clone()));
        timeout(PATIENCE, typing.send(typed))
            .await
            .unwrap()
            .unwrap();
    }
    until(|| served.runtime.typed.load(Ordering::SeqCst) == 40 * piece.len()).await;
    // One message that is too long alone is refused.
    let piece = vec![b'x'; 2048 * KIB];
    typing.send(message(Event::Stdin(piece))).await.unwrap();
    let end = timeout(PATIENCE, shown.get_mut().next()).await;
    exhausted(end.expect("an end").expect("an answer"));
}

#[tokio::test]
#[ignore = "needs root: it calls as another user"]
async fn a_user_looks_at_so_many_slugs_at_once() {
    const MOST: usize = 16;
    let served = Served::with(Limits {
        calls: MOST,
        ..Limits::default()
    });
    let build = || BuildRequest {
        release: Some(Release {
            app: "app".into(),
            slug_url: "file:///slug.tgz".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let client = served.client_of(PEER).await;
    let looking: Vec<_> = (0..MOST)
        .map(|_| {
            let (mut client, request) = (client.clone(), build());
            tokio::spawn(async move { client.build(request).await })
        })
        .collect();
    served.until_begun(MOST).await;
    // Who gives up a Build has not ended the look.
    looking[0].abort();
    let mut peer = served.client_of(PEER).await;
    until_answered(async || peer.get_info(GetInfoRequest::default()).await).await;
    let told = exhausted(
        timeout(PATIENCE, peer.build(build()))
            .await
            .expect("a refusal"),
    );
    assert!(told.contains("16 builds"), "{told}");
    assert_eq!(served.runtime.begun.load(Ordering::SeqCst), MOST);
    // All of them are one Build, and count no more when they know that.
    served.runtime.gate.add_permits(2 * MOST);
    for look in looking.into_iter().skip(1) {
        look.await.unwrap().unwrap();
    }
    until_answered(async || peer.build(build()).await).await;
}
