//! The protocol as one caller sees it: each call is passed on, and spoiled as the script says.

use std::{
    io, net::Shutdown, os::unix::net::UnixStream as StdStream, path::PathBuf, process,
    sync::OnceLock,
};

use hsup_driver_kit::client::Client;
use hsup_proto::driver::{
    AttachRequest, AttachResponse, BuildRequest, BuildResponse, Capability, GetInfoRequest,
    GetInfoResponse, IpInfoRequest, IpInfoResponse, ListRequest, ListResponse, LogsRequest,
    LogsResponse, RemoveRequest, RemoveResponse, SignalRequest, SignalResponse, StartRequest,
    StartResponse, StatsRequest, StatsResponse, StopRequest, StopResponse, WaitRequest,
    WaitResponse, dyno_driver_server::DynoDriver, remove_request::What as Removed,
};
use hsup_tests::ports::Lot;
use nix::{
    sys::{
        signal::{Signal, kill, raise},
        socket::{getsockopt, sockopt::PeerCredentials},
    },
    unistd::Pid,
};
use tokio::time::sleep;
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming, codegen::BoxStream};

use crate::{
    fetch,
    rule::{Fault, Moment, What},
    script::{Script, broken},
};

/// The driver as one caller sees it.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) inner: Client,
    /// The socket behind, which goes when the driver dies by its own hand.
    pub(crate) behind: PathBuf,
    pub(crate) script: Script,
    /// The caller's connection.
    pub(crate) caller: StdStream,
}

impl Door {
    /// Passes a call on, and spoils it as the script says.
    async fn pass<Q: Clone, A, F>(
        &self,
        call: &str,
        about: &str,
        request: Q,
        work: impl Fn(Client, Q) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let fault = self.begin(call, about).await?;
        if fault
            .as_ref()
            .is_some_and(|fault| fault.what == What::Twice)
        {
            drop(work(self.inner.clone(), request.clone()).await);
        }
        let answer = work(self.inner.clone(), request).await;
        // Without the headers of the driver behind: the answer gets its own.
        let answer = answer.map(|answer| Response::new(answer.into_inner()));
        self.end(fault, answer).await
    }

    /// Notes a call, and does what goes wrong before its work; answers what is wrong with it.
    async fn begin(&self, call: &str, about: &str) -> Result<Option<Fault>, Status> {
        let fault = self.script.call(call, about);
        let fault = fault.map_err(|error| broken(&error))?;
        if let Some(fault) = &fault
            && fault.moment == Moment::Before
        {
            self.carry_out(&fault.what).await?;
        }
        Ok(fault)
    }

    /// Does what goes wrong after the work of a call, if that went well.
    async fn end<A>(
        &self,
        fault: Option<Fault>,
        answer: Result<Response<A>, Status>,
    ) -> Result<Response<A>, Status> {
        let answer = answer?;
        if let Some(fault) = fault
            && fault.moment == Moment::After
        {
            self.carry_out(&fault.what).await?;
        }
        Ok(answer)
    }

    async fn carry_out(&self, what: &What) -> Result<(), Status> {
        match what {
            What::Hang => std::future::pending().await,
            What::Delay(time) => {
                sleep(*time).await;
                Ok(())
            }
            What::Refuse(code, message) => Err(Status::new(*code, message.clone())),
            What::Die => self.die(),
            What::Kill => {
                let caller = getsockopt(&self.caller, PeerCredentials);
                let killed =
                    caller.and_then(|caller| kill(Pid::from_raw(caller.pid()), Signal::SIGKILL));
                killed.map_err(|errno| broken(&errno.into()))?;
                // Nobody is left to be answered.
                std::future::pending().await
            }
            What::Cut => {
                // One that has closed it already is as far from an answer.
                drop(self.caller.shutdown(Shutdown::Both));
                std::future::pending().await
            }
            What::Twice => Ok(()),
        }
    }

    fn die(&self) -> ! {
        drop(std::fs::remove_file(&self.behind));
        // Whoever may not be killed so is killed by its own hand.
        let _ = raise(Signal::SIGKILL);
        process::abort()
    }
}

#[tonic::async_trait]
impl DynoDriver for Door {
    async fn get_info(
        &self,
        request: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        let work = |mut inner: Client, request| async move { inner.get_info(request).await };
        let answer = self.pass("info", "-", request.into_inner(), work);
        let mut info = answer.await?.into_inner();
        let pretence = self.script.pretence().map_err(|error| broken(&error))?;
        if let Some(why) = pretence.not_ready {
            info.ready = false;
            info.message = why;
        }
        if let Some(id) = pretence.instance {
            info.instance_id = id;
        }
        if pretence.own_network {
            info.capabilities.push(Capability::OwnNetwork.into());
        }
        Ok(Response::new(info))
    }

