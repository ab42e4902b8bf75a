//! A driver whose dynos outlive it, over a real socket: each `serve` is one process of the driver,
//! and what is kept between them is kept here.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like one")]

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use hsup_driver_kit::{
    CancellationToken, Signal, Status,
    client::{Client, Connection},
    listen::Listener,
    proto::{
        BuildRequest, Capability, Durability, Dyno as Listed, ExitStatus, GetInfoRequest,
        IpInfoResponse, ListRequest, RemoveRequest, StartRequest, State, StatsResponse,
        StopRequest, WaitRequest, exit_status::How, remove_request::What,
    },
    serve::{Options, Peer, serve},
    service::{BuildLog, Dyno, Identity, Names, Record, RecoverError, Recovered, Runtime},
};
use tempfile::TempDir;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep, timeout},
};
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(30);

/// A record, and what it is of.
type Kept = (Vec<u8>, Lasting);

/// A name in a request.
type Field = fn(&mut StartRequest) -> &mut String;

/// What is on disk of a driver, and the dynos that it left.
#[derive(Clone, Default)]
struct Keeper {
    kept: Arc<Mutex<Vec<Kept>>>,
    broken: Arc<AtomicBool>,
    away: watch::Sender<bool>,
}

/// A dyno of no process, which has a driver or not.
#[derive(Clone)]
struct Lasting {
    id: String,
    ended: watch::Sender<Option<i32>>,
    keeper: Keeper,
}

impl Runtime for Keeper {
    type Dyno = Lasting;

    fn identity(&self) -> Identity {
        Identity {
            name: "keeper",
            version: "1",
            capabilities: &[Capability::StdioFifo],
            durability: Durability::Exact,
            options: &[],
            images: false,
            names: Names::Strict,
        }
    }

    fn ready(&self) -> Result<(), String> {
        let is_away = *self.away.borrow();
        (!is_away)
            .then_some(())
            .ok_or_else(|| "the disk is away".to_owned())
    }

    async fn recover(&self) -> Result<Vec<Recovered<Lasting>>, RecoverError> {
        let mut away = self.away.subscribe();
        away.wait_for(|is_away| !is_away).await?;
        if self.broken.load(Ordering::SeqCst) {
            return Err("the disk is gone".into());
        }
        let kept = self.kept.lock().unwrap().clone();
        let recovered = kept.into_iter().map(|(bytes, dyno)| {
            let record = Record::from_bytes(&bytes)?;
            Ok(Recovered { record, dyno })
        });
        recovered.collect()
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
        record: Record,
        _: CancellationToken,
    ) -> Result<Lasting, Status> {
        let dyno = Lasting {
            id: request.dyno_id,
            ended: watch::channel(None).0,
            keeper: self.clone(),
        };
        let kept = (record.to_bytes(), dyno.clone());
        self.kept.lock().unwrap().push(kept);
        Ok(dyno)
    }
}

impl Dyno for Lasting {
    type Terminal = Infallible;

    async fn wait(&self) -> ExitStatus {
        let mut ended = self.ended.subscribe();
        let code = ended.wait_for(Option::is_some).await.unwrap();
        ExitStatus {
            how: code.map(How::Code),
            ..Default::default()
        }
    }

    async fn signal(&self, _: Signal) {
        self.ended.send_replace(Some(0));
    }

    async fn kill(&self) {
        self.ended.send_replace(Some(-1));
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

    async fn remove(&self) {
        // It takes a while, and the answer does not come before.
        sleep(Duration::from_millis(20)).await;
        let mut kept = self.keeper.kept.lock().unwrap();
        kept.retain(|(_, dyno)| dyno.id != self.id);
    }
}

/// One process of the driver; killed when dropped, with every task of it.
struct Process {
    dir: TempDir,
    /// It and all of its tasks end when the sender goes.
    alive: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let (alive, thread) = self.alive.take().unwrap();
        drop(alive);
        thread.join().unwrap();
    }
}

impl Keeper {
    fn serve(&self) -> Process {
        let dir = TempDir::with_prefix("hsup").unwrap();
        let socket = dir.path().join("drv.sock");
        let runtime = self.clone();
        let (alive, killed) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let tasks = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            tasks.unwrap().block_on(async {
                let listener = Listener::bind(&socket).unwrap();
                tokio::select! {
                    ended = serve(listener, runtime, Options::default()) => ended.unwrap(),
                    _ = killed => {}
                }
            });
        });
        let alive = Some((alive, thread));
        Process { dir, alive }
    }

    /// The dyno ends, whoever looks.
    fn end(&self, id: &str, code: i32) {
        let kept = self.kept.lock().unwrap();
        let (_, dyno) = kept.iter().find(|(_, dyno)| dyno.id == id).unwrap();
        dyno.ended.send_replace(Some(code));
    }

    fn ids(&self) -> Vec<String> {
        let kept = self.kept.lock().unwrap();
        kept.iter().map(|(_, dyno)| dyno.id.clone()).collect()
    }
}

