//! An engine, a driver of it, and dynos whose output can be read.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    ops::{Deref, DerefMut},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use hsup_driver_kit::client::{Client, Connection};
use hsup_proto::driver::{
    BuildRequest, ExitStatus, GetInfoRequest, GetInfoResponse, IpInfoRequest, IpInfoResponse,
    Release, RemoveRequest, StartRequest, StopRequest, WaitRequest, build_response::Event,
    remove_request::What,
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use tempfile::TempDir;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::Status;

use super::shared;
pub(crate) use super::shared::{Namespaces, command, output};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
pub(crate) const PAUSE: Duration = Duration::from_millis(20);
const IMAGE: &str = "hsup-test/busybox:1";
const SUPERVISOR: &str = "sup-1";

/// Writes a file for whoever is started later.
pub(crate) fn write(path: &Path, text: &str) {
    #[expect(clippy::disallowed_methods, reason = "nobody reads it yet")]
    fs::write(path, text).unwrap();
}

/// Ends a child, and everything that is its own.
pub(crate) fn end(child: &mut Child, signal: Signal) {
    // One that has ended already is what is wanted.
    let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
    child.wait().unwrap();
}

/// An engine with an image to run dynos on.
pub(crate) struct Engine {
    engine: shared::Engine,
    pub(crate) artifact: String,
}

impl Engine {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// One with these options besides.
    pub(crate) async fn start_with(options: &[&str]) -> Self {
        Self::on(Namespaces::new(), options).await
    }

    /// One of that machine.
    pub(crate) async fn on(machine: Namespaces, options: &[&str]) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut engine = Self {
            engine: shared::Engine::begin(machine, options),
            artifact: String::new(),
        };
        engine.answers().await;
        engine.artifact = format!("image:{}", engine.import(IMAGE, |_| (), &[]));
        engine
    }

    /// Waits until it does.
    pub(crate) async fn answers(&self) {
        let answering = async {
            while !self.is_up() {
                sleep(PAUSE).await;
            }
        };
        let in_time = timeout(PATIENCE, answering).await.is_ok();
        assert!(in_time, "dockerd does not serve; it said:\n{}", self.log());
    }

    /// The id of the image that dynos run on.
    pub(crate) fn image_id(&self) -> &str {
        self.artifact.trim_start_matches("image:")
    }

    /// The engine's.
    pub(crate) fn version(&self) -> String {
        output(&mut self.docker(&["version", "--format", "{{.Server.Version}}"]))
    }

    /// Waits until there are containers that this is so of.
    pub(crate) async fn has_containers(&self, so: impl Fn(&str) -> bool) {
        let looking = async {
            while !so(&self.containers()) {
                sleep(PAUSE).await;
            }
        };
        timeout(PATIENCE, looking).await.expect("it never was so");
    }

    /// Waits until a container has.
    pub(crate) async fn has_exited(&self) {
        let exited = ["ps", "--all", "--quiet", "--filter", "status=exited"];
        let looking = async {
            while output(&mut self.docker(&exited)).is_empty() {
                sleep(PAUSE).await;
            }
        };
        timeout(PATIENCE, looking).await.expect("none has ended");
    }

    /// The containers that there are.
    pub(crate) fn containers(&self) -> String {
        output(&mut self.docker(&["ps", "--all", "--quiet"]))
    }

    /// A command in the engine's network.
    pub(crate) fn inside(&self, program: &str) -> Command {
        self.namespaces.in_network(program)
    }
}

impl Deref for Engine {
    type Target = shared::Engine;

    fn deref(&self) -> &Self::Target {
        &self.engine
    }
}

impl DerefMut for Engine {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.engine
    }
}

/// A driver of an engine; ended when dropped.
pub(crate) struct Driver {
    dir: TempDir,
    child: Child,
    host: String,
    env: Vec<(&'static str, String)>,
    /// The machine on which it is, if it is another one.
    machine: Option<Namespaces>,
}

impl Driver {
    pub(crate) fn start(engine: &Engine) -> Self {
        Self::reaching(&engine.host(), Vec::new())
    }

