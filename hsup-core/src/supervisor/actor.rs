//! The supervisor's task: what it knows, and what wakes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use hsup_proto::control::{self, events_response};
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval_at},
};
use tracing::{debug, info, warn};

use super::{
    Outcome, RunError, Settings,
    formation::{Wanted, Wishes},
    handle::{Applied, Reply, Request},
    reconcile,
    releases::{Building, Built, Candidate, Good},
    restarts::Restarts,
    status,
};
use crate::{
    control::ControlError,
    driver::{DriverLink, Link, demands},
    dyno::{self, Birth, DynoHandle, DynoSpec, DynoStatus, Key, Report, Shared, What},
    exit::ExitStatus,
    lifecycle::{Kind, Stop},
    name::{DynoName, Selector},
    rollout,
    source::Source,
    state::{History, LiveDyno, Memory},
    time::now_unix_ms,
};

/// How often the driver is asked for what it runs, beside every new connection.
const RECONCILE_EVERY: Duration = Duration::from_mins(1);

/// A dyno whose task lives.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) handle: DynoHandle,
    pub(super) status: DynoStatus,
    /// It was told to retire.
    pub(super) retiring: bool,
}

/// What is remembered of a name that has no dyno.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub(super) status: DynoStatus,
    pub(super) release: u64,
    pub(super) command: Arc<str>,
    /// It was a one-shot and has ended.
    pub(super) complete: bool,
}

/// An answer that waits for something.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) until: Until,
    pub(super) reply: oneshot::Sender<()>,
}

/// See [`Waiter`].
#[derive(Debug)]
pub(super) enum Until {
    /// None of these tasks lives.
    Gone(BTreeSet<Key>),
    /// The release is current or rejected.
    Decided(u64),
}

/// How far a shutdown is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    ShuttingDown { until: Instant },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Actor {
    pub(super) app: String,
    pub(super) source: Source,
    pub(super) wishes: Wishes,
    pub(super) kind: Kind,
    pub(super) base: std::path::PathBuf,
    pub(super) shared: Arc<Shared>,
    pub(super) link: DriverLink,
    pub(super) link_state: watch::Receiver<Link>,
    pub(super) history: History,
    pub(super) memory: Memory,
    pub(super) survivors: Vec<LiveDyno>,

    pub(super) good: Option<Good>,
    pub(super) candidate: Option<Candidate>,
    pub(super) building: Option<Building>,
    /// Built while a rollout was going back: it begins when that is over.
    pub(super) next: Option<Good>,
    /// The source's own numbers of releases that it has not heard of since.
    pub(super) source_ids: BTreeMap<u64, u64>,
    /// What the source is to be told: its number of a rejected release, and why.
    pub(super) verdicts: Vec<(u64, String)>,
    /// Who waits for the source to bring back what was applied, and whether for no more.
    pub(super) applied: Option<(Reply<Applied>, bool)>,
    /// New dynos that wait for their predecessor to end.
    pub(super) deferred: BTreeMap<DynoName, u64>,

    pub(super) dynos: BTreeMap<Key, Live>,
    pub(super) past: BTreeMap<DynoName, Past>,
    next_key: u64,

    inbox: mpsc::Receiver<Request>,
    reports: mpsc::UnboundedReceiver<Report>,
    pub(super) report_to: mpsc::UnboundedSender<Report>,
    built: mpsc::UnboundedReceiver<Built>,
    pub(super) built_to: mpsc::UnboundedSender<Built>,
    pub(super) events: broadcast::Sender<control::EventsResponse>,
    pub(super) waiters: Vec<Waiter>,
    pub(super) restarts: Restarts,
    pub(super) phase: Phase,
    /// Who asked for the end.
    pub(super) ending: Vec<Reply<()>>,
    pub(super) started_at_unix_ms: i64,
    largest_code: u8,
    fatal: Option<RunError>,
}

