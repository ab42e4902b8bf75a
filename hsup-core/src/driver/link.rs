//! One task that keeps hsup connected to its driver.
//!
//! It starts the driver when that is hsup's business, connects, asks who it is, repeats
//! the question as a health check, and when the connection ends begins anew. What it knows
//! is published as a [`Link`]; whoever calls the driver takes the [`Up`] of the moment and,
//! when a call fails because the connection did, waits for the next one.
//!
//! A driver that is down never means that its dynos are: the task decides nothing about
//! dynos, but for those that a dead child driver of durability NONE left behind, be it of this
//! life of hsup or of an earlier one. Nobody else will ever stop them, and they are killed
//! before the driver is started again.

mod child;
mod connect;
mod previous;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hsup_driver_kit::{client::Capabilities, launch::Child};
use hsup_proto::driver::{Durability, GetInfoResponse};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::connect::{Established, Failure, ask};
use super::{DriverNote, DriverSpec, Link, Previous, Up};

/// What is known of a driver before anything is.
pub const NOT_YET: &str = "not connected yet";
/// How often a driver is asked how it does, and how long it may take (docs/driver-rules.md §8).
const HEALTH_EVERY: Duration = Duration::from_secs(10);
const HEALTH_WITHIN: Duration = Duration::from_secs(1);
/// How often one is asked that is not ready yet: everybody waits for it.
const READINESS_EVERY: Duration = Duration::from_secs(1);
/// A driver that lived so long is started again at once when it ends.
const STEADY: Duration = Duration::from_secs(5);
/// How long a child driver may take to end when hsup does.
const END_WITHIN: Duration = Duration::from_secs(10);
/// How many answers a driver may miss before it is called silent.
const MISSES: u32 = 3;

/// What the link needs to know.
#[derive(Clone, Debug)]
pub struct LinkSettings {
    /// Which driver.
    pub spec: DriverSpec,
    /// hsup's own program, which acts as the simple driver.
    pub own_program: PathBuf,
    /// Where a child driver listens: in a folder of hsup's own (0700).
    pub socket: PathBuf,
    /// What lives of hsup before and after this one have to do with it; `None`: this is the
    /// only one.
    pub lives: Option<Lives>,
}

/// See [`LinkSettings::lives`].
#[derive(Clone, Debug)]
pub struct Lives {
    /// The driver of an earlier life: it may still serve.
    pub previous: Option<Previous>,
    /// Where the next one finds this one's.
    pub note: DriverNote,
    /// Under which both know their dynos.
    pub supervisor_id: String,
    /// What those have between SIGTERM and SIGKILL.
    pub grace: Duration,
}

/// The front of the link's task.
#[derive(Debug)]
pub struct DriverLink {
    is_child: bool,
    state: watch::Receiver<Link>,
    ending: CancellationToken,
    task: JoinHandle<()>,
}

impl DriverLink {
    /// Starts to connect.
    ///
    /// # Errors
    /// When signals cannot be received.
    pub fn start(settings: LinkSettings) -> std::io::Result<Self> {
        let (publish, state) = watch::channel(Link::Down {
            why: NOT_YET.to_owned(),
            hopeless: false,
            dynos_ended: false,
            last: None,
        });
        let ending = CancellationToken::new();
        let is_child = matches!(settings.spec, DriverSpec::Child(_));
        let lives = settings.lives.as_ref();
        let task = LinkTask {
            children: signal(SignalKind::child())?,
            previous: lives.and_then(|lives| lives.previous.clone()),
            settings,
            publish,
            child: None,
            last: None,
            dynos_ended: false,
        };
        Ok(Self {
            is_child,
            state,
            task: tokio::spawn(task.run(ending.clone())),
            ending,
        })
    }

    /// To a driver that somebody else looks after.
    #[cfg(test)]
    pub(crate) fn to(state: watch::Receiver<Link>) -> Self {
        Self {
            is_child: false,
            state,
            ending: CancellationToken::new(),
            task: tokio::spawn(async {}),
        }
    }

    /// Whether hsup starts the driver itself.
    pub const fn is_child(&self) -> bool {
        self.is_child
    }

    /// Has the driver end, as [`DriverLink::end`] does, beside what the caller still has to do.
    pub fn begin_to_end(&self) {
        self.ending.cancel();
    }

