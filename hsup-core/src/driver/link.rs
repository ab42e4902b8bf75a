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

mod reach;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hsup_driver_kit::{
    client::{Capabilities, Connection},
    launch::{self, Child},
    orphans,
};
use hsup_proto::driver::{Durability, GetInfoResponse};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::reach::{Failure, ask};
use super::{DriverNote, DriverSpec, Link, Previous, Up, said};

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
        let keeper = Keeper {
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
            task: tokio::spawn(keeper.run(ending.clone())),
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

/// A driver that answered its first question.
struct Established {
    control: Connection,
    waits: Connection,
    info: GetInfoResponse,
    socket: PathBuf,
}

struct Keeper {
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

impl Keeper {
    async fn run(mut self, ending: CancellationToken) {
        tokio::select! {
            biased;
            () = ending.cancelled() => {}
            () = self.keep() => ending.cancelled().await,
        }
        self.end_child().await;
        self.announce("it was ended".to_owned(), false);
        // One of an earlier life that still has dynos of ours is for the next life to find.
        if let (Some(lives), None) = (&self.settings.lives, &self.previous) {
            lives.note.remove();
        }
    }

    /// Ends the child driver and removes the socket that was made for it.
    async fn end_child(&mut self) {
        let Some(child) = &self.child else {
            self.end_previous().await;
            return;
        };
        let socket = child.socket().to_owned();
        self.terminate_child().await;
        // One that was killed before, or did not end in time, has stopped nobody.
        let cleared_up = self.child.as_ref().is_some_and(Child::has_ended_well);
        let (never_up, dynos_die) = (self.last.is_none(), self.dynos_end_with_it());
        if never_up || (dynos_die && !cleared_up) {
            // It did not stop its dynos, or never was a driver: what is left is nobody's.
            let killed = orphans::kill_all().await + orphans::kill_left_by(&socket).await;
            debug!(killed, "killed what the driver left");
        }
        self.dynos_ended = never_up || dynos_die;
        remove_socket(&socket);
    }

    /// Asks the child driver to end, and kills it when it does not.
    async fn terminate_child(&mut self) {
        let deadline = sleep(END_WITHIN);
        tokio::pin!(deadline);
        let mut is_asked = true;
        // Whoever is reaped has no pid any more that could be signalled.
        self.reap();
        if let Some(child) = self.child.as_ref().filter(|child| child.is_running()) {
            launch::terminate(child.pid());
        }
        while self.child.as_ref().is_some_and(Child::is_running) {
            tokio::select! {
                _ = self.children.recv() => self.reap(),
                () = &mut deadline => {
                    warn!(is_asked, "driver did not end in time");
                    if !std::mem::replace(&mut is_asked, false) {
                        break;
                    }
                    if let Some(child) = &self.child {
                        child.kill();
                    }
                    deadline.as_mut().reset(Instant::now() + END_WITHIN);
                }
            }
        }
    }

    /// Ends the driver of an earlier life. It is nobody's child here: its connection's end
    /// tells of its own.
    async fn end_previous(&mut self) {
        let Some(previous) = self.previous.clone() else {
            return;
        };
        let up = match &*self.publish.borrow() {
            Link::Up(up) => Arc::clone(up),
            Link::Down { .. } => return,
        };
        self.terminate_previous(&previous, &up).await;
        self.previous = None;
        self.dynos_ended = previous.pid.is_some() && self.dynos_end_with_it();
    }

    async fn terminate_previous(&self, previous: &Previous, up: &Up) {
        let Some(pid) = previous.pid else {
            // Nobody's child; or its process is not known, and it ends by itself.
            if previous.driver.is_none() {
                remove_socket(&previous.socket);
            }
            return;
        };
        launch::terminate(pid);
        if timeout(END_WITHIN, up.control.closed()).await.is_err() {
            warn!(pid, "driver did not end in time");
            launch::kill(pid);
        }
        orphans::kill_left_by(&previous.socket).await;
        remove_socket(&previous.socket);
    }

    async fn keep(&mut self) {
        let mut failures = 0u32;
        loop {
            match self.establish().await {
                Ok(established) => {
                    let begun = Instant::now();
                    self.last = Some(Arc::new(established.info.clone()));
                    let why = self.tend(established).await;
                    warn!(why, "driver gone");
                    self.bury().await;
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
            DriverSpec::Socket(socket) => match self.greet(&socket, reach::BOOT).await {
                Ok(established) => {
                    self.note(None);
                    Ok(established)
                }
                Err(failure) if failure.nobody => {
                    self.bury_unseen();
                    Err(self.unless_it_ended(&socket, failure))
                }
                Err(failure) => Err(failure),
            },
            DriverSpec::Child(name) => {
                let Some(child) = self.child.as_ref().filter(|child| child.is_running()) else {
                    return self.launch(&name).await;
                };
                let socket = child.socket().to_owned();
                let greeted = self.greet(&socket, HEALTH_WITHIN).await;
                // Restarted only when its process has ended, never because it is slow.
                greeted.map_err(|_| {
                    Failure::passing(format!("the {name} driver runs but does not answer"))
                })
            }
        }
    }

    /// Finds the driver of an earlier life. One that is not the driver wanted now is ended,
    /// with the dynos that it has of ours.
    async fn meet_previous(&mut self) -> Result<Option<Established>, Failure> {
        let Some(previous) = self.previous.clone() else {
            return Ok(None);
        };
        let is_child = matches!(previous.driver, None | Some(DriverSpec::Child(_)));
        let is_wanted = previous.may_be(&self.settings.spec);
        match self.greet(&previous.socket, HEALTH_WITHIN).await {
            Ok(established) if is_wanted => return Ok(Some(established)),
            Ok(established) => self.replace(&previous, established).await?,
            Err(failure) if (is_child || !is_wanted) && !failure.nobody => {
                let why = failure.why;
                let what = if failure.hopeless {
                    "what serves now where an earlier hsup had its driver is of no use"
                } else {
                    "the driver of an earlier hsup runs but does not answer"
                };
                return Err(still_has_dynos(&previous, &format!("{what}: {why}")));
            }
            // It serves no more, or is asked again as the one that is wanted.
            Err(_) => {
                self.bury_unseen();
                if is_child {
                    orphans::kill_left_by(&previous.socket).await;
                }
            }
        }
        self.previous = None;
        Ok(None)
    }

    /// Ends the driver of an earlier life, once none of our dynos runs there.
    async fn replace(&self, previous: &Previous, established: Established) -> Result<(), Failure> {
        let Some(lives) = &self.settings.lives else {
            return Ok(());
        };
        let up = self.up(established);
        info!(name = up.info.name, "ending the driver of an earlier life");
        let cleared = match up.list(&lives.supervisor_id).await {
            Ok(dynos) => super::clear(&up, &dynos, lives.grace).await,
            Err(status) => Err(status),
        };
        if let Err(status) = cleared {
            let (name, why) = (&up.info.name, said(&status));
            let what =
                format!("the {name} driver of an earlier hsup did not stop its dynos: {why}");
            return Err(still_has_dynos(previous, &what));
        }
        self.terminate_previous(previous, &up).await;
        Ok(())
    }

    /// Notes who is to be found by the next life.
    fn note(&self, pid: Option<i32>) {
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
    async fn tend(&mut self, established: Established) -> String {
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
                    let before = (up.silent, up.info.clone());
                    match timeout(HEALTH_WITHIN, ask(&control)).await {
                        Ok(Ok(info)) => {
                            misses = 0;
                            up.silent = false;
                            if info.instance_id != up.info.instance_id {
                                break true;
                            }
                            up.info = info;
                        }
                        _ => misses += 1,
                    }
                    up.silent = misses >= MISSES;
                    if !up.info.ready {
                        health.reset_after(READINESS_EVERY);
                    }
                    if before != (up.silent, up.info.clone()) {
                        self.publish.send_replace(Link::Up(Arc::new(up.clone())));
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

    /// After a child driver has ended: kills what it left, if nobody else ever will.
    async fn bury(&mut self) {
        let ended = self.child.as_ref().is_some_and(|child| !child.is_running());
        if !ended {
            return;
        }
        if self.dynos_end_with_it() {
            let killed = orphans::kill_all().await;
            if killed > 0 {
                info!(killed, "killed what the dead driver left");
            }
            if let Some(child) = &self.child {
                orphans::kill_left_by(child.socket()).await;
            }
            self.dynos_ended = true;
        }
        if let Some(child) = self.child.take() {
            // There may be no next one.
            remove_socket(child.socket());
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

    /// After a driver that is not our child has ended: nobody listens where it did.
    fn bury_unseen(&mut self) {
        self.dynos_ended |= self.dynos_end_with_it();
    }

    /// Reaps whatever has ended: the child driver, and, for a subreaper, anybody's orphans.
    fn reap(&mut self) {
        Self::reap_into(self.child.as_mut());
    }

    fn reap_into(mut child: Option<&mut Child>) {
        for (pid, status) in orphans::reap() {
            if let Some(child) = child.as_deref_mut()
                && child.pid() == pid
            {
                child.ended(status);
            }
        }
    }

    /// Waits for `what` and keeps reaping meanwhile.
    async fn reaping(&mut self, what: impl Future<Output = ()>) {
        tokio::pin!(what);
        loop {
            tokio::select! {
                () = &mut what => return,
                _ = self.children.recv() => self.reap(),
            }
        }
    }
}

/// What a driver of an earlier life still runs must not run twice.
fn still_has_dynos(previous: &Previous, what: &str) -> Failure {
    let socket = previous.socket.display();
    Failure::passing(format!(
        "{what}; once it has ended, or `{socket}` is removed, its dynos count as gone"
    ))
}

/// Removes what a driver listened at. It may have done so itself.
fn remove_socket(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        debug!(%error, "driver socket not removed");
    }
}
