//! The calls themselves: from the wire to the table and the runtime, and back.

use std::{path::PathBuf, sync::Arc, time::Duration};

use hsup_proto::driver::{
    AttachRequest, AttachResponse, BuildRequest, BuildResponse, Capability, ExitStatus,
    GetInfoRequest, GetInfoResponse, IpInfoRequest, IpInfoResponse, ListRequest, ListResponse,
    LogsRequest, LogsResponse, RemoveRequest, RemoveResponse, SignalRequest, SignalResponse,
    StartRequest, StartResponse, StatsRequest, StatsResponse, StopRequest, StopResponse,
    WaitRequest, WaitResponse, dyno_driver_server::DynoDriver, remove_request::What,
};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, codegen::BoxStream};

use super::{
    BuildLog, Dyno as _, GRACE, Live, Record, Removal, Runtime, Service, attach,
    build::{self, Build, BuildKey},
    check, forget,
    guard::guarded,
    table::{Key, Remove, Start, View},
};
use crate::{
    clock::now_unix_ms,
    serve::{Asked, Charge, Pass, Peer, is_stranger},
    signal::Signal,
};

/// What is kept of a dyno.
type Handle<R> = Arc<Live<<R as Runtime>::Dyno>>;

/// How a dyno's record came to its end.
enum Ending {
    Exited(ExitStatus),
    /// The dyno is not known any more, or never came to be.
    Gone,
}

#[tonic::async_trait]
impl<R: Runtime> DynoDriver for Service<R> {
    async fn get_info(
        &self,
        _request: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        let identity = self.0.identity;
        let ready = match self.is_looking() {
            Some(reason) => Err(reason),
            None => self.0.runtime.ready(),
        };
        Ok(Response::new(GetInfoResponse {
            name: identity.name.into(),
            version: identity.version.into(),
            instance_id: self.0.instance_id.clone(),
            capabilities: identity
                .capabilities
                .iter()
                .map(|capability| i32::from(*capability))
                .collect(),
            durability: identity.durability.into(),
            ready: ready.is_ok(),
            message: ready.err().unwrap_or_default(),
        }))
    }

    async fn build(
        &self,
        request: Request<BuildRequest>,
    ) -> Result<Response<BoxStream<BuildResponse>>, Status> {
        let (peer, charge) = (peer(&request)?, charge(&request)?);
        let request = request.into_inner();
        let release = self.0.identity.check_build(&request)?;
        let (changed, looked) = match build::slug_file(release) {
            Some(path) => {
                let (changed, pass) = self.look(peer, path).await?;
                (changed, Some(pass))
            }
            None => (None, None),
        };
        let uid = peer.uid.as_raw();
        let key = build::key(uid, release, &request.options, changed.as_deref());
        let pass = || looked.or_else(|| self.0.building.take(peer.uid));
        let exists = |artifact: &str| self.0.runtime.has_artifact(peer, artifact);
        let meaning = self.state().builds.build(key, uid, pass, exists);
        Ok(Response::new(match meaning {
            Build::TooMany => return Err(self.too_many_builds()),
            Build::Done(artifact) => build::artifact(artifact),
            Build::Join(told) => build::listen(told),
            Build::Begin(log, told) => {
                let log = BuildLog(log);
                let building = self.clone().carry_out_build(key, peer, request, log);
                tokio::spawn(charge.hold(building));
                build::listen(told)
            }
        }))
    }