    async fn build(
        &self,
        request: Request<BuildRequest>,
    ) -> Result<Response<BoxStream<BuildResponse>>, Status> {
        let request = request.into_inner();
        let release = request.release.as_ref();
        let version = release.map_or(0, |release| release.version);
        let pretence = self.script.pretence().map_err(|error| broken(&error))?;
        let fault = self.begin("build", &format!("v{version}")).await?;
        if let Some(release) = release.filter(|_| pretence.fetching) {
            fetch::fetch(&release.slug_url).await?;
        }
        let answer = self.inner.clone().build(request).await?;
        let stream: BoxStream<BuildResponse> = Box::pin(answer.into_inner());
        self.end(fault, Ok(Response::new(stream))).await
    }

    async fn start(
        &self,
        request: Request<StartRequest>,
    ) -> Result<Response<StartResponse>, Status> {
        let mut request = request.into_inner();
        let pretence = self.script.pretence().map_err(|error| broken(&error))?;
        if pretence.own_network {
            // The same PORT for all is for dynos with addresses of their own.
            let port = free_port().map_err(|error| broken(&error))?;
            request.env.insert("PORT".to_owned(), port.to_string());
        }
        let id = request.dyno_id.clone();
        let work = |mut inner: Client, request| async move { inner.start(request).await };
        self.pass("start", &id, request, work).await
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        let request = request.into_inner();
        let id = request.dyno_id.clone();
        let work = |mut inner: Client, request| async move { inner.stop(request).await };
        self.pass("stop", &id, request, work).await
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        let request = request.into_inner();
        let id = request.dyno_id.clone();
        let work = |mut inner: Client, request| async move { inner.wait(request).await };
        self.pass("wait", &id, request, work).await
    }

    async fn ip_info(
        &self,
        request: Request<IpInfoRequest>,
    ) -> Result<Response<IpInfoResponse>, Status> {
        let request = request.into_inner();
        let id = request.dyno_id.clone();
        let work = |mut inner: Client, request| async move { inner.ip_info(request).await };
        self.pass("ip", &id, request, work).await
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let work = |mut inner: Client, request| async move { inner.list(request).await };
        self.pass("list", "-", request.into_inner(), work).await
    }

    async fn remove(
        &self,
        request: Request<RemoveRequest>,
    ) -> Result<Response<RemoveResponse>, Status> {
        let request = request.into_inner();
        let about = match &request.what {
            Some(Removed::DynoId(id)) => id.clone(),
            Some(Removed::Artifact(artifact)) => artifact.clone(),
            None => "-".to_owned(),
        };
        let work = |mut inner: Client, request| async move { inner.remove(request).await };
        self.pass("remove", &about, request, work).await
    }

    async fn signal(
        &self,
        request: Request<SignalRequest>,
    ) -> Result<Response<SignalResponse>, Status> {
        let request = request.into_inner();
        let id = request.dyno_id.clone();
        let work = |mut inner: Client, request| async move { inner.signal(request).await };
        self.pass("signal", &id, request, work).await
    }

    async fn stats(
        &self,
        request: Request<StatsRequest>,
    ) -> Result<Response<StatsResponse>, Status> {
        let request = request.into_inner();
        let id = request.dyno_id.clone();
        let work = |mut inner: Client, request| async move { inner.stats(request).await };
        self.pass("stats", &id, request, work).await
    }

    async fn logs(
        &self,
        _request: Request<LogsRequest>,
    ) -> Result<Response<BoxStream<LogsResponse>>, Status> {
        Err(Status::unimplemented("the driver behind offers no Logs"))
    }

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<BoxStream<AttachResponse>>, Status> {
        let fault = self.begin("attach", "-").await?;
        // An error is the end of what is typed.
        let typed = request.into_inner().map_while(Result::ok);
        let answer = self.inner.clone().attach(typed).await?;
        let stream: BoxStream<AttachResponse> = Box::pin(answer.into_inner());
        self.end(fault, Ok(Response::new(stream))).await
    }
}

/// A port that nobody listens on now. Of the ephemeral ones, whoever connects somewhere might have
/// it before the dyno does.
fn free_port() -> io::Result<u16> {
    static PORTS: OnceLock<Lot> = OnceLock::new();
    let port = PORTS.get_or_init(Lot::take).free_port();
    port.ok_or_else(|| io::Error::from(io::ErrorKind::AddrInUse))
}
