//! Starting a dyno: what it is to hold is taken and written down, then its shim is let go.
//!
//! The order is what makes a crash harmless. The directory comes first, with the record of the
//! call; then what will be held is written down; then it is taken. Whoever finds the directory
//! later frees what is written there, whether it was taken or not.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod opening;
mod request;
mod shim_process;
mod skeleton;

use std::{
    fs, io,
    io::Write as _,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use hsup_driver_kit::{
    CancellationToken, Status, errors, fifo::Fifos, proto::StartRequest, pty::WindowSize,
    serve::Peer, service::Record,
};
use thiserror::Error;

pub(crate) use self::opening::Opening;
use self::{
    request::{command, fits_execve, limits, port},
    shim_process::ShimProcess,
    skeleton::{own_folder, skeleton},
};
use crate::{
    answers::{slug_status, stack_status, unknown},
    artifact::Artifact,
    binds::Opened,
    dyno::{Contained, Known, Watches},
    lease::Lease,
    life::{self, Watch},
    net,
    order::{self, Handed, Order, SlugOrder},
    runtime::Libcontainer,
    spec::Limits,
    stack::{self, StackError},
    sweep::{self, Held},
};

/// In a dyno's directory: what the kit wants to know again.
pub(crate) const RECORD: &str = "record";
/// How long a shim may take: it waits for the kernel alone. One that copies a slug may take as long
/// as that takes, but not be silent for longer.
const SHIM_PATIENCE: Duration = Duration::from_mins(1);

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
    #[error("{text}")]
    Container { text: String, errno: Option<i32> },
    #[error("the shim of a dyno took longer than {} s", SHIM_PATIENCE.as_secs())]
    Hung,
    #[error(
        "the copy of the slug has stood still for {} s: look at the disk of the work directory, or \
         have one that needs no copy (Linux 5.19 or newer, on ext4, xfs or btrfs)",
        SHIM_PATIENCE.as_secs()
    )]
    CopyHung,
    #[error("the dyno is to be stopped already: its slug is not copied any further")]
    Unwanted,
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
            StartError::Unwanted => Self::aborted(text),
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

/// What a dyno is made of, found and opened before anything is made.
#[derive(Debug)]
struct Parts {
    limits: Limits,
    stack_root: PathBuf,
    slug: Option<SlugOrder>,
    binds: Vec<Opened>,
    /// None: it has a terminal.
    stdio: Option<Fifos>,
    /// Held open for as long as the dyno lives: locks on its stack and its slug.
    kept: Vec<OwnedFd>,
}

