//! Starting a dyno: its container, its streams, and what is undone when that fails.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::Arc,
};

use bollard::{
    Docker,
    errors::Error,
    models::ContainerInspectResponse,
    query_parameters::{
        CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
    },
};
use hsup_driver_kit::{
    CancellationToken, Status, errors,
    fifo::{self, Fifos},
    proto::StartRequest,
    pty::WindowSize,
    serve::Peer,
    service::Record,
};
use nix::{
    sys::stat::{SFlag, fstat},
    unistd::Uid,
};

use crate::{
    artifact::{Artifact, Kind},
    attach::{self, Streams},
    config::{self, Order, Stdin},
    dyno::{Contained, Parts, Writing},
    engine::{self, Up},
    life,
    logs::{Copy, Output},
    runtime::DockerDriver,
    terminal::Remote,
};

/// What a dyno reads and writes, opened.
struct Opened {
    stdin: Option<OwnedFd>,
    outputs: [OwnedFd; 2],
    kept: [OwnedFd; 2],
}

impl DockerDriver {
    /// Starts a dyno; what goes wrong leaves no container.
    pub(crate) async fn start_dyno(
        &self,
        peer: Peer,
        request: StartRequest,
        record: Record,
        cancelled: CancellationToken,
    ) -> Result<Contained, Status> {
        let artifact: Artifact = request.artifact.parse().map_err(|_| unknown(&request))?;
        check(&request, peer, artifact.kind)?;
        let up = self.engine().now()?;
        let opened = if request.tty {
            None
        } else {
            Some(open(&request.io_dir, peer.uid.as_raw())?)
        };
        let image_env = self.image_env(&up.docker, &request, &artifact).await?;
        let stdin = match &opened {
            None => Stdin::Terminal,
            Some(Opened { stdin: Some(_), .. }) => Stdin::Fifo,
            Some(_) => Stdin::Nothing,
        };
        let order = Order {
            request: &request,
            artifact: &artifact,
            record: &record,
            home: self.home(),
            uid: peer.uid.as_raw(),
            stdin,
            image_env: &image_env,
            traits: up.traits,
        };
        let id = self.create(&up.docker, &order).await?;
        let started = self.begin(&up, &id, &order, opened);
        let result = match cancelled.run_until_cancelled(started).await {
            Some(result) => result,
            None => Err(Status::aborted("the dyno is to be stopped already")),
        };
        if result.is_err() {
            undo(&up.docker, &id).await;
            self.cursors().forget(&id);
        }
        result
    }

    /// The names of the variables that the image sets.
    async fn image_env(
        &self,
        docker: &Docker,
        request: &StartRequest,
        artifact: &Artifact,
    ) -> Result<Vec<String>, Status> {
        match docker.inspect_image(&artifact.image).await {
            Ok(image) => {
                let env = image.config.and_then(|config| config.env);
                let name = |text: String| text.split('=').next().unwrap_or_default().to_owned();
                Ok(env.unwrap_or_default().into_iter().map(name).collect())
            }
            Err(error) if engine::is_unknown(&error) => {
                self.is_missing(&request.artifact);
                Err(unknown(request))
            }
            Err(error) => Err(self.failed("look for an image", &error)),
        }
    }

    /// Makes the container. One of that name that never ran is what an earlier start left that
    /// was cut off: nobody knows of it.
    async fn create(&self, docker: &Docker, order: &Order<'_>) -> Result<String, Status> {
        let name = config::name(order.uid, &order.request.dyno_id);
        let mut is_first = true;
        loop {
            let options = CreateContainerOptionsBuilder::new().name(&name).build();
            let body = config::container(order);
            match docker.create_container(Some(options), body).await {
                Ok(made) => return Ok(made.id),
                Err(error) if engine::code(&error) == Some(409) && is_first => {
                    is_first = false;
                    let found = docker.inspect_container(&name, None).await;
                    let state = found.ok().and_then(|found| found.state);
                    if state.is_some_and(|state| !life::is_new(&state)) {
                        return Err(Status::already_exists(format!(
                            "the engine has a container `{name}` already, which this driver did \
                             not start"
                        )));
                    }
                    undo(docker, &name).await;
                }
                Err(error) if engine::is_unknown(&error) => {
                    self.is_missing(&order.request.artifact);
                    return Err(unknown(order.request));
                }
                Err(error) => return Err(self.failed("make a container", &error)),
            }
        }
    }