    /// Ends a driver that hsup started, now or in an earlier life, with whatever dynos it
    /// still has.
    pub async fn end(&mut self) {
        self.begin_to_end();
        if let Err(error) = (&mut self.task).await {
            warn!(%error, "driver link failed");
        }
    }

    /// What is known now and from now on.
    pub fn watch(&self) -> watch::Receiver<Link> {
        self.state.clone()
    }
}

impl Drop for DriverLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task behind a [`DriverLink`].
struct LinkTask {
    settings: LinkSettings,
    publish: watch::Sender<Link>,
    children: Signal,
    child: Option<Child>,
    /// The driver of an earlier life, as long as it may serve.
    previous: Option<Previous>,
    /// What the driver that was there last said of itself; `None`: none ever was.
    last: Option<Arc<GetInfoResponse>>,
    /// That one has ended, and its dynos with it.
    dynos_ended: bool,
}

impl LinkTask {
    async fn run(mut self, ending: CancellationToken) {
        tokio::select! {
            biased;
            () = ending.cancelled() => {}
            () = self.stay_connected() => ending.cancelled().await,
        }
        self.end_child().await;
        self.announce("it was ended".to_owned(), false);
        // One of an earlier life that still has dynos of ours is for the next life to find.
        if let (Some(lives), None) = (&self.settings.lives, &self.previous) {
            lives.note.remove();
        }
    }

    async fn stay_connected(&mut self) {
        let mut failures = 0u32;
        loop {
            match self.establish().await {
                Ok(established) => {
                    let begun = Instant::now();
                    self.last = Some(Arc::new(established.info.clone()));
                    let why = self.watch_connection(established).await;
                    warn!(why, "driver gone");
                    self.clean_up_after_child().await;
                    self.announce(why, false);
                    if begun.elapsed() >= STEADY {
                        failures = 0;
                        // The first attempt to get it back follows at once.
                        continue;
                    }
                }
                Err(failure) => {
                    let hopeless = failure.hopeless && self.last.is_none();
                    debug!(why = failure.why, hopeless, "driver not reached");
                    self.announce(failure.why, hopeless);
                    if hopeless {
                        return;
                    }
                }
            }
            failures = failures.saturating_add(1);
            let wait = Duration::from_millis(50) * 2u32.saturating_pow(failures.min(10));
            self.reaping(sleep(wait.min(Duration::from_secs(30)))).await;
        }
    }

    /// Publishes that there is no driver. The same again is no news.
    fn announce(&self, news: String, is_hopeless: bool) {
        self.publish.send_if_modified(|link| {
            if let Link::Down {
                why,
                hopeless,
                dynos_ended,
                ..
            } = link
                && *why == news
                && (*hopeless, *dynos_ended) == (is_hopeless, self.dynos_ended)
            {
                return false;
            }
            *link = Link::Down {
                why: news,
                hopeless: is_hopeless,
                dynos_ended: self.dynos_ended,
                last: self.last.clone(),
            };
            true
        });
    }

    /// Finds or starts the driver and has it answer.
    async fn establish(&mut self) -> Result<Established, Failure> {
        if let Some(established) = self.meet_previous().await? {
            return Ok(established);
        }
        match self.settings.spec.clone() {
            DriverSpec::Socket(socket) => match self.handshake(&socket, connect::BOOT).await {
                Ok(established) => {
                    self.note_driver(None);
                    Ok(established)
                }
                Err(failure) if failure.nobody => {
                    self.note_end_unseen();
                    Err(self.unless_it_ended(&socket, failure))
                }
                Err(failure) => Err(failure),
            },
            DriverSpec::Child(name) => {
                let Some(child) = self.child.as_ref().filter(|child| child.is_running()) else {
                    return self.launch(&name).await;
                };
                let socket = child.socket().to_owned();
                let answer = self.handshake(&socket, HEALTH_WITHIN).await;
                // Restarted only when its process has ended, never because it is slow.
                answer.map_err(|_| {
                    Failure::passing(format!("the {name} driver runs but does not answer"))
                })
            }
        }
    }

    /// Notes who is to be found by the next life.
    fn note_driver(&self, pid: Option<i32>) {
        if let Some(lives) = &self.settings.lives {
            lives.note.write(&self.settings.spec, pid);
        }
    }

