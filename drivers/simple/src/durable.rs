//! Dynos that outlive the driver (`--durable`): each has `hsup-shim` for a parent instead of the
//! driver, and a folder in which that says how the dyno ended.
//!
//! ```text
//! STATE/UID.DYNO_ID/record      the kit's, written before there is a process
//!                   port        for IPInfo
//!                   life, pid, exit.json    hsup-shim's (`hsup-shim --help`)
//! ```

use std::{
    convert::Infallible,
    env,
    ffi::{CString, OsStr},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{DirBuilderExt as _, OpenOptionsExt as _},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use hsup_driver_kit::{
    CancellationToken, Signal, Status,
    clock::now_unix_ms,
    errors,
    fifo::{self, Fifos},
    open_files,
    processes::SpawnError,
    proto::{
        BuildRequest, Capability, Durability, ExitStatus, IpInfoResponse, StartRequest,
        StatsResponse, exit_status::How,
    },
    serve::Peer,
    service::{BuildLog, Dyno, Identity, Names, Record, RecoverError, Recovered, Runtime},
    spawn::{Spawn, Ties},
};
use nix::{
    errno::Errno,
    sys::{
        signal::{SIGPWR, kill},
        stat::Mode,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, mkfifo},
};
use serde::Deserialize;
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe,
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    time::sleep,
};

use crate::runtime::{Directories, address, port};

const SHIM: &str = "hsup-shim";
/// How often the pid of a shim is looked for that was just started.
const PAUSE: Duration = Duration::from_millis(1);

/// How many starts are under way at once: more would only take the processors from each other,
/// and from the calls in between.
const STARTS: usize = 4;

/// The driver.
#[derive(Debug)]
pub(crate) struct Durable {
    directories: Directories,
    state: PathBuf,
    shim: PathBuf,
    starts: Semaphore,
}

impl Durable {
    /// Prepares to start dynos, whose state is beside the driver's socket.
    pub(crate) fn start(socket: &Path) -> io::Result<Self> {
        let state = socket.with_extension("dynos");
        make(&state)?;
        reap()?;
        Ok(Self {
            directories: Directories::new(),
            state,
            shim: find_shim()?,
            starts: Semaphore::new(STARTS),
        })
    }

