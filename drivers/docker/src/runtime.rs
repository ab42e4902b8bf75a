//! The driver: what it is, and what each part of it is asked for.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use hsup_driver_kit::{
    CancellationToken, Status, clock, hex,
    proto::{BuildRequest, Capability, Durability, StartRequest},
    serve::Peer,
    service::{BuildLog, Identity, Names, Record, RecoverError, Recovered, Runtime},
};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::sync::Semaphore;

use crate::{
    any::AnyDyno,
    artifact::Artifact,
    claim::Claimed,
    config,
    connect::TlsError,
    context::{Host, HostError},
    cursor::Cursors,
    engine::Engine,
    images::{self, Owner},
    place::{PlaceError, Places},
    remembered::Remembered,
    swarm::{self, Cluster, Hold, Networks, Wish, wish::WishError},
};

/// How many dynos are started at a time.
const AT_ONCE: usize = 16;

/// The driver cannot begin.
#[derive(Debug, Error)]
pub(crate) enum OpenError {
    #[error("failed to find out where the Docker engine is")]
    Host(#[from] HostError),
    #[error("failed to prepare for TLS with the Docker engine")]
    Tls(#[source] TlsError),
    #[error(transparent)]
    Images(#[from] images::settings::SettingsError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Swarm(#[from] WishError),
    #[error("failed to make a folder for how far logs were passed on")]
    Cursors(#[source] io::Error),
}

/// A user, and an artifact of which something is known.
type OfUser = (u32, String);

/// The driver. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct DockerDriver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Engine,
    images: images::Settings,
    places: Places,
    cursors: Cursors,
    /// What tells this machine from others.
    machine: Vec<u8>,
    /// What this driver is called among others on the engine: what its dynos are known by.
    home: String,
    /// Whether that is the same the next time.
    is_found_again: bool,
    durability: Durability,
    /// What is so for every request that says nothing else.
    wish: Wish,
    cluster: Cluster,
    /// Of a driver that is there for the Swarm.
    _hold: Option<Hold>,
    networks: Networks,
    /// How many services it has asked for.
    attempts: AtomicU64,
    /// An engine starts no more dynos in the same time when it is asked for all at once, and
    /// everything else waits.
    turns: Semaphore,
    missing: Remembered<OfUser>,
    claims: Remembered<Claimed>,
}

impl DockerDriver {
    /// Finds the engine; one that is down is waited for.
    pub(crate) async fn open(
        host: Option<&OsStr>,
        socket: Option<&Path>,
        wish: Wish,
    ) -> Result<Self, OpenError> {
        let variable = |name: &str| std::env::var(name).ok();
        let given = host.map(OsStr::to_string_lossy);
        let host = Host::find(given.as_deref(), variable)?;
        let places = Places::new(host.clone(), variable)?;
        let engine = Engine::open(host).await.map_err(OpenError::Tls)?;
        // Where there is none, an engine of another machine is told apart by nothing.
        let machine = fs::read("/etc/machine-id").unwrap_or_default();
        let home = home(&machine, socket);
        let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty());
        let cursors = Cursors::open(runtime_dir.as_deref().map(Path::new), &home);
        let is_exact = engine.now().is_ok_and(|up| up.traits.live_restore);
        let cluster = Cluster::new(engine.clone(), home.clone());
        let images = images::Settings::new(&home, variable)?;
        tokio::spawn(images.workshops.clone().begin(engine.clone()));
        Ok(Self(Arc::new(Inner {
            _hold: wish.swarm.then(|| cluster.hold()),
            wish,
            cluster,
            networks: Networks::default(),
            // Not those of an earlier process.
            attempts: AtomicU64::new(clock::now_unix_ms().unsigned_abs() << 16),
            cursors: cursors.map_err(OpenError::Cursors)?,
            engine,
            images,
            places,
            machine,
            home,
            is_found_again: socket.is_some(),
            durability: if is_exact {
                Durability::Exact
            } else {
                Durability::Survives
            },
            turns: Semaphore::new(AT_ONCE),
            missing: Remembered::default(),
            claims: Remembered::default(),
        })))
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub(crate) fn cursors(&self) -> &Cursors {
        &self.0.cursors
    }

    pub(crate) fn images(&self) -> &images::Settings {
        &self.0.images
    }

    /// Where dynos are reached.
    pub(crate) fn places(&self) -> &Places {
        &self.0.places
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.0.cluster
    }

    pub(crate) fn networks(&self) -> &Networks {
        &self.0.networks
    }

    /// A number that no other call has.
    pub(crate) fn attempt(&self) -> u64 {
        self.0.attempts.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether its dynos run on a Swarm unless a request says otherwise.
    pub(crate) fn is_on_swarm(&self) -> bool {
        self.0.wish.swarm
    }

    pub(crate) fn home(&self) -> &str {
        &self.0.home
    }

    /// The artifacts that the engine did not have for a user. Every other one it may have: to ask
    /// would take long, and a Start does.
    pub(crate) fn missing(&self) -> &Remembered<OfUser> {
        &self.0.missing
    }

    /// The artifacts that are a user's to start a release's dynos from.
    pub(crate) fn claims(&self) -> &Remembered<Claimed> {
        &self.0.claims
    }

    /// Whose the images of a user are in a registry.
    pub(crate) fn owner(&self, uid: u32) -> Owner<'_> {
        Owner {
            machine: &self.0.machine,
            uid,
            driver: self.home(),
        }
    }
}

impl Runtime for DockerDriver {
    type Dyno = AnyDyno;

    fn identity(&self) -> Identity {
        Identity {
            name: "docker",
            version: env!("CARGO_PKG_VERSION"),
            capabilities: &[
                Capability::StdioFifo,
                Capability::Signal,
                Capability::Stats,
                Capability::Attach,
                Capability::OwnNetwork,
                Capability::Binds,
                Capability::Limits,
            ],
            durability: self.0.durability,
            options: swarm::wish::KEYS,
            images: true,
            names: Names::Any,
        }
    }

    fn ready(&self) -> Result<(), String> {
        self.engine().ready()?;
        self.0.cluster.ready()
    }

    async fn recover(&self) -> Result<Vec<Recovered<AnyDyno>>, RecoverError> {
        if !self.0.is_found_again {
            return Ok(Vec::new());
        }
        self.find_dynos().await
    }

    async fn slug_changed(&self, peer: Peer, path: &Path) -> Option<Vec<u8>> {
        images::slug_changed(&self.0.images, peer, path).await
    }

    async fn build(
        &self,
        peer: Peer,
        request: BuildRequest,
        log: BuildLog,
    ) -> Result<String, Status> {
        let wish = self.0.wish.with(&request.options).map_err(Status::from)?;
        let up = self.engine().now()?;
        let release = request.release.unwrap_or_default();
        if wish.swarm {
            // Before anything is fetched for nobody.
            images::publishable(wish.registry.as_deref(), &release)?;
            swarm::manager(&up).await?;
        }
        let (docker, settings) = (&up.docker, &self.0.images);
        let mut built = images::build(docker, settings, peer, &release, &log).await?;
        if wish.swarm {
            let registry = wish.registry.as_deref();
            let owner = self.owner(peer.uid.as_raw());
            let published =
                images::publish(docker, settings, registry, owner, &release, built, &log);
            built = published.await?;
        }
        let artifact = built.to_string();
        let uid = peer.uid.as_raw();
        self.missing().remove(&(uid, artifact.clone()));
        self.claims().add(Claimed {
            uid,
            app: release.app,
            release: release.version,
            artifact: artifact.clone(),
        });
        Ok(artifact)
    }

    fn has_artifact(&self, peer: Peer, artifact: &str) -> bool {
        let key = (peer.uid.as_raw(), artifact.to_owned());
        artifact.parse::<Artifact>().is_ok() && !self.missing().has(&key)
    }

    async fn remove_artifact(&self, peer: Peer, artifact: &str) -> Result<(), Status> {
        let Ok(parsed) = artifact.parse() else {
            return Ok(());
        };
        let docker = self.engine().now()?.docker;
        let uid = peer.uid.as_raw();
        images::remove(&docker, uid, &parsed).await?;
        self.missing().add((uid, artifact.to_owned()));
        Ok(())
    }

    async fn start(
        &self,
        peer: Peer,
        request: StartRequest,
        record: Record,
        cancelled: CancellationToken,
    ) -> Result<AnyDyno, Status> {
        let wish = self.0.wish.with(&request.options).map_err(Status::from)?;
        if wish.swarm && !swarm::stays(&request) {
            let started = self.start_service(&wish, peer, request, record, cancelled);
            return started.await.map(AnyDyno::Placed);
        }
        // It is never closed.
        let _turn = self.0.turns.acquire().await.ok();
        let membership = if wish.swarm && config::is_one_off(&request) {
            self.join_network(peer.uid.as_raw(), &request.app).await
        } else {
            None
        };
        let membership = membership.map(Arc::new);
        let started = self.start_dyno(peer, request, record, cancelled, membership.clone());
        let started = started.await;
        if let (Err(_), Some(membership)) = (&started, &membership) {
            membership.end();
        }
        started.map(AnyDyno::Contained)
    }

    async fn end(&self) {
        self.networks().close().await;
        self.cursors().close();
    }
}

/// A driver is known by its socket, and by the machine: others may use the same engine.
fn home(machine: &[u8], socket: Option<&Path>) -> String {
    let mut hash = Sha256::new();
    hash.update(machine);
    match socket {
        Some(path) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
            hash.update(path.as_os_str().as_bytes());
        }
        // Nobody finds it again.
        None => hash.update(std::process::id().to_le_bytes()),
    }
    hex::encode(&hash.finalize()[..8])
}
