//! How the simple driver builds and starts: a directory to run in, and a process.

use std::{
    io,
    path::{Path, PathBuf},
};

use hsup_driver_kit::{
    CancellationToken, Signal, Status, fifo, file_url,
    processes::{Cgroups, Command, Process, Processes, Stdio},
    proto::{
        BuildRequest, Capability, Durability, ExitStatus, IpInfoResponse, StartRequest,
        StatsResponse,
    },
    pty::{self, WindowSize},
    serve::Peer,
    service::{BuildLog, Dyno, Identity, Names, Record, Runtime},
};

/// An artifact is a directory to run in: this, and its path.
const DIRECTORY: &str = "dir:";

/// What this driver makes of releases: nothing but the directory to run in.
#[derive(Clone, Debug)]
pub(crate) struct Directories {
    /// Where a release without a directory of its own runs: where the driver was started. None
    /// where that was removed before: those that have one can still be run.
    home: Option<PathBuf>,
}

impl Directories {
    pub(crate) fn new() -> Self {
        let home = std::env::current_dir().ok();
        Self { home }
    }

    pub(crate) fn build(&self, request: BuildRequest, log: &BuildLog) -> Result<String, Status> {
        let release = request.release.unwrap_or_default();
        if release.slug_url.is_empty() && !release.image.is_empty() {
            return Err(Status::failed_precondition(
                "the simple driver runs no images; the docker driver does",
            ));
        }
        if !file_url::is_directory(&release.slug_url) {
            if !release.slug_url.is_empty() {
                log.log(b"the simple driver fetches no slug: it refreshes the environment only\n");
            }
            let home = self.home.as_deref().ok_or_else(|| {
                Status::failed_precondition(
                    "the directory that the driver was started in is gone, and the release has \
                     none of its own (`slug_url`): start the driver in one that is there",
                )
            })?;
            return artifact(home);
        }
        match file_url::path(&release.slug_url) {
            Some(directory) if directory.is_dir() => artifact(&directory),
            Some(directory) => Err(Status::failed_precondition(format!(
                "`{}` is not a directory",
                directory.display()
            ))),
            None => Err(Status::invalid_argument(
                "release.slug_url is not file:// and an absolute path",
            )),
        }
    }

    /// Whether there is such a directory. There is nothing to remove of one: it is its owner's.
    pub(crate) fn has(artifact: &str) -> bool {
        directory(artifact).is_some_and(Path::is_dir)
    }

    /// The directory to run in.
    pub(crate) fn of(artifact: &str) -> Result<&Path, Status> {
        directory(artifact)
            .ok_or_else(|| Status::not_found("artifact is not one of the simple driver's"))
    }
}

/// The driver whose dynos die with it.
#[derive(Clone, Debug)]
pub(crate) struct Simple {
    processes: Processes,
    directories: Directories,
}

impl Simple {
    /// Prepares to spawn dynos; inside a tokio runtime.
    pub(crate) fn start(socket: Option<&Path>, cgroups: Cgroups) -> io::Result<Self> {
        Ok(Self {
            processes: Processes::start(socket, cgroups)?,
            directories: Directories::new(),
        })
    }
}

impl Runtime for Simple {
    type Dyno = Started;

    fn identity(&self) -> Identity {
        Identity {
            name: "simple",
            version: env!("CARGO_PKG_VERSION"),
            capabilities: &[
                Capability::StdioFifo,
                Capability::Signal,
                Capability::Stats,
                Capability::Attach,
            ],
            durability: Durability::None,
            options: &[],
            images: false,
            names: Names::Any,
        }
    }

    async fn build(
        &self,
        _peer: Peer,
        request: BuildRequest,
        log: BuildLog,
    ) -> Result<String, Status> {
        self.directories.build(request, &log)
    }

    fn has_artifact(&self, _peer: Peer, artifact: &str) -> bool {
        Directories::has(artifact)
    }

    async fn remove_artifact(&self, _peer: Peer, _artifact: &str) -> Result<(), Status> {
        Ok(())
    }

    async fn end(&self) {
        self.processes.end().await;
    }

    async fn start(
        &self,
        peer: Peer,
        request: StartRequest,
        _record: Record,
        _cancelled: CancellationToken,
    ) -> Result<Started, Status> {
        let cwd = Directories::of(&request.artifact)?;
        // Before anything is opened: hundreds may wait.
        self.processes.turn().await;
        let stdio = if request.tty {
            Stdio::Terminal(WindowSize::wanted(&request))
        } else {
            fifo::open(Path::new(&request.io_dir), peer.uid.as_raw())?
        };
        let process = self.processes.spawn(Command {
            argv: &request.argv,
            env: &request.env,
            cwd,
            stdio,
            name: &request.dyno_id,
        })?;
        Ok(Started {
            process,
            port: port(request.env.get("PORT")),
        })
    }
}

/// Where a dyno is reached.
pub(crate) fn address(port: Result<u16, &'static str>) -> Result<IpInfoResponse, Status> {
    Ok(IpInfoResponse {
        ip: "127.0.0.1".into(),
        port: port.map_err(Status::failed_precondition)?.into(),
        node: String::new(),
    })
}

/// The port that a dyno was given.
pub(crate) fn port(variable: Option<&String>) -> Result<u16, &'static str> {
    let port = variable.ok_or("the dyno has no PORT in its environment")?;
    match port.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("PORT in the dyno's environment is not a number from 1 to 65535"),
    }
}

/// A dyno that was started.
#[derive(Clone, Debug)]
pub(crate) struct Started {
    process: Process,
    /// Or what is wrong with it.
    port: Result<u16, &'static str>,
}

impl Dyno for Started {
    type Terminal = pty::Terminal;

    async fn wait(&self) -> ExitStatus {
        self.process.wait().await
    }

    async fn signal(&self, signal: Signal) {
        self.process.signal(signal).await;
    }

    async fn kill(&self) {
        self.process.kill().await;
    }

    fn ip_info(&self) -> Result<IpInfoResponse, Status> {
        address(self.port)
    }

    async fn stats(&self) -> Result<StatsResponse, Status> {
        self.process
            .stats()
            .await
            .ok_or_else(|| Status::failed_precondition("the dyno has exited"))
    }

    fn terminal(&self) -> Option<pty::Terminal> {
        self.process.terminal().cloned()
    }
}

fn artifact(directory: &Path) -> Result<String, Status> {
    match directory.to_str() {
        Some(path) => Ok(format!("{DIRECTORY}{path}")),
        None => Err(Status::failed_precondition(format!(
            "the path `{}` is not UTF-8",
            directory.display()
        ))),
    }
}

/// The directory that an artifact names.
fn directory(artifact: &str) -> Option<&Path> {
    let path = Path::new(artifact.strip_prefix(DIRECTORY)?);
    path.is_absolute().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_port_is_told() {
        let told = |text: &str| port(Some(&text.to_owned()));
        assert_eq!(told("5000"), Ok(5000));
        assert!(port(None).unwrap_err().contains("no PORT"));
        for wrong in ["70000", "0", "-1", "http", ""] {
            assert!(told(wrong).unwrap_err().contains("65535"), "{wrong}");
        }
    }
}
