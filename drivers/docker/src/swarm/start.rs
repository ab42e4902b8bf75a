//! Starting a dyno on the Swarm: its service, and the wait for its task.

use std::{net::Ipv4Addr, path::Path, sync::Arc, time::Duration};

use hsup_driver_kit::{
    CancellationToken, Status, proto::StartRequest, serve::Peer, service::Record,
};
use tokio::time;

use super::{
    dyno::{Parts, Placed},
    fate::Fate,
    model::Node,
    spec, stop,
    view::View,
    wish::Wish,
};
use crate::{
    artifact::Artifact,
    config::{self, Order, Stdin},
    engine::{self, Up},
    images,
    logs::Source,
    runtime::DockerDriver,
    start::{self, RunsOn},
};

/// How many looks at the Swarm a port may take to be known once its dyno runs.
const PORT_LOOKS: usize = 40;

/// How long a Start that failed waits, besides the dyno's grace, for nothing to be left of it.
const UNDONE: Duration = Duration::from_secs(5);

/// Whether a dyno stays on the driver's own engine: one with an input or a terminal, which a Swarm
/// has no way to, and so all one-off dynos.
pub(crate) fn stays(request: &StartRequest) -> bool {
    let stdin = Path::new(&request.io_dir).join("stdin");
    request.tty || config::is_one_off(request) || stdin.exists()
}

impl DockerDriver {
    /// Starts a dyno on the Swarm; what goes wrong leaves no service.
    pub(crate) async fn start_service(
        &self,
        wish: &Wish,
        peer: Peer,
        request: StartRequest,
        record: Record,
        cancelled: CancellationToken,
    ) -> Result<Placed, Status> {
        let artifact: Artifact = request
            .artifact
            .parse()
            .map_err(|_| start::unknown(&request))?;
        start::check(&request, peer.uid, artifact.kind)?;
        let up = self.engine().now()?;
        // Nobody is to depend on a Swarm that is not there.
        let usable = self.cluster().usable(&up).await;
        usable.map_err(Status::unavailable)?;
        let _haste = self.cluster().hurry();
        let uid = peer.uid.as_raw();
        let opened = start::open(&request.io_dir, uid)?;
        let image_env = self.image_env_of(&up.docker, uid, &request, &artifact, RunsOn::Swarm);
        let image_env = image_env.await?;
        let order = Order {
            request: &request,
            artifact: &artifact,
            record: &record,
            home: self.home(),
            uid,
            stdin: Stdin::Nothing,
            // The node's own affair.
            publish: Ipv4Addr::UNSPECIFIED.into(),
            network: None,
            image_env: &image_env,
            traits: up.traits,
        };
        let membership = self.enter_network(&up.docker, uid, &request.app).await?;
        let network = membership.network();
        let made = self.make_service(&up, &order, wish, network).await;
        let service = match made {
            Ok(service) => service,
            Err(status) => {
                membership.end();
                return Err(status);
            }
        };
        let starting = self.until_it_runs(&service, uid, &request);
        let started = match cancelled.run_until_cancelled(starting).await {
            Some(started) => started,
            None => Err(Status::aborted("the dyno is to be stopped already")),
        };
        let writing = started.and_then(|()| {
            let source = Source::Service(service.clone(), self.cluster().clone());
            self.writing(&source, opened.outputs, opened.kept)
        });
        match writing {
            Ok(writing) => Ok(Placed::watch(
                Parts {
                    driver: self.clone(),
                    service,
                    membership,
                    has_port: spec::port(&request).is_some(),
                },
                writing,
            )),
            Err(status) => {
                self.cursors().forget(&service);
                let driver = self.clone();
                let retiring = tokio::spawn(async move {
                    stop::retire(driver.engine(), driver.cluster(), &service).await;
                    membership.end();
                });
                // Whoever is told starts another one. A manager that is away is not waited for.
                drop(time::timeout(wish.grace + UNDONE, retiring).await);
                Err(status)
            }
        }
    }

