//! A naive driver in the test's own process, good enough for the cases that its faults break.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io,
    os::unix::{
        fs::OpenOptionsExt as _,
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hsup_proto::driver::{
    BuildRequest, BuildResponse, Capability, Durability, Dyno, ExitStatus, GetInfoRequest,
    GetInfoResponse, IpInfoRequest, IpInfoResponse, ListRequest, ListResponse, RemoveRequest,
    RemoveResponse, StartRequest, StartResponse, State, StopRequest, StopResponse, WaitRequest,
    WaitResponse,
    build_response::Event,
    dyno_driver_server::{DynoDriver, DynoDriverServer},
    exit_status::How,
    remove_request::What,
};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{
    net::UnixListener,
    sync::{Notify, RwLock, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, codegen::BoxStream, transport::Server};

/// What the driver does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    AnswersUnknown,
    ArgvThroughShell,
    BuildsDiffer,
    DeclaresSignal,
    ForgetsRemoved,
    GraceZeroKills,
    LeaksEnv,
    ListBehindStop,
    ListLacksState,
    OtherRequestOk,
    OutputWriteOnly,
    RemovesRunning,
    SecondStopIgnored,
    SignalIsExitZero,
    StartDoesNotJoin,
    StartRestarts,
    StdinReadWrite,
    StopDoesNotWait,
    StopEndsWithCaller,
    StopUnknownNotFound,
    TellsEnv,
    WaitAnswersDiffer,
    WaitUnknownUnavailable,
}

/// The driver, served from a thread until dropped.
#[derive(Debug)]
pub(crate) struct Fake {
    dir: TempDir,
    driver: Driver,
    quit: Arc<Notify>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Fake {
    /// Serves a driver with `fault`, or a good one.
    pub(crate) fn serve(fault: Option<Fault>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let driver = Driver(Arc::new(Shared {
            fault,
            dynos: Mutex::default(),
            removed: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            stopping: RwLock::default(),
            builds: AtomicU32::new(1),
        }));
        let quit = Arc::new(Notify::new());
        let (socket, service) = (dir.path().join("fake.sock"), driver.clone());
        let (quitting, (bound, is_bound)) = (Arc::clone(&quit), std::sync::mpsc::channel());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = UnixListener::bind(socket).unwrap();
                bound.send(()).unwrap();
                let server = Server::builder()
                    .add_service(DynoDriverServer::new(service))
                    .serve_with_incoming(UnixListenerStream::new(listener));
                tokio::select! {
                    served = server => served.unwrap(),
                    () = quitting.notified() => {}
                }
            });
        });
        is_bound.recv().unwrap();
        Self {
            dir,
            driver,
            quit,
            thread: Some(thread),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("fake.sock")
    }

    /// The dynos that nobody has removed.
    pub(crate) fn dynos(&self) -> Vec<String> {
        self.driver
            .0
            .dynos
            .lock()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.quit.notify_one();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        for entry in self.driver.0.dynos.lock().unwrap().values() {
            entry.kill(Signal::SIGKILL);
        }
    }
}

#[derive(Debug)]
struct Entry {
    request: StartRequest,
    group: Option<Pid>,
    started_at: i64,
    exit: watch::Sender<Option<ExitStatus>>,
    /// When a stopping dyno is killed.
    deadline: watch::Sender<Option<Instant>>,
}

impl Entry {
    fn kill(&self, signal: Signal) {
        if let Some(group) = self.group {
            // It may be gone already.
            _ = killpg(group, signal);
        }
    }

    async fn exited(&self) -> ExitStatus {
        let mut exit = self.exit.subscribe();
        let seen = exit.wait_for(Option::is_some).await.unwrap();
        seen.clone().unwrap()
    }

    /// Kills the dyno when its deadline, which may still move, has come.
    async fn enforce(&self) {
        let mut moved = self.deadline.subscribe();
        let mut exit = self.exit.subscribe();
        loop {
            let Some(deadline) = *moved.borrow_and_update() else {
                return;
            };
            tokio::select! {
                _ = exit.wait_for(Option::is_some) => return,
                _ = moved.changed() => {}
                () = sleep_until(deadline) => break,
            }
        }
        self.kill(Signal::SIGKILL);
    }
}

#[derive(Debug)]
struct Shared {
    fault: Option<Fault>,
    dynos: Mutex<BTreeMap<String, Arc<Entry>>>,
    removed: Mutex<BTreeSet<String>>,
    starting: tokio::sync::Mutex<()>,
    stopping: RwLock<()>,
    builds: AtomicU32,
}

#[derive(Clone, Debug)]
struct Driver(Arc<Shared>);

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_millis().try_into().unwrap()
}

fn open(dir: &str, name: &str, read: bool, write: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(read)
        .write(write)
        .custom_flags(libc::O_NONBLOCK)
        .open(Path::new(dir).join(name))
        .inspect(|file| {
            use nix::fcntl::{FcntlArg, OFlag, fcntl};
            let flags = OFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GETFL).unwrap());
            fcntl(file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).unwrap();
        })
}