    async fn launch(&self, peer: Peer, request: &StartRequest, kept: &Kept) -> Result<(), Status> {
        let fifos = fifo::open_all(Path::new(&request.io_dir), peer.uid.as_raw())?;
        let cwd = Directories::of(&request.artifact)?;
        let pid = self.spawn(request, cwd, kept, &fifos)?;
        // It takes signals from then on; before, one would end it and not the dyno.
        while kept.pid().is_none() {
            if kill(pid, None).is_err() {
                return Err(Status::internal("hsup-shim ended before the dyno began"));
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    fn spawn(
        &self,
        request: &StartRequest,
        cwd: &Path,
        kept: &Kept,
        fifos: &Fifos,
    ) -> Result<Pid, Status> {
        let words = [
            self.shim.as_os_str(),
            "--state".as_ref(),
            self.state.as_os_str(),
            "--id".as_ref(),
            kept.name(),
            "--".as_ref(),
        ];
        let argv = words.into_iter().chain(request.argv.iter().map(OsStr::new));
        let env = request
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let spawned = Spawn {
            program: &c_string(self.shim.as_os_str())?,
            argv: &argv.map(c_string).collect::<Result<Vec<_>, _>>()?,
            env: &env
                .map(|pair| c_string(OsStr::new(&pair)))
                .collect::<Result<Vec<_>, _>>()?,
            cwd: Some(&c_string(cwd.as_os_str())?),
            fds: &[&fifos.stdin, &fifos.stdout, &fifos.stderr].map(|fd| fd.as_fd()),
            ties: Ties::None,
            mark: None,
            open_files: open_files::given(),
            cgroup: None,
        }
        .spawn();
        Ok(spawned.map_err(SpawnError::of)?.pid)
    }
}

/// What is there already is fine.
fn make(state: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(state) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// A folder without dynos is left to nobody. Those that are in it keep it.
impl Drop for Durable {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.state) {
            tracing::debug!(%error, "folder of dynos not removed");
        }
    }
}

fn c_string(text: &OsStr) -> Result<CString, SpawnError> {
    CString::new(text.as_bytes()).map_err(|_| SpawnError::NulByte)
}

/// All children are shims, whose end is waited for otherwise: they are let go of.
fn reap() -> io::Result<()> {
    let mut ended = signal(SignalKind::child())?;
    tokio::spawn(async move {
        while ended.recv().await.is_some() {
            let next = || waitpid(None, Some(WaitPidFlag::WNOHANG));
            while next().is_ok_and(|status| status != WaitStatus::StillAlive) {}
        }
    });
    Ok(())
}

/// Beside this program, where packages and cargo put it, or on `PATH`.
fn find_shim() -> io::Result<PathBuf> {
    let beside = env::current_exe()?.parent().map(Path::to_owned);
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = beside.into_iter().chain(env::split_paths(&path));
    let found = places.find_map(|place| Some(place.join(SHIM)).filter(|file| file.is_file()));
    found.ok_or_else(|| {
        let error = "--durable needs hsup-shim, which is neither beside this program nor on PATH";
        io::Error::new(io::ErrorKind::NotFound, error)
    })
}

impl Runtime for Durable {
    type Dyno = Kept;

    fn identity(&self) -> Identity {
        Identity {
            name: "simple",
            version: env!("CARGO_PKG_VERSION"),
            capabilities: &[Capability::StdioFifo, Capability::Signal],
            durability: Durability::Exact,
            options: &[],
            images: false,
            names: Names::Any,
        }
    }

    async fn recover(&self) -> Result<Vec<Recovered<Kept>>, RecoverError> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.state) {
            // The driver before this one has just removed it, empty.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries?,
        };
        for entry in entries {
            let dyno = Kept(entry?.path());
            let record = fs::read(dyno.file("record")).map_err(RecoverError::from);
            let record = record.and_then(|bytes| Ok(Record::from_bytes(&bytes)?));
            match record {
                Ok(record) => {
                    // A shim that comes only now finds that it is too late.
                    let _: nix::Result<()> = mkfifo(&dyno.file("life"), Mode::S_IRUSR);
                    found.push(Recovered { record, dyno });
                }
                Err(error) => {
                    tracing::warn!(%error, dyno = %dyno.name().display(), "nobody's dyno: stopped");
                    dyno.kill().await;
                    dyno.wait().await;
                    dyno.remove().await;
                }
            }
        }
        Ok(found)
    }

    async fn build(&self, _: Peer, request: BuildRequest, log: BuildLog) -> Result<String, Status> {
        self.directories.build(request, &log)
    }

    fn has_artifact(&self, _: Peer, artifact: &str) -> bool {
        Directories::has(artifact)
    }

    async fn remove_artifact(&self, _: Peer, _: &str) -> Result<(), Status> {
        Ok(())
    }

    async fn start(
        &self,
        peer: Peer,
        request: StartRequest,
        record: Record,
        _: CancellationToken,
    ) -> Result<Kept, Status> {
        let _turn = self.starts.acquire().await;
        let name = format!("{}.{}", peer.uid, request.dyno_id);
        let kept = Kept(self.state.join(name));
        let failed = |error: io::Error| {
            let what = format!("write what is known of the dyno in `{}`", kept.0.display());
            errors::internal(&what, &error)
        };
        // The driver before may have cleared up a moment too late.
        make(&self.state).map_err(failed)?;
        // One that is there already is another dyno's, or a person's: not ours to remove.
        DirBuilder::new()
            .mode(0o700)
            .create(&kept.0)
            .map_err(failed)?;
        let port = request.env.get("PORT").map_or("", String::as_str);
        let written = kept
            .put("port", port.as_bytes())
            .and_then(|()| kept.put("record", &record.to_bytes()));
        let started = match written {
            Ok(()) => self.launch(peer, &request, &kept).await,
            Err(error) => Err(failed(error)),
        };
        if started.is_err() {
            kept.remove().await;
        }
        started.map(|()| kept)
    }
}

