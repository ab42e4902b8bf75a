//! The driver itself: what it keeps of each dyno, and how it finds that again.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs::{self, OpenOptions},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, Read as _, Write as _},
    mem,
    os::unix::fs::{OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use hsup_driver_kit::{
    CancellationToken, Signal, Status, file_url,
    proto::{
        BuildRequest, Capability, Durability, ExitStatus, IpInfoResponse, StartRequest,
        StatsResponse, exit_status::How,
    },
    serve::Peer,
    service::{BuildLog, Dyno, Identity, Names, Record, RecoverError, Recovered, Runtime},
};
use nix::{
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::Mode,
    unistd::{Uid, mkfifo},
};
use prost::Message as _;
use tokio::{io::AsyncReadExt as _, net::unix::pipe, sync::Semaphore, task::spawn_blocking};

use crate::{Fault, shim};

/// Where the artifacts are: for each user and directory a link to it.
const ARTIFACTS: &str = "artifacts";
/// Where the dynos are.
const DYNOS: &str = "dynos";
/// How many starts are under way at once: the other calls have their turn in between.
const STARTS: usize = 4;

/// The driver.
#[derive(Clone, Debug)]
pub(crate) struct Lasting {
    state: PathBuf,
    fault: Option<Fault>,
    /// As it is called.
    fault_name: Option<String>,
    starts: Arc<Semaphore>,
    binds: bool,
    options: &'static [&'static str],
    node: String,
}

/// What it can do, and where it is.
#[derive(Debug)]
pub(crate) struct Ways {
    pub(crate) binds: bool,
    /// The keys of those that it knows.
    pub(crate) options: Vec<String>,
    /// Empty: the only machine that there is.
    pub(crate) node: String,
}

/// A dyno, by what is kept of it.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    dir: PathBuf,
    node: String,
    fault: Option<Fault>,
}

impl Lasting {
    pub(crate) fn new(
        state: PathBuf,
        fault: Option<(Fault, impl Into<String>)>,
        ways: Ways,
    ) -> io::Result<Self> {
        fs::create_dir_all(state.join(ARTIFACTS))?;
        fs::create_dir_all(state.join(DYNOS))?;
        let (fault, fault_name) = fault.map(|(fault, name)| (fault, name.into())).unzip();
        Ok(Self {
            state,
            fault,
            fault_name,
            starts: Arc::new(Semaphore::new(STARTS)),
            binds: ways.binds,
            // An identity is for as long as the process.
            options: Vec::leak(ways.options.into_iter().map(|key| &*key.leak()).collect()),
            node: ways.node,
        })
    }

    /// Where the artifact of a user is.
    fn artifact(&self, uid: Uid, artifact: &str) -> PathBuf {
        self.state.join(ARTIFACTS).join(format!("{uid}.{artifact}"))
    }

    fn dyno(&self, dir: PathBuf) -> Kept {
        Kept {
            dir,
            node: self.node.clone(),
            fault: self.fault,
        }
    }

    /// Starts a shim, and says what it says of the start.
    #[expect(
        clippy::disallowed_methods,
        reason = "a shim is to outlive this process, which the kit's spawn would not let it"
    )]
    fn launch(&self, dir: &Path, request: &StartRequest, uid: u32) -> io::Result<String> {
        mkfifo(&dir.join("life"), Mode::S_IRUSR | Mode::S_IWUSR)?;
        mkfifo(&dir.join("control"), Mode::S_IRUSR | Mode::S_IWUSR)?;
        // Whoever opens the writing end waits for a reader.
        let _life = reading(&dir.join("life"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("shim").arg(dir);
        command.args(&self.fault_name);
        let mut child = command
            // What a dyno's environment is, its shim is told: its own is for all to see.
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(mut input), Some(mut output)) = (input, output) else {
            return Err(io::Error::other("a pipe is missing"));
        };
        let mut told = uid.to_le_bytes().to_vec();
        told.extend(request.encode_to_vec());
        input.write_all(&told)?;
        drop(input);
        let mut answer = String::new();
        output.read_to_string(&mut answer)?;
        // It is reaped, as long as this process is there.
        thread::spawn(move || child.wait());
        Ok(answer)
    }
}