impl Actor {
    pub(super) fn new(
        settings: Settings,
        inbox: mpsc::Receiver<Request>,
        events: broadcast::Sender<control::EventsResponse>,
    ) -> Self {
        let (report_to, reports) = mpsc::unbounded_channel();
        let (built_to, built) = mpsc::unbounded_channel();
        let mut scaled = settings.memory.get().quantities.clone();
        if settings.explicit.is_some() {
            // The command line is the later word.
            scaled.clear();
        }
        Self {
            app: settings.app,
            source: settings.source,
            wishes: Wishes {
                explicit: settings.explicit,
                scaled,
                start_number: settings.start_number,
            },
            kind: settings.kind,
            base: settings.base,
            shared: settings.shared,
            link_state: settings.link.watch(),
            link: settings.link,
            history: settings.history,
            memory: settings.memory,
            survivors: settings.survivors,
            good: None,
            candidate: None,
            building: None,
            next: None,
            source_ids: BTreeMap::new(),
            verdicts: Vec::new(),
            applied: None,
            deferred: BTreeMap::new(),
            dynos: BTreeMap::new(),
            past: BTreeMap::new(),
            next_key: 0,
            inbox,
            reports,
            report_to,
            built,
            built_to,
            events,
            waiters: Vec::new(),
            restarts: Restarts::default(),
            phase: Phase::Running,
            ending: Vec::new(),
            started_at_unix_ms: now_unix_ms(),
            largest_code: 0,
            fatal: None,
        }
    }

    pub(super) async fn run(mut self) -> Result<Outcome, RunError> {
        let begins = self.await_driver().await;
        if !matches!(begins, Ok(true)) {
            self.end().await;
            return begins.map(|_| Outcome::ShutDown);
        }
        self.adopt_survivors();
        let mut reconcile = interval_at(Instant::now() + RECONCILE_EVERY, RECONCILE_EVERY);
        reconcile.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let result = loop {
            let deadline = match self.phase {
                Phase::Running => None,
                Phase::ShuttingDown { until } => Some(until),
            };
            tokio::select! {
                biased;
                Some(report) = self.reports.recv() => self.report(report),
                Some(request) = self.inbox.recv() => self.request(request),
                Some(built) = self.built.recv() => self.built(built),
                Ok(()) = self.link_state.changed() => self.link_changed(),
                update = self.source.next(), if self.phase == Phase::Running => self.update(update),
                _ = reconcile.tick() => self.reconcile(),
                () = at(deadline) => {
                    warn!(left = self.dynos.len(), "dynos did not end in time");
                    self.note(format!(
                        "{} dynos did not end in time and are left to the driver",
                        self.dynos.len()
                    ));
                    break Outcome::ShutDown;
                }
            }
            for (id, why) in std::mem::take(&mut self.verdicts) {
                let rejected = self.source.reject(id, &why).await;
                self.complain(rejected);
            }
            self.answer_waiters();
            if let Some(error) = self.fatal.take() {
                self.retire_all(Stop::Immediately);
                self.end().await;
                return Err(error);
            }
            if let Some(outcome) = self.outcome() {
                break outcome;
            }
        };
        self.end().await;
        Ok(result)
    }

    /// Ends the driver, and tells whoever wanted the end that it is there.
    async fn end(&mut self) {
        self.link.end().await;
        for reply in std::mem::take(&mut self.ending) {
            // Whoever asked may have gone.
            drop(reply.send(Ok(())));
        }
    }

    /// Waits for the driver's first answer, without which it is no use to begin; answers
    /// whether to begin, or to end already.
    async fn await_driver(&mut self) -> Result<bool, RunError> {
        let (mut told, mut first) = (false, true);
        loop {
            let link = self.link_state.borrow_and_update().clone();
            match link {
                Link::Up(up) => {
                    // Else every dyno would fail for it.
                    demands::check_binds(&up.info, &self.shared.binds)
                        .map_err(|error| RunError::Driver(error.to_string()))?;
                    self.remember_driver(&up);
                    self.reconcile();
                    return Ok(true);
                }
                Link::Down {
                    why,
                    hopeless: true,
                } => return Err(RunError::Driver(why)),
                Link::Down { why, .. } => {
                    debug!(why, "waiting for the driver");
                    if !told && !first {
                        told = true;
                        self.note(format!("Waiting for the driver: {why}"));
                    }
                    first = false;
                }
            }
            tokio::select! {
                changed = self.link_state.changed() => if changed.is_err() {
                    return Err(RunError::Driver("the link to the driver ended".to_owned()));
                },
                Some(request) = self.inbox.recv() => {
                    if let Request::Shutdown(_, reply) = request {
                        self.ending.push(reply);
                        return Ok(false);
                    }
                    request.refuse();
                }
            }
        }
    }

