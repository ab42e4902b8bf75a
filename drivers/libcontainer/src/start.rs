//! Starting a dyno: what it is to hold is taken and written down, then its shim is let go.
//!
//! The order is what makes a crash harmless. The directory comes first, with the record of the
//! call; then what will be held is written down; then it is taken. Whoever finds the directory
//! later frees what is written there, whether it was taken or not.

use std::{
    ffi::CString,
    fs, io,
    io::Write as _,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{fs::DirBuilderExt as _, net::UnixStream as StdStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use hsup_driver_kit::{
    CancellationToken, Status, errors,
    fifo::{self, Fifos},
    proto::StartRequest,
    pty::WindowSize,
    serve::Peer,
    service::Record,
    spawn::{Spawn, Ties},
};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};
use thiserror::Error;
use tokio::{io::AsyncReadExt as _, net::UnixStream};

use crate::{
    NAME,
    artifact::Artifact,
    binds::{self, Opened},
    dyno::{Contained, Known, Watches},
    life::{self, Watch},
    net,
    order::{self, Answer, Handed, Order, SlugOrder},
    removal,
    runtime::{Libcontainer, unknown},
    shim::{self, Places},
    spec::Limits,
    stack,
    sweep::{self, Held},
};

/// In a dyno's directory: what the kit wants to know again.
pub(crate) const RECORD: &str = "record";
/// The least that a limit on memory can be, in bytes: hsup-init and a shell.
const LEAST_MEMORY: u64 = 4 << 20;
/// The longest word of arguments and environment, its end included, and the most that all of them
/// may have: `MAX_ARG_STRLEN`, and a quarter of the stack's limit, of execve(2).
const LONGEST_WORD: usize = 128 << 10;
const MOST_WORDS: usize = 2 << 20;
/// How long a shim may take: it waits for the kernel alone.
const SHIM_PATIENCE: Duration = Duration::from_mins(1);
/// The longest answer of a shim.
const LONGEST_ANSWER: usize = 64 << 10;

/// A dyno could not be started.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    #[error("failed to {doing} `{}`", path.display())]
    Files {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("failed to start the shim of a dyno")]
    Shim(#[source] io::Error),
    #[error("the shim of a dyno ended without an answer")]
    NoAnswer,
    #[error("failed to make the container: {text}")]
    Container { text: String, errno: Option<i32> },
    #[error("the shim of a dyno took longer than {} s", SHIM_PATIENCE.as_secs())]
    Hung,
    #[error("failed to take over a dyno that was started")]
    TakeOver(#[source] io::Error),
}

impl From<StartError> for Status {
    fn from(error: StartError) -> Self {
        let text = errors::chain(&error);
        match &error {
            StartError::Files { source, .. }
            | StartError::Shim(source)
            | StartError::TakeOver(source)
                if errors::is_exhaustion(source) =>
            {
                Self::resource_exhausted(text)
            }
            StartError::Container {
                errno: Some(errno), ..
            } if errors::is_exhaustion(&io::Error::from_raw_os_error(*errno)) => {
                Self::resource_exhausted(text)
            }
            _ => Self::internal(text),
        }
    }
}

fn files<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StartError + 'a {
    move |source| StartError::Files {
        doing,
        path: path.to_owned(),
        source,
    }
}

impl Libcontainer {
    pub(crate) async fn start_dyno(
        &self,
        peer: Peer,
        request: StartRequest,
        record: &Record,
        cancelled: &CancellationToken,
    ) -> Result<Contained, Status> {
        let limits = limits(&request)?;
        fits_execve(&request)?;
        let artifact: Artifact = request
            .artifact
            .parse()
            .map_err(|_| unknown(&request.artifact))?;
        let binds = binds::open(&request.binds, &self.settings().bind_prefixes)?;
        let _turn = self.turn().await;
        if cancelled.is_cancelled() {
            return Err(Status::aborted("the dyno is to be stopped already"));
        }
        let uid = peer.uid.as_raw();
        let stack = self
            .stacks()
            .find(&artifact.stack, &artifact.version)
            .ok_or_else(|| unknown(&request.artifact))?;
        let mut kept = vec![stack::Stacks::hold(&stack).map_err(|_| unknown(&request.artifact))?];
        let stack_root = self.mounted(&stack)?;
        let slug = match &artifact.slug {
            None => None,
            Some(id) => {
                let slug = self.slugs().get(uid, id);
                let slug = slug.ok().flatten();
                let slug = slug.ok_or_else(|| unknown(&request.artifact))?;
                kept.push(slug.lock);
                Some(SlugOrder {
                    path: slug.path,
                    owner: slug.owner_uid,
                })
            }
        };
        let stdio = if request.tty {
            None
        } else {
            Some(fifo::open_all(Path::new(&request.io_dir), uid)?)
        };
        let dir = self.home().dyno(uid, &request.dyno_id);
        begin(&dir, record)?;
        let started = self
            .start_in(&dir, request, limits, stack_root, slug, binds, stdio, kept)
            .await;
        if started.is_err() {
            // Before the answer, or a repeat would find the directory. It talks to the kernel for
            // milliseconds.
            drop(tokio::task::spawn_blocking(move || sweep::of_failed(&dir)).await);
        }
        started
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "they are what was opened so far, used once"
    )]
    async fn start_in(
        &self,
        dir: &Path,
        request: StartRequest,
        limits: Limits,
        stack_root: PathBuf,
        slug: Option<SlugOrder>,
        binds: Vec<Opened>,
        stdio: Option<Fifos>,
        mut kept: Vec<OwnedFd>,
    ) -> Result<Contained, Status> {
        // It comes up while what it is to be handed is made.
        let shim = Shim::spawn(dir)?;
        self.enter_soon(shim.child.0);
        let (life, life_writer) = Watch::make(dir, life::LIFE).map_err(files("make", dir))?;
        let (left, left_writer) = Watch::make(dir, life::LEFT).map_err(files("make", dir))?;
        let lease = self.lease(dir).await?;
        let id = format!("hsup-{}-{}", self.work_dir().key(), lease.uid);
        let cgroup = format!("{}/{id}", self.settings().cgroup_parent);
        let own = self.work_dir().containers().join(lease.uid.to_string());
        let held = Held {
            work_dir: self.work_dir().path().to_owned(),
            table: self.network().table().to_owned(),
            cgroups: self.hierarchies().folders(&cgroup),
            own: own.clone(),
            lease,
        };
        held.write(dir).map_err(files("write in", dir))?;
        let known = Known {
            cgroup: cgroup.clone(),
            ip: lease.subnet.host(),
            port: port(&request),
        };
        known.write(dir).map_err(files("write in", dir))?;
        // The files are made beside it.
        let network = self.network().create(&lease);
        skeleton(
            dir,
            &stack_root,
            &lease,
            self.network().resolv_conf().text,
            &request.dyno_id,
            &binds,
        )?;
        own_folder(&own)?;
        let (stdin, stdout, stderr) = match stdio {
            Some(fifos) => {
                kept.extend([fifos.kept_stdout, fifos.kept_stderr]);
                (fifos.stdin, fifos.stdout, fifos.stderr)
            }
            None => (null()?, null()?, null()?),
        };
        let size = WindowSize::wanted(&request);
        let network = network.await.map_err(|error| net_status(&error))?;
        let order = Order {
            id,
            stack: stack_root.clone(),
            slug,
            own,
            uid: lease.uid,
            hostname: request.dyno_id,
            oom_file: self.hierarchies().oom_file(&cgroup),
            cgroup,
            unified: self.hierarchies().unified,
            limits,
            tmp_size: self.settings().tmp_size,
            argv: command(&stack_root, request.argv, &request.shell_line),
            env: request.env,
            tty: request.tty.then_some((size.rows, size.columns)),
            binds: binds
                .iter()
                .map(|bind| (bind.dyno_path.clone(), bind.writable))
                .collect(),
        };
        let handed = Handed {
            stdin,
            stdout,
            stderr,
            netns: network.netns,
            life: life_writer,
            left: left_writer,
            init: copy(self.init())?,
            seccomp: copy(self.seccomp())?,
            binds: binds.into_iter().map(|bind| bind.tree).collect(),
            kept,
        };
        order::send(&shim.socket, &order, &handed).map_err(StartError::Shim)?;
        drop(handed);
        let pid = shim.child.0;
        let answered = tokio::time::timeout(SHIM_PATIENCE, shim.answer()).await;
        let (life_of, terminal) = answered.unwrap_or_else(|_| {
            // It cannot answer any more, and what it has made is found by what is written down.
            let _ = kill(pid, Signal::SIGKILL);
            Err(StartError::Hung)
        })?;
        if life_of.copied {
            tracing::warn!(
                dyno_id = %order.hostname,
                "the slug was copied: this kernel or file system has no id-mapped mounts"
            );
        }
        let watches = Watches { life, left };
        Contained::started(
            dir.to_owned(),
            watches,
            known,
            self.hierarchies(),
            life_of,
            terminal,
        )
        .map_err(|source| StartError::TakeOver(source).into())
    }
}