impl Runtime for Lasting {
    type Dyno = Kept;

    fn identity(&self) -> Identity {
        Identity {
            name: "org.example.lasting",
            version: env!("CARGO_PKG_VERSION"),
            capabilities: if self.binds {
                &[Capability::StdioFifo, Capability::Binds]
            } else {
                &[Capability::StdioFifo, Capability::Signal]
            },
            durability: Durability::Exact,
            options: self.options,
            images: false,
            names: Names::Strict,
        }
    }

    async fn recover(&self) -> Result<Vec<Recovered<Kept>>, RecoverError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.state.join(DYNOS))? {
            let dyno = self.dyno(entry?.path());
            let has_ended = dyno.dir.join("exit").exists();
            let is_forgotten = match self.fault {
                Some(Fault::ForgetsEnded) => has_ended,
                Some(Fault::ForgetsRunning) => !has_ended,
                Some(Fault::TellsOnce) => has_ended && dyno.dir.join("told").exists(),
                _ => false,
            };
            if is_forgotten {
                continue;
            }
            let record = fs::read(dyno.dir.join("record"));
            if let Ok(Ok(record)) = record.map(|bytes| Record::from_bytes(&bytes)) {
                found.push(Recovered { record, dyno });
                continue;
            }
            // It was being started, or nobody can tell whose it is.
            dyno.kill().await;
            dyno.wait().await;
            dyno.remove().await;
        }
        Ok(found)
    }

    async fn build(
        &self,
        peer: Peer,
        request: BuildRequest,
        _: BuildLog,
    ) -> Result<String, Status> {
        let options = shown(&request.options);
        let release = request.release.unwrap_or_default();
        let path = file_url::path(&release.slug_url)
            .ok_or_else(|| Status::failed_precondition("the slug is no directory"))?;
        look_as(peer.uid, &path)
            .map_err(|error| Status::failed_precondition(format!("the slug: {error}")))?;
        let mut hash = DefaultHasher::new();
        (&release.app, &path, &options).hash(&mut hash);
        note(&self.state.join("builds"), &options)
            .map_err(|error| Status::resource_exhausted(error.to_string()))?;
        let artifact = format!("{:016x}", hash.finish());
        match symlink(path, self.artifact(peer.uid, &artifact)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Status::resource_exhausted(error.to_string()))
            }
            _ => Ok(artifact),
        }
    }

    fn has_artifact(&self, peer: Peer, artifact: &str) -> bool {
        self.artifact(peer.uid, artifact).is_dir()
    }

    async fn remove_artifact(&self, peer: Peer, artifact: &str) -> Result<(), Status> {
        match fs::remove_file(self.artifact(peer.uid, artifact)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Status::internal(error.to_string()))
            }
            _ => Ok(()),
        }
    }

    async fn start(
        &self,
        peer: Peer,
        request: StartRequest,
        record: Record,
        _: CancellationToken,
    ) -> Result<Kept, Status> {
        if !request.binds.is_empty() && self.fault != Some(Fault::BindsAnything) {
            return Err(Status::permission_denied("no path may be bound"));
        }
        let name = format!("{}.{}", peer.uid, request.dyno_id);
        let dir = self.state.join(DYNOS).join(name);
        // The shim knows nothing of artifacts.
        let cwd = fs::read_link(self.artifact(peer.uid, &request.artifact));
        let cwd = cwd.map_err(|error| Status::not_found(format!("artifact: {error}")))?;
        let mut request = request;
        let artifact = mem::replace(&mut request.artifact, cwd.display().to_string());
        let (driver, at) = (self.clone(), dir.clone());
        let _turn = self.starts.acquire().await;
        let launched = spawn_blocking(move || {
            fs::create_dir(&at)?;
            put(&at, "record", &record.to_bytes())?;
            let port = request.env.get("PORT");
            let has_port = driver.node.is_empty() || request.process_type == "web";
            let port = port.filter(|_| has_port).map_or("", String::as_str);
            put(&at, "port", port.as_bytes())?;
            let of = [&artifact, " by ", &shown(&request.options)].concat();
            put(&at, "order", of.as_bytes())?;
            driver.launch(&at, &request, peer.uid.as_raw())
        });
        let failed = match launched.await {
            Ok(Ok(answer)) if answer == shim::STARTED => return Ok(self.dyno(dir)),
            Ok(Ok(answer)) => shim::refusal(&answer),
            Ok(Err(error)) => Status::resource_exhausted(error.to_string()),
            Err(_) => Status::internal("the start of a dyno panicked"),
        };
        drop(fs::remove_dir_all(&dir));
        Err(failed)
    }
}

