//! `test-driver`: the simple driver, behind a door that misbehaves as a script says.
//!
//! ```text
//!  hsup ──▶ HSUP_DRIVER_SOCKET ──▶ faults ──▶ a socket beside its script ──▶ the simple driver
//! ```
//!
//! Both live in this process, so that it dies as one. Every connection from outside has one
//! of its own inside: the driver sees who comes and goes. The script is the file that
//! `TEST_DRIVER_SCRIPT` names; see `script.rs`.

mod fetch;
mod script;

use std::{
    env,
    error::Error,
    ffi::OsString,
    net::TcpListener,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use hsup_driver_kit::client::{Client, Connection};
use hsup_proto::driver::{
    AttachRequest, AttachResponse, BuildRequest, BuildResponse, Capability, GetInfoRequest,
    GetInfoResponse, IpInfoRequest, IpInfoResponse, ListRequest, ListResponse, LogsRequest,
    LogsResponse, RemoveRequest, RemoveResponse, SignalRequest, SignalResponse, StartRequest,
    StartResponse, StatsRequest, StatsResponse, StopRequest, StopResponse, WaitRequest,
    WaitResponse,
    dyno_driver_server::{DynoDriver, DynoDriverServer},
    remove_request::What,
};
use nix::sys::signal::{Signal, raise};
use tokio::{
    net::{UnixListener, UnixStream},
    time::sleep,
};
use tokio_stream::{StreamExt as _, once};
use tonic::{Request, Response, Status, Streaming, codegen::BoxStream, transport::Server};

use self::script::{Fault, Script, broken};

/// Every dyno has a Wait open.
const MAX_STREAMS: u32 = 100_000;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<ExitCode, Failure> {
    let path = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .ok_or(format!("{name} is not set"))
    };
    let outer = path("HSUP_DRIVER_SOCKET")?;
    let script = path("TEST_DRIVER_SCRIPT")?;
    // Not beside the door: that folder is hsup's, and hsup knows nothing of it.
    let inner = script.with_extension(format!("{}.sock", std::process::id()));
    let script = Script::at(script);
    let arguments = ["--child", "--socket"].map(OsString::from);
    let arguments = arguments.into_iter().chain([inner.clone().into()]);
    thread::spawn(move || {
        if let Err(error) = serve(&outer, &inner, &script) {
            report(&*error);
        }
    });
    // On the first thread: the kernel kills the dynos when the thread that spawned them ends.
    Ok(hsup_driver_simple::main(arguments))
}

#[expect(
    clippy::print_stderr,
    reason = "a driver's standard error is its log, which hsup shows when it does not come up"
)]
fn report(error: &dyn Error) {
    eprintln!("test-driver: {error}");
}

/// Serves the door for as long as the process lives.
fn serve(outer: &Path, inner: &Path, script: &Script) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // The driver behind the door comes up at the same time.
        while Connection::open(inner).await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
        if outer.exists() {
            std::fs::remove_file(outer)?;
        }
        let listener = UnixListener::bind(outer)?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(connection(stream, inner.to_owned(), script.clone()));
        }
    })
}

/// Serves one connection to its end.
async fn connection(stream: UnixStream, inner: PathBuf, script: Script) {
    let served = async {
        let door = Door {
            inner: Connection::open(&inner).await?.client(),
            script,
        };
        Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .add_service(DynoDriverServer::new(door))
            .serve_with_incoming(once(Ok::<_, std::io::Error>(stream)))
            .await?;
        Ok::<_, Failure>(())
    };
    if let Err(error) = served.await {
        report(&*error);
    }
}

/// The driver as one caller sees it.
#[derive(Debug)]
struct Door {
    inner: Client,
    script: Script,
}