    /// The driver that was just met, for whoever calls it.
    fn up(&self, established: Established) -> Up {
        let Established {
            control,
            waits,
            info,
            socket,
        } = established;
        let previous = self.previous.as_ref().and_then(|previous| previous.pid);
        Up {
            capabilities: Capabilities::of(&info),
            info,
            socket,
            child: matches!(self.settings.spec, DriverSpec::Child(_)),
            silent: false,
            child_pid: self.child.as_ref().map(Child::pid).or(previous),
            control,
            waits,
            gone: CancellationToken::new(),
        }
    }

    /// Publishes the driver and watches it until its connection ends; says why it did.
    async fn watch_connection(&mut self, established: Established) -> String {
        info!(
            name = established.info.name,
            version = established.info.version,
            ready = established.info.ready,
            "driver connected"
        );
        let mut up = self.up(established);
        let (control, waits) = (up.control.clone(), up.waits.clone());
        self.dynos_ended = false;
        self.publish.send_replace(Link::Up(Arc::new(up.clone())));

        let mut misses = 0;
        let mut health = interval_at(Instant::now() + HEALTH_EVERY, HEALTH_EVERY);
        health.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if !up.info.ready {
            health.reset_after(READINESS_EVERY);
        }
        let another = loop {
            tokio::select! {
                () = control.closed() => break false,
                () = waits.closed() => break false,
                _ = self.children.recv() => self.reap(),
                _ = health.tick() => {
                    match check_health(&mut up, &mut misses).await {
                        Health::Same => {}
                        Health::Changed => {
                            self.publish.send_replace(Link::Up(Arc::new(up.clone())));
                        }
                        Health::AnotherInstance => break true,
                    }
                    if !up.info.ready {
                        health.reset_after(READINESS_EVERY);
                    }
                }
            }
        };
        // Whoever waits for an answer waits for the next driver instead: the connection may
        // well go on, and the other instance knows nothing of what was asked before.
        up.gone.cancel();
        if another {
            return "the driver became another instance on the same connection".to_owned();
        }
        // A child that has just died is a zombie by now or within a moment: the connection
        // ends as the kernel closes the dead process's descriptors.
        if self.child.is_some() {
            let gone = async {
                while self.child.as_ref().is_some_and(Child::is_running) {
                    self.children.recv().await;
                    Self::reap_into(self.child.as_mut());
                }
            };
            let _ = timeout(Duration::from_millis(200), gone).await;
            self.reap();
        }
        match &self.child {
            Some(child) if !child.is_running() => {
                let said = child.last_output().await;
                format!("the driver ended ({}){said}", child.how_it_ended())
            }
            _ => "the connection to the driver was lost".to_owned(),
        }
    }

    /// Why there is nobody at `socket`: nobody was yet, or the driver that was has ended.
    fn unless_it_ended(&self, socket: &Path, failure: Failure) -> Failure {
        if self.last.is_none() {
            return failure;
        }
        Failure {
            why: format!(
                "the driver at `{}` ended, and nobody listens there any more",
                socket.display()
            ),
            ..failure
        }
    }

    /// Whether the driver that was there last has no dynos any more when it ends.
    fn dynos_end_with_it(&self) -> bool {
        let last = self.last.as_ref();
        last.is_some_and(|info| info.durability() == Durability::None)
    }
}

/// What a health check has shown.
enum Health {
    /// Nothing new.
    Same,
    /// Something that whoever calls the driver should know.
    Changed,
    /// The driver is not the one that was connected to.
    AnotherInstance,
}

/// Asks the driver how it does, and counts the answers in a row that it has missed.
async fn check_health(up: &mut Up, misses: &mut u32) -> Health {
    let before = (up.silent, up.info.clone());
    match timeout(HEALTH_WITHIN, ask(&up.control)).await {
        Ok(Ok(info)) => {
            if info.instance_id != up.info.instance_id {
                return Health::AnotherInstance;
            }
            *misses = 0;
            up.info = info;
        }
        _ => *misses += 1,
    }
    up.silent = *misses >= MISSES;
    if before == (up.silent, up.info.clone()) {
        Health::Same
    } else {
        Health::Changed
    }
}