impl Driver {
    fn has(&self, fault: Fault) -> bool {
        self.0.fault == Some(fault)
    }

    fn find(&self, id: &str) -> Option<Arc<Entry>> {
        self.0.dynos.lock().unwrap().get(id).cloned()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the fake driver is naive on purpose, and a part of the tests"
    )]
    fn command(&self, request: &StartRequest) -> Command {
        let mut command = if self.has(Fault::ArgvThroughShell) {
            let mut shell = Command::new("/bin/sh");
            shell.arg("-c").arg(request.argv.join(" "));
            shell
        } else {
            let mut command = Command::new(&request.argv[0]);
            command.args(&request.argv[1..]);
            command
        };
        if !self.has(Fault::LeaksEnv) {
            command.env_clear();
        }
        command.envs(&request.env).process_group(0);
        command
    }

    fn spawn(&self, request: StartRequest) -> io::Result<Arc<Entry>> {
        let dir = &request.io_dir;
        let read = !self.has(Fault::OutputWriteOnly);
        let mut command = self.command(&request);
        command
            .stdout(open(dir, "stdout", read, true)?)
            .stderr(open(dir, "stderr", read, true)?);
        match open(dir, "stdin", true, self.has(Fault::StdinReadWrite)) {
            Ok(stdin) => command.stdin(stdin),
            Err(_) => command.stdin(Stdio::null()),
        };
        let mut child = command.spawn()?;
        drop(command);
        let group = Pid::from_raw(child.id().cast_signed());
        let entry = Arc::new(Entry {
            request,
            group: Some(group),
            started_at: now_ms(),
            exit: watch::Sender::new(None),
            deadline: watch::Sender::new(None),
        });
        let (reaped, signal_is_zero) = (Arc::clone(&entry), self.has(Fault::SignalIsExitZero));
        thread::spawn(move || {
            let status = child.wait().unwrap();
            reaped.kill(Signal::SIGKILL);
            let how = match status.signal() {
                Some(_) if signal_is_zero => How::Code(0),
                Some(signal) => How::Signal(Signal::try_from(signal).unwrap().as_str().to_owned()),
                None => How::Code(status.code().unwrap()),
            };
            reaped.exit.send_replace(Some(ExitStatus {
                how: Some(how),
                oom_killed: false,
                exited_at_unix_ms: now_ms(),
            }));
        });
        Ok(entry)
    }
}

#[tonic::async_trait]
impl DynoDriver for Driver {
    async fn get_info(
        &self,
        _request: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        let mut capabilities = vec![Capability::StdioFifo as i32];
        if self.has(Fault::DeclaresSignal) {
            capabilities.push(Capability::Signal as i32);
        }
        Ok(Response::new(GetInfoResponse {
            name: "org.example.fake".to_owned(),
            version: "1".to_owned(),
            instance_id: "only-one".to_owned(),
            capabilities,
            durability: Durability::None as i32,
            ready: true,
            message: String::new(),
        }))
    }

