//! A dyno in a container, as the driver sees it: through the engine.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use bollard::{
    errors::Error,
    exec::{CreateExecOptions, StartExecOptions},
    query_parameters::{KillContainerOptionsBuilder, StatsOptionsBuilder},
};
use futures_util::StreamExt as _;
use hsup_driver_kit::{
    Signal, Status,
    clock::now_unix_ms,
    errors,
    proto::{ExitStatus, IpInfoResponse, StatsResponse, exit_status::How},
    service::Dyno,
};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;

use crate::{
    artifact::Kind,
    attach::Reads,
    cursor::Cursors,
    engine::{self, Engine},
    life::{self, Known},
    logs::{Copy, Copying},
    remove,
    swarm::Membership,
    terminal::Remote,
};

/// How long a failed call is not repeated.
const PAUSE: Duration = Duration::from_millis(200);
/// How long Remove waits for an engine that is away: callers wait 5 s.
const REMOVAL: Duration = Duration::from_secs(4);

/// A dyno that was started. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Contained(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    /// Its container has ended.
    ended: CancellationToken,
    /// It was sent a signal: somebody waits for its end.
    stopped: CancellationToken,
    /// Nobody will ask for it any more.
    gone: CancellationToken,
    /// How, once all that it wrote was passed on.
    status: watch::Sender<Option<ExitStatus>>,
    _kept: Option<[OwnedFd; 2]>,
}

/// What a dyno is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) engine: Engine,
    pub(crate) cursors: Cursors,
    /// The container's id.
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) known: Known,
    /// Where it is reached, or why it is not.
    pub(crate) address: Result<(String, u16), String>,
    pub(crate) terminal: Option<Remote>,
    /// Its place among the dynos that its app has on a Swarm.
    pub(crate) membership: Option<Arc<Membership>>,
}

/// What passes on what a dyno writes.
#[derive(Debug, Default)]
pub(crate) struct Writing {
    pub(crate) copies: Vec<(Copy, Option<Reads>)>,
    /// What all that was passed on of both takes up in the log, as far as it is counted.
    pub(crate) passed: Arc<AtomicU64>,
    /// Reading ends of the FIFOs, so that what was passed on is there as long as the dyno is.
    pub(crate) kept: Option<[OwnedFd; 2]>,
}

impl Contained {
    /// Watches a container that was started, and passes on what it writes.
    pub(crate) fn watch(parts: Parts, writing: Writing, gone: CancellationToken) -> Self {
        let Writing {
            copies,
            passed,
            kept,
        } = writing;
        let ended = CancellationToken::new();
        let copying = Copying::begin(copies, passed, &ended);
        let dyno = Self(Arc::new(Inner {
            parts,
            ended,
            stopped: CancellationToken::new(),
            gone,
            status: watch::Sender::new(None),
            _kept: kept,
        }));
        let watched = dyno.clone();
        tokio::spawn(async move {
            let gone = watched.0.gone.clone();
            gone.run_until_cancelled(watched.until_ended(copying)).await
        });
        dyno
    }

    async fn until_ended(&self, mut copying: Copying) {
        let Inner { parts, ended, .. } = &*self.0;
        let ending = life::ended(&parts.engine, &parts.id, parts.kind, parts.known);
        let status = Box::pin(ending).await;
        if !matches!(status.how, Some(How::Lost(_))) {
            parts.cursors.note_end(&parts.id);
        }
        ended.cancel();
        if !copying.settle(&self.0.stopped).await {
            let container = &parts.id;
            tracing::info!(container, "a dyno has ended, and what it wrote is not read");
        }
        self.0.status.send_replace(Some(status));
        copying.rest().await;
    }

    /// Sends a signal to the container's first process.
    async fn kill_with(&self, signal: Signal) -> Result<(), Error> {
        let parts = &self.0.parts;
        let docker = parts.engine.docker().await;
        let number = signal.number().to_string();
        let options = KillContainerOptionsBuilder::new().signal(&number).build();
        match docker.kill_container(&parts.id, Some(options)).await {
            // It is not there, or does not run.
            Err(error) if matches!(engine::code(&error), Some(404 | 409)) => Ok(()),
            result => result,
        }
    }

