//! The calls, one after the other, each with the faults that it may have.

use std::{process, sync::atomic::Ordering, time::Duration};

use hsup_proto::driver::{
    AttachRequest, AttachResponse, BuildRequest, BuildResponse, Durability, ExitStatus,
    GetInfoRequest, GetInfoResponse, IpInfoRequest, IpInfoResponse, ListRequest, ListResponse,
    LogsRequest, LogsResponse, Progress, RemoveRequest, RemoveResponse, SignalRequest,
    SignalResponse, StartRequest, StartResponse, State, StatsRequest, StatsResponse, StopRequest,
    StopResponse, WaitRequest, WaitResponse, attach_request, build_response::Event,
    dyno_driver_server::DynoDriver, exit_status::How, logs_response::Stream, remove_request::What,
};
use nix::sys::signal::Signal;
use tokio::{
    sync::mpsc,
    task::yield_now,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, codegen::BoxStream};

use crate::{
    Extra, Fault,
    driver::{Driver, begin_stop, invalid, lock, no_such_dyno},
    dyno, extras, terminal,
};

#[tonic::async_trait]
impl DynoDriver for Driver {
    async fn get_info(
        &self,
        _request: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        if self.has(Fault::GetInfoBehindBuild) || self.has(Fault::GetInfoBehindStart) {
            drop(self.0.busy.write().await);
        }
        let durability = if self.has(Fault::ClaimsExact) {
            Durability::Exact
        } else {
            Durability::None
        };
        Ok(Response::new(GetInfoResponse {
            name: "org.example.naive".to_owned(),
            version: "1".to_owned(),
            instance_id: format!("instance-{}", process::id()),
            capabilities: self.capabilities(),
            durability: durability as i32,
            ready: true,
            message: String::new(),
        }))
    }