    /// Starts a container and all that goes with it.
    async fn begin(
        &self,
        up: &Up,
        id: &str,
        order: &Order<'_>,
        opened: Option<Opened>,
    ) -> Result<Contained, Status> {
        let gone = CancellationToken::new();
        // Until this is a dyno's nobody else ends what begins here.
        let guard = gone.clone().drop_guard();
        let engine = self.engine();
        let attach = async |what| {
            let attaching = async {
                if up.traits.is_podman {
                    attach::initialise(engine.connector(), id).await?;
                }
                attach::attach(engine.connector(), id, what).await
            };
            attaching.await.map_err(|error: io::Error| {
                Status::unavailable(format!("failed to attach to a container: {error}"))
            })
        };
        let mut terminal = None;
        let mut stdin = None;
        let opened = match opened {
            None => {
                // Before its first instruction, or its first words would be nobody's.
                let both = attach(Streams::Terminal).await?;
                let known = self.cursors().know(id);
                known.map_err(|error| {
                    Status::internal(format!("failed to remember a container: {error}"))
                })?;
                let size = WindowSize::wanted(order.request);
                terminal = Some(Remote::new(both, size, gone.clone()));
                None
            }
            Some(mut opened) => {
                if let Some(fifo) = opened.stdin.take() {
                    stdin = Some((fifo, attach(Streams::Stdin).await?));
                }
                Some(opened)
            }
        };
        let writing = match opened {
            Some(opened) => self.writing(id, opened.outputs, opened.kept)?,
            None => Writing::default(),
        };
        let options = None::<StartContainerOptions>;
        if let Err(error) = up.docker.start_container(id, options).await {
            // What is the command's fault is a dyno that has exited.
            let found = up.docker.inspect_container(id, None).await;
            let state = found.ok().and_then(|found| found.state);
            let code = state.and_then(|state| state.exit_code);
            if !matches!(code, Some(126 | 127)) {
                return Err(self.failed("start a container", &error));
            }
            tracing::info!(container = id, "the command of a dyno cannot be run");
        }
        if let Some(terminal) = &terminal {
            terminal.keep_size(engine.clone(), id.to_owned(), gone.clone());
        }
        if let Some((fifo, (reads, writes))) = stdin {
            let gone = gone.clone();
            tokio::spawn(async move {
                // The engine takes a connection that is closed for the end of it.
                let _reads = reads;
                let fed = gone.run_until_cancelled(attach::feed(fifo, writes)).await;
                if let Some(Err(error)) = fed {
                    tracing::debug!(%error, "a dyno reads no more");
                    return;
                }
                gone.cancelled().await;
            });
        }
        let found = up.docker.inspect_container(id, None).await;
        let found = found.map_err(|error| self.failed("look at a container", &error))?;
        let parts = Parts {
            engine: engine.clone(),
            cursors: self.cursors().clone(),
            id: id.to_owned(),
            kind: order.artifact.kind,
            address: address(&found, order.request.env.get("PORT").map(String::as_str)),
            terminal,
        };
        Ok(Contained::watch(parts, writing, guard.disarm()))
    }

    /// What passes on the two outputs of a container.
    pub(crate) fn writing(
        &self,
        id: &str,
        [stdout, stderr]: [OwnedFd; 2],
        kept: [OwnedFd; 2],
    ) -> Result<Writing, Status> {
        let failed = |error: io::Error| {
            let text = format!("failed to prepare to pass on what a dyno writes: {error}");
            if errors::is_exhaustion(&error) {
                Status::resource_exhausted(text)
            } else {
                Status::internal(text)
            }
        };
        let passed = Arc::default();
        let copy = |output: Output, fifo| {
            let cursor = self.cursors().file(id, output.name())?;
            let engine = self.engine().clone();
            Copy::new(
                engine,
                id.to_owned(),
                output,
                fifo,
                cursor,
                Arc::clone(&passed),
            )
        };
        let stdout = copy(Output::Stdout, stdout).map_err(failed)?;
        let stderr = copy(Output::Stderr, stderr).map_err(failed)?;
        Ok(Writing {
            copies: vec![stdout, stderr],
            passed,
            kept: Some(kept),
        })
    }