    async fn start(
        &self,
        request: Request<StartRequest>,
    ) -> Result<Response<StartResponse>, Status> {
        let (peer, charge) = (peer(&request)?, charge(&request)?);
        let request = request.into_inner();
        let (key, live) = self.begin_start(peer, charge, request)?;
        let Some(live) = live else {
            return Ok(Response::new(StartResponse {}));
        };
        self.until(&key, &live, |view| match view {
            Some(View::Starting) => None,
            _ => Some(()),
        })
        .await;
        match live.refused.get() {
            None => Ok(Response::new(StartResponse {})),
            Some(status) => Err(Status::clone(status)),
        }
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        let uid = peer(&request)?.uid.as_raw();
        let request = request.into_inner();
        check::id("dyno_id", &request.dyno_id)?;
        let signal = check::signal(&request.signal, Some(Signal::TERM))?;
        let grace = match (request.force, request.grace_ms) {
            (true, _) => Duration::ZERO,
            (false, 0) => GRACE,
            (false, ms) => Duration::from_millis(ms.into()),
        };
        let key = Key::new(uid, &request.dyno_id);
        if let Some(live) = self.begin_stop(&key, signal, grace) {
            self.until(&key, &live, ending).await;
            if let (Some(_), Some(status)) = (live.dyno.get(), live.refused.get()) {
                return Err(Status::clone(status));
            }
        }
        Ok(Response::new(StopResponse {}))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        let uid = peer(&request)?.uid.as_raw();
        let WaitRequest {
            dyno_id,
            timeout_ms,
        } = request.into_inner();
        let (key, live) = self.find(uid, &dyno_id)?;
        drop(dyno_id);
        let gone = self.until(&key, &live, ending);
        let answer = if timeout_ms == 0 {
            Ok(gone.await)
        } else {
            time::timeout(Duration::from_millis(timeout_ms.into()), gone).await
        };
        match answer {
            // Nothing is said of a dyno that still runs.
            Err(_elapsed) => Ok(Response::new(WaitResponse { status: None })),
            Ok(Ending::Exited(status)) => Ok(Response::new(WaitResponse {
                status: Some(status),
            })),
            Ok(Ending::Gone) => Err(match live.refused.get() {
                Some(_) => Status::not_found(format!("dyno `{}` could not be started", key.id)),
                None => unknown(&key.id),
            }),
        }
    }

    async fn ip_info(
        &self,
        request: Request<IpInfoRequest>,
    ) -> Result<Response<IpInfoResponse>, Status> {
        let uid = peer(&request)?.uid.as_raw();
        let (key, live) = self.find(uid, &request.into_inner().dyno_id)?;
        let view = self.state().table.view(&key);
        match (view, live.dyno.get()) {
            (Some(View::Running), Some(dyno)) => located(dyno.ip_info()?).map(Response::new),
            (Some(View::Exited(_)), _) => Err(has_exited(&key)),
            (None, _) => Err(unknown(&key.id)),
            _ => Err(Status::unavailable(format!(
                "dyno `{}` is still being started",
                key.id
            ))),
        }
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let peer = peer(&request)?;
        let supervisor = request.into_inner().supervisor_id;
        let mut state = self.state();
        if !supervisor.is_empty() {
            check::id("supervisor_id", &supervisor)?;
            state
                .links
                .named(peer.connection, peer.uid.as_raw(), &supervisor);
        }
        let dynos = state.table.list(peer.uid.as_raw(), &supervisor);
        Ok(Response::new(ListResponse { dynos }))
    }

    async fn remove(
        &self,
        request: Request<RemoveRequest>,
    ) -> Result<Response<RemoveResponse>, Status> {
        let peer = peer(&request)?;
        match request.into_inner().what {
            None => return Err(Status::invalid_argument("what to remove is missing")),
            Some(What::DynoId(id)) => {
                check::id("dyno_id", &id)?;
                let key = Key::new(peer.uid.as_raw(), &id);
                let removing = self.0.removals.spawn(self.clone().carry_out_removal(key));
                removing.await.map_err(|_| broken())??;
            }
            Some(What::Artifact(artifact)) => {
                check::artifact(&artifact, self.0.identity.names)?;
                let removal = self.begin_removal(peer.uid.as_raw(), &artifact)?;
                let removing = self.0.removals.spawn(async move {
                    let runtime = &removal.service.0.runtime;
                    let removing = runtime.remove_artifact(peer, &artifact);
                    guarded("remove an artifact", removing).await.flatten()
                });
                removing.await.map_err(|_| broken())??;
            }
        }
        Ok(Response::new(RemoveResponse {}))
    }

    async fn signal(
        &self,
        request: Request<SignalRequest>,
    ) -> Result<Response<SignalResponse>, Status> {
        self.offers(Capability::Signal, "Signal")?;
        let uid = peer(&request)?.uid.as_raw();
        let request = request.into_inner();
        let signal = check::signal(&request.signal, None)?;
        let (key, live) = self.find(uid, &request.dyno_id)?;
        let dyno = self.running(&key, &live)?;
        dyno.signal(signal).await;
        Ok(Response::new(SignalResponse {}))
    }

    async fn stats(
        &self,
        request: Request<StatsRequest>,
    ) -> Result<Response<StatsResponse>, Status> {
        self.offers(Capability::Stats, "Stats")?;
        let uid = peer(&request)?.uid.as_raw();
        let (key, live) = self.find(uid, &request.into_inner().dyno_id)?;
        let dyno = self.running(&key, &live)?;
        Ok(Response::new(dyno.stats().await?))
    }