    fn remember_driver(&mut self, up: &crate::driver::Up) {
        let socket = up.child.then(|| up.socket.clone());
        let pid = up.pid().filter(|_| up.child);
        let saved = self.memory.update(|memory| {
            memory.driver_socket = socket;
            memory.driver_pid = pid;
        });
        self.complain(saved);
    }

    fn link_changed(&mut self) {
        let link = self.link_state.borrow_and_update().clone();
        let event = match &link {
            Link::Up(up) => {
                let up = Arc::clone(up);
                self.remember_driver(&up);
                let message = if up.silent {
                    "it does not answer its health checks".to_owned()
                } else {
                    up.info.message.clone()
                };
                if up.silent || !up.info.ready {
                    self.note(format!(
                        "The {} driver is not ready: {message}",
                        up.info.name
                    ));
                } else {
                    self.note(format!("The {} driver is ready", up.info.name));
                }
                self.reconcile();
                events_response::Driver {
                    name: up.info.name.clone(),
                    connected: true,
                    ready: up.info.ready && !up.silent,
                    message,
                }
            }
            Link::Down { why, .. } => {
                self.note(format!("The driver is gone: {why}"));
                events_response::Driver {
                    name: String::new(),
                    connected: false,
                    ready: false,
                    message: why.clone(),
                }
            }
        };
        self.event(events_response::Event::Driver(event));
    }