/// What a dyno holds, and what is written down of it.
#[derive(Debug)]
struct Taken {
    /// What libcontainer calls it.
    id: String,
    lease: Lease,
    /// Its own folder on the disk.
    own: PathBuf,
    known: Known,
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
        let uid = peer.uid.as_raw();
        // Before its turn: while these hang, others have theirs.
        let opened = async {
            let binds = self.open_binds(uid, &request.binds).await?;
            let stdio = if request.tty {
                None
            } else {
                Some(self.open_fifos(uid, &request.io_dir).await?)
            };
            Ok::<_, Status>((binds, stdio, self.turn().await))
        };
        let opened = cancelled.run_until_cancelled(opened).await;
        let stopped = || Status::aborted("the dyno is to be stopped already");
        let (binds, stdio, _turn) = opened.ok_or_else(stopped)??;
        let stack = self
            .stacks()
            .find(&artifact.stack, &artifact.version)
            .map_err(stack_status)?
            .ok_or_else(|| unknown(&request.artifact))?;
        let held = stack::Stacks::hold(&stack).map_err(|error| match error {
            StackError::Gone { .. } => unknown(&request.artifact),
            other => stack_status(other),
        });
        let mut kept = vec![held?];
        let stack_root = self.mounted(&stack)?;
        let slug = match &artifact.slug {
            None => None,
            Some(id) => {
                let slug = self.slugs().get(uid, id);
                let slug = slug.map_err(|error| slug_status(&error))?;
                let slug = slug.ok_or_else(|| unknown(&request.artifact))?;
                kept.push(slug.lock);
                Some(SlugOrder {
                    path: slug.path,
                    owner: slug.owner_uid,
                })
            }
        };
        let dir = self.home().dyno(uid, &request.dyno_id);
        begin(&dir, &record.to_bytes())?;
        let parts = Parts {
            limits,
            stack_root,
            slug,
            binds,
            stdio,
            kept,
        };
        let started = self.start_in(&dir, request, parts, cancelled).await;
        if started.is_err() {
            // Before the answer, or a repeat would find the directory. It talks to the kernel for
            // milliseconds.
            drop(tokio::task::spawn_blocking(move || sweep::of_failed(&dir)).await);
        }
        started
    }

    async fn start_in(
        &self,
        dir: &Path,
        request: StartRequest,
        parts: Parts,
        cancelled: &CancellationToken,
    ) -> Result<Contained, Status> {
        // It comes up while what it is to be handed is made.
        let shim = ShimProcess::spawn(dir)?;
        self.enter_soon(shim.pid());
        let (life, life_writer) = Watch::make(dir, life::LIFE).map_err(files("make", dir))?;
        let (left, left_writer) = Watch::make(dir, life::LEFT).map_err(files("make", dir))?;
        let taken = self.take(dir, port(&request)).await?;
        // The files are made beside it. When they cannot be, it is waited for all the same: rules
        // that it makes after what was taken is given back would stay.
        let network = self.network().create(&taken.lease);
        let made = skeleton(
            dir,
            &parts.stack_root,
            parts.slug.as_ref().map(|slug| slug.path.as_path()),
            &taken.lease,
            self.network().resolv_conf().text,
            &request,
            &parts.binds,
        )
        .and_then(|()| Ok(own_folder(&taken.own)?));
        let network = network.await;
        made?;
        let network = network.map_err(|error| net_status(&error))?;
        let order = self.order(&taken, &parts, request);
        let handed = self.handed(parts, network.netns, life_writer, left_writer)?;
        order::send(&shim.socket, &order, &handed).map_err(StartError::Shim)?;
        drop(handed);
        let (told, terminal) = shim.answer(SHIM_PATIENCE, cancelled).await?;
        if told.copied {
            tracing::warn!(
                dyno_id = %order.hostname,
                "the slug was copied: this kernel or file system has no id-mapped mounts that an \
                 overlay takes"
            );
        }
        let watches = Watches { life, left };
        Contained::started(
            dir.to_owned(),
            watches,
            taken.known,
            self.hierarchies(),
            told,
            terminal,
        )
        .map_err(|source| StartError::TakeOver(source).into())
    }

    /// What a shim is told to make.
    fn order(&self, taken: &Taken, parts: &Parts, request: StartRequest) -> Order {
        let size = WindowSize::wanted(&request);
        let (cgroup, limits) = (&taken.known.cgroup, parts.limits);
        Order {
            id: taken.id.clone(),
            stack: parts.stack_root.clone(),
            slug: parts.slug.clone(),
            own: taken.own.clone(),
            uid: taken.lease.uid,
            hostname: request.dyno_id,
            oom_file: self.hierarchies().oom_file(cgroup),
            swap: self.hierarchies().swap_limit(cgroup, limits.memory),
            cgroup: cgroup.clone(),
            unified: self.hierarchies().unified,
            limits,
            tmp_size: self.settings().tmp_size,
            argv: command(&parts.stack_root, request.argv, &request.shell_line),
            env: request.env,
            tty: request.tty.then_some((size.rows, size.columns)),
            binds: parts
                .binds
                .iter()
                .map(|bind| (bind.dyno_path.clone(), bind.writable))
                .collect(),
        }
    }

    /// What a shim gets with that; nobody here has any of it once that is sent.
    fn handed(
        &self,
        parts: Parts,
        netns: OwnedFd,
        life: OwnedFd,
        left: OwnedFd,
    ) -> Result<Handed, StartError> {
        let (stdin, stdout, stderr, outputs) = match parts.stdio {
            Some(fifos) => {
                let outputs = vec![fifos.kept_stdout, fifos.kept_stderr];
                (fifos.stdin, fifos.stdout, fifos.stderr, outputs)
            }
            None => (null()?, null()?, null()?, Vec::new()),
        };
        Ok(Handed {
            stdin,
            stdout,
            stderr,
            netns,
            life,
            left,
            init: copy(self.init())?,
            seccomp: copy(self.seccomp())?,
            binds: parts.binds.into_iter().map(|bind| bind.tree).collect(),
            outputs,
            kept: parts.kept,
        })
    }

    /// Takes a user and addresses, and writes down in the dyno's directory what it is to hold.
    async fn take(&self, dir: &Path, port: Option<u16>) -> Result<Taken, Status> {
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
        if let Err(error) = held.write(dir) {
            // What is written nowhere, nobody finds but by its owner, and that would be at the
            // next driver's start.
            self.give_back(lease, dir).await;
            return Err(files("write in", dir)(error).into());
        }
        let known = Known {
            cgroup,
            ip: lease.subnet.host(),
            port,
        };
        known.write(dir).map_err(files("write in", dir))?;
        Ok(Taken {
            id,
            lease,
            own,
            known,
        })
    }
}

/// Makes the dyno's directory, with the record in it, or nothing.
fn begin(dir: &Path, record: &[u8]) -> Result<(), StartError> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(dir)
        .map_err(files("make", dir))?;
    let path = dir.join(RECORD);
    let written = fs::File::create(&path).and_then(|mut file| file.write_all(record));
    written.map_err(|source| {
        // Or a repeat would find it. What cannot be removed is the next driver's.
        drop(fs::remove_dir_all(dir));
        files("write", &path)(source)
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root: it mounts"]
    fn a_record_that_does_not_fit_leaves_no_directory() {
        use nix::mount::{MsFlags, mount};
        let folder = tempfile::tempdir().unwrap();
        // The mount is that thread's, and goes with it.
        let begun = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                crate::mounts::leave_host().unwrap();
                // Room for its root and a folder, and no file.
                let options = Some("nr_inodes=2");
                let (kind, flags) = (Some("tmpfs"), MsFlags::empty());
                mount(kind, folder.path(), kind, flags, options).unwrap();
                let dir = folder.path().join("0.a");
                let failed = begin(&dir, b"record").unwrap_err();
                (Status::from(failed).code(), dir.exists())
            });
            thread.join().unwrap()
        });
        let exhausted = Status::resource_exhausted("").code();
        assert_eq!(begun, (exhausted, false));
    }
}