    async fn logs(
        &self,
        _request: Request<LogsRequest>,
    ) -> Result<Response<BoxStream<LogsResponse>>, Status> {
        Err(Status::unimplemented("this driver does not offer Logs"))
    }

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<BoxStream<AttachResponse>>, Status> {
        self.offers(Capability::Attach, "Attach")?;
        let uid = peer(&request)?.uid.as_raw();
        let mut input = request.into_inner();
        let id = attach::first(&mut input).await?;
        let (key, live) = self.find(uid, &id)?;
        if self.state().table.view(&key) == Some(View::Starting) {
            return Err(still_starting(&key));
        }
        Ok(Response::new(attach::begin(
            self.clone(),
            key,
            live,
            input,
        )?))
    }
}

impl<R: Runtime> Service<R> {
    /// Decides what a Start means, and sets a new one going. Without a handle it is done.
    fn begin_start(
        &self,
        peer: Peer,
        charge: Charge,
        request: StartRequest,
    ) -> Result<(Key, Option<Handle<R>>), Status> {
        self.0.identity.check_start(&request)?;
        let uid = peer.uid.as_raw();
        let key = Key::new(uid, &request.dyno_id);
        let record = Record::new(uid, &request, now_unix_ms());
        let mut state = self.state();
        if !state.links.is_open(peer.connection) {
            // The caller went while the call was on its way: nobody would stop what it starts.
            return Err(Status::cancelled("the connection is closed"));
        }
        state
            .links
            .named(peer.connection, uid, &request.supervisor_id);
        if state.ending && state.table.view(&key).is_none() {
            return Err(Status::unavailable("this driver is ending"));
        }
        if state.table.view(&key).is_none() && state.is_being_removed(uid, &request.artifact) {
            return Err(Status::aborted(format!(
                "artifact `{}` is being removed",
                check::shown(&request.artifact)
            )));
        }
        let most = self.0.most_dynos;
        if is_stranger(peer.uid)
            && state.table.view(&key).is_none()
            && state.table.count(uid) >= most
        {
            return Err(Status::resource_exhausted(format!(
                "this user has {most} dynos, and that is the most (--max-dynos): one that has \
                 exited counts until it is removed"
            )));
        }
        let now = Instant::now();
        let started_at = record.started_at_unix_ms();
        let meaning = state
            .table
            .start(&key, record.spec(), now, started_at, Live::new);
        let live = state.table.handle(&key).map(Arc::clone);
        match (meaning, live) {
            (Start::Begin, Some(live)) => {
                let cancelled = CancellationToken::new();
                state.starting.insert(key.clone(), cancelled.clone());
                drop(state);
                self.0.stirred.notify_waiters();
                tokio::spawn(charge.hold(self.clone().carry_out_start(
                    key.clone(),
                    Arc::clone(&live),
                    peer,
                    request,
                    record,
                    cancelled,
                )));
                Ok((key, Some(live)))
            }
            (Start::Join, Some(live)) => Ok((key, Some(live))),
            (Start::OtherRequest, _) => Err(Status::already_exists(format!(
                "dyno `{}` was started with another request",
                key.id
            ))),
            (Start::Removed, _) => Err(Status::failed_precondition(format!(
                "dyno `{}` was removed: its id is not used again",
                key.id
            ))),
            (Start::Done | Start::Begin | Start::Join, _) => Ok((key, None)),
        }
    }

    /// Has nothing started from an artifact that no dyno uses, until it is removed. Asked and
    /// said under one lock: a Start comes before both or after both.
    fn begin_removal(&self, uid: u32, artifact: &str) -> Result<Removal<R>, Status> {
        let mut state = self.state();
        if state.table.in_use(uid, artifact) {
            return Err(Status::failed_precondition(format!(
                "artifact `{}` is in use",
                check::shown(artifact)
            )));
        }
        state.builds.removed(uid, artifact);
        let artifact: (u32, Box<str>) = (uid, artifact.into());
        state.removing.push(artifact.clone());
        drop(state);
        Ok(Removal {
            service: self.clone(),
            artifact,
        })
    }