impl Process {
    async fn client(&self) -> Client {
        let socket = self.dir.path().join("drv.sock");
        let connecting = async {
            loop {
                match Connection::open(&socket).await {
                    Ok(connection) => return connection.client(),
                    Err(_) => sleep(Duration::from_millis(2)).await,
                }
            }
        };
        timeout(PATIENCE, connecting).await.expect("a driver")
    }
}

fn start(id: &str) -> StartRequest {
    StartRequest {
        dyno_id: id.into(),
        supervisor_id: "me".into(),
        artifact: "art".into(),
        app: "app".into(),
        release: 3,
        process_type: "web".into(),
        process_number: 2,
        argv: vec!["true".into()],
        io_dir: "/io".into(),
        ..Default::default()
    }
}

async fn list(client: &Client) -> Vec<Listed> {
    let all = ListRequest::default();
    client.clone().list(all).await.unwrap().into_inner().dynos
}

async fn wait(client: &Client, id: &str) -> Result<Option<How>, Status> {
    let request = WaitRequest {
        dyno_id: id.into(),
        timeout_ms: 30_000,
    };
    let answer = client.clone().wait(request).await?.into_inner();
    Ok(answer.status.expect("it exited").how)
}

async fn remove(client: &Client, id: &str) {
    let what = Some(What::DynoId(id.into()));
    client.clone().remove(RemoveRequest { what }).await.unwrap();
}

#[tokio::test]
async fn dynos_are_found_again_as_they_were() {
    let keeper = Keeper::default();
    let first = keeper.serve();
    let client = first.client().await;
    for id in ["runs", "ends"] {
        client.clone().start(start(id)).await.unwrap();
    }
    let before = list(&client).await;
    drop(first);
    keeper.end("ends", 42);

    let second = keeper.serve();
    let client = second.client().await;
    assert_eq!(wait(&client, "ends").await.unwrap(), Some(How::Code(42)));
    let mut after = list(&client).await;
    let ended = after.iter_mut().find(|dyno| dyno.dyno_id == "ends");
    let ended = ended.unwrap();
    assert_eq!(ended.state(), State::Exited);
    ended.set_state(State::Running);
    ended.status = None;
    assert_eq!(after, before);

    // A repeat is known, and so is another request, whether the dyno runs or not.
    for id in ["runs", "ends"] {
        client.clone().start(start(id)).await.unwrap();
        let other = StartRequest {
            argv: vec!["false".into()],
            ..start(id)
        };
        let status = client.clone().start(other).await.unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists);
    }
    assert_eq!(keeper.ids().len(), 2, "started again");
    let stop = StopRequest {
        dyno_id: "runs".into(),
        ..Default::default()
    };
    client.clone().stop(stop).await.unwrap();
    assert_eq!(wait(&client, "runs").await.unwrap(), Some(How::Code(0)));
}

#[tokio::test]
async fn a_removed_dyno_does_not_come_back() {
    let keeper = Keeper::default();
    let first = keeper.serve();
    let client = first.client().await;
    for id in ["removed", "kept"] {
        client.clone().start(start(id)).await.unwrap();
        keeper.end(id, 1);
        wait(&client, id).await.unwrap();
    }
    tokio::join!(remove(&client, "removed"), remove(&client, "removed"));
    // What is kept had gone before the answer.
    assert_eq!(keeper.ids(), ["kept"]);
    drop(first);
    let second = keeper.serve();
    let client = second.client().await;
    let status = wait(&client, "removed").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(wait(&client, "kept").await.unwrap(), Some(How::Code(1)));
    remove(&client, "kept").await;
    assert!(keeper.ids().is_empty());
}

#[tokio::test]
async fn one_that_runs_is_not_removed() {
    let keeper = Keeper::default();
    let driver = keeper.serve();
    let client = driver.client().await;
    client.clone().start(start("runs")).await.unwrap();
    let what = Some(What::DynoId("runs".into()));
    let refused = client.clone().remove(RemoveRequest { what }).await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(keeper.ids(), ["runs"]);
}

#[tokio::test]
async fn a_linger_counts_anew_when_nobody_comes_back() {
    let keeper = Keeper::default();
    let first = keeper.serve();
    let client = first.client().await;
    let lingers = StartRequest {
        linger_ms: 300,
        ..start("lingers")
    };
    client.clone().start(lingers).await.unwrap();
    client.clone().start(start("stays")).await.unwrap();
    let dynos = keeper.kept.lock().unwrap().clone();
    drop(first);

    let restarted = Instant::now();
    let second = keeper.serve();
    let ended = timeout(PATIENCE, dynos[0].1.wait()).await;
    assert_eq!(ended.expect("stopped").how, Some(How::Code(0)));
    assert!(restarted.elapsed() >= Duration::from_millis(300));
    let client = second.client().await;
    wait(&client, "lingers").await.unwrap();
    let stays = list(&client).await;
    let stays = stays.iter().find(|dyno| dyno.dyno_id == "stays").unwrap();
    assert_eq!(stays.state(), State::Running);
}