    async fn build(
        &self,
        _request: Request<BuildRequest>,
    ) -> Result<Response<BoxStream<BuildResponse>>, Status> {
        let artifact = if self.has(Fault::BuildsDiffer) {
            format!("slug-{}", self.0.builds.fetch_add(1, Ordering::Relaxed))
        } else {
            "slug-1".to_owned()
        };
        let events = [
            Event::Log(b"building\n".to_vec()),
            Event::Artifact(artifact),
        ];
        let messages = events.map(|event| Ok(BuildResponse { event: Some(event) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn start(
        &self,
        request: Request<StartRequest>,
    ) -> Result<Response<StartResponse>, Status> {
        let request = request.into_inner();
        let one_at_a_time = self.0.starting.lock().await;
        if self.has(Fault::StartDoesNotJoin) {
            drop(one_at_a_time);
            self.spawn(request.clone())
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            let _unlocked = self.0.starting.lock().await;
            return self.keep(request);
        }
        self.keep(request)
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        let request = request.into_inner();
        let Some(entry) = self.find(&request.dyno_id) else {
            if self.has(Fault::StopUnknownNotFound) {
                return Err(Status::not_found("no such dyno"));
            }
            return Ok(Response::new(StopResponse {}));
        };
        let _shown_to_list = self.0.stopping.read().await;
        let grace = match request.grace_ms {
            _ if request.force => 0,
            0 if self.has(Fault::GraceZeroKills) => 0,
            0 => 30_000,
            grace => grace,
        };
        let wanted = Instant::now() + Duration::from_millis(grace.into());
        let mut first = false;
        entry.deadline.send_modify(|deadline| {
            first = deadline.is_none();
            if first || !self.has(Fault::SecondStopIgnored) || request.force {
                *deadline = Some(deadline.map_or(wanted, |deadline| deadline.min(wanted)));
            }
        });
        if !request.force {
            entry.kill(Signal::SIGTERM);
        }
        if self.has(Fault::StopEndsWithCaller) {
            entry.enforce().await;
        } else if first {
            let entry = Arc::clone(&entry);
            tokio::spawn(async move { entry.enforce().await });
        }
        if !self.has(Fault::StopDoesNotWait) {
            entry.exited().await;
        }
        Ok(Response::new(StopResponse {}))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        let request = request.into_inner();
        let Some(entry) = self.find(&request.dyno_id) else {
            let message = "no such dyno";
            return Err(match self.0.fault {
                Some(Fault::WaitUnknownUnavailable) => Status::unavailable(message),
                Some(Fault::AnswersUnknown) => Status::unknown(message),
                _ => Status::not_found(message),
            });
        };
        let limit = match request.timeout_ms {
            0 => Duration::from_hours(1),
            limit => Duration::from_millis(limit.into()),
        };
        let mut status = timeout(limit, entry.exited()).await.ok();
        if let Some(status) = &mut status
            && self.has(Fault::WaitAnswersDiffer)
        {
            status.exited_at_unix_ms = i64::from(self.0.builds.fetch_add(1, Ordering::Relaxed));
        }
        Ok(Response::new(WaitResponse { status }))
    }

    async fn ip_info(
        &self,
        request: Request<IpInfoRequest>,
    ) -> Result<Response<IpInfoResponse>, Status> {
        let found = self.find(&request.into_inner().dyno_id);
        let entry = found.ok_or_else(|| Status::not_found("no such dyno"))?;
        let port = entry.request.env.get("PORT").and_then(|p| p.parse().ok());
        Ok(Response::new(IpInfoResponse {
            ip: "127.0.0.1".to_owned(),
            port: port.unwrap_or(0),
        }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        if self.has(Fault::ListBehindStop) {
            drop(self.0.stopping.write().await);
        }
        let wanted = request.into_inner().supervisor_id;
        let dynos = self.0.dynos.lock().unwrap();
        let ours = dynos
            .values()
            .filter(|entry| wanted.is_empty() || entry.request.supervisor_id == wanted);
        let shown = ours.map(|entry| {
            let status = entry.exit.borrow().clone();
            let state = match (&status, *entry.deadline.borrow()) {
                (Some(_), _) if self.has(Fault::ListLacksState) => State::Running,
                (Some(_), _) => State::Exited,
                (None, Some(_)) => State::Stopping,
                (None, None) => State::Running,
            };
            Dyno {
                dyno_id: entry.request.dyno_id.clone(),
                supervisor_id: entry.request.supervisor_id.clone(),
                app: entry.request.app.clone(),
                release: entry.request.release,
                process_type: entry.request.process_type.clone(),
                process_number: entry.request.process_number,
                state: state as i32,
                started_at_unix_ms: entry.started_at,
                status,
            }
        });
        let dynos = shown.collect();
        Ok(Response::new(ListResponse { dynos }))
    }

    async fn remove(
        &self,
        request: Request<RemoveRequest>,
    ) -> Result<Response<RemoveResponse>, Status> {
        let Some(What::DynoId(id)) = request.into_inner().what else {
            return Ok(Response::new(RemoveResponse {}));
        };
        if let Some(entry) = self.find(&id) {
            let runs = entry.exit.borrow().is_none();
            if runs && !self.has(Fault::RemovesRunning) {
                return Err(Status::failed_precondition("the dyno runs"));
            }
            entry.kill(Signal::SIGKILL);
        }
        self.0.dynos.lock().unwrap().remove(&id);
        self.0.removed.lock().unwrap().insert(id);
        Ok(Response::new(RemoveResponse {}))
    }
}

impl Driver {
    /// Starts what was not started yet. One at a time.
    fn keep(&self, request: StartRequest) -> Result<Response<StartResponse>, Status> {
        let id = request.dyno_id.clone();
        if !request.artifact.starts_with("slug-") {
            let told = match self.0.fault {
                Some(Fault::TellsEnv) => format!("{:?}", request.env),
                _ => request.artifact,
            };
            return Err(Status::not_found(format!("artifact `{told}` is not known")));
        }
        if let Some(entry) = self.find(&id) {
            let exited = entry.exit.borrow().is_some();
            if entry.request != request && !self.has(Fault::OtherRequestOk) {
                return Err(Status::already_exists("another dyno has this id"));
            }
            if !(exited && self.has(Fault::StartRestarts)) {
                return Ok(Response::new(StartResponse {}));
            }
        }
        let removed = self.0.removed.lock().unwrap().contains(&id);
        if removed && !self.has(Fault::ForgetsRemoved) {
            return Err(Status::already_exists("a removed dyno had this id"));
        }
        let entry = self
            .spawn(request)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.0.dynos.lock().unwrap().insert(id, entry);
        Ok(Response::new(StartResponse {}))
    }
}