impl Kept {
    /// Tells the shim something, if it is there.
    fn tell(&self, what: u8) {
        let control = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(self.dir.join("control"));
        if let Ok(mut control) = control {
            drop(control.write_all(&[what]));
        }
    }
}

impl Dyno for Kept {
    type Terminal = Infallible;

    async fn wait(&self) -> ExitStatus {
        if let Ok(mut life) = reading(&self.dir.join("life")) {
            // Nothing is ever written: its end is the dyno's. Of an end that has been before it
            // was opened the kernel tells a reader, but not who waits for one (fifo(7), poll(2)).
            let has_ended = matches!(life.read(&mut [0]), Ok(0));
            if !has_ended && let Ok(mut life) = pipe::Receiver::from_file(life) {
                drop(life.read_to_end(&mut Vec::new()).await);
            }
        }
        let exit = fs::read_to_string(self.dir.join("exit"));
        if self.fault == Some(Fault::TellsOnce) {
            drop(put(&self.dir, "told", b""));
        }
        let how = exit.ok().and_then(|text| shim::read_exit(&text));
        let lost = || How::Lost("its shim left no status".to_owned());
        ExitStatus {
            how: Some(how.unwrap_or_else(lost)),
            oom_killed: false,
            exited_at_unix_ms: now_ms(),
        }
    }

    async fn signal(&self, signal: Signal) {
        self.tell(number(signal));
    }

    async fn kill(&self) {
        self.tell(number(Signal::KILL));
    }

    fn ip_info(&self) -> Result<IpInfoResponse, Status> {
        let port = fs::read_to_string(self.dir.join("port"));
        let port = port.ok().and_then(|port| port.parse().ok());
        if port.is_none() && self.node.is_empty() {
            return Err(Status::failed_precondition("the dyno has no PORT"));
        }
        Ok(IpInfoResponse {
            ip: "127.0.0.1".into(),
            port: port.unwrap_or_default(),
            node: self.node.clone(),
        })
    }

    async fn stats(&self) -> Result<StatsResponse, Status> {
        Err(Status::unimplemented("this driver measures nothing"))
    }

    fn terminal(&self) -> Option<Infallible> {
        None
    }

    async fn remove(&self) {
        if self.fault == Some(Fault::ComesBack) {
            return;
        }
        self.tell(shim::REMOVED);
        drop(fs::remove_dir_all(&self.dir));
    }
}

fn number(signal: Signal) -> u8 {
    u8::try_from(signal.number()).unwrap_or_default()
}

fn reading(path: &Path) -> io::Result<fs::File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

/// `a=1 b=2`, in the order of the keys.
fn shown(options: &BTreeMap<String, String>) -> String {
    let pairs = options.iter().map(|(key, value)| format!("{key}={value}"));
    pairs.collect::<Vec<_>>().join(" ")
}

/// Adds a line to a file.
fn note(file: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    writeln!(file, "{line}")
}

/// Puts a whole file in its place.
pub(crate) fn put(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    fs::File::create(&new)?.write_all(bytes)?;
    fs::rename(new, dir.join(name))
}

/// Whether a user may read a directory, by a way without magic links.
fn look_as(uid: Uid, path: &Path) -> io::Result<()> {
    let look = || {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let how = OpenHow::new()
            .flags(flags)
            .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(AT_FDCWD, path, how).map(drop)
    };
    let looked = if uid == Uid::effective() {
        look()
    } else {
        hsup_tests::peer::as_user(uid.as_raw(), look)?
    };
    Ok(looked?)
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}