#[tokio::test]
async fn who_comes_back_in_time_keeps_a_dyno() {
    let keeper = Keeper::default();
    let first = keeper.serve();
    let lingers = |linger_ms, supervisor_id: &str| StartRequest {
        linger_ms,
        supervisor_id: supervisor_id.into(),
        ..start(supervisor_id)
    };
    // Time enough for the driver to serve again. Who stays away tells when it is over.
    for dyno in [lingers(5_000, "me"), lingers(6_000, "stays-away")] {
        first.client().await.clone().start(dyno).await.unwrap();
    }
    drop(first);
    let second = keeper.serve();
    let client = second.client().await;
    let me = ListRequest {
        supervisor_id: "me".into(),
    };
    client.clone().list(me).await.unwrap();
    let ended = wait(&client, "stays-away").await.unwrap();
    assert_eq!(ended, Some(How::Code(0)));
    let dynos = list(&client).await;
    let mine = dynos.iter().find(|dyno| dyno.dyno_id == "me").unwrap();
    assert_eq!(mine.state(), State::Running);
}

#[tokio::test]
async fn a_driver_that_does_not_find_its_dynos_does_not_serve() {
    let keeper = Keeper::default();
    keeper.broken.store(true, Ordering::SeqCst);
    let dir = TempDir::with_prefix("hsup").unwrap();
    let listener = Listener::bind(&dir.path().join("drv.sock")).unwrap();
    let serving = serve(listener, keeper, Options::default());
    let ended = timeout(PATIENCE, serving).await.expect("an end");
    let error = ended.unwrap_err();
    let text = hsup_driver_kit::errors::chain(&error);
    assert!(text.ends_with("again: the disk is gone"), "{text}");
}

#[tokio::test]
async fn a_strict_driver_takes_no_name_that_could_do_harm() {
    let keeper = Keeper::default();
    let driver = keeper.serve();
    let client = driver.client().await;
    let fields: [(&str, Field); 3] = [
        ("artifact", |request| &mut request.artifact),
        ("app", |request| &mut request.app),
        ("process_type", |request| &mut request.process_type),
    ];
    for (name, field) in fields {
        for bad in ["../up", "a/b", ".", "..", "a\0b", "a\n", "é", "-a", ""] {
            let mut request = start("bad");
            *field(&mut request) = bad.to_owned();
            let status = client.clone().start(request).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{name} {bad:?}");
            assert!(status.message().starts_with(name), "{status}");
        }
    }
    for bad in ["../up", "a/b", ""] {
        let what = Some(What::Artifact(bad.into()));
        let status = client.clone().remove(RemoveRequest { what }).await;
        assert_eq!(status.unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
    }
    assert!(keeper.ids().is_empty());
    let mut good = start("good");
    good.artifact = "cedar-14@v1:0a+b=".into();
    good.app = "My_app-1.x".into();
    client.clone().start(good).await.unwrap();
}

#[tokio::test]
async fn nothing_is_said_of_dynos_that_are_not_found_yet() {
    let keeper = Keeper::default();
    let first = keeper.serve();
    first.client().await.start(start("runs")).await.unwrap();
    drop(first);

    keeper.away.send_replace(true);
    let second = keeper.serve();
    let mut client = second.client().await;
    let info = client.get_info(GetInfoRequest::default()).await.unwrap();
    let info = info.into_inner();
    assert!(!info.ready);
    assert_eq!(info.message, "the disk is away");
    for refused in [
        client.list(ListRequest::default()).await.err(),
        client.start(start("new")).await.err(),
        wait(&client, "runs").await.err(),
    ] {
        let refused = refused.expect("an answer to what nobody knows");
        assert_eq!(refused.code(), Code::Unavailable);
        assert!(refused.message().ends_with("the disk is away"));
    }
    assert_eq!(keeper.ids(), ["runs"]);

    keeper.away.send_replace(false);
    let found = async {
        while !client
            .get_info(GetInfoRequest::default())
            .await
            .is_ok_and(|info| info.get_ref().ready)
        {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, found).await.expect("its dynos");
    let dynos = list(&client).await;
    assert_eq!(dynos.len(), 1);
    assert_eq!(dynos[0].state(), State::Running);
    keeper.end("runs", 3);
    assert_eq!(wait(&client, "runs").await.unwrap(), Some(How::Code(3)));
}