    /// Has the driver's list compared with what we run.
    fn reconcile(&self) {
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move { reconcile::sweep(&shared).await });
    }

    // ---- dynos

    /// Starts a dyno, or takes one over.
    pub(super) fn spawn_dyno(&mut self, spec: DynoSpec, birth: Birth) {
        self.next_key += 1;
        let key = Key(self.next_key);
        let past = self.past.remove(&spec.name);
        let status = DynoStatus {
            state: control::DynoState::Down,
            since_unix_ms: now_unix_ms(),
            ready: false,
            restarts: 0,
            last_exit: None,
            crash: None,
            retry_at_unix_ms: None,
            crashes_in_a_row: 0,
            dyno_id: None,
            ip: String::new(),
            port: 0,
        };
        let inherited = past.map_or_else(dyno::Past::default, |past| dyno::Past {
            last_exit: past.status.last_exit,
            crash: past.status.crash,
        });
        let handle = dyno::spawn(
            key,
            spec,
            birth,
            inherited,
            Arc::clone(&self.shared),
            self.report_to.clone(),
        );
        let live = Live {
            handle,
            status,
            retiring: false,
        };
        self.dynos.insert(key, live);
    }

    /// The specification of a dyno of `good`, if its release has that process type.
    pub(super) fn spec_of(&self, name: &DynoName, good: &Good) -> Option<DynoSpec> {
        let process = good.release.process(name.process_type.as_str())?;
        let command: Arc<str> = process.command.as_str().into();
        Some(DynoSpec {
            name: name.clone(),
            release_id: good.id,
            release: Arc::clone(&good.release),
            artifact: Arc::clone(&good.artifact),
            command,
            kind: self.kind,
        })
    }

    pub(super) fn retire(&mut self, key: Key, how: Stop) {
        if let Some(live) = self.dynos.get_mut(&key) {
            live.retiring = true;
            live.handle.retire(how);
            self.restarts.settled(key);
        }
    }

    pub(super) fn retire_all(&mut self, how: Stop) {
        let keys: Vec<_> = self.dynos.keys().copied().collect();
        for key in keys {
            self.retire(key, how);
        }
    }

    pub(super) fn gracefully(&self) -> Stop {
        Stop::Gracefully {
            grace: self.shared.policy.grace,
        }
    }

    /// The dynos of that name, oldest first.
    pub(super) fn of_name<'a>(
        &'a self,
        name: &'a DynoName,
    ) -> impl Iterator<Item = (Key, &'a Live)> {
        self.dynos
            .iter()
            .filter(move |(_, live)| live.handle.spec.name == *name)
            .map(|(key, live)| (*key, live))
    }

    fn report(&mut self, report: Report) {
        let Some(live) = self.dynos.get_mut(&report.key) else {
            return;
        };
        let name = live.handle.spec.name.clone();
        let release_id = live.handle.spec.release_id;
        match report.what {
            What::Status(status) => {
                live.status = *status;
                let dyno = status::dyno(live);
                self.event(events_response::Event::Dyno(dyno));
            }
            What::Ready => {
                self.restarts.settled(report.key);
                if self.is_candidate(release_id) {
                    self.roll(rollout::Event::Ready(name));
                } else {
                    self.roll(rollout::Event::GoodSettled(name));
                }
            }
            What::Failed(why) => {
                self.restarts.failed(report.key, &name, &why);
                let crash = live
                    .status
                    .crash
                    .as_ref()
                    .map(|crash| crash.dyno_id.clone());
                let running = live.status.dyno_id.clone();
                if self.is_candidate(release_id) {
                    self.blame(&name, &why, running.or(crash).as_ref());
                    self.roll(rollout::Event::Failed(name));
                } else {
                    self.roll(rollout::Event::GoodSettled(name));
                }
            }
            What::Complete(exit) => self.complete(report.key, exit.as_ref()),
        }
    }

    fn complete(&mut self, key: Key, exit: Option<&ExitStatus>) {
        let Some(live) = self.dynos.remove(&key) else {
            return;
        };
        self.restarts.settled(key);
        let spec = &live.handle.spec;
        let name = spec.name.clone();
        let release_id = spec.release_id;
        if self.kind == Kind::OneShot
            && let Some(exit) = exit
        {
            self.largest_code = self.largest_code.max(exit.exit_code());
        }
        let past = Past {
            release: spec.release.version,
            command: Arc::clone(&spec.command),
            complete: self.kind == Kind::OneShot && !live.retiring,
            status: live.status.clone(),
        };
        if self.of_name(&name).next().is_none() {
            self.past.insert(name.clone(), past);
        }
        self.event(events_response::Event::Gone(events_response::Gone {
            name: name.to_string(),
            dyno_id: String::new(),
            status: exit.map(Into::into),
        }));
        let event = if self.is_candidate(release_id) {
            rollout::Event::NewGone(name.clone())
        } else {
            rollout::Event::OldGone(name.clone())
        };
        self.roll(event);
        self.start_deferred(&name);
        self.converge();
    }

    /// Makes what runs be what is wanted, but for what a rollout is at.
    pub(super) fn converge(&mut self) {
        if self.phase != Phase::Running {
            return;
        }
        let Some(good) = self.good.clone() else {
            return;
        };
        let formation = self.formation();
        let mut wanted: BTreeSet<DynoName> = BTreeSet::new();
        for process in &formation {
            wanted.extend(self.wishes.names(process));
        }
        let rolling: BTreeSet<DynoName> = match &self.candidate {
            Some(candidate) => candidate.names.clone(),
            None => BTreeSet::new(),
        };
        // What is wanted no more goes, whoever was at it.
        let surplus: Vec<(Key, DynoName)> = self
            .dynos
            .iter()
            .filter(|(_, live)| !live.retiring)
            .map(|(key, live)| (*key, live.handle.spec.name.clone()))
            .filter(|(_, name)| !wanted.contains(name) && !rolling.contains(name))
            .collect();
        for (key, _) in surplus {
            self.retire(key, self.gracefully());
        }
        let unwanted: Vec<_> = rolling
            .iter()
            .filter(|name| !self.wanted_after_rollout(name))
            .cloned()
            .collect();
        for name in unwanted {
            self.forget_in_rollout(&name);
        }
        self.past
            .retain(|name, _| wanted.contains(name) || rolling.contains(name));
        for name in wanted {
            if rolling.contains(&name) || self.is_held(&name) {
                continue;
            }
            let mut others = self.of_name(&name);
            if let Some((key, live)) = others.next() {
                let outdated = live.handle.spec.release_id != good.id && !live.retiring;
                drop(others);
                if outdated {
                    self.retire(key, self.gracefully());
                }
                continue;
            }
            drop(others);
            let complete = self.past.get(&name).is_some_and(|past| past.complete);
            if !complete && let Some(spec) = self.spec_of(&name, &good) {
                self.spawn_dyno(spec, Birth::Start);
            }
        }
    }

    /// The formation as wanted now: of the good release.
    pub(super) fn formation(&self) -> Vec<Wanted> {
        match &self.good {
            Some(good) => self.wishes.formation(&good.release),
            None => Vec::new(),
        }
    }

    pub(super) fn is_held(&self, name: &DynoName) -> bool {
        self.memory.get().stopped.contains(name)
    }

    /// Every name that is or was there, and that `select` means; all when it is empty.
    pub(super) fn selected(&self, select: &[String]) -> Result<BTreeSet<DynoName>, ControlError> {
        let mut all: BTreeSet<DynoName> = self
            .dynos
            .values()
            .map(|live| live.handle.spec.name.clone())
            .collect();
        for process in self.formation() {
            all.extend(self.wishes.names(&process));
        }
        if select.is_empty() {
            return Ok(all);
        }
        let mut selected = BTreeSet::new();
        for text in select {
            let selector: Selector = text
                .parse()
                .map_err(|error| ControlError::Invalid(format!("{error}")))?;
            let before = selected.len();
            selected.extend(all.iter().filter(|name| selector.matches(name)).cloned());
            let known_type = self
                .good
                .as_ref()
                .is_some_and(|good| good.release.process(text).is_some());
            if selected.len() == before && !known_type {
                let names: Vec<_> = all.iter().map(ToString::to_string).collect();
                return Err(ControlError::NotFound(if names.is_empty() {
                    format!("no dyno or process type `{text}`: none runs")
                } else {
                    format!(
                        "no dyno or process type `{text}`: there is {}",
                        abbreviated(&names)
                    )
                }));
            }
        }
        Ok(selected)
    }

    // ---- the end

    pub(super) fn shut_down(&mut self, how: Stop) {
        let grace = match how {
            Stop::Gracefully { grace } => grace,
            Stop::Immediately => Duration::ZERO,
        };
        let until = Instant::now() + grace + Duration::from_secs(15);
        if let Some(building) = self.building.take() {
            building.task.abort();
        }
        self.candidate = None;
        self.next = None;
        self.deferred.clear();
        // Whoever waits for one is told that hsup ends.
        self.restarts = Restarts::default();
        self.phase = Phase::ShuttingDown { until };
        info!(dynos = self.dynos.len(), "shutting down");
        self.retire_all(how);
    }

    fn outcome(&self) -> Option<Outcome> {
        if !self.dynos.is_empty() {
            return None;
        }
        if self.phase != Phase::Running {
            return Some(Outcome::ShutDown);
        }
        let all_complete = self.kind == Kind::OneShot
            && self.good.is_some()
            && self.building.is_none()
            && self.candidate.is_none()
            && self.deferred.is_empty();
        all_complete.then_some(Outcome::AllComplete(self.largest_code))
    }

    pub(super) fn fail(&mut self, error: RunError) {
        self.fatal = Some(error);
    }

    // ---- telling

    /// A line of hsup's own.
    pub(super) fn note(&self, text: impl AsRef<str>) {
        self.shared.logs.note("system", text);
    }

    /// A line about releases, in Heroku's place for them.
    pub(super) fn note_release(&self, text: impl AsRef<str>) {
        self.shared.logs.note("api", text);
    }

    pub(super) fn event(&self, event: events_response::Event) {
        // Nobody listens: fine.
        drop(self.events.send(control::EventsResponse {
            at_unix_ms: now_unix_ms(),
            event: Some(event),
        }));
    }

    /// Says that something could not be saved. It counts as long as hsup runs.
    pub(super) fn complain<E: std::error::Error>(&self, saved: Result<(), E>) {
        if let Err(error) = saved {
            let why = crate::errors::chain(&error);
            warn!(why, "state not saved");
            self.note(format!(
                "{why}; hsup goes on, but will not remember this when it is started again"
            ));
        }
    }

    fn answer_waiters(&mut self) {
        let waiters = std::mem::take(&mut self.waiters);
        for waiter in waiters {
            if self.is_over(&waiter.until) {
                // Whoever asked may have gone.
                let _ = waiter.reply.send(());
            } else {
                self.waiters.push(waiter);
            }
        }
    }

    fn is_over(&self, until: &Until) -> bool {
        match until {
            Until::Gone(keys) => !keys.iter().any(|key| self.dynos.contains_key(key)),
            Until::Decided(id) => {
                !self.is_candidate(*id)
                    && self
                        .building
                        .as_ref()
                        .is_none_or(|building| building.id != *id)
                    && self.next.as_ref().is_none_or(|next| next.id != *id)
            }
        }
    }
}

/// The first names, and how many more there are.
fn abbreviated(names: &[String]) -> String {
    const SHOWN: usize = 10;
    if names.len() <= SHOWN {
        names.join(", ")
    } else {
        format!(
            "{} and {} more",
            names[..SHOWN].join(", "),
            names.len() - SHOWN
        )
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
