//! Starting a dyno: its container and its streams.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::Arc,
};

use bollard::{
    Docker,
    errors::Error,
    query_parameters::{CreateContainerOptionsBuilder, StartContainerOptions},
};
use hsup_driver_kit::{
    CancellationToken, Status, errors,
    fifo::{self, Fifos},
    proto::StartRequest,
    pty::WindowSize,
    serve::Peer,
    service::{Record, Terminal as _},
};
use nix::{
    sys::stat::{SFlag, fstat},
    unistd::Uid,
};

use crate::{
    api::{Container, Network},
    artifact::{Artifact, Kind},
    attach::{self, Reads, Streams, Writes},
    config::{self, Order, Stdin},
    dyno::{Contained, Parts, Writing},
    engine::{self, Up},
    images::{self, Claim},
    life::Known,
    logs::{Copy, Output, Source},
    place::Place,
    runtime::DockerDriver,
    swarm::Membership,
    terminal::Remote,
};

/// The streams of the two outputs, in the order of their copies.
const OUTPUTS: [Streams; 2] = [Streams::Stdout, Streams::Stderr];

/// What a dyno reads and writes, opened.
pub(crate) struct Opened {
    stdin: Option<OwnedFd>,
    pub(crate) outputs: [OwnedFd; 2],
    pub(crate) kept: [OwnedFd; 2],
}

/// Who needs the image of a dyno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunsOn {
    /// The driver's own engine.
    Engine,
    /// A node of the Swarm.
    Swarm,
}

impl DockerDriver {
    /// Starts a dyno; what goes wrong leaves no container.
    pub(crate) async fn start_dyno(
        &self,
        peer: Peer,
        request: StartRequest,
        record: Record,
        cancelled: CancellationToken,
        membership: Option<Arc<Membership>>,
    ) -> Result<Contained, Status> {
        let artifact: Artifact = request.artifact.parse().map_err(|_| unknown(&request))?;
        check(&request, peer.uid, artifact.kind)?;
        let up = self.engine().now()?;
        let uid = peer.uid.as_raw();
        let opened = if request.tty {
            None
        } else {
            Some(open(&request.io_dir, uid)?)
        };
        let image_env = self.image_env_of(&up.docker, uid, &request, &artifact, RunsOn::Engine);
        let image_env = image_env.await?;
        let stdin = match &opened {
            None => Stdin::Terminal,
            Some(Opened { stdin: Some(_), .. }) => Stdin::Fifo,
            Some(_) => Stdin::Nothing,
        };
        let place = match config::published(&request) {
            Some(_) => self.places().find().await,
            None => Ok(Place::LOOPBACK),
        };
        let place = place.map_err(|error| Status::failed_precondition(errors::chain(&error)))?;
        let order = Order {
            request: &request,
            artifact: &artifact,
            record: &record,
            home: self.home(),
            uid,
            stdin,
            publish: place.publish,
            network: membership.as_deref().map(Membership::network),
            image_env: &image_env,
            traits: up.traits,
        };
        let id = self.create(&up, &order).await?;
        let started = self.begin(&up, &id, &order, place, opened, membership.clone());
        let result = match cancelled.run_until_cancelled(started).await {
            Some(result) => result,
            None => Err(Status::aborted("the dyno is to be stopped already")),
        };
        if result.is_err() {
            self.undo(id).await;
        }
        result
    }

    /// The names of the variables that a dyno has of its image, if its caller may have that.
    pub(crate) async fn image_env_of(
        &self,
        docker: &Docker,
        uid: u32,
        request: &StartRequest,
        artifact: &Artifact,
        runs_on: RunsOn,
    ) -> Result<Vec<String>, Status> {
        match artifact.kind {
            // hsup-init makes the environment.
            Kind::Slug { .. } => match self.claim(docker, uid, request, artifact).await? {
                Claim::Good => Ok(Vec::new()),
                Claim::Missing => match runs_on {
                    RunsOn::Engine => Err(self.missed(uid, request)),
                    // The nodes pull it from the registry, where its name says whose it is.
                    RunsOn::Swarm if self.owner(uid).has(&artifact.image, &request.app) => {
                        Ok(Vec::new())
                    }
                    RunsOn::Swarm => Err(unknown(request)),
                },
                Claim::Anothers => Err(unknown(request)),
            },
            Kind::Plain | Kind::Cnb => self.image_env(docker, uid, request, artifact).await,
        }
    }