/// A dyno, by the folder that there is of it.
#[derive(Clone, Debug)]
pub(crate) struct Kept(PathBuf);

/// What `hsup-shim` says of the end.
#[derive(Debug, Deserialize)]
struct Exit {
    code: Option<i32>,
    signal: Option<i32>,
    exited_at_unix_ms: i64,
}

impl Kept {
    fn name(&self) -> &OsStr {
        self.0.file_name().unwrap_or_default()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut how = OpenOptions::new();
        let how = how.create_new(true).write(true).mode(0o600);
        how.open(self.file(name))?.write_all(bytes)
    }

    fn pid(&self) -> Option<Pid> {
        let pid = fs::read_to_string(self.file("pid")).ok()?;
        Some(Pid::from_raw(pid.trim_end().parse().ok()?))
    }

    /// Its life, for reading; none if it is over.
    fn life(&self) -> Option<File> {
        let mut how = OpenOptions::new();
        let how = how.read(true).custom_flags(nix::libc::O_NONBLOCK);
        let mut life = how.open(self.file("life")).ok()?;
        // Nothing is ever written. Of an end that has been before it was opened the kernel tells
        // who reads, but not who waits (fifo(7), poll(2)).
        let is_over = matches!(life.read(&mut [0]), Ok(0));
        (!is_over).then_some(life)
    }

    fn exit(&self) -> Result<ExitStatus, String> {
        let text = fs::read(self.file("exit.json"))
            .map_err(|error| format!("hsup-shim left no exit status: {error}"))?;
        let exit: Exit = serde_json::from_slice(&text)
            .map_err(|error| format!("hsup-shim's exit status cannot be read: {error}"))?;
        let signal = exit.signal.and_then(Signal::from_number);
        let how = match (exit.code, signal) {
            (Some(code), _) => How::Code(code),
            (None, Some(signal)) => How::Signal(signal.to_string()),
            (None, None) => return Err("hsup-shim's exit status says nothing".to_owned()),
        };
        Ok(ExitStatus {
            how: Some(how),
            oom_killed: false,
            exited_at_unix_ms: exit.exited_at_unix_ms,
        })
    }

    fn tell(&self, signal: Option<Signal>) {
        // As long as it lives nobody else has its pid.
        if let (Some(_life), Some(pid)) = (self.life(), self.pid()) {
            let told = match signal {
                Some(signal) => signal.send(pid),
                None => kill(pid, SIGPWR),
            };
            match told {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => tracing::warn!(%error, %pid, "failed to signal hsup-shim"),
            }
        }
    }
}

impl Dyno for Kept {
    type Terminal = Infallible;

    async fn wait(&self) -> ExitStatus {
        if let Some(life) = self.life()
            && let Ok(mut life) = pipe::Receiver::from_file(life)
        {
            drop(life.read_to_end(&mut Vec::new()).await);
        }
        self.exit().unwrap_or_else(|why| ExitStatus {
            how: Some(How::Lost(why)),
            oom_killed: false,
            exited_at_unix_ms: now_unix_ms(),
        })
    }

    async fn signal(&self, signal: Signal) {
        // It would end the shim instead of the dyno, and cannot be handed on.
        self.tell(Some(signal).filter(|signal| *signal != Signal::KILL));
    }

    async fn kill(&self) {
        self.tell(None);
    }

    fn ip_info(&self) -> Result<IpInfoResponse, Status> {
        let given = fs::read_to_string(self.file("port")).ok();
        address(port(given.filter(|port| !port.is_empty()).as_ref()))
    }

    async fn stats(&self) -> Result<StatsResponse, Status> {
        Err(Status::unimplemented("a durable dyno is not measured"))
    }

    fn terminal(&self) -> Option<Infallible> {
        None
    }

    async fn remove(&self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "failed to remove `{}`", self.0.display());
            }
            _ => {}
        }
    }
}