    async fn build(
        &self,
        request: Request<BuildRequest>,
    ) -> Result<Response<BoxStream<BuildResponse>>, Status> {
        let _busy = self.0.busy.read().await;
        if self.has(Fault::BuildHangs) {
            std::future::pending::<()>().await;
        }
        if self.has(Fault::GetInfoBehindBuild) {
            sleep(Duration::from_secs(2)).await;
        }
        let artifact = lock(&self.0.builds).build(request.get_ref(), self.0.args.fault)?;
        let events = [
            Event::Log(b"building\n".to_vec()),
            Event::Progress(Progress {
                step: "build".to_owned(),
                done: 1,
                total: 1,
                unit: "directories".to_owned(),
            }),
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
        // Between two that are carried out the other calls are.
        let _turn = self.0.turn.lock().await;
        yield_now().await;
        let _busy = self.0.busy.read().await;
        if self.has(Fault::GetInfoBehindStart) {
            sleep(Duration::from_secs(2)).await;
        }
        if self.has(Fault::StartDoesNotJoin) {
            // Known to nobody, and so more than was asked for.
            self.spawn(request.clone())?;
        }
        Self::start(self, request)?;
        Ok(Response::new(StartResponse {}))
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        let request = request.into_inner();
        if request.dyno_id.is_empty() {
            return invalid("dyno_id is missing");
        }
        let signal = match request.signal.as_str() {
            "" => Signal::SIGTERM,
            name => name
                .parse()
                .map_err(|_| Status::invalid_argument("no such signal"))?,
        };
        let Some(dyno) = self.find(&request.dyno_id) else {
            if self.has(Fault::StopUnknownNotFound) {
                return Err(no_such_dyno());
            }
            return Ok(Response::new(StopResponse {}));
        };
        if self.has(Fault::StopHangs) {
            std::future::pending::<()>().await;
        }
        let _busy = self.0.busy.read().await;
        let grace = match request.grace_ms {
            _ if request.force => 0,
            0 if self.has(Fault::GraceZeroKills) => 0,
            0 => 30_000,
            grace => grace,
        };
        let grace = Duration::from_millis(grace.into());
        if self.has(Fault::StopEndsWithCaller) {
            dyno.signal(signal);
            let ended = timeout(grace, dyno.exited()).await;
            if ended.is_err() {
                dyno.kill();
            }
        } else {
            let again = request.force || !self.has(Fault::SecondStopIgnored);
            begin_stop(&dyno, signal, grace, again);
        }
        if !self.has(Fault::StopDoesNotWait) {
            dyno.exited().await;
        }
        Ok(Response::new(StopResponse {}))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        let request = request.into_inner();
        let Some(dyno) = self.find(&request.dyno_id) else {
            return match self.0.args.fault {
                Some(Fault::WaitUnknownUnavailable) => Err(Status::unavailable("no such dyno")),
                Some(Fault::AnswersUnknown) => Err(Status::unknown("no such dyno")),
                Some(Fault::Invents137) => Ok(Response::new(WaitResponse {
                    status: Some(ExitStatus {
                        how: Some(How::Code(137)),
                        oom_killed: false,
                        exited_at_unix_ms: dyno::now_ms(),
                    }),
                })),
                _ => Err(no_such_dyno()),
            };
        };
        let limit = match request.timeout_ms {
            0 => Duration::from_hours(1),
            limit => Duration::from_millis(limit.into()),
        };
        let exited = async {
            if self.has(Fault::WaitMissesRemove) {
                let known = || self.find(&request.dyno_id);
                while known().is_none_or(|dyno| dyno.status().is_none()) {
                    sleep(Duration::from_secs(1)).await;
                }
            }
            dyno.exited().await
        };
        let mut status = timeout(limit, exited).await.ok();
        if let Some(status) = &mut status
            && self.has(Fault::WaitAnswersDiffer)
        {
            status.exited_at_unix_ms = i64::from(self.0.serial.fetch_add(1, Ordering::Relaxed));
        }
        Ok(Response::new(WaitResponse { status }))
    }

    async fn ip_info(
        &self,
        request: Request<IpInfoRequest>,
    ) -> Result<Response<IpInfoResponse>, Status> {
        let dyno = self.running(&request.into_inner().dyno_id)?;
        let port = dyno.request.env.get("PORT").and_then(|p| p.parse().ok());
        if port.is_none() && !self.has(Fault::AddressOfNothing) {
            return Err(Status::failed_precondition("the dyno has no PORT"));
        }
        let ip = if self.has(Fault::AddressElsewhere) {
            // One of those that are for documentation.
            "203.0.113.9".to_owned()
        } else if self.offers(Extra::OwnNetwork) && !self.has(Fault::OneAddress) {
            let [.., high, low] = dyno.serial.to_be_bytes();
            format!("127.77.{high}.{low}")
        } else {
            "127.0.0.1".to_owned()
        };
        Ok(Response::new(IpInfoResponse {
            ip,
            port: port.unwrap_or(0),
            node: String::new(),
        }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        if self.has(Fault::ListBehindStop) {
            drop(self.0.busy.write().await);
        }
        let wanted = request.into_inner().supervisor_id;
        let dynos = self.dynos().into_iter();
        let ours = dynos.filter(|dyno| wanted.is_empty() || dyno.request.supervisor_id == wanted);
        let shown = ours.map(|dyno| {
            let status = dyno.status();
            let state = match (&status, *dyno.deadline.borrow()) {
                (Some(_), _) if self.has(Fault::ListLacksState) => State::Running,
                (Some(_), _) => State::Exited,
                (None, Some(_)) => State::Stopping,
                (None, None) => State::Running,
            };
            hsup_proto::driver::Dyno {
                dyno_id: dyno.request.dyno_id.clone(),
                supervisor_id: dyno.request.supervisor_id.clone(),
                app: dyno.request.app.clone(),
                release: dyno.request.release,
                process_type: dyno.request.process_type.clone(),
                process_number: dyno.request.process_number,
                state: state as i32,
                started_at_unix_ms: dyno.started_at,
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
        if self.has(Fault::DiesOfRemove) {
            process::abort();
        }
        match request.into_inner().what {
            None => return invalid("what to remove is missing"),
            Some(What::Artifact(artifact)) => {
                let mut dynos = self.dynos().into_iter();
                if dynos.any(|d| d.status().is_none() && d.request.artifact == artifact) {
                    return Err(Status::failed_precondition("the artifact is in use"));
                }
                lock(&self.0.builds).remove(&artifact);
            }
            Some(What::DynoId(id)) => {
                if let Some(dyno) = self.find(&id) {
                    if dyno.status().is_none() && !self.has(Fault::RemovesRunning) {
                        return Err(Status::failed_precondition("the dyno runs"));
                    }
                    dyno.kill();
                }
                lock(&self.0.dynos).remove(&id);
                lock(&self.0.removed).insert(id);
            }
        }
        Ok(Response::new(RemoveResponse {}))
    }

    async fn signal(
        &self,
        request: Request<SignalRequest>,
    ) -> Result<Response<SignalResponse>, Status> {
        if !self.offers(Extra::Signal) {
            return Err(Status::unimplemented("no Signal"));
        }
        let request = request.into_inner();
        let Ok(signal) = request.signal.parse() else {
            return invalid("no such signal");
        };
        self.running(&request.dyno_id)?.signal(signal);
        Ok(Response::new(SignalResponse {}))
    }

    async fn stats(
        &self,
        request: Request<StatsRequest>,
    ) -> Result<Response<StatsResponse>, Status> {
        if !self.offers(Extra::Stats) {
            return Err(Status::unimplemented("no Stats"));
        }
        let dyno = self.running(&request.into_inner().dyno_id)?;
        let first = dyno.first.ok_or_else(no_such_dyno)?;
        Ok(Response::new(extras::stats(first)))
    }

    async fn logs(
        &self,
        request: Request<LogsRequest>,
    ) -> Result<Response<BoxStream<LogsResponse>>, Status> {
        if !self.offers(Extra::Logs) {
            return Err(Status::unimplemented("no Logs"));
        }
        let request = request.into_inner();
        let dyno = self.find(&request.dyno_id).ok_or_else(no_such_dyno)?;
        let mut number: usize = match request.after_cursor.as_str() {
            "" => 0,
            _ if self.has(Fault::LogsForgetCursor) => 0,
            cursor => match cursor.parse() {
                Ok(number) => number,
                Err(_) => return invalid("no such cursor"),
            },
        };
        let (empty, joined) = (
            self.has(Fault::LogsAreEmpty),
            self.has(Fault::LogsJoinStreams),
        );
        let (caller, messages) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Some((stream, data)) = dyno.log.chunk(number).await {
                number += 1;
                let stream = if joined { Stream::Stdout } else { stream };
                let message = LogsResponse {
                    stream: stream as i32,
                    data,
                    cursor: number.to_string(),
                };
                if !empty && caller.send(Ok(message)).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<BoxStream<AttachResponse>>, Status> {
        if !self.offers(Extra::Attach) {
            return Err(Status::unimplemented("no Attach"));
        }
        let mut input = request.into_inner();
        let first = input.message().await?.and_then(|message| message.event);
        let Some(attach_request::Event::DynoId(id)) = first else {
            return invalid("the first message must hold dyno_id");
        };
        let dyno = self.find(&id).ok_or_else(no_such_dyno)?;
        let (caller, messages) = mpsc::channel(16);
        tokio::spawn(terminal::attach(dyno, input, caller, self.0.args.fault));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}