    /// Makes the service, in the place of what an earlier Start may have left.
    async fn make_service(
        &self,
        up: &Up,
        order: &Order<'_>,
        wish: &Wish,
        network: &str,
    ) -> Result<String, Status> {
        let image = &order.artifact.image;
        let login = self.images().login(order.uid, image).await;
        let name = spec::name(order.home, order.uid, &order.request.dyno_id);
        let mut is_first = true;
        loop {
            let attempt = format!("{:016x}", self.attempt());
            let service = spec::service(order, wish, network, &attempt);
            match up.docker.create_service(service, login.clone()).await {
                Ok(made) => return Ok(made.id.unwrap_or_default()),
                // Its name says whose it is and what for: nobody else made it.
                Err(error) if engine::code(&error) == Some(409) && is_first => {
                    is_first = false;
                    let retiring = stop::retire_named(self.engine(), self.cluster(), &name);
                    let retired = time::timeout(wish.grace + UNDONE, retiring).await;
                    let still = || Status::unavailable("what an earlier Start left still runs");
                    let retired = retired.map_err(|_| still())?;
                    retired.map_err(|error| self.failed("remove a service", &error))?;
                }
                // It names the variable with its value.
                Err(error) if error.to_string().contains("expanding") => {
                    return Err(Status::invalid_argument(
                        "the Swarm takes the dyno's environment or a bind for a template, and \
                         cannot make anything of it",
                    ));
                }
                Err(error) => {
                    let is_refusal = engine::code(&error).is_some_and(|code| code < 500);
                    if !is_refusal {
                        let driver = self.clone();
                        drop(tokio::spawn(async move {
                            let (engine, cluster) = (driver.engine(), driver.cluster());
                            stop::undo(engine, cluster, &name, &attempt).await;
                        }));
                    }
                    return Err(self.failed("make a service", &error));
                }
            }
        }
    }

    /// Waits for the first process of a dyno, and for its port.
    async fn until_it_runs(
        &self,
        service: &str,
        uid: u32,
        request: &StartRequest,
    ) -> Result<(), Status> {
        let mut views = self.cluster().views();
        let has_port = spec::port(request).is_some();
        let mut looks = 0;
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            match view.fate(service) {
                None => {}
                Some(Fate::Coming { why, is_placed }) if !is_placed && !why.is_empty() => {
                    return Err(Status::resource_exhausted(format!(
                        "the Swarm has no node for the dyno: {why}; it needs one that has the dyno's \
                         limits to spare, and that fits the option `constraints` \
                         (`docker node inspect NODE`)"
                    )));
                }
                Some(Fate::Coming { .. }) => {}
                Some(Fate::Running) => {
                    if !has_port || view.port(service).is_some() || looks > PORT_LOOKS {
                        return Ok(());
                    }
                    looks += 1;
                }
                Some(Fate::Ended(_)) => return Ok(()),
                Some(Fate::Changed) => {
                    return Err(Status::aborted(
                        "somebody else changed the dyno's service while it was started",
                    ));
                }
                Some(Fate::Refused(why)) => {
                    return Err(self.refused(request, uid, &view, service, &why).await);
                }
            }
            if let Err(trouble) = self.cluster().looked() {
                return Err(Status::unavailable(trouble));
            }
            if views.changed().await.is_err() {
                return Err(Status::internal("nobody looks at the Swarm any more"));
            }
        }
    }

    /// A node could not run it.
    async fn refused(
        &self,
        request: &StartRequest,
        uid: u32,
        view: &View,
        service: &str,
        why: &str,
    ) -> Status {
        let node = view.node(service).map_or("of the Swarm", Node::name);
        let text = format!("the node {node} cannot run the dyno: {why}");
        if why.contains("invalid mount config") {
            return Status::failed_precondition(text);
        }
        // So it says whatever went wrong with the registry.
        if !why.contains("No such image") {
            return Status::unavailable(text);
        }
        let artifact = request.artifact.parse::<Artifact>().map(|one| one.image);
        let docker = self.engine().docker().await;
        let image = artifact.unwrap_or_default();
        if images::is_gone(&docker, self.images(), uid, &image).await {
            // hsup has it built anew, and pushed.
            self.missing().add((uid, request.artifact.clone()));
            return Status::not_found(format!(
                "artifact `{}` is not in its registry any more",
                request.artifact
            ));
        }
        Status::unavailable(format!("{text}; is its registry reached from there?"))
    }
}
