//! The supervisor's task: what it knows, and what wakes it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hsup_proto::control::{self, DynoState, GetDriverResponse, events_response};
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at},
};
use tracing::warn;

use super::{
    Outcome, RunError, Settings,
    building::{BuildDone, Builds},
    cycling::Due,
    ending::Phase,
    formation::Wishes,
    gap::Gap,
    handle::{Reply, Request},
    living::Living,
    release_phase::ReleaseCommands,
    restarts::Restarts,
    rollout::Trial,
    status,
    sweep::Sweeper,
    waiters::Waiter,
};
use crate::{
    driver::{DriverLink, Link},
    dyno::{DynoHandle, DynoStatus, Key, Report, Shared},
    lifecycle::{Kind, Stop},
    name::DynoName,
    release::Release,
    releases::{Id, Releases},
    rollout::Policy,
    source::{News, Source},
    state::{History, LiveDyno, Memory, SaveError},
    time::{now_unix_ms, reached},
};

/// How often the driver is asked for what it runs, beside every new connection.
const SWEEP_EVERY: Duration = Duration::from_mins(1);

/// A dyno whose task lives.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) handle: DynoHandle,
    pub(super) status: DynoStatus,
    /// It was told to retire.
    pub(super) retiring: bool,
    /// When a fresh one is to take its place.
    pub(super) due: Option<Due>,
}

impl Live {
    /// Has it start again. Its own report follows; until then it must not look as if it were
    /// through.
    pub(super) fn restart(&mut self, how: Stop) {
        self.handle.restart(how);
        self.status.ready = false;
        self.status.state = DynoState::Starting;
    }
}

/// A release that the supervisor works with.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) id: Id,
    pub(super) release: Arc<Release>,
    /// What the driver made of it, once it has.
    pub(super) artifact: Option<Arc<str>>,
}

/// What is remembered of a name that has no dyno.
#[derive(Clone, Debug)]
pub(super) struct LastSeen {
    pub(super) status: DynoStatus,
    pub(super) version: u64,
    pub(super) command: Arc<str>,
}