    fn failed(&self, operation: &str, error: &Error) -> Status {
        self.engine().suspect();
        engine::status(operation, error)
    }
}

fn unknown(request: &StartRequest) -> Status {
    Status::not_found(format!(
        "artifact `{}` is not in the engine",
        request.artifact
    ))
}

/// What the engine would not refuse.
fn check(request: &StartRequest, peer: Peer, kind: Kind) -> Result<(), Status> {
    let is_ours = peer.uid.is_root() || peer.uid == Uid::effective();
    if !request.binds.is_empty() && !is_ours {
        return Err(Status::permission_denied(
            "binds are for the user of this driver: the engine reads every file",
        ));
    }
    if request.argv.is_empty() && matches!(kind, Kind::Slug { .. }) {
        return Err(Status::invalid_argument("argv is empty"));
    }
    let bad = |name: &String| name.is_empty() || name.contains('=');
    if request.env.keys().any(bad) {
        return Err(Status::invalid_argument("env has a name that is none"));
    }
    Ok(())
}

/// Opens a dyno's FIFOs; those for the engine's log are ours alone.
fn open(io_dir: &str, uid: u32) -> Result<Opened, Status> {
    let Fifos {
        stdin,
        stdout,
        stderr,
        kept_stdout,
        kept_stderr,
    } = fifo::open_all(Path::new(io_dir), uid)?;
    // Without one it is /dev/null.
    let kind = fstat(stdin.as_fd()).map_or(0, |stat| stat.st_mode);
    let is_fifo = SFlag::from_bits_truncate(kind) & SFlag::S_IFMT == SFlag::S_IFIFO;
    Ok(Opened {
        stdin: is_fifo.then_some(stdin),
        outputs: [stdout, stderr],
        kept: [kept_stdout, kept_stderr],
    })
}

/// The same for a dyno that was found again: what it reads has ended with the driver that passed
/// it on.
pub(crate) fn reopen(io_dir: &str, uid: u32) -> Result<([OwnedFd; 2], [OwnedFd; 2]), Status> {
    let opened = open(io_dir, uid)?;
    Ok((opened.outputs, opened.kept))
}

/// Where a container is reached that was given this port, or why it is not.
pub(crate) fn address(
    found: &ContainerInspectResponse,
    given: Option<&str>,
) -> Result<(String, u16), String> {
    let port = config::port(given).ok_or_else(|| {
        "PORT in the dyno's environment is missing, or no number from 1 to 65535".to_owned()
    })?;
    let network = found.network_settings.as_ref();
    let published = network
        .and_then(|network| network.ports.as_ref())
        .and_then(|ports| ports.get(&config::exposed(port)))
        .and_then(|bindings| bindings.as_ref()?.first());
    if let Some(binding) = published
        && let Some(host_port) = config::port(binding.host_port.as_deref())
    {
        let ip = binding.host_ip.clone();
        let ip = ip.filter(|ip| !ip.is_empty() && ip != "0.0.0.0");
        return Ok((ip.unwrap_or_else(|| config::LOOPBACK.to_owned()), host_port));
    }
    // A network without published ports, where it has an address of its own.
    let networks = network.and_then(|network| network.networks.as_ref());
    let ip = networks
        .into_iter()
        .flat_map(|networks| networks.values())
        .find_map(|endpoint| endpoint.ip_address.clone().filter(|ip| !ip.is_empty()));
    ip.map(|ip| (ip, port))
        .ok_or_else(|| "the engine gives containers no network".to_owned())
}

/// Removes a container that is to be none.
async fn undo(docker: &Docker, id: &str) {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true);
    match docker.remove_container(id, Some(options.build())).await {
        Err(error) if !engine::is_unknown(&error) => {
            // A later Start of the dyno finds it, or the next driver.
            let error = errors::chain(&error);
            tracing::warn!(container = id, error, "failed to remove a container");
        }
        _ => {}
    }
}