/// Makes the dyno's directory, with the record in it.
fn begin(dir: &Path, record: &Record) -> Result<(), StartError> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(dir)
        .map_err(files("make", dir))?;
    let path = dir.join(RECORD);
    fs::File::create(&path)
        .and_then(|mut file| file.write_all(&record.to_bytes()))
        .map_err(files("write", &path))
}

/// The upper layer of the dyno's root: what differs from the stack, and what is mounted on.
fn skeleton(
    dir: &Path,
    stack_root: &Path,
    lease: &crate::lease::Lease,
    resolv_conf: String,
    hostname: &str,
    binds: &[Opened],
) -> Result<(), Status> {
    let places = Places::new(dir);
    for place in [&places.root, &places.slug, &places.app, &places.binds] {
        fs::create_dir(place).map_err(files("make", place))?;
    }
    let top = &places.skeleton;
    for folder in ["app", "dev", "etc", "proc", "sys", "tmp", "var/tmp"] {
        let folder = top.join(folder);
        fs::create_dir_all(&folder).map_err(files("make", &folder))?;
    }
    let accounts = stack::accounts(stack_root, lease.uid, lease.uid)
        .map_err(|error| Status::failed_precondition(errors::chain(&error)))?;
    let texts = [
        ("etc/passwd", accounts.passwd),
        ("etc/group", accounts.group),
        ("etc/hosts", net::hosts(hostname, lease.subnet.host())),
        ("etc/resolv.conf", resolv_conf),
        ("etc/hostname", format!("{hostname}\n")),
    ];
    for (name, text) in texts {
        let path = top.join(name);
        fs::File::create(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(files("write", &path))?;
    }
    for (number, bind) in binds.iter().enumerate() {
        mount_point(&places.bind(number), bind.is_folder)?;
        bind_point(top, stack_root, &bind.dyno_path, bind.is_folder)?;
    }
    Ok(())
}

/// The dyno's own folder on the disk. One that is there is left over from before a crash: the
/// user that it is named after is ours now.
fn own_folder(own: &Path) -> Result<(), StartError> {
    removal::remove(own).map_err(files("clear", own))?;
    let made = fs::DirBuilder::new().mode(0o700).create(own);
    made.map_err(files("make", own))
}

/// Something to mount on in the dyno, if the stack has nothing there. A link on the way is the
/// stack's, and would be hidden.
fn bind_point(
    top: &Path,
    stack_root: &Path,
    dyno_path: &Path,
    is_folder: bool,
) -> Result<(), Status> {
    let inside = dyno_path.strip_prefix("/").unwrap_or(dyno_path);
    if inside.starts_with("app") || inside.starts_with("tmp") || inside.starts_with("var/tmp") {
        // Mounted over, and writable: it is made there.
        return Ok(());
    }
    let mut at = PathBuf::new();
    for part in inside {
        at.push(part);
        if fs::symlink_metadata(stack_root.join(&at)).is_ok_and(|found| found.is_symlink()) {
            return Err(Status::invalid_argument(format!(
                "the bind path `{}` goes through a link of the stack: name where that leads",
                dyno_path.display()
            )));
        }
    }
    mount_point(&top.join(inside), is_folder)?;
    Ok(())
}

fn mount_point(at: &Path, is_folder: bool) -> Result<(), StartError> {
    let made = if is_folder {
        fs::create_dir_all(at)
    } else {
        at.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::File::create(at).map(drop))
    };
    made.map_err(files("make", at))
}