    /// Has a shell in the container send a signal to every process there but the first, and says
    /// whether there was one to do so.
    ///
    /// As root: the dyno may have changed users. The engine has no call for it, and numbers of
    /// processes (`top`) mean nothing where the engine is not on this machine.
    async fn signal_all(&self, signal: Signal) -> Result<bool, Error> {
        let parts = &self.0.parts;
        let docker = parts.engine.docker().await;
        let line = format!("kill -{} -1", signal.number());
        let options = CreateExecOptions {
            cmd: Some(["/bin/sh", "-c", &line].map(str::to_owned).into()),
            user: Some("0:0".to_owned()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..CreateExecOptions::default()
        };
        let exec = docker.create_exec(&parts.id, options).await?.id;
        let options = None::<StartExecOptions>;
        if let bollard::exec::StartExecResults::Attached { mut output, .. } =
            docker.start_exec(&exec, options).await?
        {
            // Its end is the shell's.
            while output.next().await.is_some() {}
        }
        let code = docker.inspect_exec(&exec).await?.exit_code;
        // There was no shell, or it did not begin.
        Ok(!matches!(code, None | Some(126 | 127)))
    }

    /// Removes the container, however long that takes.
    async fn until_removed(&self) {
        let parts = &self.0.parts;
        remove::until_removed(|| parts.engine.docker(), &parts.id).await;
        parts.cursors.forget(&parts.id);
        if let Some(membership) = &parts.membership {
            membership.end();
        }
    }
}

impl Dyno for Contained {
    type Terminal = Remote;

    async fn wait(&self) -> ExitStatus {
        let mut status = self.0.status.subscribe();
        let found = status.wait_for(Option::is_some).await;
        let found = found.ok().and_then(|status| status.clone());
        found.unwrap_or_else(|| life::lost("nobody waits for it any more"))
    }

    async fn signal(&self, signal: Signal) {
        self.0.stopped.cancel();
        let parts = &self.0.parts;
        // hsup-init hands on what it gets; what it cannot catch it cannot hand on.
        let hands_on = matches!(parts.kind, Kind::Slug { .. }) && !is_uncatchable(signal);
        let sending = async {
            if !hands_on {
                match self.signal_all(signal).await {
                    Ok(true) => return Ok(()),
                    // An image without a shell: its init hands it to the first process, at least.
                    Ok(false) => {}
                    Err(error) if engine::code(&error).is_some() => {
                        tracing::debug!(%error, "no shell in a container to signal its processes");
                    }
                    Err(error) => return Err(error),
                }
            }
            self.kill_with(signal).await
        };
        let sent = self.0.ended.run_until_cancelled(sending).await;
        if let Some(Err(error)) = sent {
            let error = errors::chain(&error);
            tracing::warn!(container = parts.id, %signal, error, "failed to signal a dyno");
            parts.engine.suspect();
        }
    }

    async fn kill(&self) {
        self.0.stopped.cancel();
        let killing = async {
            // With the first process every other one ends.
            while let Err(error) = self.kill_with(Signal::KILL).await {
                let error = errors::chain(&error);
                tracing::warn!(container = self.0.parts.id, error, "failed to kill a dyno");
                self.0.parts.engine.suspect();
                time::sleep(PAUSE).await;
            }
        };
        // It may end by itself.
        self.0.ended.run_until_cancelled(killing).await;
    }

    fn ip_info(&self) -> Result<IpInfoResponse, Status> {
        match &self.0.parts.address {
            Ok((ip, port)) => Ok(IpInfoResponse {
                ip: ip.clone(),
                port: (*port).into(),
                node: String::new(),
            }),
            Err(reason) => Err(Status::failed_precondition(reason.clone())),
        }
    }

    async fn stats(&self) -> Result<StatsResponse, Status> {
        let parts = &self.0.parts;
        let docker = parts.engine.now()?.docker;
        let options = StatsOptionsBuilder::new().stream(false).one_shot(true);
        let mut stats = std::pin::pin!(docker.stats(&parts.id, Some(options.build())));
        let failed = |error: &Error| engine::status("measure a dyno", error);
        let found = stats.next().await.transpose();
        let found = found.map_err(|error| failed(&error))?.unwrap_or_default();
        let memory = found.memory_stats.unwrap_or_default();
        let cpu = found.cpu_stats.and_then(|stats| stats.cpu_usage);
        if memory.usage.is_none() {
            return Err(Status::failed_precondition("the dyno has exited"));
        }
        let pids = found.pids_stats.and_then(|stats| stats.current);
        Ok(StatsResponse {
            at_unix_ms: now_unix_ms(),
            cpu_ns: cpu.and_then(|usage| usage.total_usage),
            memory_bytes: memory.usage,
            memory_peak_bytes: memory.max_usage,
            // The first is the init.
            pids: pids.map(|pids| u32::try_from(pids.saturating_sub(1)).unwrap_or(u32::MAX)),
            pid: None,
        })
    }

    fn terminal(&self) -> Option<Remote> {
        self.0.parts.terminal.clone()
    }

    async fn remove(&self) {
        let removed = time::timeout(REMOVAL, self.until_removed()).await;
        self.0.gone.cancel();
        if removed.is_err() {
            // The engine is away: it is removed when that is back.
            let dyno = self.clone();
            tokio::spawn(async move { dyno.until_removed().await });
        }
    }
}

/// The kernel acts on these without asking the process.
fn is_uncatchable(signal: Signal) -> bool {
    use nix::sys::signal::Signal as Standard;
    [Standard::SIGKILL, Standard::SIGSTOP]
        .iter()
        .any(|other| *other as i32 == signal.number())
}
