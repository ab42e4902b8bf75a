//! A driver for hsup on its kit: dynos are plain processes that die with it.
//!
//! The kit has the socket, the rules of the protocol's calls and trees of processes. What is left
//! to write is how one dyno is built, started and ended. docs/driver-authors.md tells why.

use std::{convert::Infallible, env, io, path::Path, process::ExitCode};

use hsup_driver_kit::{
    CancellationToken, Program, Signal, Status, fifo, file_url,
    processes::{Cgroups, Command, Process, Processes},
    proto::{
        BuildRequest, Capability, Durability, ExitStatus, IpInfoResponse, StartRequest,
        StatsResponse,
    },
    serve::Peer,
    service::{BuildLog, Dyno, Identity, Names, Record, Runtime},
};

/// An artifact is a directory to run in: this, and its path.
const DIRECTORY: &str = "dir:";

fn main() -> ExitCode {
    let about = "Runs the dynos of hsup as plain processes: an example";
    Program::new("hsup-driver-example", env!("CARGO_PKG_VERSION"), about).main(
        env::args_os().skip(1),
        async |given| {
            let processes = Processes::start(given.socket(), Cgroups::WherePossible)?;
            Ok::<_, io::Error>(Example { processes })
        },
    )
}

struct Example {
    processes: Processes,
}

impl Runtime for Example {
    type Dyno = Running;

    fn identity(&self) -> Identity {
        Identity {
            name: "com.example.rust",
            version: env!("CARGO_PKG_VERSION"),
            capabilities: &[Capability::StdioFifo, Capability::Signal, Capability::Stats],
            durability: Durability::None,
            options: &[],
            images: false,
            // It puts no name that it is given into a path.
            names: Names::Any,
        }
    }

    async fn build(&self, _: Peer, request: BuildRequest, _: BuildLog) -> Result<String, Status> {
        let release = request.release.unwrap_or_default();
        if !release.image.is_empty() {
            return Err(Status::failed_precondition("this driver runs no images"));
        }
        let url = &release.slug_url;
        let directory = file_url::path(url).filter(|_| file_url::is_directory(url));
        // Not the URL itself: its query may be a secret.
        let wanted = "this driver runs directories: slug_url must be file://DIR/";
        let directory = directory.ok_or_else(|| Status::invalid_argument(wanted))?;
        match directory.to_str() {
            Some(path) if directory.is_dir() => Ok(format!("{DIRECTORY}{path}")),
            _ => Err(Status::failed_precondition(
                "slug_url names no directory, or none in UTF-8",
            )),
        }
    }

    fn has_artifact(&self, _: Peer, artifact: &str) -> bool {
        directory(artifact).is_some_and(Path::is_dir)
    }

    async fn remove_artifact(&self, _: Peer, _: &str) -> Result<(), Status> {
        // The directory is its owner's.
        Ok(())
    }

    async fn start(
        &self,
        peer: Peer,
        request: StartRequest,
        _: Record,
        _: CancellationToken,
    ) -> Result<Running, Status> {
        let unknown = || Status::not_found("artifact is not one of this driver's");
        let cwd = directory(&request.artifact).ok_or_else(unknown)?;
        // Hundreds may come at once: one after the other is faster.
        self.processes.turn().await;
        let process = self.processes.spawn(Command {
            name: &request.dyno_id,
            argv: &request.argv,
            env: &request.env,
            cwd,
            stdio: fifo::open(Path::new(&request.io_dir), peer.uid.as_raw())?,
        })?;
        let port = request.env.get("PORT").and_then(|port| port.parse().ok());
        Ok(Running { process, port })
    }

    async fn end(&self) {
        self.processes.end().await;
    }
}

#[derive(Clone)]
struct Running {
    process: Process,
    port: Option<u32>,
}

impl Dyno for Running {
    // There are none without CAPABILITY_ATTACH.
    type Terminal = Infallible;

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
        let none = || Status::failed_precondition("the dyno has no PORT");
        Ok(IpInfoResponse {
            ip: "127.0.0.1".to_owned(),
            port: self.port.ok_or_else(none)?,
            node: String::new(),
        })
    }

    async fn stats(&self) -> Result<StatsResponse, Status> {
        let exited = || Status::failed_precondition("the dyno has exited");
        self.process.stats().await.ok_or_else(exited)
    }

    fn terminal(&self) -> Option<Infallible> {
        None
    }
}

/// The directory that an artifact names.
fn directory(artifact: &str) -> Option<&Path> {
    artifact.strip_prefix(DIRECTORY).map(Path::new)
}