/// What a dyno may use.
fn limits(request: &StartRequest) -> Result<Limits, Status> {
    let wanted = request.limits.unwrap_or_default();
    if wanted.memory_bytes > 0 && wanted.memory_bytes < LEAST_MEMORY {
        return Err(Status::invalid_argument(format!(
            "limits.memory_bytes is {}, and {LEAST_MEMORY} is the least",
            wanted.memory_bytes
        )));
    }
    Ok(Limits {
        memory: wanted.memory_bytes,
        cpu_millis: wanted.cpu_millis,
        pids: wanted.pids,
    })
}

/// What is executed. A line is bash's; a stack without a bash has a shell all the same.
fn command(stack_root: &Path, argv: Vec<String>, line: &str) -> Vec<String> {
    if line.is_empty() || stack::has_bash(stack_root) {
        return argv;
    }
    ["sh", "-c", line].map(str::to_owned).to_vec()
}

/// Whether the kernel takes so much for a program: otherwise the dyno would end without a word.
fn fits_execve(request: &StartRequest) -> Result<(), Status> {
    let argv = request
        .argv
        .iter()
        .map(|word| ("an argument", word.len() + 1));
    let env = request.env.iter();
    let env = env.map(|(name, value)| ("a variable", name.len() + value.len() + 2));
    let mut all = 0;
    for (what, len) in argv.chain(env) {
        if len > LONGEST_WORD {
            return Err(Status::invalid_argument(format!(
                "{what} of the dyno has {len} bytes, and {LONGEST_WORD} is the most"
            )));
        }
        all += len + size_of::<usize>();
    }
    if all > MOST_WORDS {
        return Err(Status::invalid_argument(format!(
            "arguments and environment of the dyno have {all} bytes, and {MOST_WORDS} is the most"
        )));
    }
    Ok(())
}