    /// Removes a dyno that has exited. What is kept of it goes before its record: whoever removes
    /// it at the same time must not be told that it is done before it is.
    async fn carry_out_removal(self, key: Key) -> Result<(), Status> {
        let ended = {
            let state = self.state();
            let has_exited = matches!(state.table.view(&key), Some(View::Exited(_)));
            let live = state.table.handle(&key).map(Arc::clone);
            live.filter(|_| has_exited)
        };
        if let Some(live) = ended {
            forget(live).await;
        }
        let (meaning, live) = self.state().table.remove(&key, Instant::now());
        if meaning == Remove::Running {
            return Err(Status::failed_precondition(format!(
                "dyno `{}` has not exited",
                key.id
            )));
        }
        if let Some(live) = live {
            live.changed.notify_waiters();
        }
        self.0.stirred.notify_waiters();
        Ok(())
    }

    /// Looks at a slug for a Build, which counts as one under way from here on. That goes on when
    /// the caller is gone: a driver may have a process that looks, and whoever gives up one Build
    /// after the other must not have more of those.
    async fn look(&self, peer: Peer, path: PathBuf) -> Result<(Option<Vec<u8>>, Pass), Status> {
        let pass = self.0.building.take(peer.uid);
        let pass = pass.ok_or_else(|| self.too_many_builds())?;
        let service = self.clone();
        let looking = tokio::spawn(async move {
            let looking = service.0.runtime.slug_changed(peer, &path);
            let changed = guarded("look at a slug", looking).await?;
            Ok((changed, pass))
        });
        looking.await.map_err(|_| broken())?
    }

    fn too_many_builds(&self) -> Status {
        Status::resource_exhausted(format!(
            "this user has {} builds under way, and that is the most",
            self.0.building.most()
        ))
    }

    async fn carry_out_build(
        self,
        key: BuildKey,
        peer: Peer,
        request: BuildRequest,
        log: BuildLog,
    ) {
        let building = self.0.runtime.build(peer, request, log);
        let result = guarded("build", building).await.flatten();
        self.state().builds.finished(key, result.map_err(Box::new));
    }

    fn offers(&self, capability: Capability, call: &str) -> Result<(), Status> {
        if self.0.identity.capabilities.contains(&capability) {
            Ok(())
        } else {
            Err(Status::unimplemented(format!(
                "this driver does not offer {call}"
            )))
        }
    }

    fn find(&self, uid: u32, id: &str) -> Result<(Key, Handle<R>), Status> {
        check::id("dyno_id", id)?;
        let key = Key::new(uid, id);
        let live = self.state().table.handle(&key).map(Arc::clone);
        match live {
            Some(live) => Ok((key, live)),
            None => Err(unknown(id)),
        }
    }

    fn running<'a>(&self, key: &Key, live: &'a Live<R::Dyno>) -> Result<&'a R::Dyno, Status> {
        let view = self.state().table.view(key);
        match view {
            Some(View::Running) => live.dyno.get().ok_or_else(|| still_starting(key)),
            Some(View::Starting) => Err(still_starting(key)),
            Some(View::Exited(_)) => Err(has_exited(key)),
            None => Err(unknown(&key.id)),
        }
    }
}

/// Finds the end of a dyno.
fn ending(view: Option<View>) -> Option<Ending> {
    match view {
        None => Some(Ending::Gone),
        Some(View::Exited(status)) => Some(Ending::Exited(status)),
        Some(View::Starting | View::Running) => None,
    }
}

fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    let extensions = request.extensions();
    if let Some(asked) = extensions.get::<Asked>() {
        asked.yes();
    }
    extensions.get().copied().ok_or_else(broken)
}

fn charge<T>(request: &Request<T>) -> Result<Charge, Status> {
    request.extensions().get().cloned().ok_or_else(broken)
}

/// Neither an address nor a node is no answer.
fn located(info: IpInfoResponse) -> Result<IpInfoResponse, Status> {
    if info.port == 0 && info.node.is_empty() {
        return Err(Status::failed_precondition("the dyno has no port"));
    }
    Ok(info)
}

fn unknown(id: &str) -> Status {
    Status::not_found(format!("dyno `{id}` is not known to this driver"))
}

fn has_exited(key: &Key) -> Status {
    Status::failed_precondition(format!("dyno `{}` has exited", key.id))
}

fn still_starting(key: &Key) -> Status {
    Status::aborted(format!("dyno `{}` is still being started", key.id))
}

fn broken() -> Status {
    Status::internal("the driver has lost track of a call")
}
