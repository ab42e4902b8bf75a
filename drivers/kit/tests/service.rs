//! The service's rules over a real socket, with a runtime whose dynos are made of nothing.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like one")]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::pending,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hsup_driver_kit::{
    client::{Client, Connection},
    listen::Listener,
    serve::{End, Options, Peer, serve},
    service::{BuildLog, Dyno, Identity, Names, Record, Runtime},
    signal::Signal,
};
use hsup_proto::driver::{
    AttachRequest, BuildRequest, Capability, Durability, ExitStatus, IpInfoRequest, IpInfoResponse,
    ListRequest, LogsRequest, Release, RemoveRequest, SignalRequest, StartRequest, State,
    StatsRequest, StatsResponse, StopRequest, WaitRequest, build_response::Event, exit_status::How,
    remove_request::What,
};
use tempfile::TempDir;
use tokio::{
    sync::{Semaphore, watch},
    task::{JoinHandle, yield_now},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

const PATIENCE: Duration = Duration::from_secs(30);

/// A runtime that does what the test lets it.
#[derive(Clone)]
struct Fake {
    capabilities: &'static [Capability],
    durability: Durability,
    builds: Arc<AtomicUsize>,
    starts: Arc<AtomicUsize>,
    /// One permit lets one build finish.
    build_gate: Arc<Semaphore>,
    /// One permit lets one start finish.
    start_gate: Arc<Semaphore>,
    removals: Arc<AtomicUsize>,
    /// One permit lets one removal of `art-stuck` finish.
    removal_gate: Arc<Semaphore>,
}

/// A dyno of no process, which ends by any signal but SIGHUP.
#[derive(Clone)]
struct Nothing {
    ended: watch::Sender<Option<Signal>>,
    /// What it cannot do: its id.
    fails: String,
}

impl Runtime for Fake {
    type Dyno = Nothing;

    fn identity(&self) -> Identity {
        Identity {
            name: "fake",
            version: "1",
            capabilities: self.capabilities,
            durability: self.durability,
            options: &["known"],
            images: false,
            names: Names::Any,
        }
    }

    async fn build(
        &self,
        _peer: Peer,
        request: BuildRequest,
        log: BuildLog,
    ) -> Result<String, Status> {
        self.builds.fetch_add(1, Ordering::SeqCst);
        log.log(b"building\n");
        self.build_gate.acquire().await.unwrap().forget();
        match request.release.unwrap().app.as_str() {
            "broken" => Err(Status::failed_precondition("no such stack")),
            "fails-build" => panic!("by the test"),
            app => Ok(format!("art-{app}")),
        }
    }

    fn has_artifact(&self, _peer: Peer, artifact: &str) -> bool {
        artifact.starts_with("art-")
    }

    async fn remove_artifact(&self, _peer: Peer, artifact: &str) -> Result<(), Status> {
        self.removals.fetch_add(1, Ordering::SeqCst);
        if artifact == "art-stuck" {
            self.removal_gate.acquire().await.unwrap().forget();
        }
        Ok(())
    }

    async fn start(
        &self,
        _peer: Peer,
        request: StartRequest,
        _record: Record,
        cancelled: CancellationToken,
    ) -> Result<Nothing, Status> {
        self.starts.fetch_add(1, Ordering::SeqCst);
        tokio::select! {
            permit = self.start_gate.acquire() => permit.unwrap().forget(),
            () = cancelled.cancelled() => return Err(Status::aborted("stopped while starting")),
        }
        assert_ne!(request.dyno_id, "fails-start", "by the test");
        Ok(Nothing {
            ended: watch::channel(None).0,
            fails: request.dyno_id,
        })
    }
}

impl Dyno for Nothing {
    type Terminal = Infallible;

    async fn wait(&self) -> ExitStatus {
        let mut ended = self.ended.subscribe();
        let signal = ended.wait_for(Option::is_some).await.unwrap();
        assert_ne!(self.fails, "fails-wait", "by the test");
        ExitStatus {
            how: signal.map(|name| How::Signal(name.to_string())),
            ..Default::default()
        }
    }

    async fn signal(&self, signal: Signal) {
        if self.fails == "hangs-signal" {
            pending::<()>().await;
        }
        if signal != Signal::HUP {
            self.ended.send_replace(Some(signal));
        }
    }

    async fn kill(&self) {
        assert_ne!(self.fails, "fails-kill", "by the test");
        self.ended.send_replace(Some(Signal::KILL));
    }

    fn ip_info(&self) -> Result<IpInfoResponse, Status> {
        Ok(IpInfoResponse {
            ip: "127.0.0.1".into(),
            port: match self.fails.as_str() {
                "portless" | "elsewhere" => 0,
                _ => 5000,
            },
            node: match self.fails.as_str() {
                "elsewhere" => "node-2".into(),
                _ => String::new(),
            },
        })
    }

    async fn stats(&self) -> Result<StatsResponse, Status> {
        Ok(StatsResponse::default())
    }

    fn terminal(&self) -> Option<Infallible> {
        None
    }
}

/// The service, served for one test.
struct Served {
    dir: TempDir,
    fake: Fake,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn served() -> Served {
    served_with(&[Capability::StdioFifo, Capability::Signal])
}

fn served_with(capabilities: &'static [Capability]) -> Served {
    let dir = TempDir::with_prefix("hsup").unwrap();
    let fake = Fake {
        capabilities,
        durability: Durability::None,
        builds: Arc::default(),
        starts: Arc::default(),
        build_gate: Arc::new(Semaphore::new(0)),
        start_gate: Arc::new(Semaphore::new(0)),
        removals: Arc::default(),
        removal_gate: Arc::new(Semaphore::new(0)),
    };
    let listener = Listener::bind(&dir.path().join("drv.sock")).unwrap();
    let runtime = fake.clone();
    let task = tokio::spawn(async {
        serve(listener, runtime, Options::default()).await.unwrap();
    });
    Served { dir, fake, task }
}

impl Served {
    fn socket(&self) -> PathBuf {
        self.dir.path().join("drv.sock")
    }

    async fn connect(&self) -> Connection {
        Connection::open(&self.socket()).await.unwrap()
    }

    async fn client(&self) -> Client {
        self.connect().await.client()
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let polling = async {
        while !holds().await {
            sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(
        timeout(PATIENCE, polling).await.is_ok(),
        "waited in vain for {what}"
    );
}

fn start(id: &str) -> StartRequest {
    StartRequest {
        dyno_id: id.into(),
        supervisor_id: "me".into(),
        artifact: "art-app".into(),
        argv: vec!["true".into()],
        env: BTreeMap::from([("A".into(), "1".into()), ("B".into(), "2".into())]),
        io_dir: "/io".into(),
        ..Default::default()
    }
}

fn release(app: &str, url: &str) -> BuildRequest {
    BuildRequest {
        release: Some(Release {
            app: app.into(),
            slug_url: url.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn build(mut client: Client, request: BuildRequest) -> Result<(Vec<u8>, String), Status> {
    let mut stream = client.build(request).await?.into_inner();
    let mut log = Vec::new();
    loop {
        match stream.message().await?.expect("an artifact").event {
            Some(Event::Log(bytes)) => log.extend(bytes),
            Some(Event::Artifact(artifact)) => {
                assert_eq!(stream.message().await?, None, "the artifact comes last");
                return Ok((log, artifact));
            }
            _ => {}
        }
    }
}

fn stop(id: &str, grace_ms: u32) -> StopRequest {
    StopRequest {
        dyno_id: id.into(),
        signal: "SIGHUP".into(),
        grace_ms,
        ..Default::default()
    }
}

async fn state(client: &Client, id: &str) -> Option<State> {
    let list = client.clone().list(ListRequest::default()).await.unwrap();
    let dynos = list.into_inner().dynos;
    dynos
        .iter()
        .find(|dyno| dyno.dyno_id == id)
        .map(hsup_proto::driver::Dyno::state)
}

async fn wait(client: &Client, id: &str) -> Result<How, Status> {
    let request = WaitRequest {
        dyno_id: id.into(),
        timeout_ms: 30_000,
    };
    let answer = client.clone().wait(request).await?.into_inner();
    Ok(answer.status.expect("it exited").how.unwrap())
}

#[tokio::test]
async fn equal_builds_are_one_and_a_repeat_builds_nothing() {
    let served = served();
    let client = served.client().await;
    let first = tokio::spawn(build(client.clone(), release("app", "https://s/a?sig=1")));
    let joined = tokio::spawn(build(client.clone(), release("app", "https://s/a?sig=2")));
    let fake = &served.fake;
    until("the build", async || {
        fake.builds.load(Ordering::SeqCst) == 1
    })
    .await;
    // The second is there too: a call after it has been answered.
    let _ = state(&client, "a").await;
    fake.build_gate.add_permits(1);
    let (log, artifact) = first.await.unwrap().unwrap();
    assert_eq!(
        (log.as_slice(), artifact.as_str()),
        (&b"building\n"[..], "art-app")
    );
    assert_eq!(joined.await.unwrap().unwrap().1, "art-app");
    let again = build(client.clone(), release("app", "https://s/a?sig=3"))
        .await
        .unwrap();
    assert_eq!(again, (Vec::new(), "art-app".into()));
    assert_eq!(fake.builds.load(Ordering::SeqCst), 1);

    // Removed, it is built anew; and a failure is told and not remembered.
    let remove = RemoveRequest {
        what: Some(What::Artifact("art-app".into())),
    };
    client.clone().remove(remove).await.unwrap();
    fake.build_gate.add_permits(3);
    build(client.clone(), release("app", "https://s/a"))
        .await
        .unwrap();
    for _ in 0..2 {
        let status = build(client.clone(), release("broken", ""))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
    }
    assert_eq!(fake.builds.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_build_goes_on_when_its_caller_is_gone() {
    let served = served();
    let caller = served.connect().await;
    let call = tokio::spawn(build(caller.client(), release("app", "")));
    let fake = &served.fake;
    until("the build", async || {
        fake.builds.load(Ordering::SeqCst) == 1
    })
    .await;
    call.abort();
    drop(caller);
    fake.build_gate.add_permits(1);
    let client = served.client().await;
    assert_eq!(
        build(client, release("app", "")).await.unwrap().1,
        "art-app"
    );
    assert_eq!(fake.builds.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn equal_starts_are_one_and_go_on_without_their_caller() {
    let served = served();
    let caller = served.connect().await;
    let call = {
        let mut client = caller.client();
        tokio::spawn(async move { client.start(start("a")).await })
    };
    let mut client = served.client().await;
    let fake = &served.fake;
    until("the start", async || {
        fake.starts.load(Ordering::SeqCst) == 1
    })
    .await;
    call.abort();
    drop(caller);
    assert_eq!(state(&client, "a").await, Some(State::Starting));
    let id = || "a".to_owned();
    let status = client
        .ip_info(IpInfoRequest { dyno_id: id() })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let signal = SignalRequest {
        dyno_id: id(),
        signal: "SIGHUP".into(),
    };
    let status = client.signal(signal).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    fake.start_gate.add_permits(1);
    client.start(start("a")).await.unwrap();
    assert_eq!(fake.starts.load(Ordering::SeqCst), 1);
    assert_eq!(state(&client, "a").await, Some(State::Running));
}

#[tokio::test]
async fn a_stop_during_start_cancels_it_for_good() {
    let served = served();
    let client = served.client().await;
    let call = {
        let mut client = client.clone();
        tokio::spawn(async move { client.start(start("a")).await })
    };
    let fake = &served.fake;
    until("the start", async || {
        fake.starts.load(Ordering::SeqCst) == 1
    })
    .await;
    client.clone().stop(stop("a", 60_000)).await.unwrap();
    let status = call.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert!(matches!(wait(&client, "a").await, Ok(How::Lost(_))));
    client.clone().start(start("a")).await.unwrap();
    assert_eq!(fake.starts.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn calls_are_answered_during_a_long_stop_which_may_be_hurried() {
    let served = served();
    let client = served.client().await;
    served.fake.start_gate.add_permits(1);
    client.clone().start(start("a")).await.unwrap();
    let slow = {
        let mut client = client.clone();
        tokio::spawn(async move { client.stop(stop("a", 600_000)).await })
    };
    until("the stop", async || {
        state(&client, "a").await == Some(State::Stopping)
    })
    .await;
    let ip = IpInfoRequest {
        dyno_id: "a".into(),
    };
    client.clone().ip_info(ip).await.unwrap();
    let removal = RemoveRequest {
        what: Some(What::Artifact("art-app".into())),
    };
    let status = client.clone().remove(removal).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    client.clone().stop(stop("a", 1)).await.unwrap();
    slow.await.unwrap().unwrap();
    assert_eq!(
        wait(&client, "a").await.unwrap(),
        How::Signal("SIGKILL".into())
    );
}

#[tokio::test]
async fn a_signal_that_hangs_takes_nothing_from_the_end_of_the_grace() {
    let served = served();
    let mut client = served.client().await;
    served.fake.start_gate.add_permits(1);
    client.start(start("hangs-signal")).await.unwrap();
    let ended = timeout(PATIENCE, client.stop(stop("hangs-signal", 1))).await;
    ended.expect("it ends").unwrap();
    let how = wait(&client, "hangs-signal").await.unwrap();
    assert_eq!(how, How::Signal("SIGKILL".into()));
}

#[tokio::test]
async fn port_0_is_told_of_a_dyno_whose_node_is_known_alone() {
    let served = served();
    let mut client = served.client().await;
    served.fake.start_gate.add_permits(2);
    let ip = |id: &str| IpInfoRequest { dyno_id: id.into() };
    client.start(start("portless")).await.unwrap();
    let status = client.ip_info(ip("portless")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    client.start(start("elsewhere")).await.unwrap();
    let info = client.ip_info(ip("elsewhere")).await.unwrap().into_inner();
    assert_eq!((info.port, info.node.as_str()), (0, "node-2"));
}

#[tokio::test]
async fn a_removed_id_does_not_start_late() {
    let served = served();
    let mut client = served.client().await;
    let remove = RemoveRequest {
        what: Some(What::DynoId("a".into())),
    };
    client.remove(remove).await.unwrap();
    let status = client.start(start("a")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(wait(&client, "a").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn nothing_is_started_from_an_artifact_while_it_is_removed() {
    let served = served();
    let client = served.client().await;
    let remove = || RemoveRequest {
        what: Some(What::Artifact("art-stuck".into())),
    };
    let removing = {
        let mut client = client.clone();
        tokio::spawn(async move { client.remove(remove()).await })
    };
    let fake = &served.fake;
    until("the removal to begin", async || {
        fake.removals.load(Ordering::SeqCst) == 1
    })
    .await;
    let request = StartRequest {
        artifact: "art-stuck".into(),
        ..start("a")
    };
    let refused = async || client.clone().start(request.clone()).await.unwrap_err();
    assert_eq!(refused().await.code(), Code::Aborted);
    // It goes on without its caller.
    removing.abort();
    assert!(removing.await.unwrap_err().is_cancelled());
    assert_eq!(refused().await.code(), Code::Aborted);
    assert_eq!(fake.starts.load(Ordering::SeqCst), 0);
    assert_eq!(state(&client, "a").await, None);

    fake.removal_gate.add_permits(1);
    fake.start_gate.add_permits(1);
    until("a start after the removal", async || {
        client.clone().start(request.clone()).await.is_ok()
    })
    .await;
    let status = client.clone().remove(remove()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(fake.removals.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_supervisor_that_comes_back_in_time_keeps_its_dynos() {
    let served = served();
    served.fake.start_gate.add_permits(2);
    let onlooker = served.client().await;
    let first = served.connect().await;
    for (id, linger_ms) in [("short", 1), ("long", 600_000)] {
        let request = StartRequest {
            linger_ms,
            ..start(id)
        };
        first.client().start(request).await.unwrap();
    }
    drop(first);
    assert_eq!(
        wait(&onlooker, "short").await.unwrap(),
        How::Signal("SIGTERM".into())
    );
    let second = served.connect().await;
    let list = ListRequest {
        supervisor_id: "me".into(),
    };
    let list = second.client().list(list).await.unwrap().into_inner();
    let states: Vec<State> = list
        .dynos
        .iter()
        .map(hsup_proto::driver::Dyno::state)
        .collect();
    assert_eq!(states, [State::Running, State::Exited]);
}

#[tokio::test]
async fn a_bad_request_changes_nothing() {
    let served = served();
    let mut client = served.client().await;
    let cases: [fn(&mut StartRequest); 7] = [
        |request| request.dyno_id = "../etc".into(),
        |request| request.dyno_id = "a".repeat(255),
        |request| request.supervisor_id.clear(),
        |request| request.argv.clear(),
        |request| request.artifact.clear(),
        |request| request.io_dir = "relative".into(),
        |request| drop(request.options.insert("unknown".into(), String::new())),
    ];
    for (number, spoil) in cases.into_iter().enumerate() {
        let mut request = start("a");
        spoil(&mut request);
        let status = client.start(request).await.unwrap_err();
        assert_eq!(
            status.code(),
            Code::InvalidArgument,
            "case {number}: {status}"
        );
    }
    assert_eq!(served.fake.starts.load(Ordering::SeqCst), 0);
    let mut request = start("a");
    request.artifact = "nonsense".into();
    let status = client.start(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().starts_with("artifact"), "{status}");
    assert_eq!(state(&client, "a").await, None);
    let status = client.build(BuildRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = client.remove(RemoveRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn what_is_not_declared_is_not_there() {
    let served = served_with(&[Capability::StdioFifo]);
    let mut client = served.client().await;
    let dyno_id = || "a".to_owned();
    let signal = SignalRequest {
        dyno_id: dyno_id(),
        signal: "SIGHUP".into(),
    };
    let stats = StatsRequest { dyno_id: dyno_id() };
    let attach = tokio_stream::once(AttachRequest::default());
    let codes = [
        client.signal(signal).await.unwrap_err().code(),
        client.stats(stats).await.unwrap_err().code(),
        client.attach(attach).await.unwrap_err().code(),
        client
            .logs(LogsRequest::default())
            .await
            .unwrap_err()
            .code(),
    ];
    assert_eq!(codes, [Code::Unimplemented; 4]);
}

#[tokio::test]
async fn a_runtime_that_panics_hangs_nobody() {
    let served = served();
    let client = served.client().await;
    let fake = &served.fake;
    fake.build_gate.add_permits(2);
    fake.start_gate.add_permits(3);
    for _ in 0..2 {
        let status = build(client.clone(), release("fails-build", "")).await;
        assert_eq!(status.unwrap_err().code(), Code::Internal);
    }
    let status = client.clone().start(start("fails-start")).await;
    assert_eq!(status.unwrap_err().code(), Code::Internal);
    assert_eq!(state(&client, "fails-start").await, None);

    client.clone().start(start("fails-wait")).await.unwrap();
    client.clone().stop(stop("fails-wait", 1)).await.unwrap();
    let how = wait(&client, "fails-wait").await.unwrap();
    assert!(matches!(how, How::Lost(_)), "{how:?}");

    client.clone().start(start("fails-kill")).await.unwrap();
    let status = client.clone().stop(stop("fails-kill", 1)).await;
    assert_eq!(status.unwrap_err().code(), Code::Internal);
    let how = wait(&client, "fails-kill").await.unwrap();
    assert!(matches!(how, How::Lost(_)), "{how:?}");
    // None is left that the end of the driver would wait for.
    assert_eq!(state(&client, "fails-wait").await, Some(State::Exited));
    assert_eq!(state(&client, "fails-kill").await, Some(State::Exited));
}

#[tokio::test]
async fn a_runtime_that_promises_too_much_is_refused() {
    use hsup_driver_kit::service::{IdentityError, Service};

    let mut fake = served().fake.clone();
    let refused = |fake: &Fake| Service::new(fake.clone()).map(drop).unwrap_err();
    fake.durability = Durability::Unspecified;
    assert_eq!(refused(&fake), IdentityError::Durability);
    fake.durability = Durability::None;
    fake.capabilities = &[Capability::StdioFifo, Capability::Logs];
    assert_eq!(refused(&fake), IdentityError::Logs);
    fake.capabilities = &[Capability::Signal];
    assert_eq!(refused(&fake), IdentityError::NoOutput);
    // Nor does it serve.
    let dir = TempDir::with_prefix("hsup").unwrap();
    let listener = Listener::bind(&dir.path().join("drv.sock")).unwrap();
    let error = serve(listener, fake, Options::default()).await.unwrap_err();
    assert!(error.to_string().contains("STDIO_FIFO"), "{error}");
}

#[tokio::test]
async fn an_idle_driver_stays_as_long_as_its_parent_does() {
    let dir = TempDir::with_prefix("hsup").unwrap();
    let serve = |end| {
        let fake = served().fake.clone();
        let listener = Listener::bind(&dir.path().join("drv.sock")).unwrap();
        let options = Options {
            end,
            ..Options::default()
        };
        timeout(PATIENCE, serve(listener, fake, options))
    };
    let period = Duration::from_millis(1);
    let parent = nix::unistd::getppid();
    let of_another = nix::unistd::Pid::this();
    for end in [End::WhenIdle(period), End::WhenOrphaned(period, of_another)] {
        let ended = serve(end).await;
        ended.expect("an end").unwrap();
    }
    tokio::select! {
        ended = serve(End::WhenOrphaned(period, parent)) => panic!("{ended:?}"),
        () = sleep(100 * period) => {}
    }
}

#[tokio::test]
async fn a_driver_waits_longer_for_who_has_started_it_than_for_who_has_gone() {
    let dir = TempDir::with_prefix("hsup").unwrap();
    let socket = dir.path().join("drv.sock");
    let listener = Listener::bind(&socket).unwrap();
    // Long enough for a machine that stalls.
    let period = Duration::from_millis(1_500);
    let options = Options {
        end: End::WhenIdle(period),
        ..Options::default()
    };
    let driver = tokio::spawn(serve(listener, served().fake.clone(), options));
    sleep(2 * period).await;
    drop(Connection::open(&socket).await.unwrap());
    let ended = timeout(PATIENCE, driver).await.expect("an end");
    ended.unwrap().unwrap();
}

#[tokio::test]
async fn an_idle_driver_waits_for_who_may_come_back_to_ask_how_a_dyno_ended() {
    let dir = TempDir::with_prefix("hsup").unwrap();
    let socket = dir.path().join("drv.sock");
    let listener = Listener::bind(&socket).unwrap();
    let options = Options {
        end: End::WhenIdle(Duration::from_millis(300)),
        ..Options::default()
    };
    let fake = served().fake.clone();
    fake.start_gate.add_permits(1);
    let driver = tokio::spawn(serve(listener, fake, options));
    let connection = Connection::open(&socket).await.unwrap();
    let linger = Duration::from_millis(1_500);
    let request = StartRequest {
        linger_ms: 1_500,
        ..start("a")
    };
    connection.client().start(request).await.unwrap();
    connection.client().stop(stop("a", 1)).await.unwrap();
    let away = Instant::now();
    drop(connection);
    let ended = timeout(PATIENCE, driver).await.expect("an end");
    ended.unwrap().unwrap();
    assert!(away.elapsed() >= linger, "after {:?}", away.elapsed());
}

#[tokio::test]
async fn thousands_of_waits_fit_on_one_connection() {
    let served = served();
    served.fake.start_gate.add_permits(1);
    let client = served.client().await;
    client.clone().start(start("a")).await.unwrap();
    let mut waits = tokio::task::JoinSet::new();
    for _ in 0..2_000 {
        let client = client.clone();
        waits.spawn(async move { wait(&client, "a").await });
    }
    yield_now().await;
    client.clone().stop(stop("a", 1)).await.unwrap();
    while let Some(answer) = waits.join_next().await {
        assert_eq!(answer.unwrap().unwrap(), How::Signal("SIGKILL".into()));
    }
}