    /// The names of the variables that the image sets, if it is the caller's.
    async fn image_env(
        &self,
        docker: &Docker,
        uid: u32,
        request: &StartRequest,
        artifact: &Artifact,
    ) -> Result<Vec<String>, Status> {
        match docker.inspect_image(&artifact.image).await {
            Ok(image) if images::is_anothers(&image, uid) => Err(unknown(request)),
            Ok(image) => {
                let env = image.config.and_then(|config| config.env);
                let name = |text: String| text.split('=').next().unwrap_or_default().to_owned();
                Ok(env.unwrap_or_default().into_iter().map(name).collect())
            }
            Err(error) if engine::is_unknown(&error) => Err(self.missed(uid, request)),
            Err(error) => Err(self.failed("look for an image", &error)),
        }
    }

    /// Makes the container, in the place of what an earlier start may have left.
    async fn create(&self, up: &Up, order: &Order<'_>) -> Result<String, Status> {
        let name = config::name(order.uid, &order.request.dyno_id);
        let mut is_first = true;
        loop {
            let options = CreateContainerOptionsBuilder::new().name(&name).build();
            let body = config::container(order);
            match up.docker.create_container(Some(options), body).await {
                Ok(made) => return Ok(made.id),
                Err(error) if engine::code(&error) == Some(409) && is_first => {
                    is_first = false;
                    let room = self.make_room(up, &name).await;
                    if !room.map_err(|error| self.failed("remove a container", &error))? {
                        return Err(Status::already_exists(format!(
                            "the engine has a container `{name}` already, which this driver did \
                             not start"
                        )));
                    }
                }
                Err(error) if engine::is_unknown(&error) => {
                    return Err(self.missed(order.uid, order.request));
                }
                // What it may have made nevertheless has never run: a later Start of the dyno finds
                // it, or the next driver.
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
        place: Place,
        opened: Option<Opened>,
        membership: Option<Arc<Membership>>,
    ) -> Result<Contained, Status> {
        let gone = CancellationToken::new();
        // Until this is a dyno's nobody else ends what begins here.
        let guard = gone.clone().drop_guard();
        let engine = self.engine();
        let mut terminal = None;
        let mut stdin = None;
        let opened = match opened {
            None => {
                terminal = Some(self.open_terminal(up, id, gone.clone()).await?);
                None
            }
            Some(mut opened) => {
                if let Some(fifo) = opened.stdin.take() {
                    stdin = Some((fifo, self.attach(up, id, Streams::Stdin).await?));
                }
                Some(opened)
            }
        };
        let is_asked = config::is_one_off(order.request);
        let writing = match opened {
            Some(opened) => {
                let source = Source::Container(id.to_owned());
                let mut writing = self.writing(&source, opened.outputs, opened.kept)?;
                // Somebody waits for all that it writes. Podman sends each stream to whoever is
                // attached to any.
                if is_asked && !up.traits.is_podman {
                    for ((_, stream), what) in writing.copies.iter_mut().zip(OUTPUTS) {
                        let (reads, _) = self.attach(up, id, what).await?;
                        *stream = Some(reads);
                    }
                }
                writing
            }
            None => Writing::default(),
        };
        let options = None::<StartContainerOptions>;
        let started = up.docker.start_container(id, options).await;
        // Never for the command, which an init begins.
        started.map_err(|error| self.failed("start a container", &error))?;
        if let Some(terminal) = &terminal {
            terminal.keep_size(engine.clone(), id.to_owned(), gone.clone());
            let sized = terminal.resize(WindowSize::wanted(order.request));
            sized.map_err(|error| errors::internal("set the size of a terminal", &error))?;
        }
        if let Some((fifo, attached)) = stdin {
            feed_stdin(fifo, attached, gone.clone());
        }
        let address = if is_asked {
            Err("a one-off dyno is not reached".to_owned())
        } else {
            let found = up.api.inspect(id).await;
            let found = found.map_err(|error| self.failed("look at a container", &error))?;
            address(&found, config::published(order.request), place)
        };
        let parts = Parts {
            engine: engine.clone(),
            cursors: self.cursors().clone(),
            id: id.to_owned(),
            kind: order.artifact.kind,
            known: Known::FromStart,
            address,
            terminal,
            membership,
        };
        Ok(Contained::watch(parts, writing, guard.disarm()))
    }

    /// Attaches to streams of a container that has not been started yet.
    async fn attach(&self, up: &Up, id: &str, what: Streams) -> Result<(Reads, Writes), Status> {
        let connector = self.engine().connector();
        let attaching = async {
            if up.traits.is_podman {
                attach::initialise(connector, id).await?;
            }
            attach::attach(connector, id, what).await
        };
        attaching.await.map_err(|error: io::Error| {
            Status::unavailable(format!("failed to attach to a container: {error}"))
        })
    }

    /// The terminal of a container, before its first instruction: or its first words would be
    /// nobody's. `gone` says when it has ended.
    async fn open_terminal(
        &self,
        up: &Up,
        id: &str,
        gone: CancellationToken,
    ) -> Result<Remote, Status> {
        let both = self.attach(up, id, Streams::Terminal).await?;
        let known = self.cursors().know(id);
        known.map_err(|error| {
            Status::internal(format!("failed to remember a container: {error}"))
        })?;
        Ok(Remote::new(
            self.engine().clone(),
            id.to_owned(),
            both,
            gone,
        ))
    }

    /// What passes on the two outputs of a dyno.
    pub(crate) fn writing(
        &self,
        source: &Source,
        [stdout, stderr]: [OwnedFd; 2],
        kept: [OwnedFd; 2],
    ) -> Result<Writing, Status> {
        let failed =
            |error: io::Error| errors::internal("prepare to pass on what a dyno writes", &error);
        let passed = Arc::default();
        let copy = |output: Output, fifo| {
            let cursor = self.cursors().file(source.id(), output.name())?;
            let engine = self.engine().clone();
            Copy::new(
                engine,
                source.clone(),
                output,
                fifo,
                cursor,
                Arc::clone(&passed),
            )
        };
        let stdout = copy(Output::Stdout, stdout).map_err(failed)?;
        let stderr = copy(Output::Stderr, stderr).map_err(failed)?;
        Ok(Writing {
            copies: vec![(stdout, None), (stderr, None)],
            passed,
            kept: Some(kept),
        })
    }

    /// The engine does not have what a Start wants; hsup has it built anew.
    fn missed(&self, uid: u32, request: &StartRequest) -> Status {
        self.missing().add((uid, request.artifact.clone()));
        unknown(request)
    }

    pub(crate) fn failed(&self, operation: &str, error: &Error) -> Status {
        self.engine().suspect();
        engine::status(operation, error)
    }
}

/// Passes on to a dyno what its supervisor writes, until it is gone.
fn feed_stdin(fifo: OwnedFd, (reads, writes): (Reads, Writes), gone: CancellationToken) {
    tokio::spawn(async move {
        let both = async { tokio::join!(attach::feed(fifo, writes), attach::drain(reads)) };
        if let Some((Err(error), ())) = gone.run_until_cancelled(both).await {
            tracing::debug!(%error, "a dyno reads no more");
        }
    });
}

pub(crate) fn unknown(request: &StartRequest) -> Status {
    Status::not_found(format!(
        "artifact `{}` is not in the engine",
        request.artifact
    ))
}

/// What the engine would not refuse.
pub(crate) fn check(request: &StartRequest, uid: Uid, kind: Kind) -> Result<(), Status> {
    let is_ours = uid.is_root() || uid == Uid::effective();
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
pub(crate) fn open(io_dir: &str, uid: u32) -> Result<Opened, Status> {
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
    found: &Container,
    given: Option<&str>,
    place: Place,
) -> Result<(String, u16), String> {
    let port = config::port(given).ok_or_else(|| {
        "PORT in the dyno's environment is missing, or no number from 1 to 65535".to_owned()
    })?;
    let Network { ports, networks } = &found.network_settings;
    let published = ports.get(&config::exposed(port));
    let published = published.and_then(|bindings| bindings.as_ref()?.first());
    if let Some(binding) = published
        && let Some(host_port) = config::port(Some(&binding.host_port))
    {
        return Ok((place.reached(&binding.host_ip), host_port));
    }
    // A network without published ports, where it has an address of its own.
    let mut addresses = networks.values().map(|endpoint| &endpoint.ip_address);
    addresses
        .find(|ip| !ip.is_empty())
        .map(|ip| (ip.clone(), port))
        .ok_or_else(|| "the engine gives containers no network".to_owned())
}

#[cfg(test)]
mod tests {
    use hsup_driver_kit::proto::Bind;

    use super::*;

    #[test]
    fn binds_are_for_the_drivers_user_and_root() {
        let mut request = StartRequest {
            argv: vec!["env".to_owned()],
            ..StartRequest::default()
        };
        let own = Uid::effective();
        let stranger = Uid::from_raw(own.as_raw() + 1);
        let refused = |request: &StartRequest, uid| {
            let refused = check(request, uid, Kind::Plain).err();
            refused.map(|status| format!("{:?}", status.code()))
        };
        assert_eq!(refused(&request, stranger), None);
        request.binds = vec![Bind {
            host_path: "/etc".to_owned(),
            dyno_path: "/host".to_owned(),
            writable: false,
        }];
        assert_eq!(
            refused(&request, stranger).as_deref(),
            Some("PermissionDenied")
        );
        for uid in [own, Uid::from_raw(0)] {
            assert_eq!(refused(&request, uid), None);
        }
    }
}
