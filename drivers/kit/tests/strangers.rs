//! What a driver of root grants a user who may call it, and does not trust: over a socket that
//! was connected to as that user.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like one")]

use std::{
    convert::Infallible,
    io::{self, Read as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use hsup_driver_kit::{
    CancellationToken, Signal, Status,
    client::{Client, Connection},
    listen::{Access, Listener, Place},
    proto::{
        BuildRequest, Capability, Durability, ExitStatus, GetInfoRequest, IpInfoResponse,
        ListRequest, RemoveRequest, StartRequest, StatsResponse, StopRequest, WaitRequest,
        remove_request::What,
    },
    serve::{Limits, Options, Peer, serve},
    service::{BuildLog, Dyno, Identity, Names, Record, Runtime},
};
use nix::unistd::Uid;
use tempfile::TempDir;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(30);
/// Users who need not exist.
const PEER: u32 = 47_111;
const THIRD: u32 = 47_112;

/// A driver whose dynos are made of nothing.
#[derive(Clone)]
struct Nothing;

#[derive(Clone)]
struct Made(watch::Sender<bool>);

impl Runtime for Nothing {
    type Dyno = Made;

    fn identity(&self) -> Identity {
        Identity {
            name: "nothing",
            version: "1",
            capabilities: &[Capability::StdioFifo],
            durability: Durability::None,
            options: &[],
            images: false,
            names: Names::Strict,
        }
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
        _: StartRequest,
        _: Record,
        _: CancellationToken,
    ) -> Result<Made, Status> {
        Ok(Made(watch::channel(false).0))
    }
}

impl Dyno for Made {
    type Terminal = Infallible;

    async fn wait(&self) -> ExitStatus {
        let mut ended = self.0.subscribe();
        let _ended = ended.wait_for(|ended| *ended).await;
        ExitStatus::default()
    }

    async fn signal(&self, _: Signal) {
        self.0.send_replace(true);
    }

    async fn kill(&self) {
        self.0.send_replace(true);
    }

    fn ip_info(&self) -> Result<IpInfoResponse, Status> {
        Ok(IpInfoResponse::default())
    }

    async fn stats(&self) -> Result<StatsResponse, Status> {
        Ok(StatsResponse::default())
    }

    fn terminal(&self) -> Option<Infallible> {
        None
    }
}

struct Served {
    dir: TempDir,
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
        let task = tokio::spawn(async { serve(listener, Nothing, options).await.unwrap() });
        Self { dir, task }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("drv.sock")
    }

    async fn client_of(&self, uid: u32) -> Client {
        let stream = connect_as(uid, &self.socket()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let stream = tokio::net::UnixStream::from_std(stream).unwrap();
        Connection::over(stream, None).await.unwrap().client()
    }
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