fn port(request: &StartRequest) -> Option<u16> {
    let port = request.env.get("PORT")?.parse().ok()?;
    (port > 0).then_some(port)
}

fn net_status(error: &net::NetError) -> Status {
    let text = errors::chain(error);
    match error.fault() {
        net::Fault::Exhausted => Status::resource_exhausted(text),
        net::Fault::Host => Status::failed_precondition(text),
        net::Fault::Unknown => Status::internal(text),
    }
}

fn null() -> Result<OwnedFd, StartError> {
    let path = Path::new("/dev/null");
    let file = fs::File::options().read(true).write(true).open(path);
    Ok(file.map_err(files("open", path))?.into())
}

fn copy(fd: &OwnedFd) -> Result<OwnedFd, StartError> {
    fd.try_clone().map_err(StartError::Shim)
}

/// A shim that was started. Without an order it ends when it is dropped.
#[derive(Debug)]
struct Shim {
    // Closed before it is waited for.
    socket: StdStream,
    child: Child,
}

/// A process that is reaped when this is dropped.
#[derive(Debug)]
struct Child(Pid);

impl Child {
    /// Leaves that to others.
    fn stays(self) {
        std::mem::forget(self);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let pid = self.0;
        tokio::task::spawn_blocking(move || waitpid(pid, None));
    }
}

impl Shim {
    fn spawn(dir: &Path) -> Result<Self, StartError> {
        let (ours, theirs) = StdStream::pair().map_err(StartError::Shim)?;
        let word = |text: &[u8]| CString::new(text).map_err(|error| StartError::Shim(error.into()));
        let argv = [
            word(NAME.as_bytes())?,
            word(shim::ROLE.as_bytes())?,
            word(std::os::unix::ffi::OsStrExt::as_bytes(dir.as_os_str()))?,
        ];
        let log = std::io::stderr();
        let spawned = Spawn {
            program: c"/proc/self/exe",
            argv: &argv,
            // Nothing of ours is anything to a dyno.
            env: &[],
            cwd: Some(c"/"),
            fds: &[theirs.as_fd(), log.as_fd(), log.as_fd()],
            // It outlives us.
            ties: Ties::None,
            mark: None,
            open_files: None,
            cgroup: None,
        }
        .spawn();
        let spawned = spawned.map_err(StartError::Shim)?;
        Ok(Self {
            socket: ours,
            child: Child(spawned.pid),
        })
    }

    /// Waits for what it says, and for the terminal that comes before that.
    async fn answer(self) -> Result<(order::Life, Option<OwnedFd>), StartError> {
        let Self { socket, child } = self;
        socket.set_nonblocking(true).map_err(StartError::Shim)?;
        let mut socket = UnixStream::from_std(socket).map_err(StartError::Shim)?;
        let mut text = Vec::new();
        let first = socket
            .async_io(tokio::io::Interest::READABLE, || {
                order::receive_fds(&socket)
            })
            .await;
        let terminal = first.map_err(StartError::Shim)?.pop();
        let read = (&mut socket).take(LONGEST_ANSWER as u64);
        let result = read_line(read, &mut text).await;
        let answer = result
            .ok()
            .and_then(|()| serde_json::from_slice::<Answer>(&text).ok());
        match answer {
            Some(Answer::Started(life)) => {
                child.stays();
                Ok((life, terminal))
            }
            failed => {
                // It ends by itself: there is nothing for it to wait for.
                let pid = child.0;
                child.stays();
                let reaped = tokio::task::spawn_blocking(move || waitpid(pid, None)).await;
                drop(reaped);
                Err(match failed {
                    Some(Answer::Failed(text, errno)) => StartError::Container { text, errno },
                    _ => StartError::NoAnswer,
                })
            }
        }
    }
}

async fn read_line(
    mut from: impl tokio::io::AsyncRead + Unpin,
    text: &mut Vec<u8>,
) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => text.extend(&buffer[..n]),
        }
        if text.last() == Some(&b'\n') {
            return Ok(());
        }
    }
}