impl LastSeen {
    /// Whether it was a one-shot and has ended.
    pub(super) fn is_complete(&self) -> bool {
        self.status.state == DynoState::Complete
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Actor {
    pub(super) app: String,
    pub(super) source: Source,
    pub(super) wishes: Wishes,
    pub(super) kind: Kind,
    pub(super) rollouts: Policy,
    pub(super) release_timeout: Option<Duration>,
    pub(super) cycle_every: Option<Duration>,
    pub(super) base: std::path::PathBuf,
    pub(super) shared: Arc<Shared>,
    pub(super) sweeper: Arc<Sweeper>,
    pub(super) link: DriverLink,
    pub(super) link_state: watch::Receiver<Link>,
    pub(super) history: History,
    pub(super) memory: Memory,
    pub(super) survivors: Vec<LiveDyno>,

    pub(super) releases: Releases,
    /// Those that it speaks of.
    pub(super) known: BTreeMap<Id, Known>,
    pub(super) trial: Option<Trial>,
    /// Which dynos are missing because of the release on trial, or of the one before it.
    pub(super) gap: Option<Gap>,
    pub(super) builds: Builds,
    /// People were told what they asked for in an earlier life.
    pub(super) has_said_wishes: bool,
    /// The source has said its first word.
    pub(super) has_begun: bool,
    /// What the source is to be told of the newest release.
    pub(super) news: Option<News>,
    pub(super) release_commands: ReleaseCommands,
    /// When to look for dynos that have run long enough.
    pub(super) cycle_at: Option<Instant>,
    /// Dynos that are to take another's place, once they are ready.
    pub(super) successors: BTreeMap<Key, Key>,
    /// New dynos that wait for their predecessor to end.
    pub(super) deferred: BTreeMap<DynoName, Id>,

    pub(super) dynos: Living,
    pub(super) past: BTreeMap<DynoName, LastSeen>,
    pub(super) next_key: u64,

    pub(super) inbox: mpsc::Receiver<Request>,
    reports: mpsc::UnboundedReceiver<Report>,
    pub(super) report_to: mpsc::UnboundedSender<Report>,
    built: mpsc::UnboundedReceiver<BuildDone>,
    pub(super) built_to: mpsc::UnboundedSender<BuildDone>,
    pub(super) events: broadcast::Sender<control::EventsResponse>,
    pub(super) waiters: Vec<Waiter>,
    pub(super) restarts: Restarts,
    pub(super) phase: Phase,
    /// Who asked for the end.
    pub(super) ending: Vec<Reply<()>>,
    pub(super) started_at_unix_ms: i64,
    pub(super) largest_code: u8,
    pub(super) fatal: Option<RunError>,
    /// Something could not be saved, and people were told.
    is_behind: bool,
}

impl Actor {
    pub(super) fn new(
        settings: Settings,
        inbox: mpsc::Receiver<Request>,
        events: broadcast::Sender<control::EventsResponse>,
    ) -> Self {
        let (report_to, reports) = mpsc::unbounded_channel();
        let (built_to, built) = mpsc::unbounded_channel();
        // What cannot be started leaves the file as it is: see Actor::begin.
        let (mut memory, once) = (settings.memory, settings.kind == Kind::OneShot);
        memory.change(|remembered| remembered.heed(settings.explicit.as_ref(), once));
        Self {
            app: settings.app,
            source: settings.source,
            wishes: Wishes {
                explicit: settings.explicit,
                scaled: memory.get().quantities.clone(),
                start_number: settings.start_number,
            },
            kind: settings.kind,
            rollouts: settings.rollouts,
            release_timeout: settings.release_timeout,
            cycle_every: settings.cycle_every.filter(|_| settings.kind == Kind::Kept),
            base: settings.base,
            sweeper: Arc::new(Sweeper::new(Arc::clone(&settings.shared))),
            shared: settings.shared,
            link_state: settings.link.watch(),
            link: settings.link,
            history: settings.history,
            memory,
            survivors: settings.survivors,
            releases: Releases::default(),
            known: BTreeMap::new(),
            trial: None,
            gap: None,
            builds: Builds::new(),
            has_said_wishes: false,
            has_begun: false,
            news: None,
            release_commands: ReleaseCommands::default(),
            cycle_at: None,
            successors: BTreeMap::new(),
            deferred: BTreeMap::new(),
            dynos: Living::default(),
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
            is_behind: false,
        }
    }

    pub(super) async fn run(mut self) -> Result<Outcome, RunError> {
        let has_survivors = !self.survivors.is_empty();
        if let Some(outcome) = self.take_over().await? {
            return Ok(outcome);
        }
        let mut sweep = interval_at(Instant::now() + SWEEP_EVERY, SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let result = loop {
            let deadline = self.phase.deadline();
            let release_deadline = self.release_commands.deadline();
            tokio::select! {
                biased;
                Some(report) = self.reports.recv() => self.report(report),
                Some(request) = self.inbox.recv() => self.request(request),
                Some(built) = self.built.recv() => self.built(built),
                Ok(()) = self.link_state.changed() => self.link_changed(),
                update = self.source.next(), if self.phase == Phase::Running => self.update(update),
                _ = sweep.tick() => {
                    self.save_again();
                    self.source.forgive();
                    self.sweep();
                }
                () = reached(self.cycle_at) => self.cycle(),
                () = reached(release_deadline) => self.release_phase_is_late(),
                () = reached(deadline) => break self.give_dynos_up(),
            }
            self.tell_source().await;
            self.answer_waiters();
            if let Some(error) = self.fatal.take() {
                // A start that never began is no reason to end what survived the one before.
                if self.has_begun || !has_survivors {
                    self.retire_all(Stop::Immediately);
                    self.end().await;
                }
                return Err(error);
            }
            if let Some(outcome) = self.outcome() {
                break outcome;
            }
        };
        self.end_as(&result).await;
        Ok(result)
    }

    fn link_changed(&mut self) {
        let link = self.link_state.borrow_and_update().clone();
        let GetDriverResponse {
            name,
            ready,
            message,
            ..
        } = status::link(&link);
        // As it was told: the connection of one that is up may be gone again by now.
        let connected = matches!(link, Link::Up(_));
        if connected {
            self.note(if ready {
                format!("The {name} driver is ready")
            } else {
                format!("The {name} driver is not ready: {message}")
            });
            self.sweep();
        } else {
            self.note(format!("The driver is gone: {message}"));
        }
        self.event(events_response::Event::Driver(events_response::Driver {
            name,
            connected,
            ready,
            message,
        }));
    }

    /// Has the driver's list compared with what we run.
    fn sweep(&self) {
        let sweeper = Arc::clone(&self.sweeper);
        tokio::spawn(async move { sweeper.sweep().await });
    }

    // ---- telling

    /// A line of hsup's own.
    pub(super) fn note(&self, text: impl AsRef<str>) {
        self.shared.logs.note("system", text);
    }

    /// A line about releases or the formation, in Heroku's place for them.
    pub(super) fn note_release(&self, text: impl AsRef<str>) {
        self.shared.logs.note(crate::logs::API, text);
    }

    pub(super) fn event(&self, event: events_response::Event) {
        // Nobody listens: fine.
        drop(self.events.send(control::EventsResponse {
            at_unix_ms: now_unix_ms(),
            event: Some(event),
        }));
    }

    /// Says once that state could not be saved, and once that it could be after all. It
    /// counts as long as hsup runs.
    pub(super) fn complain(&mut self, saved: Result<(), SaveError>) {
        match saved {
            Err(error) => {
                let why = crate::errors::chain(&error);
                warn!(why, "state not saved");
                self.is_behind = true;
                if !error.is_repeated() {
                    self.note(format!(
                        "{why}; hsup goes on, but will not remember this when it is started again"
                    ));
                }
            }
            Ok(()) if self.is_behind && !self.history.is_behind() && !self.memory.is_behind() => {
                self.is_behind = false;
                self.note("What could not be saved before is saved now");
            }
            Ok(()) => {}
        }
    }

    /// Saves what could not be saved when it changed: the disk may have room again.
    pub(super) fn save_again(&mut self) {
        self.shared.ledger.catch_up();
        if self.is_behind {
            let saved = self.history.save_again();
            self.complain(saved);
            let saved = self.memory.update(|_| ());
            self.complain(saved);
        }
    }
}