impl Door {
    /// Makes a call, and spoils it as the script says.
    async fn call<T>(
        &self,
        call: &str,
        about: &str,
        work: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<Response<T>, Status> {
        let fault = self
            .script
            .call(call, about)
            .map_err(|error| broken(&error))?;
        match fault {
            None => {}
            Some(Fault::Hang) => std::future::pending::<()>().await,
            Some(Fault::Delay(time)) => sleep(time).await,
            Some(Fault::Refuse(code, message)) => return Err(Status::new(code, message)),
            Some(Fault::RefuseAfter(code, message)) => {
                drop(work.await?);
                return Err(Status::new(code, message));
            }
            Some(Fault::Die) => die(),
            Some(Fault::DieAfter) => {
                drop(work.await?);
                die();
            }
        }
        // Without the headers of the driver behind: the answer gets its own.
        work.await.map(|answer| Response::new(answer.into_inner()))
    }
}

fn die() -> ! {
    // Whoever may not be killed so is killed by its own hand.
    let _ = raise(Signal::SIGKILL);
    std::process::abort()
}

#[tonic::async_trait]
impl DynoDriver for Door {
    async fn get_info(
        &self,
        request: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        let request = request.into_inner();
        let mut inner = self.inner.clone();
        let answer = self.call("info", "-", inner.get_info(request));
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
        let version = request
            .release
            .as_ref()
            .map_or(0, |release| release.version);
        let mut inner = self.inner.clone();
        let pretence = self.script.pretence().map_err(|error| broken(&error))?;
        let url = request.release.as_ref().map(|release| &release.slug_url);
        let url = url.filter(|_| pretence.fetching).cloned();
        self.call("build", &format!("v{version}"), async {
            if let Some(url) = url {
                fetch::fetch(&url).await?;
            }
            let answer = inner.build(request).await?;
            let stream: BoxStream<BuildResponse> = Box::pin(answer.into_inner());
            Ok(Response::new(stream))
        })
        .await
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
        let mut inner = self.inner.clone();
        self.call("start", &id, inner.start(request)).await
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        let request = request.into_inner();
        let id = request.dyno_id.clone();
        let mut inner = self.inner.clone();
        self.call("stop", &id, inner.stop(request)).await
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        let request = request.into_inner();
        let id = request.dyno_id.clone();
        let mut inner = self.inner.clone();
        self.call("wait", &id, inner.wait(request)).await
    }

    async fn ip_info(
        &self,
        request: Request<IpInfoRequest>,
    ) -> Result<Response<IpInfoResponse>, Status> {
        let request = request.into_inner();
        let id = request.dyno_id.clone();
        let mut inner = self.inner.clone();
        self.call("ip", &id, inner.ip_info(request)).await
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let request = request.into_inner();
        let mut inner = self.inner.clone();
        self.call("list", "-", inner.list(request)).await
    }

    async fn remove(
        &self,
        request: Request<RemoveRequest>,
    ) -> Result<Response<RemoveResponse>, Status> {
        let request = request.into_inner();
        let about = match &request.what {
            Some(What::DynoId(id)) => id.clone(),
            Some(What::Artifact(artifact)) => artifact.clone(),
            None => "-".to_owned(),
        };
        let mut inner = self.inner.clone();
        self.call("remove", &about, inner.remove(request)).await
    }

    async fn signal(
        &self,
        request: Request<SignalRequest>,
    ) -> Result<Response<SignalResponse>, Status> {
        self.inner.clone().signal(request.into_inner()).await
    }

    async fn stats(
        &self,
        request: Request<StatsRequest>,
    ) -> Result<Response<StatsResponse>, Status> {
        self.inner.clone().stats(request.into_inner()).await
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
        // An error is the end of what is typed.
        let typed = request.into_inner().map_while(Result::ok);
        let mut inner = self.inner.clone();
        self.call("attach", "-", async {
            let answer = inner.attach(typed).await?;
            let stream: BoxStream<AttachResponse> = Box::pin(answer.into_inner());
            Ok(Response::new(stream))
        })
        .await
    }
}

/// A port that nobody listens on now.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