    /// One that finds its engine there, with these variables.
    pub(crate) fn reaching(host: &str, env: Vec<(&'static str, String)>) -> Self {
        Self::on(None, host, env)
    }

    /// The same on that machine.
    pub(crate) fn on(
        machine: Option<Namespaces>,
        host: &str,
        env: Vec<(&'static str, String)>,
    ) -> Self {
        let dir = TempDir::with_prefix("hsup").unwrap();
        let host = host.to_owned();
        let child = Self::spawn(machine.as_ref(), dir.path(), &host, &env);
        Self {
            dir,
            child,
            host,
            env,
            machine,
        }
    }

    fn spawn(
        machine: Option<&Namespaces>,
        dir: &Path,
        host: &str,
        env: &[(&'static str, String)],
    ) -> Child {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join("log"))
            .unwrap();
        let program = env!("CARGO_BIN_EXE_hsup-driver-docker");
        machine
            .map_or_else(|| command(program), |machine| machine.in_network(program))
            .arg("--socket")
            .arg(dir.join("drv.sock"))
            .args(["--host", host])
            .env("XDG_RUNTIME_DIR", dir)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Kills it, and starts another in its place.
    pub(crate) fn replace(&mut self) {
        self.kill();
        self.start_again();
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        end(&mut self.child, Signal::SIGKILL);
    }

    /// What it has kept is gone.
    pub(crate) fn forget(&self) {
        fs::remove_dir_all(self.dir.path().join("hsup-docker")).unwrap();
    }

    /// Starts another in its place.
    pub(crate) fn start_again(&mut self) {
        let machine = self.machine.as_ref();
        self.child = Self::spawn(machine, self.dir.path(), &self.host, &self.env);
    }

    /// A command in its network.
    pub(crate) fn inside(&self, program: &str) -> Command {
        let machine = self.machine.as_ref();
        machine.map_or_else(|| command(program), |machine| machine.in_network(program))
    }

    pub(crate) async fn client(&self) -> Client {
        let path = self.dir.path().join("drv.sock");
        let connecting = async {
            loop {
                if let Ok(connection) = Connection::open(&path).await {
                    return connection.client();
                }
                sleep(PAUSE).await;
            }
        };
        let log = || fs::read_to_string(self.dir.path().join("log")).unwrap();
        let client = timeout(PATIENCE, connecting).await;
        client.unwrap_or_else(|_| panic!("the driver does not serve; it said:\n{}", log()))
    }

    /// What it says of itself, once that is so.
    pub(crate) async fn info(&self, so: impl Fn(&GetInfoResponse) -> bool) -> GetInfoResponse {
        let mut client = self.client().await;
        let asking = async {
            loop {
                let info = client.get_info(GetInfoRequest::default()).await;
                let info = info.unwrap().into_inner();
                if so(&info) {
                    return info;
                }
                sleep(PAUSE).await;
            }
        };
        timeout(PATIENCE, asking).await.expect("it never was so")
    }

    /// Has it find an image, or pull it; what dynos are started from.
    pub(crate) async fn build(&self, image: &str) -> Result<String, Status> {
        self.build_release(Release {
            image: image.to_owned(),
            ..Release::default()
        })
        .await
    }

    /// Has it put what is in a folder onto the tests' image.
    pub(crate) async fn build_slug(&self, folder: &Path) -> Result<String, Status> {
        self.build_release(Release {
            slug_url: format!("file://{}/", folder.display()),
            stack: IMAGE.to_owned(),
            ..Release::default()
        })
        .await
    }

    /// The same for the nodes of a Swarm, which get it through this registry.
    pub(crate) async fn build_for_swarm(
        &self,
        folder: &Path,
        registry: &str,
    ) -> Result<String, Status> {
        let release = Release {
            slug_url: format!("file://{}/", folder.display()),
            stack: IMAGE.to_owned(),
            ..Release::default()
        };
        let options = [("swarm", "true"), ("registry", registry)];
        build_release(self.client().await, release, &options).await
    }

    /// Has it put what is at a URL onto the tests' image, for as long as that takes.
    pub(crate) async fn begin_build(&self, url: String) -> JoinHandle<Result<String, Status>> {
        let client = self.client().await;
        tokio::spawn(build_release(
            client,
            Release {
                slug_url: url,
                stack: IMAGE.to_owned(),
                ..Release::default()
            },
            &[],
        ))
    }

    async fn build_release(&self, release: Release) -> Result<String, Status> {
        build_release(self.client().await, release, &[]).await
    }

    /// What it leaves in its runtime folder.
    pub(crate) fn kept(&self) -> usize {
        let base = self.dir.path().join("hsup-docker");
        let homes = fs::read_dir(base).unwrap();
        homes
            .map(|home| fs::read_dir(home.unwrap().path()).unwrap().count())
            .sum()
    }
}

async fn build_release(
    mut client: Client,
    release: Release,
    options: &[(&str, &str)],
) -> Result<String, Status> {
    let option = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let request = BuildRequest {
        release: Some(Release {
            app: "shop".to_owned(),
            version: 1,
            ..release
        }),
        options: options.iter().map(option).collect(),
    };
    let mut answers = client.build(request).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        if let Some(Event::Artifact(artifact)) = answer.event {
            return Ok(artifact);
        }
    }
    panic!("the build came to nothing");
}

impl Drop for Driver {
    fn drop(&mut self) {
        end(&mut self.child, Signal::SIGTERM);
    }
}

/// A dyno, and its FIFOs.
pub(crate) struct Dyno {
    pub(crate) request: StartRequest,
    io: TempDir,
    stdin: Option<File>,
    stdout: File,
    _stderr: File,
}

impl Dyno {
    /// One that runs this line.
    pub(crate) fn new(engine: &Engine, id: &str, line: &str) -> Self {
        let io = TempDir::with_prefix("hsup").unwrap();
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let open = |path: PathBuf| {
            mkfifo(&path, mode).unwrap();
            let mut options = OpenOptions::new();
            options.read(true).write(true);
            options.custom_flags(OFlag::O_NONBLOCK.bits());
            options.open(path).unwrap()
        };
        let request = StartRequest {
            dyno_id: id.to_owned(),
            supervisor_id: SUPERVISOR.to_owned(),
            artifact: engine.artifact.clone(),
            app: "shop".to_owned(),
            release: 1,
            process_type: "web".to_owned(),
            process_number: 1,
            argv: ["/bin/sh", "-c", line].map(str::to_owned).into(),
            env: [("PATH", "/bin"), ("PORT", "5000")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            io_dir: io.path().to_str().unwrap().to_owned(),
            ..StartRequest::default()
        };
        Self {
            request,
            stdin: None,
            stdout: open(io.path().join("stdout")),
            _stderr: open(io.path().join("stderr")),
            io,
        }
    }

    /// The same with an input.
    pub(crate) fn with_input(engine: &Engine, id: &str, line: &str) -> Self {
        let mut dyno = Self::new(engine, id, line);
        let path = dyno.io.path().join("stdin");
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let mut options = OpenOptions::new();
        dyno.stdin = Some(options.read(true).write(true).open(path).unwrap());
        dyno
    }

    pub(crate) fn write(&self, text: &str) {
        let mut stdin = self.stdin.as_ref().expect("a dyno with an input");
        stdin.write_all(text.as_bytes()).unwrap();
    }

    pub(crate) async fn start(&self, client: &mut Client) {
        client.start(self.request.clone()).await.unwrap();
    }

    /// Reads what the dyno writes until there is this much of it, or it is silent at its end.
    pub(crate) async fn read(&self, all: &mut Vec<u8>, length: usize) {
        let reading = async {
            let mut piece = vec![0; 64 << 10];
            while all.len() < length {
                match (&self.stdout).read(&mut piece) {
                    Ok(read) => all.extend_from_slice(&piece[..read]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(PAUSE).await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let in_time = timeout(PATIENCE, reading).await.is_ok();
        assert!(
            in_time,
            "{}: {} of {length}",
            self.io.path().display(),
            all.len()
        );
    }

    /// Has its output come in larger pieces.
    pub(crate) fn widen(&self) {
        fcntl(&self.stdout, FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
    }

    /// What is in the FIFO now.
    pub(crate) fn rest(&self) -> Vec<u8> {
        let mut rest = Vec::new();
        let error = (&self.stdout).read_to_end(&mut rest).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        rest
    }

    pub(crate) async fn wait(&self, client: &mut Client) -> ExitStatus {
        let request = WaitRequest {
            dyno_id: self.request.dyno_id.clone(),
            timeout_ms: 0,
        };
        let waiting = timeout(PATIENCE, client.wait(request)).await;
        let answer = waiting.expect("the dyno never ended").unwrap();
        answer.into_inner().status.unwrap()
    }

    /// Where it is reached.
    pub(crate) async fn ip_info(&self, client: &mut Client) -> IpInfoResponse {
        let dyno_id = self.request.dyno_id.clone();
        let info = client.ip_info(IpInfoRequest { dyno_id });
        info.await.unwrap().into_inner()
    }

    /// Ends it in order; how it ended.
    pub(crate) async fn stop(&self, client: &mut Client) -> ExitStatus {
        self.stop_with(client, false).await
    }

    /// Ends it at once.
    pub(crate) async fn kill(&self, client: &mut Client) {
        self.stop_with(client, true).await;
    }

    async fn stop_with(&self, client: &mut Client, force: bool) -> ExitStatus {
        let stop = StopRequest {
            dyno_id: self.request.dyno_id.clone(),
            force,
            ..StopRequest::default()
        };
        client.stop(stop).await.unwrap();
        self.wait(client).await
    }

    pub(crate) async fn remove(&self, client: &mut Client) {
        let what = Some(What::DynoId(self.request.dyno_id.clone()));
        client.remove(RemoveRequest { what }).await.unwrap();
    }
}

/// Waits for the greeting of a dyno that says `hello` to whoever comes; `timeout` runs where it is
/// to be reached from.
pub(crate) fn is_greeted(mut timeout: Command, info: &IpInfoResponse) {
    let line = format!(
        "until busybox nc {} {} </dev/null | grep hello; do sleep 0.1; done",
        info.ip, info.port
    );
    assert_eq!(output(timeout.args(["60", "sh", "-c", &line])), "hello");
}
